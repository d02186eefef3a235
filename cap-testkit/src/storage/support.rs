//! What the checks share: records to insert, states to settle with, and a node that works.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cap_core::lifecycle::{Begin, Begun, Outcome, Rules, State, begin, scheduled, settle};
use cap_core::storage::{
    Claim, ClaimRequest, Inserted, Lane, NewRecord, Query, Record, Settled, Settlement, Sign, Storage, Table, TakenOver,
};
use cap_core::{Due, Group, MessageId, NodeId, RecordId, RetryPolicy, Timestamp, Topic, Version};

use crate::check::{CheckResult, Failure};
use crate::ensure_eq;
use crate::storage::fixture::StorageFixture;
use crate::storage::signs::signs;

/// A lease that no check outlives.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// A lease or a delay that a check waits for.
pub(super) const SHORT: Duration = Duration::from_millis(300);
/// What is passed beyond a time, so that it is over by every clock.
pub(super) const MARGIN: Duration = Duration::from_millis(60);
/// More records than any check makes.
pub(super) const ALL: usize = 100_000;

/// How long a call may take that must not wait for a transaction which stays open: it would take for ever.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The answer of a call that must not wait for a transaction which stays open.
pub(super) async fn soon<T: Send + 'static>(
    what: &str,
    call: impl Future<Output = cap_core::Result<T>> + Send + 'static,
) -> CheckResult<T> {
    match tokio::time::timeout(PATIENCE, tokio::spawn(call)).await {
        Ok(answer) => Ok(answer.map_err(|error| Failure::new(error.to_string()))??),
        Err(_) => Err(format!("{what} waited for an open transaction").into()),
    }
}

/// A prepared handle.
pub(super) async fn opened(fixture: &dyn StorageFixture) -> CheckResult<Arc<dyn Storage>> {
    let storage = fixture.open().await?;
    storage.prepare().await?;
    Ok(storage)
}

/// Independent prepared handles.
pub(super) async fn opened_many(fixture: &dyn StorageFixture, number: usize) -> CheckResult<Vec<Arc<dyn Storage>>> {
    let mut handles = Vec::with_capacity(number);
    for _ in 0..number {
        handles.push(opened(fixture).await?);
    }
    Ok(handles)
}

pub(super) fn v1() -> Version {
    Version::default()
}

pub(super) fn version(name: &str) -> Version {
    Version::try_from(name).expect("the kit's names are valid")
}

pub(super) fn topic(name: &str) -> Topic {
    Topic::try_from(name).expect("the kit's names are valid")
}

pub(super) fn group(name: &str) -> Group {
    Group::try_from(name).expect("the kit's names are valid")
}

pub(super) fn message_id(text: &str) -> MessageId {
    MessageId::try_from(text).expect("the kit's ids are valid")
}

pub(super) fn lane(name: &str) -> Lane {
    Lane::Inbox(group(name))
}

/// The lane of a group's suspects.
pub(super) fn suspects(name: &str) -> Lane {
    Lane::Suspects(group(name))
}

