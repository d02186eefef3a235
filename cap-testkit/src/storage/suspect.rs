//! Suspects: crashes are counted where an attempt ended with its process, and there only, and who has them waits in a
//! lane of their own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cap_core::lifecycle::requeued;
use cap_core::storage::{Lane, NewRecord, Storage, Table};
use cap_core::{MessageId, Status};

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::CheckResult;
use crate::{ensure, ensure_eq};

/// A delivery to a group, after so many crashes, due in `pause`.
fn after_crashes(name: &str, crashes: u32, pause: Duration) -> NewRecord {
    NewRecord { state: given_back(crashes, pause, None), ..delivery(name) }
}

/// Attempts, crashes and reason of the one record of a message, as a list tells them.
async fn told(storage: &Arc<dyn Storage>, table: Table, id: &MessageId) -> CheckResult<(u32, u32, Option<String>)> {
    let found = the_record(storage, table, id).await?;
    Ok((found.attempts, found.crashes, found.reason))
}

fn no() -> Option<String> {
    Some("no".to_owned())
}

pub(super) async fn a_takeover_counts_a_crash_and_no_attempt(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let state = retry_in(1, Duration::ZERO, "no");
    let outgoing = NewRecord { state: state.clone(), ..message() };
    let incoming = NewRecord { state, ..delivery("billing") };
    insert(&storage, Table::Outbox, vec![outgoing.clone()]).await?;
    insert(&storage, Table::Inbox, vec![incoming.clone()]).await?;
    for crashes in 0..3 {
        let worker = Worker::join(&storage).await?;
        let incoming_lane = if crashes == 0 { lane("billing") } else { suspects("billing") };
        for (table, lane, record) in
            [(Table::Outbox, Lane::Outbox, &outgoing), (Table::Inbox, incoming_lane, &incoming)]
        {
            let taken = worker.claim(lane, 10).await?;
            let claimed = taken.one()?;
            ensure_eq!((claimed.attempts, claimed.crashes), (crashes + 2, crashes), "attempts and crashes of a claim");
            ensure_eq!(claimed.reason, no(), "reason of a claim after {crashes} crashes");
            let listed = told(&storage, table, &record.message_id).await?;
            ensure_eq!(listed, (crashes + 2, crashes, no()), "attempts, crashes and reason in flight");
        }
        worker.dies().await?;
        for (table, record) in [(Table::Outbox, &outgoing), (Table::Inbox, &incoming)] {
            let listed = told(&storage, table, &record.message_id).await?;
            ensure_eq!(listed, (crashes + 2, crashes + 1, no()), "attempts, crashes and reason after a takeover");
        }
    }
    Ok(())
}

/// A stop is no crash: what is given back is as it was before the claim.
pub(super) async fn giving_back_keeps_crashes_and_reason(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    for crashes in [0, 2] {
        let state = given_back(crashes, Duration::ZERO, Some("no"));
        let outgoing = NewRecord { state: state.clone(), ..message() };
        let incoming = NewRecord { state, ..delivery("billing") };
        let addresses = insert(&storage, Table::Outbox, vec![outgoing.clone()]).await?;
        insert(&storage, Table::Inbox, vec![incoming.clone()]).await?;
        let incoming_lane = if crashes == 0 { lane("billing") } else { suspects("billing") };
        for leaves in [false, true] {
            let worker = Worker::join(&storage).await?;
            for (table, lane) in [(Table::Outbox, Lane::Outbox), (Table::Inbox, incoming_lane.clone())] {
                let taken = worker.claim(lane, 10).await?;
                taken.one()?;
                if !leaves {
                    ensure_eq!(storage.release(table, taken.claim).await?, 1, "released records");
                }
            }
            storage.leave(worker.node).await?;
            let how = if leaves { "leaving" } else { "a release" };
            for (table, record) in [(Table::Outbox, &outgoing), (Table::Inbox, &incoming)] {
                let listed = told(&storage, table, &record.message_id).await?;
                ensure_eq!(listed, (crashes, crashes, no()), "attempts, crashes and reason after {how} ({table})");
            }
        }
        storage.delete(Table::Outbox, addresses).await?;
    }
    Ok(())
}

