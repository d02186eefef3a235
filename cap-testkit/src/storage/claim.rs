//! Claiming: what is due goes to one node, once, in its order, and nothing else does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cap_core::error::ErrorKind;
use cap_core::storage::{Claim, ClaimRequest, Lane, NewRecord, Storage, Table};
use cap_core::time::Timestamp;
use cap_core::{Due, MessageId, NodeId, Status};
use tokio::task::JoinSet;

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

/// Claims until nothing of the version waits any more.
async fn drain(worker: Worker, limit: usize) -> CheckResult<Vec<MessageId>> {
    let mut taken = Vec::new();
    loop {
        let batch = worker.claim(Lane::Outbox, limit).await?;
        taken.extend(batch.records.iter().map(|record| record.message_id.clone()));
        if batch.records.is_empty() && worker.storage.counts(Table::Outbox, v1()).await?.scheduled == 0 {
            return Ok(taken);
        }
    }
}

pub(super) async fn each_record_is_claimed_once_by_eight_handles(fixture: &dyn StorageFixture) -> CheckResult {
    const MANY: usize = 1_000;
    let handles = opened_many(fixture, 8).await?;
    insert(&handles[0], Table::Outbox, messages(MANY)).await?;
    let mut workers = JoinSet::new();
    for (number, storage) in handles.iter().enumerate() {
        workers.spawn(drain(Worker::join(storage).await?, 7 + number));
    }
    let mut taken = Vec::new();
    while let Some(batch) = workers.join_next().await {
        taken.extend(batch.map_err(|error| Failure::new(error.to_string()))??);
    }
    let distinct: BTreeSet<_> = taken.iter().collect();
    ensure_eq!(distinct.len(), MANY, "different records that were claimed");
    ensure_eq!(taken.len(), MANY, "claimed records in all answers");
    Ok(())
}

pub(super) async fn a_claim_takes_no_more_than_its_limit(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    insert(&storage, Table::Outbox, messages(10)).await?;
    let worker = Worker::join(&storage).await?;
    for (limit, expected) in [(0, 0), (3, 3), (1, 1), (100, 6), (100, 0)] {
        let taken = worker.claim(Lane::Outbox, limit).await?;
        ensure_eq!(taken.records.len(), expected, "records claimed with limit {limit}");
    }
    let counts = storage.counts(Table::Outbox, v1()).await?;
    ensure_eq!(counts.queued, 10, "records in flight");
    Ok(())
}

pub(super) async fn the_earliest_due_are_claimed_first(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let moment = |micros: i64| Due::At(Timestamp::from_micros(1_700_000_000_000_000 + micros));
    // Milliseconds apart, and inserted in another order than they are due.
    let records: Vec<_> = [5, 2, 9, 0, 7, 3].map(|number| message_due(moment(number * 1_000))).into();
    for record in &records {
        insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    }
    insert(&storage, Table::Outbox, vec![message()]).await?;
    let worker = Worker::join(&storage).await?;
    for expected in [&[3, 1][..], &[5], &[0, 4], &[2]] {
        let taken = worker.claim(Lane::Outbox, expected.len()).await?;
        let taken: Vec<_> = taken.records.into_iter().map(|record| record.message_id).collect();
        let expected: Vec<_> = expected.iter().map(|number| records[*number].message_id.clone()).collect();
        ensure_eq!(taken, expected, "the earliest due, in their order");
    }
    Ok(())
}

pub(super) async fn what_is_due_later_is_left(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let witness = message();
    let later = [message_due(Due::In(LONG)), NewRecord { state: retry_in(2, LONG, "no"), ..message() }];
    insert(&storage, Table::Outbox, later.to_vec()).await?;
    insert(&storage, Table::Outbox, vec![witness.clone()]).await?;
    let taken = Worker::join(&storage).await?.claim(Lane::Outbox, 10).await?;
    ensure_eq!(taken.ids(), BTreeSet::from([witness.message_id]), "claimed records");
    Ok(())
}

pub(super) async fn versions_are_claimed_apart(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let (blue, green) = (message_of_version("blue"), message_of_version("green"));
    insert(&storage, Table::Outbox, vec![blue.clone(), green.clone()]).await?;
    let worker = Worker::join(&storage).await?;
    ensure_eq!(worker.claim(Lane::Outbox, 10).await?.records.len(), 0, "records of version v1");
    for record in [blue, green] {
        let taken = worker.claim_version(Lane::Outbox, record.version.clone(), 10).await?;
        ensure_eq!(taken.ids(), BTreeSet::from([record.message_id]), "claimed of version {}", record.version);
    }
    Ok(())
}

