//! Time: the database's clock decides, in UTC, and finer than a second.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use cap_core::storage::{Chore, Lane, Lease, NewRecord, Settled, Settlement, Table, TakenOver};
use cap_core::time::FAR;
use cap_core::{Due, NodeId, Timestamp};

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::CheckResult;
use crate::{ensure, ensure_eq};

/// A record that becomes due at a time is claimed from that time on, and the lane says so meanwhile.
async fn is_claimed_at_its_time(
    fixture: &dyn StorageFixture,
    worker: &Worker,
    record: &NewRecord,
    due: Timestamp,
    wait: Duration,
) -> CheckResult {
    let early = worker.claim(Lane::Outbox, 10).await?;
    if !early.records.is_empty() {
        let now = database_now(&worker.storage).await?;
        ensure!(now >= due, "a record due at {due} was claimed before {now}");
        return Ok(());
    }
    let next = early.next_due.ok_or("a claim did not say when the next record is due")?;
    ensure!(next <= wait, "the next record is due in {wait:?} or less, it said in {next:?}");
    fixture.pass(next + MARGIN).await;
    let taken = worker.claim(Lane::Outbox, 10).await?;
    ensure_eq!(taken.ids(), BTreeSet::from([record.message_id.clone()]), "claimed after {next:?}, as told");
    Ok(())
}

pub(super) async fn a_delayed_message_is_due_at_its_time(fixture: &dyn StorageFixture) -> CheckResult {
    const DELAY: Duration = Duration::from_millis(1_300);
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let record = message_due(Due::In(DELAY));
    let before = database_now(&storage).await?;
    insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    let after = database_now(&storage).await?;
    let due = the_record(&storage, Table::Outbox, &record.message_id).await?.due.ok_or("it has no due time")?;
    let expected = later(before, DELAY)..=later(after, DELAY);
    ensure!(expected.contains(&due), "due time: found {due}, expected {expected:?}");
    is_claimed_at_its_time(fixture, &worker, &record, later(before, DELAY), DELAY).await
}

pub(super) async fn a_message_for_a_moment_is_due_at_that_moment(fixture: &dyn StorageFixture) -> CheckResult {
    const WAIT: Duration = Duration::from_millis(1_300);
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let past = message_due(Due::At(Timestamp::from_micros(1_000_000)));
    insert(&storage, Table::Outbox, vec![past.clone()]).await?;
    let taken = worker.claim_message().await?;
    ensure_eq!(taken.one()?.message_id, past.message_id, "message for a moment that has passed");
    // Whole milliseconds: every database has those.
    let now = database_now(&storage).await?.as_micros();
    let moment = later(Timestamp::from_micros(now - now % 1_000), WAIT);
    let record = message_due(Due::At(moment));
    insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    let found = the_record(&storage, Table::Outbox, &record.message_id).await?;
    ensure_eq!(found.due, Some(moment), "due time");
    is_claimed_at_its_time(fixture, &worker, &record, moment, WAIT).await
}

pub(super) async fn a_failed_record_is_tried_again_at_its_time(fixture: &dyn StorageFixture) -> CheckResult {
    const PAUSE: Duration = Duration::from_millis(1_300);
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let record = message();
    insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    let taken = worker.claim_message().await?;
    let before = database_now(&storage).await?;
    worker.settle(Table::Outbox, &taken, |attempts| retry_in(attempts, PAUSE, "no")).await?;
    is_claimed_at_its_time(fixture, &worker, &record, later(before, PAUSE), PAUSE).await
}