/// A wrapper object around the payload.
pub(super) fn content(id: &MessageId, payload: &str) -> Arc<str> {
    let time = "2026-01-01T00:00:00.000000Z";
    format!(r#"{{"Id":"{id}","Timestamp":"{time}","Content":{payload},"CallbackName":null,"Headers":{{}}}}"#).into()
}

/// An outbox record, due now.
pub(super) fn message() -> NewRecord {
    message_due(Due::Now)
}

pub(super) fn message_due(due: Due) -> NewRecord {
    let message_id = MessageId::generate();
    let content = content(&message_id, r#"{"order":1}"#);
    NewRecord { message_id, version: v1(), topic: topic("order.placed"), group: None, content, state: scheduled(due) }
}

/// A message whose content is longer than the storage declares to take.
pub(super) fn too_long(fixture: &dyn StorageFixture) -> NewRecord {
    let plain = message();
    let payload = format!("\"{}\"", "x".repeat(fixture.capabilities().max_content.unwrap_or(0)));
    NewRecord { content: content(&plain.message_id, &payload), ..plain }
}

pub(super) fn messages(number: usize) -> Vec<NewRecord> {
    (0..number).map(|_| message()).collect()
}

pub(super) fn message_with_id(id: &str) -> NewRecord {
    let id = message_id(id);
    NewRecord { content: content(&id, "1"), message_id: id, ..message() }
}

pub(super) fn message_of_version(name: &str) -> NewRecord {
    NewRecord { version: version(name), ..message() }
}

/// An inbox record of a group, due now.
pub(super) fn delivery(name: &str) -> NewRecord {
    NewRecord { group: Some(group(name)), ..message() }
}

pub(super) fn ids(records: &[Record]) -> BTreeSet<MessageId> {
    records.iter().map(|record| record.message_id.clone()).collect()
}

pub(super) fn new_ids(records: &[NewRecord]) -> BTreeSet<MessageId> {
    records.iter().map(|record| record.message_id.clone()).collect()
}

/// How long the kit's rules keep what succeeded.
pub(super) const KEEP: Duration = Duration::from_secs(7200);

fn rules(delay: Duration, keep: Duration) -> Rules {
    Rules { retry: RetryPolicy::fixed(1000, delay), keep_succeeded: keep, keep_dead: keep }
}

/// The state after attempt number `attempts`, as core computes it.
pub(super) fn after_attempt(attempts: u32, outcome: Outcome) -> State {
    settle(&Begun::number(attempts), outcome, &rules(SHORT, KEEP), 0.5)
}

pub(super) fn succeeded(attempts: u32) -> State {
    after_attempt(attempts, Outcome::Succeeded)
}

/// Done, and to be collected almost at once.
pub(super) fn succeeded_briefly() -> State {
    succeeded_for(Duration::from_millis(1))
}

/// Done, and to be kept for so long.
pub(super) fn succeeded_for(keep: Duration) -> State {
    settle(&Begun::first(), Outcome::Succeeded, &rules(SHORT, keep), 0.5)
}

pub(super) fn retry_in(attempts: u32, delay: Duration, reason: &str) -> State {
    settle(&Begun::number(attempts), Outcome::Failed(reason.into()), &rules(delay, KEEP), 0.5)
}

/// Waiting, after so many attempts in a row that ended with their process, for an attempt that is due in `pause`.
pub(super) fn given_back(crashes: u32, pause: Duration, reason: Option<&str>) -> State {
    let begun = Begun { attempts: crashes + 1, crashes, reason: reason.map(ToOwned::to_owned) };
    settle(&begun, Outcome::GivenBack(pause), &rules(SHORT, KEEP), 0.5)
}

pub(super) fn dead(attempts: u32, reason: &str) -> State {
    after_attempt(attempts, Outcome::Hopeless(reason.into()))
}

/// Given up after so many crashes, at least 3, as `lifecycle::begin` has it.
pub(super) fn dead_after_crashes(crashes: u32) -> State {
    let rules = Rules { retry: RetryPolicy { crashes: 1, ..RetryPolicy::default() }, ..rules(SHORT, KEEP) };
    let mut begun = Begun { attempts: crashes + 1, crashes: crashes - 2, reason: None };
    while let Begin::Alone(state) = begin(&begun, &rules) {
        begun = Begun { crashes: begun.crashes + 1, reason: state.reason().map(ToOwned::to_owned), ..begun };
    }
    match begin(&begun, &rules) {
        Begin::Exhausted(state) => state,
        begin => unreachable!("it was tried alone before: {begin:?}"),
    }
}

/// The addresses of what was stored; a failure when something was not.
pub(super) fn stored(inserted: &[Inserted]) -> CheckResult<Vec<RecordId>> {
    let mut addresses = Vec::with_capacity(inserted.len());
    for outcome in inserted {
        let Inserted::Stored(id) = outcome else {
            return Err("a new record was answered as Duplicate".into());
        };
        addresses.push(*id);
    }
    Ok(addresses)
}

/// Inserts new records; all must be stored.
pub(super) async fn insert(
    storage: &Arc<dyn Storage>,
    table: Table,
    records: Vec<NewRecord>,
) -> CheckResult<Vec<RecordId>> {
    let number = records.len();
    let inserted = storage.insert(table, records, None).await?;
    ensure_eq!(inserted.len(), number, "answers to an insert");
    stored(&inserted)
}

/// All records of a table.
pub(super) async fn all(storage: &Arc<dyn Storage>, table: Table) -> CheckResult<Vec<Record>> {
    Ok(storage.list(table, Query { limit: ALL, ..Query::default() }).await?)
}

/// All records of one message id.
pub(super) async fn of_message(storage: &Arc<dyn Storage>, table: Table, id: &MessageId) -> CheckResult<Vec<Record>> {
    let query = Query { message_id: Some(id.clone()), limit: ALL, ..Query::default() };
    Ok(storage.list(table, query).await?)
}

/// The one record of a message id.
pub(super) async fn the_record(storage: &Arc<dyn Storage>, table: Table, id: &MessageId) -> CheckResult<Record> {
    let found = of_message(storage, table, id).await?;
    ensure_eq!(found.len(), 1, "records of message {id} in the {table}");
    found.into_iter().next().ok_or_else(|| "the record is gone".into())
}

/// The database's clock, read from a record that is inserted and deleted again.
pub(super) async fn database_now(storage: &Arc<dyn Storage>) -> CheckResult<Timestamp> {
    let probe = message_of_version("clock");
    let id = probe.message_id.clone();
    let addresses = insert(storage, Table::Outbox, vec![probe]).await?;
    let added = the_record(storage, Table::Outbox, &id).await?.added;
    storage.delete(Table::Outbox, addresses).await?;
    Ok(added)
}

pub(super) fn later(moment: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_micros(moment.as_micros() + cap_core::time::micros(by))
}

/// What one claim answered.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) claim: Claim,
    pub(super) records: Vec<Record>,
    pub(super) next_due: Option<Duration>,
}

impl Taken {
    pub(super) fn ids(&self) -> BTreeSet<MessageId> {
        ids(&self.records)
    }

    /// The settlement of each record to the state that `state` computes from its attempts.
    pub(super) fn settlements(&self, state: impl Fn(u32) -> State) -> Vec<Settlement> {
        let settlement =
            |record: &Record| Settlement { record: record.id, token: self.claim.token, state: state(record.attempts) };
        self.records.iter().map(settlement).collect()
    }

    /// Its only record.
    pub(super) fn one(&self) -> CheckResult<&Record> {
        ensure_eq!(self.records.len(), 1, "claimed records");
        self.records.first().ok_or_else(|| "nothing was claimed".into())
    }
}

/// A node that has joined over a handle.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) node: NodeId,
}