pub(super) async fn lanes_are_claimed_apart(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let (outgoing, billing, shipping) = (message(), delivery("billing"), delivery("shipping"));
    insert(&storage, Table::Outbox, vec![outgoing.clone()]).await?;
    insert(&storage, Table::Inbox, vec![billing.clone(), shipping.clone()]).await?;
    let worker = Worker::join(&storage).await?;
    ensure_eq!(worker.claim(lane("nobody"), 10).await?.records.len(), 0, "records of a group that has none");
    let expected = [(lane("shipping"), shipping), (Lane::Outbox, outgoing), (lane("billing"), billing)];
    for (lane, record) in expected {
        let taken = worker.claim(lane.clone(), 10).await?;
        ensure_eq!(taken.ids(), BTreeSet::from([record.message_id]), "claimed from {lane:?}");
    }
    Ok(())
}

pub(super) async fn a_claim_counts_the_attempt_and_writes_the_owner(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let record = message();
    insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    let worker = Worker::join(&storage).await?;
    for attempt in 1..=3 {
        let taken = worker.claim_message().await?;
        let listed = the_record(&storage, Table::Outbox, &record.message_id).await?;
        for seen in [taken.one()?, &listed] {
            ensure_eq!(seen.attempts, attempt, "attempts");
            ensure_eq!(seen.status, Status::Queued, "status");
            ensure_eq!(seen.owner, Some(worker.node), "owner");
            ensure_eq!(seen.due, None, "due time");
        }
        worker.settle(Table::Outbox, &taken, |attempts| retry_in(attempts, Duration::ZERO, "no")).await?;
    }
    Ok(())
}

pub(super) async fn a_claim_of_nobody_is_refused(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let record = message();
    insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    let dead = Worker::join(&storage).await?;
    dead.dies().await?;
    for node in [NodeId::generate(), dead.node] {
        let request = ClaimRequest::new(Lane::Outbox, v1(), Claim::by(node), 10);
        let kind = storage.claim(request).await.err().map(|error| error.kind());
        ensure_eq!(kind, Some(ErrorKind::LeaseLost), "kind of the error of a node that is not registered");
        let found = the_record(&storage, Table::Outbox, &record.message_id).await?;
        ensure_eq!((found.status, found.attempts), (Status::Scheduled, 0), "status and attempts after the refusal");
    }
    Ok(())
}

pub(super) async fn a_claim_says_when_the_next_is_due(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let next = worker.claim(Lane::Outbox, 10).await?.next_due;
    ensure_eq!(next, None, "next due time of an empty lane");
    let records = vec![message(), message_due(Due::In(LONG)), message_due(Due::In(LONG * 10))];
    insert(&storage, Table::Outbox, records).await?;
    let other_lane = NewRecord { state: message_due(Due::In(SHORT)).state, ..delivery("billing") };
    insert(&storage, Table::Inbox, vec![other_lane]).await?;
    let taken = worker.claim(Lane::Outbox, 10).await?;
    taken.one()?;
    let Some(next) = taken.next_due else {
        return Err("a claim below its limit did not say when the next record is due".into());
    };
    ensure!(next <= LONG, "the next record is due in {LONG:?} or less, it said in {next:?}");
    ensure!(next > LONG / 2, "the next record is due in almost {LONG:?}, it said in {next:?}");
    Ok(())
}

/// Ids grow before they are committed: a claimer that remembers the greatest one it has seen would leave this behind.
pub(super) async fn what_is_committed_late_is_claimed(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let (slow, quick) = (message(), message());
    if fixture.single_writer() {
        insert(&storage, Table::Outbox, vec![slow]).await?;
        worker.claim_message().await?;
        return Ok(());
    }
    let mut tx = fixture.begin().await?;
    stored(&tx.publish(vec![slow.clone()]).await?)?;
    insert(&storage, Table::Outbox, vec![quick.clone()]).await?;
    ensure_eq!(worker.claim(Lane::Outbox, 10).await?.ids(), BTreeSet::from([quick.message_id]), "committed first");
    tx.commit().await?;
    ensure_eq!(worker.claim(Lane::Outbox, 10).await?.ids(), BTreeSet::from([slow.message_id]), "committed late");
    Ok(())
}

pub(super) async fn a_claim_does_not_wait_for_an_open_transaction(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let witness = message();
    insert(&storage, Table::Outbox, vec![witness.clone()]).await?;
    let mut tx = fixture.begin().await?;
    stored(&tx.publish(vec![message()]).await?)?;
    let claiming = worker.clone();
    let claim = tokio::spawn(async move { claiming.claim(Lane::Outbox, 10).await });
    if fixture.single_writer() {
        tx.rollback().await?;
        ensure_eq!(joined(claim).await?.ids(), BTreeSet::from([witness.message_id]), "claimed");
        return Ok(());
    }
    let answer = tokio::time::timeout(PATIENCE, joined(claim)).await;
    let Ok(taken) = answer else {
        return Err("the claim waited for a transaction that has only inserted".into());
    };
    ensure_eq!(taken?.ids(), BTreeSet::from([witness.message_id]), "claimed beside the open transaction");
    tx.commit().await?;
    worker.claim_message().await?;
    Ok(())
}

