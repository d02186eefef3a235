//! The inbox: each group has each message once, and its receiver may hold it from the first moment.

use std::collections::{BTreeSet, HashMap};

use cap_core::error::ErrorKind;
use cap_core::lifecycle::received;
use cap_core::storage::{Claim, Inserted, NewRecord, Table};
use cap_core::{NodeId, Status};

use super::fixture::StorageFixture;
use super::publish::insert_at_once;
use super::support::*;
use crate::check::CheckResult;
use crate::ensure_eq;

pub(super) async fn of_concurrent_deliveries_of_one_message_one_is_stored(fixture: &dyn StorageFixture) -> CheckResult {
    let handles = opened_many(fixture, 8).await?;
    for _ in 0..5 {
        let record = delivery("billing");
        let twice = handles.iter().chain(&handles).cloned().collect();
        let stored = insert_at_once(twice, Table::Inbox, &record).await?;
        ensure_eq!(stored, 1, "deliveries that were answered as Stored");
        the_record(&handles[0], Table::Inbox, &record.message_id).await?;
    }
    Ok(())
}

pub(super) async fn each_group_has_its_own_record_of_a_message(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let billing = delivery("billing");
    let shipping = NewRecord { group: Some(group("shipping")), ..billing.clone() };
    let outgoing = NewRecord { group: None, ..billing.clone() };
    insert(&storage, Table::Inbox, vec![billing.clone(), shipping]).await?;
    insert(&storage, Table::Outbox, vec![outgoing]).await?;
    let again = storage.insert(Table::Inbox, vec![billing.clone()], None).await?;
    ensure_eq!(again, vec![Inserted::Duplicate], "answer to a second delivery to the same group");
    let worker = Worker::join(&storage).await?;
    for name in ["billing", "shipping"] {
        let taken = worker.claim(lane(name), 10).await?;
        ensure_eq!(taken.one()?.message_id, billing.message_id, "message claimed for {name}");
    }
    Ok(())
}

/// Succeeded or dead, a record still tells a second delivery from a first one.
pub(super) async fn a_finished_record_still_makes_a_second_delivery_a_duplicate(
    fixture: &dyn StorageFixture,
) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    for finish in [succeeded as fn(u32) -> cap_core::lifecycle::State, |attempts| dead(attempts, "no")] {
        let record = delivery("billing");
        insert(&storage, Table::Inbox, vec![record.clone()]).await?;
        let taken = worker.claim(lane("billing"), 1).await?;
        worker.settle(Table::Inbox, &taken, finish).await?;
        let again = storage.insert(Table::Inbox, vec![record.clone()], None).await?;
        ensure_eq!(again, vec![Inserted::Duplicate], "answer to a second delivery");
        let taken = worker.claim(lane("billing"), 10).await?;
        ensure_eq!(taken.records.len(), 0, "records to handle a second time");
    }
    Ok(())
}

pub(super) async fn an_inbox_record_held_by_its_receiver_needs_no_claim(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let (worker, other) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    let held = NewRecord { state: received(true), ..delivery("billing") };
    let claim = Claim::by(worker.node);
    let inserted = storage.insert(Table::Inbox, vec![held.clone()], Some(claim)).await?;
    let addresses = stored(&inserted)?;
    let found = the_record(&storage, Table::Inbox, &held.message_id).await?;
    ensure_eq!((found.status, found.attempts), (Status::Queued, 1), "status and attempts");
    ensure_eq!(found.owner, Some(worker.node), "owner");
    let taken = other.claim(lane("billing"), 10).await?;
    ensure_eq!(taken.records.len(), 0, "records that another node claims from under its receiver");
    let taken = Taken { claim, records: vec![found], next_due: None };
    worker.settle(Table::Inbox, &taken, succeeded).await?;
    let found = the_record(&storage, Table::Inbox, &held.message_id).await?;
    ensure_eq!((found.id, found.status), (addresses[0], Status::Succeeded), "address and status after the settlement");
    Ok(())
}

pub(super) async fn a_waiting_record_inserted_with_a_claim_is_claimable(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let (worker, other) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    let held = NewRecord { state: received(true), ..delivery("billing") };
    let waiting = NewRecord { state: received(false), ..delivery("billing") };
    let parked = NewRecord { state: dead(0, "no handler"), ..delivery("billing") };
    let batch = vec![held, waiting.clone(), parked];
    stored(&storage.insert(Table::Inbox, batch, Some(Claim::by(worker.node))).await?)?;
    let taken = other.claim(lane("billing"), 10).await?;
    ensure_eq!(taken.ids(), BTreeSet::from([waiting.message_id]), "records that another node claims");
    Ok(())
}

pub(super) async fn an_insert_with_the_claim_of_nobody_is_refused(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let dead = Worker::join(&storage).await?;
    dead.dies().await?;
    for node in [NodeId::generate(), dead.node] {
        let [in_flight, waiting] = [true, false].map(|held| NewRecord { state: received(held), ..delivery("billing") });
        for batch in [vec![in_flight.clone(), waiting], vec![in_flight]] {
            let result = storage.insert(Table::Inbox, batch, Some(Claim::by(node))).await;
            let kind = result.err().map(|error| error.kind());
            ensure_eq!(kind, Some(ErrorKind::LeaseLost), "kind of the error of a node that is not registered");
            ensure_eq!(all(&storage, Table::Inbox).await?.len(), 0, "records after the refused insert");
        }
    }
    Ok(())
}

pub(super) async fn each_address_is_that_of_its_record(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    for number in [2, 5, 300] {
        let incoming = |_| NewRecord { state: received(true), ..delivery("billing") };
        for (table, batch, claim) in [
            (Table::Outbox, messages(number), None),
            (Table::Inbox, (0..number).map(incoming).collect(), Some(Claim::by(worker.node))),
        ] {
            let addresses = stored(&storage.insert(table, batch.clone(), claim).await?)?;
            let there = all(&storage, table).await?;
            let there: HashMap<_, _> = there.into_iter().map(|record| (record.id, record.message_id)).collect();
            for (record, address) in batch.into_iter().zip(addresses) {
                let found = there.get(&address).cloned();
                ensure_eq!(found, Some(record.message_id), "message under the address that {table} answered for it");
            }
        }
    }
    Ok(())
}