impl Worker {
    /// Joins with a lease that the check does not outlive.
    pub(super) async fn join(storage: &Arc<dyn Storage>) -> CheckResult<Self> {
        let node = NodeId::generate();
        storage.join(node, LONG).await?;
        Ok(Self { storage: Arc::clone(storage), node })
    }

    /// Its last sign of life.
    pub(super) async fn sign(&self) -> CheckResult<Sign> {
        let sign = signs(self.storage.as_ref()).await?.into_iter().find(|sign| sign.node == self.node);
        sign.ok_or_else(|| Failure::new("the sign of a node that had joined was not told to another's heartbeat"))
    }

    /// It gives no sign any more, and others say that it is dead.
    pub(super) async fn dies(&self) -> CheckResult<TakenOver> {
        Ok(self.storage.take_over(vec![self.sign().await?]).await?)
    }

    pub(super) fn request(&self, lane: Lane, version: Version, limit: usize) -> ClaimRequest {
        ClaimRequest::new(lane, version, Claim::by(self.node), limit)
    }

    pub(super) async fn claim(&self, lane: Lane, limit: usize) -> CheckResult<Taken> {
        self.claim_version(lane, v1(), limit).await
    }

    pub(super) async fn claim_version(&self, lane: Lane, version: Version, limit: usize) -> CheckResult<Taken> {
        self.claim_as(self.request(lane, version, limit)).await
    }

    pub(super) async fn claim_as(&self, request: ClaimRequest) -> CheckResult<Taken> {
        let claim = request.claim;
        let claimed = self.storage.claim(request).await?;
        Ok(Taken { claim, records: claimed.records, next_due: claimed.next_due })
    }

    /// The quickest of some empty claims: what one costs when nothing else disturbs it.
    pub(super) async fn quickest_claim(&self, lane: &Lane) -> CheckResult<Duration> {
        let mut quickest = Duration::MAX;
        for _ in 0..40 {
            let begun = Instant::now();
            let taken = self.claim(lane.clone(), 10).await?;
            quickest = quickest.min(begun.elapsed());
            ensure_eq!(taken.records.len(), 0, "claimed records");
        }
        Ok(quickest)
    }

    /// Claims one outbox record.
    pub(super) async fn claim_message(&self) -> CheckResult<Taken> {
        let taken = self.claim(Lane::Outbox, 1).await?;
        taken.one()?;
        Ok(taken)
    }

    /// Settles all that was taken; every settlement must be written.
    pub(super) async fn settle(&self, table: Table, taken: &Taken, state: impl Fn(u32) -> State) -> CheckResult {
        let settled = self.storage.settle(table, taken.settlements(state)).await?;
        ensure_eq!(settled, vec![Settled::Written; taken.records.len()], "the settlements of what is held");
        Ok(())
    }
}
