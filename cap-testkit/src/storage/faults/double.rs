//! What a double remembers, so that it can go wrong in one way only.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::lifecycle::{Begun, Outcome, Rules, State, scheduled, settle};
use cap_core::storage::{Claim, Lane, NewRecord, Query, Record, Storage, StorageCapabilities, Table, TakenOver};
use cap_core::{ClaimToken, Due, Error, ErrorKind, Group, MessageId, NodeId, RecordId, Result, RetryPolicy, Status};
use cap_storage_memory::MemoryStorage;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::fault::StorageFault;
use crate::storage::fixture::StorageFixture;
use crate::storage::memory::MemoryFixture;

/// The password of the doubles' pretended connection.
pub(super) const SECRET: &str = "correct-horse-battery-staple";
/// The schema version that the doubles know.
pub(super) const KNOWN_SCHEMA: usize = 3;
/// Longer than any check takes.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// More than any database reckons with.
pub(super) const VERY_LONG: Duration = Duration::from_secs(500 * 365 * 86_400);
/// How many connections a double's pool has, where it has one.
const POOL: usize = 10;
/// More than any check stores.
pub(super) const ALL: usize = 100_000;

/// What kind of database a double is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// It declares every capability.
    Full,
    /// It declares none, and answers `Unsupported` where it must.
    Modest,
    /// It has one writer: while a transaction is open, every other write waits. Time passes by itself only.
    SingleWriter,
}

/// The database of one double. Its handles share it.
#[derive(Debug)]
pub(super) struct Double {
    pub(super) fault: Option<StorageFault>,
    pub(super) manner: Manner,
    memory: Mutex<MemoryFixture>,
    memo: Mutex<Memo>,
    pub(super) transactions: watch::Sender<usize>,
    /// Why it cannot be opened, if it cannot.
    pub(super) unusable: Option<String>,
    pub(super) schema: AtomicUsize,
    pub(super) preparing: AtomicUsize,
    pub(super) is_prepared: AtomicBool,
    pub(super) is_broken: AtomicBool,
    pub(super) is_writable: AtomicBool,
    /// What gives records their addresses stands behind the tables.
    pub(super) are_addresses_behind: AtomicBool,
    /// The runtime on which its connections live.
    pub(super) runtime: Mutex<Option<Handle>>,
    connections: Arc<Semaphore>,
    /// One clone for each handle that is open.
    pub(super) handles: Arc<()>,
    /// A node that nobody knows, with a lease that does not end.
    pub(super) ghost: NodeId,
}

#[derive(Debug, Default)]
pub(super) struct Memo {
    pub(super) tokens: HashMap<(Table, RecordId), ClaimToken>,
    pub(super) claims: Vec<Claim>,
    pub(super) nodes: BTreeSet<NodeId>,
    pub(super) groups: BTreeSet<Group>,
    pub(super) settled: HashSet<(Table, RecordId)>,
    pub(super) pending: HashSet<MessageId>,
    /// What open handlers are at work on.
    pub(super) locked: HashSet<RecordId>,
    pub(super) last_claimed: Option<Record>,
    pub(super) cursor: Option<RecordId>,
    /// Who was given the chore last, and for how long.
    pub(super) chore: Option<(NodeId, Duration)>,
    /// The crashes that are told of records, in place of their own.
    pub(super) crashes: HashMap<(Table, RecordId), u32>,
    pub(super) taken_over: TakenOver,
    pub(super) collected: u64,
    pub(super) has_gone_wrong: bool,
}

impl Double {
    pub(super) fn new(fault: Option<StorageFault>, manner: Manner) -> Self {
        Self {
            fault,
            manner,
            memory: Mutex::default(),
            memo: Mutex::default(),
            transactions: watch::Sender::new(0),
            unusable: None,
            schema: AtomicUsize::new(KNOWN_SCHEMA),
            preparing: AtomicUsize::new(0),
            is_prepared: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            is_writable: AtomicBool::new(true),
            are_addresses_behind: AtomicBool::new(false),
            runtime: Mutex::default(),
            connections: Arc::new(Semaphore::new(POOL)),
            handles: Arc::new(()),
            ghost: NodeId::generate(),
        }
    }

    pub(super) fn fixture(&self) -> MemoryFixture {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn forget_everything(&self) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = MemoryFixture::new();
    }