pub(super) async fn next_due_is_right_for_each_lane(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let due_in = |name: &str, delay| NewRecord { state: message_due(Due::In(delay)).state, ..delivery(name) };
    let incoming = vec![due_in("soon", LONG), due_in("soon", LONG * 5), due_in("late", LONG * 20), delivery("held")];
    insert(&storage, Table::Inbox, incoming).await?;
    worker.claim(lane("held"), 1).await?.one()?;
    let finished = NewRecord { state: succeeded(1), ..delivery("finished") };
    let given_up = NewRecord { state: dead(1, "no"), ..delivery("finished") };
    let other_version = NewRecord { version: version("other"), ..delivery("finished") };
    insert(&storage, Table::Inbox, vec![finished, given_up, other_version]).await?;
    insert(&storage, Table::Outbox, vec![message(), message_due(Due::In(LONG))]).await?;
    let lanes = ["late", "none", "soon", "held", "finished"].map(lane);
    let lanes = [&lanes[..3], &[Lane::Outbox], &lanes[3..]].concat();
    let next = storage.next_due(v1(), lanes.clone()).await?;
    ensure_eq!(next.len(), lanes.len(), "answers");
    ensure_eq!([next[1], next[4], next[5]], [None; 3], "lanes in which nothing waits: empty, held, finished");
    ensure_eq!(next[3], Some(Duration::ZERO), "the outbox, in which one is due now");
    let about = |found: Option<Duration>, due: Duration| found.is_some_and(|found| found <= due && found > due / 2);
    ensure!(about(next[2], LONG), "due in {LONG:?}: found {:?}", next[2]);
    ensure!(about(next[0], LONG * 20), "due in {:?}: found {:?}", LONG * 20, next[0]);
    let other = storage.next_due(version("other"), vec![lane("finished"), Lane::Outbox]).await?;
    ensure_eq!(other, vec![Some(Duration::ZERO), None], "answers for another version");
    Ok(())
}

pub(super) async fn the_clock_is_in_utc_and_finer_than_a_second(fixture: &dyn StorageFixture) -> CheckResult {
    /// Time zones differ by no less than 15 minutes; a server's clock by less.
    const TOLERANCE: Duration = Duration::from_secs(14 * 60);
    let storage = opened(fixture).await?;
    let host = Timestamp::from(SystemTime::now());
    let now = database_now(&storage).await?;
    let apart = Duration::from_micros(now.as_micros().abs_diff(host.as_micros()));
    ensure!(apart < TOLERANCE, "`Added` is {now} when the host's clock says {host}");
    let mut previous = now;
    let mut is_finer = false;
    for _ in 0..10 {
        fixture.pass(Duration::from_millis(7)).await;
        let next = database_now(&storage).await?;
        ensure!(next > previous, "7 ms later the clock went from {previous} to {next}");
        is_finer |= next.as_micros() % 1_000_000 != 0;
        previous = next;
    }
    ensure!(is_finer, "the clock shows whole seconds only");
    Ok(())
}

/// The far future of one column type is the past of another: 2038, 2262.
pub(super) async fn a_hundred_years_are_no_overflow(fixture: &dyn StorageFixture) -> CheckResult {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let before = database_now(&storage).await?;
    let record = message_due(Due::In(CENTURY));
    insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    let due = the_record(&storage, Table::Outbox, &record.message_id).await?.due;
    ensure!(due.is_some_and(|due| due >= later(before, CENTURY)), "due in a hundred years: found {due:?}");
    ensure_eq!(worker.claim(Lane::Outbox, 10).await?.records.len(), 0, "records claimed a hundred years early");
    let next = storage.next_due(v1(), vec![Lane::Outbox]).await?;
    ensure!(next[0].is_some_and(|next| next > CENTURY / 2), "next due time: found {:?}", next[0]);
    Ok(())
}