pub(super) async fn crashes_are_those_of_the_state(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    for table in [Table::Outbox, Table::Inbox] {
        let new = |state| {
            let plain = if table == Table::Outbox { message() } else { delivery("billing") };
            NewRecord { state, ..plain }
        };
        let record = new(given_back(4, Duration::ZERO, None));
        let address = insert(&storage, table, vec![record.clone()]).await?;
        let found = the_record(&storage, table, &record.message_id).await?;
        ensure_eq!((found.attempts, found.crashes), (4, 4), "attempts and crashes as inserted into the {table}");
        let lane_of = |crashes| match table {
            Table::Outbox => Lane::Outbox,
            Table::Inbox if crashes == 0 => lane("billing"),
            Table::Inbox => suspects("billing"),
        };
        // More, fewer, and none: where an attempt came to an end, the record is no suspect any more.
        let states = [
            given_back(7, Duration::ZERO, None),
            given_back(1, Duration::ZERO, Some("no")),
            retry_in(5, Duration::ZERO, "no"),
            given_back(2, Duration::ZERO, None),
            succeeded(3),
        ];
        let mut before = 4;
        for state in states {
            let taken = worker.claim(lane_of(before), 10).await?;
            ensure_eq!(taken.one()?.crashes, before, "crashes of a claim from the {table}");
            worker.settle(table, &taken, |_| state.clone()).await?;
            before = state.crashes();
            let found = the_record(&storage, table, &record.message_id).await?;
            ensure_eq!(found.crashes, before, "crashes after a settlement with {state:?}");
        }
        let given_up = new(given_back(3, Duration::ZERO, None));
        let buried = insert(&storage, table, vec![given_up.clone()]).await?;
        let taken = worker.claim(lane_of(3), 10).await?;
        taken.one()?;
        worker.settle(table, &taken, |_| dead_after_crashes(3)).await?;
        let found = the_record(&storage, table, &given_up.message_id).await?;
        ensure_eq!((found.crashes, found.status), (3, Status::Failed), "crashes and status of what was given up");
        ensure_eq!(storage.requeue(table, buried.clone(), requeued()).await?, 1, "requeued records");
        let found = the_record(&storage, table, &given_up.message_id).await?;
        ensure_eq!(found.crashes, 0, "crashes of what a person gave a new life");
        ensure_eq!(worker.claim(lane_of(0), 10).await?.ids(), BTreeSet::from([given_up.message_id]), "claimed again");
        storage.delete(table, address).await?;
    }
    Ok(())
}

pub(super) async fn suspects_have_a_lane_of_their_own(fixture: &dyn StorageFixture) -> CheckResult {
    const STEP: Duration = Duration::from_millis(10);
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    // Healthy ones and suspects in turn, and not in the order in which they are due.
    let records = [(0, 5), (3, 2), (0, 1), (1, 6), (0, 3), (9, 4)]
        .map(|(crashes, steps)| after_crashes("billing", crashes, STEP * steps));
    insert(&storage, Table::Inbox, records.to_vec()).await?;
    let others = [after_crashes("shipping", 1, Duration::ZERO), after_crashes("quiet", 0, Duration::ZERO)];
    let other_version = NewRecord { version: version("other"), ..after_crashes("billing", 1, Duration::ZERO) };
    insert(&storage, Table::Inbox, [&others[..], std::slice::from_ref(&other_version)].concat()).await?;
    insert(&storage, Table::Outbox, vec![NewRecord { state: given_back(2, Duration::ZERO, None), ..message() }])
        .await?;
    fixture.pass(STEP * 6 + MARGIN).await;
    for (lane, expected) in [(suspects("billing"), [1, 5, 3]), (lane("billing"), [2, 4, 0])] {
        let first = worker.claim(lane.clone(), 2).await?;
        let rest = worker.claim(lane.clone(), 10).await?;
        ensure_eq!(rest.next_due, None, "next due time in {lane:?}, of which all is taken");
        let taken: Vec<_> = first.records.iter().chain(&rest.records).map(|record| &record.message_id).collect();
        let expected: Vec<_> = expected.iter().map(|number| &records[*number].message_id).collect();
        ensure_eq!(taken, expected, "claimed from {lane:?}, the earliest due first");
    }
    let quiet = worker.claim(suspects("quiet"), 10).await?;
    ensure_eq!((quiet.records.len(), quiet.next_due), (0, None), "suspects of a group that has none, and their next");
    let healthy = worker.claim(lane("shipping"), 10).await?;
    ensure_eq!((healthy.records.len(), healthy.next_due), (0, None), "others of a group that has suspects only");
    for (lane, record) in [(suspects("shipping"), &others[0]), (lane("quiet"), &others[1])] {
        let taken = worker.claim(lane.clone(), 10).await?;
        ensure_eq!(taken.ids(), BTreeSet::from([record.message_id.clone()]), "claimed from {lane:?}");
    }
    let taken = worker.claim_version(suspects("billing"), version("other"), 10).await?;
    ensure_eq!(taken.ids(), BTreeSet::from([other_version.message_id]), "suspects of another version");
    worker.claim_message().await?;
    Ok(())
}

