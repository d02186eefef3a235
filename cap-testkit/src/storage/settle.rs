//! Settling: what an attempt came to is written whole, by its owner only.

use std::collections::BTreeSet;
use std::time::Duration;

use cap_core::lifecycle::{Outcome, State, received};
use cap_core::storage::{Lane, Record, Settled, Settlement, Table};
use cap_core::{ClaimToken, RecordId, Status, Timestamp};

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::CheckResult;
use crate::{ensure, ensure_eq};

/// Whether `found` is `by` after a moment between `before` and `after`.
fn between(what: &str, found: Option<Timestamp>, [before, after]: [Timestamp; 2], by: Option<Duration>) -> CheckResult {
    let (Some(found), Some(by)) = (found, by) else {
        ensure_eq!(found.is_some(), by.is_some(), "whether there is {what}");
        return Ok(());
    };
    let (first, last) = (later(before, by), later(after, by));
    ensure!((first..=last).contains(&found), "{what}: found {found}, expected {first} to {last}");
    Ok(())
}

fn delay_of(state: &State) -> Option<Duration> {
    state.due().map(|due| Duration::from_micros(u64::try_from(due.resolve(0)).unwrap_or(0)))
}

pub(super) async fn a_settlement_writes_every_field(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let states = [
        succeeded(1),
        retry_in(1, Duration::from_millis(90_500), "broker away: ü漢🦀 'quoted'"),
        retry_in(3, LONG, ""),
        dead(1, "hopeless"),
        after_attempt(2, Outcome::GivenBack(LONG)),
        after_attempt(1, Outcome::GivenBack(Duration::ZERO)),
    ];
    for table in [Table::Outbox, Table::Inbox] {
        for state in &states {
            let (record, lane) = match table {
                Table::Outbox => (message(), Lane::Outbox),
                Table::Inbox => (delivery("billing"), lane("billing")),
            };
            let addresses = insert(&storage, table, vec![record.clone()]).await?;
            let taken = worker.claim(lane, 1).await?;
            ensure_eq!(taken.one()?.id, addresses[0], "address of the claimed record");
            let before = database_now(&storage).await?;
            worker.settle(table, &taken, |_| state.clone()).await?;
            let after = database_now(&storage).await?;
            let found = the_record(&storage, table, &record.message_id).await?;
            ensure_eq!(found.status, state.status(), "status");
            ensure_eq!(found.attempts, state.attempts(), "attempts");
            ensure_eq!(found.reason.as_deref(), state.reason(), "reason");
            ensure_eq!(found.owner, None, "owner");
            between("a due time", found.due, [before, after], delay_of(state))?;
            between("an expiry", found.expires, [before, after], state.expires())?;
            storage.delete(table, addresses).await?;
        }
    }
    Ok(())
}

pub(super) async fn a_settlement_changes_nothing_else(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let record = message();
    insert(&storage, Table::Outbox, vec![record.clone(), message()]).await?;
    let untouched = |record: Record| {
        (record.id, record.message_id, record.version, record.topic, record.group, record.content, record.added)
    };
    let before = untouched(the_record(&storage, Table::Outbox, &record.message_id).await?);
    let taken = worker.claim(Lane::Outbox, 2).await?;
    fixture.pass(MARGIN).await;
    let own: Vec<_> = taken.records.iter().filter(|taken| taken.message_id == record.message_id).cloned().collect();
    let own = Taken { records: own, ..taken };
    worker.settle(Table::Outbox, &own, |attempts| retry_in(attempts, LONG, "no")).await?;
    let after = untouched(the_record(&storage, Table::Outbox, &record.message_id).await?);
    ensure_eq!(after, before, "what a settlement must not change");
    let counts = storage.counts(Table::Outbox, v1()).await?;
    ensure_eq!((counts.queued, counts.retrying), (1, 1), "records in flight and records to be tried again");
    Ok(())
}

pub(super) async fn a_second_settlement_is_lost(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let record = message();
    insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    let taken = worker.claim_message().await?;
    worker.settle(Table::Outbox, &taken, succeeded).await?;
    let before = the_record(&storage, Table::Outbox, &record.message_id).await?;
    let second = taken.settlements(|attempts| retry_in(attempts, Duration::ZERO, "late"));
    ensure_eq!(storage.settle(Table::Outbox, second).await?, vec![Settled::Lost], "second settlement");
    let after = the_record(&storage, Table::Outbox, &record.message_id).await?;
    ensure_eq!(after, before, "the record after the second settlement");
    Ok(())
}

