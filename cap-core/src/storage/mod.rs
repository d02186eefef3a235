//! The storage trait: what a database must promise so that no message is lost.
//!
//! A storage stores, claims and settles what the engine tells it, atomically. It decides nothing about retries, times or
//! statuses: the engine computes a [`State`] and the storage writes it. Every method states its promises in a numbered list;
//! a check of `cap-testkit` quotes them as `claim/2`.
//!
//! # Tables
//! `published` (the outbox) and `received` (the inbox), with CAP's columns `Id`, `Version`, `Name`, `Group` (inbox
//! only), `Content`, `Retries`, `Added`, `ExpiresAt`, `StatusName`, and ours after them:
//!
//! | column | holds |
//! |---|---|
//! | `MessageId` | unique in the outbox; unique together with `Group` in the inbox |
//! | `DueAt` | when it may be claimed; none while in flight and when terminal |
//! | `Owner` | the node that holds it; none when nobody does |
//! | `Claim` | the token that the owner claimed it with |
//! | `Reason` | why the last attempt failed |
//! | `Crashes` | how many attempts in a row ended with their process: more than none makes it a suspect |
//!
//! and two small ones: of nodes, with the end of each one's lease, and of chores, with the node that does each and until
//! when.
//!
//! # Time
//! Every "now" below is the database's clock, in UTC, to the microsecond or as fine as the database has it. A storage
//! whose clock is the host's says so in [`StorageCapabilities::host_clock`].
//!
//! # Futures
//! The engine drives each future that a storage returns to its end, unless the whole runtime goes away; only
//! [`Storage::watch`] is dropped at will. All methods may be called at the same time from many tasks.
//!
//! [`Storage::join`] and [`Storage::heartbeat`] are called from a thread with a Tokio runtime of its own, so that handlers
//! that block every thread of the user's runtime do not cost the node its lease. A storage whose connections belong to
//! the runtime that made them keeps one for these two alone.
//!
//! # Errors
//! What a storage calls `Rejected` or `Invalid` is the fault of what it was given: the engine looks for the culprit in the
//! batch, and parks it. All that somebody can put right without touching the message (rights, a full disk, a read-only
//! server, a missing table) is `Environment`: the engine tries again, with pauses, and spends no attempt. If in doubt it is
//! `Environment`.

mod enlist;
mod inspect;
mod nodes;
mod records;
mod transact;
mod watch;
mod work;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use self::enlist::{Enlist, Receipt};
pub use self::inspect::{Counts, Query};
pub use self::nodes::{Chore, Lease, Sign, TakenOver};
pub use self::records::{Lane, NewRecord, Record, Table};
pub use self::transact::{Transact, TransactAsync, Transacted, Work};
pub use self::watch::Wake;
pub use self::work::{Claim, ClaimRequest, Claimed, Inserted, Settled, Settlement};
use crate::error::{Error, Result};
use crate::id::{NodeId, RecordId};
use crate::lifecycle::State;
use crate::name::Version;

