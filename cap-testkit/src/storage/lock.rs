//! Locked records: a handler that takes its time, in a transaction that stays open, delays nobody but its own record.

use std::sync::Arc;

use cap_core::lifecycle::received;
use cap_core::storage::{Claim, Inserted, Lane, Lease, NewRecord, Settled, Sign, Storage, Table, TakenOver};
use cap_core::{NodeId, Status};

use super::fixture::{HandlerTransaction, StorageFixture};
use super::support::*;
use crate::check::CheckResult;
use crate::{ensure, ensure_eq};

/// Some deliveries that a node holds; a handler is at work on the second.
struct AtWork {
    storage: Arc<dyn Storage>,
    worker: Worker,
    records: Vec<NewRecord>,
    taken: Taken,
}

impl AtWork {
    async fn begin(fixture: &dyn StorageFixture) -> CheckResult<(Self, Box<dyn HandlerTransaction>)> {
        let storage = opened(fixture).await?;
        let worker = Worker::join(&storage).await?;
        let records: Vec<_> = (0..3).map(|_| delivery("billing")).collect();
        for record in &records {
            insert(&storage, Table::Inbox, vec![record.clone()]).await?;
        }
        let mut taken = worker.claim(lane("billing"), 3).await?;
        taken.records.sort_by_key(|record| record.id);
        ensure_eq!(taken.records.len(), 3, "claimed records");
        let settlement = taken.settlements(succeeded).swap_remove(1);
        let Some(handler) = fixture.begin_handler(settlement).await? else {
            return Err("a handler's transaction could not begin on a record that is held".into());
        };
        Ok((Self { storage, worker, records, taken }, handler))
    }

    /// How the records are answered to settlements as of a failure.
    async fn settle(&self, which: &[usize]) -> CheckResult<Vec<Settled>> {
        let all = self.taken.settlements(|attempts| retry_in(attempts, LONG, "no"));
        let settlements = which.iter().map(|number| all[*number].clone()).collect();
        let storage = Arc::clone(&self.storage);
        soon("a settlement", async move { storage.settle(Table::Inbox, settlements).await }).await
    }

    async fn take_over(&self, dead: Vec<Sign>) -> CheckResult<TakenOver> {
        let storage = Arc::clone(&self.storage);
        soon("a takeover", async move { storage.take_over(dead).await }).await
    }

    /// The record at work is as it was: in flight, and its owner's.
    async fn is_held(&self) -> CheckResult {
        let found = the_record(&self.storage, Table::Inbox, &self.records[1].message_id).await?;
        ensure_eq!((found.status, found.owner), (Status::Queued, Some(self.worker.node)), "status and owner");
        ensure_eq!((found.attempts, found.crashes), (1, 0), "attempts and crashes");
        Ok(())
    }
}

pub(super) async fn a_settlement_does_not_wait_for_a_locked_record(fixture: &dyn StorageFixture) -> CheckResult {
    let (at_work, handler) = AtWork::begin(fixture).await?;
    ensure_eq!(at_work.settle(&[1]).await?, vec![Settled::Locked], "the settlement of a locked record alone");
    let settled = at_work.settle(&[0, 1, 2]).await?;
    ensure_eq!(settled, vec![Settled::Written, Settled::Locked, Settled::Written], "a locked record between others");
    at_work.is_held().await?;
    let settled = at_work.settle(&[0, 1]).await?;
    ensure_eq!(settled, vec![Settled::Lost, Settled::Locked], "a settlement that is lost beside one that is locked");
    let AtWork { storage, taken, .. } = at_work;
    handler.rollback().await?;
    let later = taken.settlements(|attempts| retry_in(attempts, LONG, "no")).swap_remove(1);
    let settled = storage.settle(Table::Inbox, vec![later]).await?;
    ensure_eq!(settled, vec![Settled::Written], "the settlement once the transaction has ended");

    let (AtWork { storage, taken, .. }, handler) = AtWork::begin(fixture).await?;
    handler.commit().await?;
    let settled = storage.settle(Table::Inbox, taken.settlements(|attempts| dead(attempts, "no"))).await?;
    let expected = vec![Settled::Written, Settled::Lost, Settled::Written];
    ensure_eq!(settled, expected, "settlements after the handler has committed its own");
    let status = the_record(&storage, Table::Inbox, &taken.records[1].message_id).await?.status;
    ensure_eq!(status, Status::Succeeded, "status that the handler's commit wrote");
    Ok(())
}

pub(super) async fn an_insert_does_not_wait_for_a_record_at_work(fixture: &dyn StorageFixture) -> CheckResult {
    let (at_work, handler) = AtWork::begin(fixture).await?;
    let AtWork { storage, worker, records, .. } = &at_work;
    let insert = |batch: Vec<NewRecord>, claim: Option<Claim>| {
        let storage = Arc::clone(storage);
        soon("an insert", async move { storage.insert(Table::Inbox, batch, claim).await })
    };
    let again = &records[1];
    ensure_eq!(insert(vec![again.clone()], None).await?, vec![Inserted::Duplicate], "a second delivery of it alone");
    let held = |record: NewRecord| NewRecord { state: received(true), ..record };
    let neighbours = [delivery("billing"), delivery("billing")];
    let batch = vec![held(neighbours[0].clone()), held(again.clone()), held(neighbours[1].clone())];
    let inserted = insert(batch, Some(Claim::by(worker.node))).await?;
    ensure!(
        matches!(inserted[..], [Inserted::Stored(_), Inserted::Duplicate, Inserted::Stored(_)]),
        "Stored, Duplicate, Stored was expected of a second delivery between others, it answered {inserted:?}"
    );
    for record in &neighbours {
        the_record(storage, Table::Inbox, &record.message_id).await?;
    }
    at_work.is_held().await?;
    // Of another group it is another record.
    stored(&insert(vec![NewRecord { group: Some(group("shipping")), ..again.clone() }], None).await?)?;
    handler.rollback().await?;
    let inserted = storage.insert(Table::Inbox, vec![records[1].clone()], None).await?;
    ensure_eq!(inserted, vec![Inserted::Duplicate], "a second delivery once the transaction has ended");
    Ok(())
}