/// The ends of what the engine hands to a storage, and of what a user may configure.
pub(super) async fn no_time_is_too_far_off(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let long_ago = message_due(Due::At(Timestamp::from_micros(i64::MIN)));
    let last_moment = message_due(Due::At(Timestamp::from_micros(i64::MAX)));
    let for_ever = message_due(Due::In(Duration::MAX));
    let kept = NewRecord { state: succeeded_for(Duration::MAX), ..message() };
    let witness = message();
    let before = database_now(&storage).await?;
    let batch = [&witness, &for_ever, &last_moment, &long_ago, &kept].map(Clone::clone);
    insert(&storage, Table::Outbox, batch.to_vec()).await?;
    let found = the_record(&storage, Table::Outbox, &long_ago.message_id).await?;
    ensure_eq!(found.due, Some(Timestamp::EARLIEST), "the first moment that there is");
    let found = the_record(&storage, Table::Outbox, &last_moment.message_id).await?;
    ensure_eq!(found.due, Some(Timestamp::LATEST), "the last moment that there is");
    let found = the_record(&storage, Table::Outbox, &for_ever.message_id).await?;
    ensure!(found.due >= Some(later(before, FAR)), "due in the longest delay: found {:?}", found.due);
    let taken = worker.claim(Lane::Outbox, 10).await?;
    let order: Vec<_> = taken.records.iter().map(|record| &record.message_id).collect();
    ensure_eq!(order, [&long_ago.message_id, &witness.message_id], "claimed, the earliest due first");
    ensure!(is_far(taken.next_due), "next due time of the claim: found {:?}", taken.next_due);
    let next = storage.next_due(v1(), vec![Lane::Outbox]).await?;
    ensure!(is_far(next[0]), "next due time: found {:?}", next[0]);
    // The same by a settlement.
    let states = [given_back(2, Duration::MAX, None), succeeded_for(Duration::MAX)];
    let settlements = taken.records.iter().zip(states).map(|(record, state)| Settlement {
        record: record.id,
        token: taken.claim.token,
        state,
    });
    let settled = storage.settle(Table::Outbox, settlements.collect()).await?;
    ensure_eq!(settled, vec![Settled::Written; 2], "settlements with the longest pause and the longest retention");
    let found = the_record(&storage, Table::Outbox, &long_ago.message_id).await?;
    ensure!(found.due >= Some(later(before, FAR)), "due after the longest pause: found {:?}", found.due);
    for record in [&kept, &witness] {
        let found = the_record(&storage, Table::Outbox, &record.message_id).await?;
        ensure!(found.expires >= Some(later(before, FAR)), "kept for the longest time: found {:?}", found.expires);
    }
    fixture.pass(SHORT).await;
    ensure_eq!(storage.collect(Table::Outbox, 10).await?, 0, "collected of what is kept for the longest time");
    ensure_eq!(worker.claim(Lane::Outbox, 10).await?.records.len(), 0, "claimed of what is due in the far future");
    Ok(())
}

/// At least half a thousand years.
fn is_far(time: Option<Duration>) -> bool {
    time.is_some_and(|time| time >= FAR / 2)
}

/// Leases and terms come from the configuration as they are.
pub(super) async fn leases_and_terms_may_be_for_ever(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker { storage: storage.clone(), node: NodeId::generate() };
    storage.join(worker.node, Duration::MAX).await?;
    let other = Worker::join(&storage).await?;
    let renewed = storage.heartbeat(other.node, Duration::MAX).await?;
    ensure!(renewed != Lease::Lost, "an endless lease was answered as Lost");
    let now = database_now(&storage).await?;
    for node in [&worker, &other] {
        let until = node.sign().await?.until;
        ensure!(until >= later(now, FAR / 2), "the end of an endless lease: found {until}");
    }
    insert(&storage, Table::Outbox, messages(2)).await?;
    worker.claim_message().await?;
    for _ in 0..2 {
        let renewed = storage.heartbeat(worker.node, Duration::MAX).await?;
        ensure!(renewed != Lease::Lost, "an endless lease was answered as Lost");
    }
    fixture.pass(SHORT).await;
    ensure_eq!(storage.take_over(Vec::new()).await?, TakenOver::default(), "taken from a node with an endless lease");
    let has_it = async |node, term| storage.take_chore(Chore::Collect, node, term).await;
    ensure!(has_it(worker.node, Duration::MAX).await?, "a chore that nobody has was refused");
    ensure!(!has_it(other.node, Duration::MAX).await?, "a chore was taken from a node that has it for ever");
    ensure!(has_it(worker.node, Duration::MAX).await?, "a chore was refused to the node that has it for ever");
    fixture.pass(SHORT).await;
    ensure!(!has_it(other.node, LONG).await?, "a chore was taken later from a node that has it for ever");
    // For ever is no longer than until it is changed.
    ensure!(has_it(worker.node, SHORT).await?, "a shorter term was refused to the node that has the chore");
    fixture.pass(SHORT + MARGIN).await;
    ensure!(has_it(other.node, LONG).await?, "a chore whose term has passed was refused");
    ensure!(storage.heartbeat(worker.node, SHORT).await? != Lease::Lost, "an endless lease could not be shortened");
    let taken = worker.dies().await?;
    ensure_eq!((taken.nodes, taken.outbox), (vec![worker.node], 1), "taken once it is dead");
    Ok(())
}