#[diagnostic::on_unimplemented(
    message = "`{Self}` is no storage",
    note = "give the builder one with `.storage(…)` before `.start()`"
)]
/// A database. See the [module](self) for the tables and the rules on time and futures.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Kind and place for people, without secrets: `sqlite /var/lib/orders.db`.
    fn describe(&self) -> String;

    /// What it offers. Constant once [`prepare`](Storage::prepare) has answered: that may have asked the server.
    fn capabilities(&self) -> StorageCapabilities;

    /// Makes the tables ready: creates or upgrades them where the storage is allowed to, and checks them otherwise.
    ///
    /// 1. Idempotent, and safe when several nodes call it at once on an empty database.
    /// 2. Rows that are there survive.
    /// 3. Tables of a schema version that this code does not know are an error of kind `Schema` that names both
    ///    versions; nothing is changed.
    /// 4. A database that cannot be opened or written is an error that names it. It is told here, not by a
    ///    constructor: that one checks options and does no I/O.
    fn prepare(&self) -> BoxFuture<'_, Result<()>>;

    /// Inserts records in one transaction of its own. With a claim, those whose state is `Queued` are held by it.
    ///
    /// 1. When it answers, everything it calls `Stored` is committed as durably as the storage is configured to be.
    /// 2. One answer for each record, in their order.
    /// 3. A message id that is there already (for the inbox: with the same group) is `Duplicate`, and so is the second
    ///    of two equal ones in one call; the others are stored all the same. Of concurrent inserts of one id exactly
    ///    one is `Stored`.
    /// 4. On an error nothing is stored, unless its kind is `Unavailable`: then either all or nothing is.
    /// 5. Content, topic, group, version, state and reason come back from a claim or list unchanged.
    /// 6. A claim by a node that is not registered is refused with `LeaseLost` and nothing is stored.
    /// 7. A `Queued` record without a claim, which nobody would ever work on, and an inbox record without a group are
    ///    refused with `Invalid`, and nothing is stored.
    /// 8. Does not wait for an open transaction that has the record of the same id locked, such as that of a handler at
    ///    work on it, where the database can (a storage with one writer may wait for it): it is `Duplicate`.
    /// 9. What is refused because of a record is `Rejected` or `Invalid`; what is refused whatever the records are is
    ///    `Environment` or `Unavailable`.
    /// 10. Is not held up by another runtime whose threads are all blocked, though that one has used the storage (so for all
    ///     calls).
    fn insert(
        &self,
        table: Table,
        records: Vec<NewRecord>,
        claim: Option<Claim>,
    ) -> BoxFuture<'_, Result<Vec<Inserted>>>;

    /// Takes due records of a lane for a node.
    ///
    /// 1. Takes only committed records of this lane and version, of no excepted topic, that are due by the database's
    ///    clock and held by nobody; each becomes `Queued` with owner and token, and its attempts grow by one, atomically.
    /// 2. However many claims run at once, on however many handles, a record is in exactly one answer.
    /// 3. Earliest due first, also within the answer; at most `limit`, and 0 answers none.
    /// 4. Does not wait for records that other claims or open transactions hold, where the database can (a storage
    ///    with one writer may wait for it).
    /// 5. A node that is not registered is refused with `LeaseLost`.
    /// 6. `next_due` is right: never later than the next waiting record, zero if one was due and skipped.
    /// 7. Costs nothing that grows with the number of terminal or delayed records, nor with those of the other lanes.
    /// 8. Contents together have at most `bytes` bytes, unless it is a single record. If that is why fewer than `limit`
    ///    were taken, `next_due` is zero.
    /// 9. A refusal has taken nothing: an error of kind `LeaseLost`, `Environment`, `Rejected`, `Invalid`, `Schema` or
    ///    `Unsupported`. Any other leaves open whether something was taken, and the engine [releases](Storage::release) the
    ///    token, more than once: an answer that was lost is `Unavailable`.
    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>>;

    /// Writes the outcomes of attempts, in one transaction.
    ///
    /// 1. A settlement is written only if its record is still held under its token; otherwise it is `Lost` and the
    ///    record is untouched. One that is lost does not hinder the others.
    /// 2. One answer for each, in their order. After `Written` the record is held by nobody unless its state is
    ///    `Queued`.
    /// 3. Status, attempts, crashes, due time, expiry and reason are those of the state, times counted from the
    ///    database's clock. Nothing else changes: never `Content`.
    /// 4. On an error nothing is written, unless its kind is `Unavailable`: then either all or nothing is.
    /// 5. Does not wait for an open transaction that has a record locked, such as that of an abandoned handler, where the
    ///    database can (a storage with one writer may wait for it): that one is `Locked`, and the others are written.
    /// 6. What is refused because of a state is `Rejected`; what is refused whatever the states are is `Environment` or
    ///    `Unavailable`.
    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>>;

    /// Undoes a claim, or an insert with one, whose answer never arrived: whatever is held under this token is due at
    /// once, the attempt not counted.
    ///
    /// 1. Answers how many records that were; 0 when the claim never took place or is settled.
    /// 2. Records held under other tokens are untouched. (Here and below, what becomes due again keeps its reason, and its
    ///    crashes where nothing else is said.)
    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>>;

    /// In how long the next waiting record of each lane is due: zero if one is due now, `None` if none waits.
    ///
    /// 1. One answer for each lane, in their order; only committed records of this version that nobody holds count.
    /// 2. Takes no lock that a writer would wait for; one statement, and cheap however many records there are.
    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>>;

    /// Registers a node, with a lease from now on.
    ///
    /// 1. From then on the node may claim, until it is [taken over from](Storage::take_over) or leaves. The engine joins
    ///    with a fresh id each time; an id that is there already gets its lease anew.
    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>>;

    /// Gives a sign of life: the lease now ends `lease` from now.
    ///
    /// 1. A node that is unknown, has left or was taken over from stays lost. Another's lease is renewed even if its end
    ///    has passed: the database's clock may have been set forward.
    /// 2. The other nodes' signs are told as they are stored, never this one's.
    /// 3. The new end counts from now, be it later or sooner than the old one.
    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>>;

    /// Takes from the dead: each node of `dead` whose sign of life is still the same is forgotten, and every record that is
    /// held by a node which is not registered becomes due at once, its attempts unchanged and its crashes one more.
    ///
    /// The engine says who is dead, since only it has a clock that nobody sets: a node is, whose sign has not changed for as
    /// long as its lease was when it was first seen.
    ///
    /// 1. Nothing is taken from another node, however long ago it claimed and whatever the clock says of its lease.
    /// 2. Everything is taken from a node that is not registered, however old the record.
    /// 3. Afterwards the former owner's claims are refused and its settlements are `Lost`.
    /// 4. Safe when several nodes call it at once.
    /// 5. Does not wait for an open transaction that has a record locked, where the database can: that record is taken by
    ///    the first call after its end.
    ///
    /// After an error the engine calls it again, with the same signs or later ones: what was taken stays taken.
    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>>;

    /// Signs a node off: it is forgotten, and what it still holds becomes due at once, the attempts not counted.
    ///
    /// 1. As a takeover, but of this node only, and at once; no crash is counted. What an open transaction has locked is
    ///    not waited for: a takeover finds it later.
    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>>;

    /// Takes a chore for a node, or renews its right to it: from now on the node may do it, alone, until `term` has
    /// passed. Answers whether it may; `false` says that it is another node's turn.
    ///
    /// 1. Of the nodes that ask, however many at once and on however many handles, one has the chore. The others are
    ///    answered `false`, and change nothing.
    /// 2. The node that has it gets it again: the term counts from now, be it later or sooner than the old one.
    /// 3. When the term has passed, the next that asks gets it, and not before.
    /// 4. It is free at once when the node that has it leaves or is taken over.
    /// 5. A node that is not registered is refused with `LeaseLost`, and changes nothing.
    /// 6. Does not wait for open transactions, where the database can (a storage with one writer may wait for it), and
    ///    holds nothing that another call would wait for.
    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>>;

    /// Deletes at most `limit` terminal records whose expiry has passed, whatever their version; answers how many.
    ///
    /// 1. Deletes nothing that is not terminal, whatever its times say.
    /// 2. Safe when several nodes call it at once, and never deadlocks with publishing, claiming and settling. The engine
    ///    lets one node do it ([`Chore::Collect`]), but relies on this when a node is slow to notice that its turn is over.
    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>>;

    /// How many records of a version there are of each kind.
    ///
    /// 1. Agrees with [`Storage::list`] when nothing changes meanwhile.
    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>>;

    /// A page of records, by address.
    ///
    /// 1. Pages with `after` show each record that is there throughout exactly once, whatever is inserted meanwhile.
    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>>;

    /// Gives terminal records a new life with `state`; answers how many.
    ///
    /// 1. Only terminal records change; a record in flight or waiting is untouched.
    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>>;

    /// Deletes records that nobody holds, waiting ones too (which cancels them); answers how many.
    ///
    /// 1. A record in flight is untouched.
    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>>;

    /// Runs until dropped, and wakes the engine for commits that it did not make itself. Polling covers what it misses.
    ///
    /// 1. Not declared in `capabilities().watches`: answers `Unsupported` at once.
    /// 2. Declared: a committed [`Storage::insert`] of another handle wakes its table; extra wake-ups are harmless. What users
    ///    commit in transactions of their own, in other processes, may be told of or not: where telling would cost
    ///    their transactions something, it is polled for.
    /// 3. May be dropped at any await.
    /// 4. Says [`Wake::listens`] as soon as commits are told of, and again after each gap.
    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        let _ = wake;
        Box::pin(async move { Err(Error::unsupported("watch for commits in", self.describe())) })
    }
}

/// What a storage offers beyond the least. What is not declared must answer `Unsupported`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StorageCapabilities {
    /// Records outlive the process.
    pub persistent: bool,
    /// Several processes may use it at once.
    pub shared: bool,
    /// Publishing can join the caller's own transaction ([`Enlist`]).
    pub enlists: bool,
    /// A handler can work inside the transaction that settles its record (promise 5).
    pub transactional_handlers: bool,
    /// A savepoint of the caller's transaction takes what was published in it back.
    pub savepoints: bool,
    /// [`Storage::watch`] tells of commits by other processes.
    pub watches: bool,
    /// "Now" is the host's clock: right only while all nodes run on one host.
    pub host_clock: bool,
    /// The longest `Content`, in bytes, if there is a limit worth knowing; learnt from the server where it can be asked.
    pub max_content: Option<usize>,
    /// The database cannot store every text, since its encoding is not Unicode: the engine hands it `Content` and reasons in
    /// ASCII (JSON escapes the rest), and refuses other names.
    pub ascii_only: bool,
}

/// A boxed future, which keeps the traits object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