async fn joined<T>(task: tokio::task::JoinHandle<CheckResult<T>>) -> CheckResult<T> {
    task.await.map_err(|error| Failure::new(error.to_string()))?
}

pub(super) async fn next_due_waits_for_no_transaction_and_hinders_none(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let mut tx = fixture.begin().await?;
    stored(&tx.publish(vec![message()]).await?)?;
    let asking = Arc::clone(&storage);
    let answer = tokio::spawn(async move { Ok(asking.next_due(v1(), vec![Lane::Outbox]).await?) });
    let Ok(next) = tokio::time::timeout(PATIENCE, joined(answer)).await else {
        return Err("next_due waited for a transaction that has only inserted".into());
    };
    ensure_eq!(next?, vec![None], "answer beside the open transaction");
    stored(&tx.publish(vec![message()]).await?)?;
    tx.commit().await?;
    ensure_eq!(storage.next_due(v1(), vec![Lane::Outbox]).await?, vec![Some(Duration::ZERO)], "after the commit");
    Ok(())
}

/// A claim that reads twenty thousand records to find none takes many times as long as one that reads an index. The
/// quickest of forty is compared: noise makes a call slower, never quicker.
pub(super) async fn a_claim_does_not_pay_for_finished_and_delayed_records(fixture: &dyn StorageFixture) -> CheckResult {
    const EACH: usize = 10_000;
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let before = worker.quickest_claim(&Lane::Outbox).await?;
    for _ in 0..EACH / 500 {
        let finished = (0..500).map(|_| NewRecord { state: succeeded(1), ..message() });
        let delayed = (0..500).map(|_| message_due(Due::In(LONG)));
        insert(&storage, Table::Outbox, finished.chain(delayed).collect()).await?;
    }
    let after = worker.quickest_claim(&Lane::Outbox).await?;
    let bound = before * 8 + Duration::from_micros(500);
    ensure!(after <= bound, "an empty claim took {before:?} before and {after:?} beside {EACH} finished and delayed");
    Ok(())
}

pub(super) async fn publishing_claiming_settling_and_collecting_at_once_lose_nothing(
    fixture: &dyn StorageFixture,
) -> CheckResult {
    const PUBLISHERS: usize = 3;
    const BATCHES: usize = 20;
    const BATCH: usize = 5;
    let handles = opened_many(fixture, PUBLISHERS + 4).await?;
    let mut tasks = JoinSet::new();
    let publishing = Arc::new(AtomicUsize::new(PUBLISHERS));
    for storage in &handles[..PUBLISHERS] {
        let (storage, publishing) = (Arc::clone(storage), Arc::clone(&publishing));
        tasks.spawn(async move {
            for _ in 0..BATCHES {
                insert(&storage, Table::Outbox, messages(BATCH)).await?;
            }
            publishing.fetch_sub(1, Ordering::SeqCst);
            CheckResult::Ok(Vec::new())
        });
    }
    for storage in &handles[PUBLISHERS..] {
        tasks.spawn(work(Worker::join(storage).await?, Arc::clone(&publishing)));
    }
    let total = PUBLISHERS * BATCHES * BATCH;
    let mut handled = Vec::new();
    while let Some(part) = tasks.join_next().await {
        handled.extend(part.map_err(|error| Failure::new(error.to_string()))??);
    }
    ensure_eq!(handled.len(), total, "records that were handled");
    ensure_eq!(handled.iter().collect::<BTreeSet<_>>().len(), total, "different records that were handled");
    fixture.pass(MARGIN).await;
    collect_all(&handles[0]).await?;
    ensure_eq!(all(&handles[0], Table::Outbox).await?.len(), 0, "records left in the end");
    Ok(())
}

/// Claims, settles and collects until everything is published and nothing waits any more.
async fn work(worker: Worker, publishing: Arc<AtomicUsize>) -> CheckResult<Vec<MessageId>> {
    let mut handled = Vec::new();
    loop {
        let is_published = publishing.load(Ordering::SeqCst) == 0;
        let taken = worker.claim(Lane::Outbox, 10).await?;
        worker.settle(Table::Outbox, &taken, |_| succeeded_briefly()).await?;
        handled.extend(taken.records.iter().map(|record| record.message_id.clone()));
        worker.storage.collect(Table::Outbox, 10).await?;
        let is_idle = is_published && taken.records.is_empty();
        if is_idle && worker.storage.counts(Table::Outbox, v1()).await?.scheduled == 0 {
            return Ok(handled);
        }
        tokio::task::yield_now().await;
    }
}

async fn collect_all(storage: &Arc<dyn Storage>) -> CheckResult {
    while storage.collect(Table::Outbox, 1_000).await? > 0 {}
    Ok(())
}