    pub(super) fn inner(&self) -> MemoryStorage {
        self.fixture().storage().clone()
    }

    pub(super) fn memo(&self) -> MutexGuard<'_, Memo> {
        self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, fault: StorageFault) -> bool {
        self.fault == Some(fault)
    }

    /// Whether it is the first time that this is asked.
    pub(super) fn first_time(&self) -> bool {
        !std::mem::replace(&mut self.memo().has_gone_wrong, true)
    }

    pub(super) fn capabilities(&self) -> StorageCapabilities {
        if self.manner == Manner::Modest {
            return StorageCapabilities { host_clock: true, ..StorageCapabilities::default() };
        }
        let is = |fault| self.has(fault);
        let memory = self.fixture().capabilities();
        StorageCapabilities {
            persistent: true,
            enlists: !is(StorageFault::EnlistUndeclared),
            savepoints: !is(StorageFault::EnlistUndeclared),
            transactional_handlers: !is(StorageFault::TransactUndeclared) && !is(StorageFault::EnlistUndeclared),
            watches: !is(StorageFault::WatchUndeclared),
            ..memory
        }
    }

    /// To be called before each write.
    pub(super) async fn writes(&self) {
        if self.manner == Manner::SingleWriter {
            self.until_no_transaction_is_open().await;
        }
    }

    pub(super) async fn until_no_transaction_is_open(&self) {
        let mut transactions = self.transactions.subscribe();
        // The sender lives as long as `self`.
        let _ = transactions.wait_for(|open| *open == 0).await;
    }

    pub(super) async fn all(&self, table: Table) -> Result<Vec<Record>> {
        self.inner().list(table, Query { limit: ALL, ..Query::default() }).await
    }

    pub(super) async fn of_message(&self, table: Table, id: &MessageId) -> Result<Vec<Record>> {
        let query = Query { message_id: Some(id.clone()), limit: ALL, ..Query::default() };
        self.inner().list(table, query).await
    }

    pub(super) async fn is_known(&self, table: Table, record: &NewRecord) -> Result<bool> {
        let found = self.of_message(table, &record.message_id).await?;
        Ok(found.iter().any(|found| found.group == record.group))
    }

    /// The claims under which these records, or all, are held now.
    pub(super) async fn holds(&self, table: Table) -> Result<Vec<(Record, ClaimToken)>> {
        let records = self.all(table).await?;
        let memo = self.memo();
        let held = records.into_iter().filter(|record| record.status == Status::Queued);
        Ok(held.filter_map(|record| memo.tokens.get(&(table, record.id)).map(|token| (record, *token))).collect())
    }

    pub(super) async fn join_ghost(&self) -> Result<Claim> {
        self.inner().join(self.ghost, LONG).await?;
        Ok(Claim::by(self.ghost))
    }

    pub(super) fn remember_claim(&self, lane: &Lane, claim: Claim, records: &[Record]) {
        let mut memo = self.memo();
        memo.claims.push(claim);
        memo.tokens.extend(records.iter().map(|record| ((lane.table(), record.id), claim.token)));
    }

    pub(super) fn is_broken(&self) -> Result<()> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(error(ErrorKind::Unavailable, "the connection is gone"));
        }
        Ok(())
    }
}

impl Double {
    /// Whether it makes this mistake with an address that is taken, and there is one.
    pub(super) fn meets_taken_address(&self, fault: StorageFault) -> bool {
        self.has(fault) && self.are_addresses_behind.load(Ordering::SeqCst)
    }

    /// Whether writes are allowed now.
    pub(super) fn is_writable(&self) -> Result<()> {
        let was_refused = self.has(StorageFault::EnvironmentSticks) && self.memo().has_gone_wrong;
        if self.is_writable.load(Ordering::SeqCst) && !was_refused {
            return Ok(());
        }
        self.memo().has_gone_wrong = true;
        let is_rejected = self.has(StorageFault::EnvironmentIsRejected);
        let kind = if is_rejected { ErrorKind::Rejected } else { ErrorKind::Environment };
        Err(error(kind, "permission denied for table `published`"))
    }

    /// Waits until the runtime on which the connections live, that of the first call, has time.
    pub(super) async fn until_runtime_runs(&self) -> Result<()> {
        let runtime = {
            let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
            runtime.get_or_insert_with(Handle::current).clone()
        };
        let gone = |_| error(ErrorKind::Unavailable, "the runtime of the connection is gone");
        runtime.spawn(async { tokio::task::yield_now().await }).await.map_err(gone)
    }