pub(super) async fn a_takeover_does_not_wait_for_a_locked_record(fixture: &dyn StorageFixture) -> CheckResult {
    for commits in [false, true] {
        let (at_work, handler) = AtWork::begin(fixture).await?;
        let dead = at_work.worker.sign().await?;
        let taken = at_work.take_over(vec![dead]).await?;
        ensure_eq!((taken.outbox, taken.inbox), (0, 2), "records that are taken over beside the locked one");
        at_work.is_held().await?;
        ensure_eq!(at_work.take_over(Vec::new()).await?.inbox, 0, "records taken while the transaction is still open");
        let AtWork { storage, records, taken, .. } = at_work;
        let heir = Worker::join(&storage).await?;
        let claimed = heir.claim(suspects("billing"), 10).await?;
        ensure_eq!(claimed.ids(), new_ids(&[records[0].clone(), records[2].clone()]), "what the heir claims");
        if commits {
            handler.commit().await?;
            ensure_eq!(storage.take_over(Vec::new()).await?.inbox, 0, "records taken after the handler has committed");
            let status = the_record(&storage, Table::Inbox, &records[1].message_id).await?.status;
            ensure_eq!(status, Status::Succeeded, "status that the handler's commit wrote");
        } else {
            handler.rollback().await?;
            ensure_eq!(
                storage.take_over(Vec::new()).await?.inbox,
                1,
                "records that the first takeover after the end takes"
            );
            let claimed = heir.claim(suspects("billing"), 10).await?;
            let found = claimed.one()?;
            ensure_eq!(found.message_id, records[1].message_id, "what the heir claims then");
            ensure_eq!((found.attempts, found.crashes), (2, 1), "attempts and crashes of what was locked");
        }
        let settled = storage.settle(Table::Inbox, taken.settlements(succeeded)).await?;
        ensure_eq!(settled, vec![Settled::Lost; 3], "settlements of the former owner");
        storage.leave(heir.node).await?;
        let addresses = all(&storage, Table::Inbox).await?.iter().map(|record| record.id).collect();
        storage.delete(Table::Inbox, addresses).await?;
    }
    Ok(())
}

pub(super) async fn leaving_does_not_wait_for_a_locked_record(fixture: &dyn StorageFixture) -> CheckResult {
    let (at_work, handler) = AtWork::begin(fixture).await?;
    let (storage, node) = (Arc::clone(&at_work.storage), at_work.worker.node);
    soon("a node that leaves", async move { storage.leave(node).await }).await?;
    at_work.is_held().await?;
    let AtWork { storage, records, .. } = at_work;
    ensure_eq!(storage.heartbeat(node, LONG).await?, Lease::Lost, "heartbeat of a node that left");
    let heir = Worker::join(&storage).await?;
    let claimed = heir.claim(lane("billing"), 10).await?;
    ensure_eq!(claimed.ids(), new_ids(&[records[0].clone(), records[2].clone()]), "what was given back at once");
    handler.rollback().await?;
    ensure_eq!(storage.take_over(Vec::new()).await?.inbox, 1, "records that the first takeover after the end takes");
    let next = [claimed_of(&heir, lane("billing")).await?, claimed_of(&heir, suspects("billing")).await?].concat();
    ensure_eq!(next, [records[1].message_id.clone()], "what the heir claims then");
    Ok(())
}

async fn claimed_of(worker: &Worker, lane: Lane) -> CheckResult<Vec<cap_core::MessageId>> {
    let taken = worker.claim(lane, 10).await?;
    Ok(taken.records.into_iter().map(|record| record.message_id).collect())
}

pub(super) async fn a_handler_at_work_hinders_nobody(fixture: &dyn StorageFixture) -> CheckResult {
    let (AtWork { storage, worker, .. }, handler) = AtWork::begin(fixture).await?;
    let witness = delivery("billing");
    insert(&storage, Table::Inbox, vec![witness.clone()]).await?;
    let node = worker.node;
    let call = Arc::clone(&storage);
    let lease = soon("a heartbeat", async move { call.heartbeat(node, LONG).await }).await?;
    ensure!(lease != Lease::Lost, "a live lease was answered as Lost");
    let call = Arc::clone(&storage);
    let other = NodeId::generate();
    soon("a join", async move { call.join(other, LONG).await }).await?;
    let call = Arc::clone(&storage);
    let lanes = vec![lane("billing"), suspects("billing"), Lane::Outbox];
    let next = soon("next_due", async move { call.next_due(v1(), lanes).await }).await?;
    ensure_eq!(next, vec![Some(std::time::Duration::ZERO), None, None], "next due times beside the handler");
    let (call, request) = (Arc::clone(&storage), worker.request(lane("billing"), v1(), 10));
    let claimed = soon("a claim", async move { call.claim(request).await }).await?;
    ensure_eq!(ids(&claimed.records), new_ids(&[witness]), "claimed beside the handler");
    handler.commit().await?;
    Ok(())
}