pub(super) async fn next_due_is_right_for_suspects_and_others_apart(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let records = [
        after_crashes("early", 2, Duration::ZERO),
        after_crashes("early", 0, LONG),
        after_crashes("late", 2, LONG),
        after_crashes("late", 0, Duration::ZERO),
        after_crashes("suspects", 1, Duration::ZERO),
    ];
    insert(&storage, Table::Inbox, records.to_vec()).await?;
    let names = ["early", "late", "suspects", "none"];
    let lanes: Vec<Lane> = names.iter().flat_map(|name| [lane(name), suspects(name)]).collect();
    let next = storage.next_due(v1(), lanes.clone()).await?;
    ensure_eq!(next.len(), lanes.len(), "answers");
    let is_long = |next: Option<Duration>| next.is_some_and(|next| next <= LONG && next > LONG / 2);
    ensure!(is_long(next[0]), "others due in {LONG:?} beside suspects that are due: found {:?}", next[0]);
    ensure!(is_long(next[3]), "suspects due in {LONG:?} beside others that are due: found {:?}", next[3]);
    ensure_eq!([next[1], next[2], next[5]], [Some(Duration::ZERO); 3], "lanes in which something is due now");
    ensure_eq!([next[4], next[6], next[7]], [None; 3], "lanes in which nothing waits");
    for (lane, taken) in [(lanes[0].clone(), 0), (lanes[3].clone(), 0), (lanes[1].clone(), 1)] {
        let claimed = worker.claim(lane.clone(), 10).await?;
        ensure_eq!(claimed.records.len(), taken, "claimed from {lane:?}");
        let expected = if taken == 0 { is_long(claimed.next_due) } else { claimed.next_due.is_none() };
        ensure!(expected, "next due time of a claim from {lane:?}: found {:?}", claimed.next_due);
    }
    Ok(())
}

/// As for finished and delayed records: what waits in one lane costs nothing in another.
pub(super) async fn a_claim_does_not_pay_for_the_other_lanes(fixture: &dyn StorageFixture) -> CheckResult {
    const EACH: usize = 5_000;
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let empty = [lane("small"), suspects("small"), lane("crashed"), suspects("healthy")];
    let mut before = Vec::new();
    for lane in &empty {
        before.push(worker.quickest_claim(lane).await?);
    }
    for _ in 0..EACH / 500 {
        let crashed = (0..500).map(|_| after_crashes("crashed", 2, Duration::ZERO));
        let healthy = (0..500).map(|_| delivery("healthy"));
        insert(&storage, Table::Inbox, crashed.chain(healthy).collect()).await?;
    }
    for (lane, before) in empty.iter().zip(before) {
        let after = worker.quickest_claim(lane).await?;
        let bound = before * 8 + Duration::from_micros(500);
        ensure!(after <= bound, "an empty claim of {lane:?} took {before:?} before and {after:?} beside {EACH} others");
    }
    Ok(())
}