    /// A connection that goes back to its pool once the runtime that used it has time.
    pub(super) async fn connection(&self) -> Result<Lent> {
        let lent = Arc::clone(&self.connections).acquire_owned().await;
        lent.map(|lent| Lent(Some(lent))).map_err(|_| error(ErrorKind::Unavailable, "the pool is closed"))
    }
}

pub(super) struct Lent(Option<OwnedSemaphorePermit>);

impl Drop for Lent {
    fn drop(&mut self) {
        let lent = self.0.take();
        tokio::spawn(async move { drop(lent) });
    }
}

pub(super) fn error(kind: ErrorKind, reason: &str) -> Error {
    Error::new(kind, "use", "the faulty double", reason)
}

fn rules(delay: Duration, keep: Duration) -> Rules {
    Rules { retry: RetryPolicy::fixed(u32::MAX, delay), keep_succeeded: keep, keep_dead: keep }
}

fn delay_of(state: &State) -> Duration {
    match state.due() {
        Some(Due::In(delay)) => delay,
        _ => Duration::ZERO,
    }
}

/// A state like this one, but with other attempts, another reason or another delay: those of a failed one.
#[derive(Debug, Clone)]
pub(super) struct Altered {
    pub(super) attempts: u32,
    pub(super) reason: String,
    pub(super) delay: Duration,
}

impl Altered {
    pub(super) fn of(state: &State) -> Self {
        let reason = state.reason().unwrap_or_default().to_owned();
        Self { attempts: state.attempts(), reason, delay: delay_of(state) }
    }

    /// The altered state; only failed and succeeded ones can be altered, others come back as they were.
    pub(super) fn apply(self, state: State) -> State {
        let outcome = match state.status() {
            Status::Succeeded => Outcome::Succeeded,
            Status::Failed if state.is_dead() => Outcome::Hopeless(self.reason),
            Status::Failed => Outcome::Failed(self.reason),
            _ => return state,
        };
        settle(&Begun::number(self.attempts), outcome, &rules(self.delay, state.expires().unwrap_or_default()), 0.5)
    }
}

/// A dead state that is due at once instead.
pub(super) fn due_again(state: State) -> State {
    if !state.is_dead() {
        return state;
    }
    settle(
        &Begun::number(state.attempts()),
        Outcome::Failed(String::new()),
        &rules(Duration::ZERO, Duration::ZERO),
        0.5,
    )
}

/// Due at once, with so many attempts counted.
pub(super) fn given_back(attempts: u32) -> State {
    settle(
        &Begun::number(attempts + 1),
        Outcome::GivenBack(Duration::ZERO),
        &rules(Duration::ZERO, Duration::ZERO),
        0.5,
    )
}

/// A waiting state with another due time; failed ones keep their reason and get the delay.
pub(super) fn due_changed(state: State, change: impl Fn(Due) -> Due) -> State {
    let Some(due) = state.due() else { return state };
    match (state.status(), change(due)) {
        (Status::Failed, Due::In(delay)) => Altered { delay, ..Altered::of(&state) }.apply(state),
        (Status::Failed, _) => Altered { delay: Duration::ZERO, ..Altered::of(&state) }.apply(state),
        (_, due) => scheduled(due),
    }
}

/// The state with another reason, if it is that of a failure.
pub(super) fn reason_changed(state: State, change: impl Fn(&str) -> String) -> State {
    let reason = change(state.reason().unwrap_or_default());
    Altered { reason, ..Altered::of(&state) }.apply(state)
}

pub(super) fn cut_at_4000(reason: &str) -> String {
    reason[..reason.floor_char_boundary(4_000)].to_owned()
}

/// The state with no retention, if it has a very long one.
pub(super) fn briefly_kept(state: State) -> State {
    if state.expires().is_none_or(|keep| keep < VERY_LONG) {
        return state;
    }
    let rules = rules(Duration::ZERO, Duration::ZERO);
    settle(&Begun::number(state.attempts()), Outcome::Succeeded, &rules, 0.5)
}

pub(super) fn whole_seconds_up(duration: Duration) -> Duration {
    let seconds = duration.as_secs();
    Duration::from_secs(if duration.subsec_nanos() == 0 { seconds } else { seconds + 1 })
}
