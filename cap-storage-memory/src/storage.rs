//! The storage trait, over the tables of [`state`](crate::state).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::backend::{refuse, unregistered};
use cap_core::error::{Error, ErrorKind, Result};
use cap_core::lifecycle::State;
use cap_core::storage::{
    BoxFuture, Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled,
    Settlement, Sign, Storage, StorageCapabilities, Table, TakenOver, Wake,
};
use cap_core::{NodeId, RecordId, Status, Timestamp, Version};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::MemoryStorageOptions;
use crate::enlist::MemoryTransaction;
use crate::state::{Counted, Database};

/// A database in this process's memory. A clone is another handle on the same database, which is gone with the last
/// handle.
///
/// Publishing joins a [`MemoryTransaction`] ([`MemoryStorage::begin`]); beside the messages it holds a map of texts,
/// which stands for the business data: [`MemoryTransaction::put`], [`MemoryStorage::get`].
#[derive(Clone, Default)]
pub struct MemoryStorage {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) options: MemoryStorageOptions,
    database: Mutex<Database>,
    /// How many times something became due in the outbox and in the inbox.
    commits: watch::Sender<[u64; 2]>,
    /// An open transaction has ended, or let go of something that it had inserted.
    pub(crate) unlocked: Notify,
}

impl Shared {
    /// The lock is never held across an await, and nothing of the user's runs under it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the watchers of a table. Call it after the lock is given back.
    pub(crate) fn wake(&self, table: Table) {
        self.commits.send_modify(|commits| commits[table as usize] += 1);
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStorage").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl MemoryStorage {
    /// An empty database with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty database with these limits.
    pub fn with_options(options: MemoryStorageOptions) -> Self {
        Self { shared: Arc::new(Shared { options, ..Shared::default() }) }
    }

    /// Begins a transaction, in which messages are published together with business data.
    pub fn begin(&self) -> MemoryTransaction {
        MemoryTransaction::begin(Arc::clone(&self.shared))
    }

    /// The committed business value of `key`.
    pub fn get(&self, key: &str) -> Option<String> {
        self.shared.lock().business.get(key).cloned()
    }

    /// All committed business values, by key.
    pub fn entries(&self) -> Vec<(String, String)> {
        let database = self.shared.lock();
        database.business.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// For tests: moves the database's clock forward, so that leases run out, and delayed messages are due and expired
    /// ones collected, without waiting.
    pub fn advance(&self, by: Duration) {
        self.shared.lock().advance(by);
        self.shared.wake(Table::Outbox);
        self.shared.wake(Table::Inbox);
    }

    pub(crate) fn error(kind: ErrorKind, operation: &'static str, reason: impl Into<String>) -> Error {
        Error::new(kind, operation, "the memory storage", reason)
    }

    fn without_lease(operation: &'static str, node: NodeId) -> Error {
        Self::error(ErrorKind::LeaseLost, operation, unregistered(node))
    }

    /// Whether these records may be stored at all.
    pub(crate) fn check(&self, table: Table, records: &[NewRecord], claim: Option<Claim>) -> Result<()> {
        let limit = self.shared.options.max_content.unwrap_or(usize::MAX);
        if let Some(reason) = refuse(table, records, claim.is_some()) {
            return Err(Self::error(ErrorKind::Invalid, "insert into", reason));
        }
        if let Some(NewRecord { message_id, content, .. }) = records.iter().find(|record| record.content.len() > limit)
        {
            let length = content.len();
            let reason = format!("the content of message {message_id} has {length} bytes, the limit is {limit}");
            return Err(Self::error(ErrorKind::Rejected, "insert into", reason));
        }
        Ok(())
    }

    /// Whether there is room for so many more.
    pub(crate) fn check_room(&self, database: &Database, more: usize) -> Result<()> {
        let limit = self.shared.options.max_records;
        let present = database.len();
        if present.saturating_add(more) <= limit {
            return Ok(());
        }
        let reason =
            format!("it holds {present} records, {more} more would exceed the limit of {limit} (`max_records`)");
        Err(Self::error(ErrorKind::Unavailable, "insert into", reason))
    }

    /// Waits while `attempt` answers `None`: an open transaction holds a message id that it needs.
    pub(crate) async fn unless_locked<T>(&self, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + self.shared.options.lock_wait;
        loop {
            let unlocked = self.shared.unlocked.notified();
            if let Some(done) = attempt()? {
                return Ok(done);
            }
            if tokio::time::timeout_at(deadline, unlocked).await.is_err() {
                let reason = format!(
                    "an open transaction has published a message of the same id, and did not end within {:?}",
                    self.shared.options.lock_wait
                );
                return Err(Self::error(ErrorKind::Unavailable, "insert into", reason));
            }
        }
    }

    fn try_insert(&self, table: Table, records: &[NewRecord], claim: Option<Claim>) -> Result<Option<Vec<Inserted>>> {
        let mut database = self.shared.lock();
        let now = database.now();
        if let Some(claim) = claim
            && !database.is_registered(claim.node)
        {
            return Err(Self::without_lease("insert claimed records into", claim.node));
        }
        let is_locked = |record: &NewRecord| database.reserved.contains_key(&(record.message_id.clone(), None));
        if table == Table::Outbox && records.iter().any(is_locked) {
            return Ok(None);
        }
        self.check_room(&database, records.len())?;
        let held = |record: &NewRecord| claim.filter(|_| record.state.status() == Status::Queued);
        Ok(Some(records.iter().map(|record| database.insert(table, record, held(record), now)).collect()))
    }

    /// Wakes the watchers when some records are due again; answers how many.
    fn given_back(&self, table: Table, number: u64) -> u64 {
        if number > 0 {
            self.shared.wake(table);
        }
        number
    }
}

/// A future that does `work`, which never waits, when it is first polled.
fn at_once<'a, T: 'a>(work: impl FnOnce() -> Result<T> + Send + 'a) -> BoxFuture<'a, Result<T>> {
    Box::pin(async move { work() })
}

impl Storage for MemoryStorage {
    fn describe(&self) -> String {
        "memory of this process".into()
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: false,
            shared: false,
            enlists: true,
            transactional_handlers: true,
            savepoints: true,
            watches: true,
            host_clock: true,
            max_content: self.shared.options.max_content,
            ascii_only: false,
        }
    }

    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        at_once(|| Ok(()))
    }

    fn insert(
        &self,
        table: Table,
        records: Vec<NewRecord>,
        claim: Option<Claim>,
    ) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        Box::pin(async move {
            self.check(table, &records, claim)?;
            let inserted = self.unless_locked(|| self.try_insert(table, &records, claim)).await?;
            self.shared.wake(table);
            Ok(inserted)
        })
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            if !database.is_registered(request.claim.node) {
                return Err(Self::without_lease("claim from", request.claim.node));
            }
            Ok(database.records(request.lane.table()).claim(&request, now))
        })
    }

    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            let records = database.records(table);
            Ok(settlements.iter().map(|settlement| records.settle(settlement, now)).collect())
        })
    }

    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            let released = database.records(table).release(claim, now);
            drop(database);
            Ok(self.given_back(table, released))
        })
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            let next_due = |lane: Lane| {
                let table = lane.table();
                database.records(table).next_due(&(version.clone(), lane), now)
            };
            Ok(lanes.into_iter().map(next_due).collect())
        })
    }

    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            database.renew(node, lease, now);
            Ok(())
        })
    }

    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            if !database.is_registered(node) {
                return Ok(Lease::Lost);
            }
            database.renew(node, lease, now);
            Ok(Lease::Held { now: Timestamp::from_micros(now), others: database.signs_beside(node) })
        })
    }

    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            let nodes = database.forget_dead(&dead);
            let outbox = database.take_from_dead(Table::Outbox, now);
            let inbox = database.take_from_dead(Table::Inbox, now);
            drop(database);
            self.given_back(Table::Outbox, outbox);
            self.given_back(Table::Inbox, inbox);
            Ok(TakenOver { nodes, outbox, inbox })
        })
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            database.forget(node);
            let [outbox, inbox] = [Table::Outbox, Table::Inbox]
                .map(|table| database.records(table).take(|owner| *owner == node, now, Counted::No));
            drop(database);
            self.given_back(Table::Outbox, outbox);
            self.given_back(Table::Inbox, inbox);
            Ok(())
        })
    }

    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            if !database.is_registered(node) {
                return Err(Self::without_lease("take a chore from", node));
            }
            Ok(database.take_chore(chore, node, term, now))
        })
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            Ok(database.records(table).collect(limit, now))
        })
    }

    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        at_once(move || Ok(self.shared.lock().records(table).counts(&version)))
    }

    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        at_once(move || Ok(self.shared.lock().records(table).list(&query)))
    }

    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        at_once(move || {
            let mut database = self.shared.lock();
            let now = database.now();
            let requeued = database.records(table).requeue(&records, &state, now);
            drop(database);
            Ok(self.given_back(table, requeued))
        })
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        at_once(move || Ok(self.shared.lock().records(table).delete(&records)))
    }

    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        // Subscribed here and not at the first poll: a commit in between is not missed.
        let mut commits = self.shared.commits.subscribe();
        let mut seen = *commits.borrow_and_update();
        Box::pin(async move {
            wake.listens();
            while commits.changed().await.is_ok() {
                let [outbox, inbox] = std::mem::replace(&mut seen, *commits.borrow_and_update());
                if seen[Table::Outbox as usize] != outbox {
                    wake.wake(Table::Outbox);
                }
                if seen[Table::Inbox as usize] != inbox {
                    wake.wake(Table::Inbox);
                }
            }
            Ok(())
        })
    }
}