pub(super) async fn a_settlement_in_flight_keeps_the_claim(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let (worker, other) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    insert(&storage, Table::Outbox, vec![message()]).await?;
    let taken = worker.claim_message().await?;
    worker.settle(Table::Outbox, &taken, |_| received(true)).await?;
    ensure_eq!(all(&storage, Table::Outbox).await?[0].owner, Some(worker.node), "owner of a record still in flight");
    ensure_eq!(other.claim(Lane::Outbox, 10).await?.records.len(), 0, "records claimed by another node");
    worker.settle(Table::Outbox, &taken, succeeded).await
}

pub(super) async fn one_lost_settlement_does_not_hinder_the_others(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    insert(&storage, Table::Outbox, messages(5)).await?;
    let taken = worker.claim(Lane::Outbox, 4).await?;
    let mut settlements = taken.settlements(succeeded);
    settlements[1].token = ClaimToken::generate();
    let gone = settlements[2].record;
    settlements[3].state = dead(1, "no");
    settlements.push(Settlement { record: RecordId(i64::MAX), ..settlements[0].clone() });
    let waiting = all(&storage, Table::Outbox).await?.into_iter().find(|record| record.status == Status::Scheduled);
    let waiting = waiting.ok_or("no record waits any more")?;
    settlements.push(Settlement { record: waiting.id, ..settlements[0].clone() });
    let [written, lost] = [Settled::Written, Settled::Lost];
    let settled = storage.settle(Table::Outbox, settlements.clone()).await?;
    ensure_eq!(settled, vec![written, lost, written, written, lost, lost], "answers, in the order of the settlements");
    let found = all(&storage, Table::Outbox).await?;
    let status = |id: RecordId| found.iter().find(|record| record.id == id).map(|record| record.status);
    ensure_eq!(status(settlements[0].record), Some(Status::Succeeded), "status of the first");
    ensure_eq!(status(settlements[1].record), Some(Status::Queued), "status of the one with a wrong token");
    ensure_eq!(status(gone), Some(Status::Succeeded), "status of the third");
    ensure_eq!(status(settlements[3].record), Some(Status::Failed), "status of the fourth");
    ensure_eq!(status(waiting.id), Some(Status::Scheduled), "status of the one that nobody holds");
    Ok(())
}

pub(super) async fn a_token_counts_for_its_own_records_only(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    insert(&storage, Table::Outbox, messages(2)).await?;
    let (one, other) = (worker.claim(Lane::Outbox, 1).await?, worker.claim(Lane::Outbox, 1).await?);
    let mut settlements = one.settlements(succeeded);
    settlements.extend(other.settlements(succeeded));
    let tokens = [settlements[0].token, settlements[1].token];
    let [written, lost] = [Settled::Written, Settled::Lost];
    (settlements[0].token, settlements[1].token) = (tokens[1], tokens[0]);
    let settled = storage.settle(Table::Outbox, settlements.clone()).await?;
    ensure_eq!(settled, vec![lost, lost], "answers to two that show each other's token");
    settlements[1].token = tokens[1];
    let settled = storage.settle(Table::Outbox, settlements.clone()).await?;
    ensure_eq!(settled, vec![lost, written], "answers to one that shows the token of the other");
    let held = the_record(&storage, Table::Outbox, &one.one()?.message_id).await?;
    ensure_eq!(held.status, Status::Queued, "status of the one with another's token");
    Ok(())
}

pub(super) async fn what_is_finished_is_never_claimed(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    insert(&storage, Table::Outbox, messages(2)).await?;
    for state in [succeeded as fn(u32) -> State, |attempts| dead(attempts, "no")] {
        let taken = worker.claim_message().await?;
        worker.settle(Table::Outbox, &taken, state).await?;
    }
    fixture.pass(KEEP.min(SHORT)).await;
    ensure_eq!(storage.next_due(v1(), vec![Lane::Outbox]).await?, vec![None], "next due time");
    let witness = message();
    insert(&storage, Table::Outbox, vec![witness.clone()]).await?;
    let taken = worker.claim(Lane::Outbox, 10).await?;
    ensure_eq!(taken.ids(), BTreeSet::from([witness.message_id]), "claimed records");
    Ok(())
}
