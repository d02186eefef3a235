//! Leases: what a node holds is its own while it lives, and another's soon after.

use std::collections::BTreeSet;
use std::time::Duration;

use cap_core::error::ErrorKind;
use cap_core::lifecycle::received;
use cap_core::storage::{Claim, ClaimRequest, Lane, Lease, NewRecord, Settled, Table, TakenOver};
use cap_core::{NodeId, Status};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

/// A claim of a lane in which there is nothing: whether the node may claim.
async fn may_claim(worker: &Worker) -> CheckResult<bool> {
    let request: ClaimRequest = worker.request(lane("nobody"), v1(), 1);
    match worker.storage.claim(request).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::LeaseLost => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn a_node_that_joined_may_claim(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let stranger = Worker { storage: storage.clone(), node: NodeId::generate() };
    ensure!(!may_claim(&stranger).await?, "a node that never joined could claim");
    storage.join(stranger.node, LONG).await?;
    fixture.pass(SHORT).await;
    ensure!(may_claim(&stranger).await?, "a node within its lease could not claim");
    insert(&storage, Table::Outbox, vec![message()]).await?;
    stranger.claim_message().await?;
    Ok(())
}

pub(super) async fn joining_again_begins_the_lease_anew(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker { storage: storage.clone(), node: NodeId::generate() };
    storage.join(worker.node, SHORT).await?;
    let first = worker.sign().await?;
    storage.join(worker.node, LONG).await?;
    ensure!(worker.sign().await?.until > first.until, "the lease ended with that of the first join");
    ensure!(may_claim(&worker).await?, "a node that joined twice could not claim");
    Ok(())
}

pub(super) async fn a_heartbeat_is_a_new_sign_of_life(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker { storage: storage.clone(), node: NodeId::generate() };
    storage.join(worker.node, LONG).await?;
    let joined = worker.sign().await?;
    fixture.pass(SHORT).await;
    ensure!(storage.heartbeat(worker.node, LONG).await? != Lease::Lost, "a heartbeat was answered as Lost");
    let renewed = worker.sign().await?;
    ensure!(renewed.until > joined.until, "the lease ended with that of the join, in spite of the heartbeat");
    insert(&storage, Table::Outbox, vec![message()]).await?;
    worker.claim_message().await?;
    let taken = storage.take_over(vec![joined]).await?;
    ensure_eq!(taken, TakenOver::default(), "taken from a node that has given another sign since");
    Ok(())
}

pub(super) async fn who_was_taken_over_from_stays_lost(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let unknown = storage.heartbeat(NodeId::generate(), LONG).await?;
    ensure_eq!(unknown, Lease::Lost, "answer to the heartbeat of an unknown node");
    let worker = Worker::join(&storage).await?;
    worker.dies().await?;
    for _ in 0..2 {
        let answer = storage.heartbeat(worker.node, LONG).await?;
        ensure_eq!(answer, Lease::Lost, "answer to a heartbeat after the takeover");
    }
    ensure!(!may_claim(&worker).await?, "a node could claim after it had been taken over from");
    Ok(())
}

/// The database's clock may step: what it says of a lease kills nobody.
pub(super) async fn a_lease_whose_end_has_passed_is_renewed(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let [outgoing, _] = holding(&worker).await?;
    ensure!(storage.heartbeat(worker.node, SHORT).await? != Lease::Lost, "a heartbeat was answered as Lost");
    fixture.pass(SHORT + MARGIN).await;
    ensure!(may_claim(&worker).await?, "a node that nobody has taken over from could not claim");
    let taken = storage.take_over(Vec::new()).await?;
    ensure_eq!(taken, TakenOver::default(), "taken from a node of which nobody has said that it is dead");
    let answer = storage.heartbeat(worker.node, LONG).await?;
    ensure!(answer != Lease::Lost, "a node that nobody has taken over from was answered as Lost");
    ensure!(worker.sign().await?.until > database_now(&storage).await?, "its lease was not renewed");
    worker.settle(Table::Outbox, &outgoing, succeeded).await
}

pub(super) async fn a_heartbeat_tells_the_others_signs(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let told = async || match storage.heartbeat(worker.node, LONG).await? {
        Lease::Held { now, others } => CheckResult::Ok((now, others)),
        Lease::Lost => Err(Failure::new("a live node was answered as Lost")),
    };
    let (before, alone) = told().await?;
    ensure_eq!(alone, vec![], "signs of others that are told to a node alone");
    let nodes = [LONG * 30, LONG * 20].map(|lease| (NodeId::generate(), lease));
    for (node, lease) in nodes {
        storage.join(node, lease).await?;
    }
    let (now, others) = told().await?;
    ensure_eq!(others.len(), nodes.len(), "how many signs of others are told");
    for (node, lease) in nodes {
        let Some(sign) = others.iter().find(|sign| sign.node == node) else {
            return Err("the sign of another node was not told".into());
        };
        let (earliest, latest) = (later(before, lease), later(now, lease));
        ensure!(
            earliest <= sign.until && sign.until <= latest,
            "a lease of {lease:?} that began between {before} and {now} was told to end at {}",
            sign.until
        );
    }
    Ok(())
}

/// Makes a node hold one record of each table, in its first and its second attempt.
async fn holding(worker: &Worker) -> CheckResult<[Taken; 2]> {
    let storage = &worker.storage;
    insert(storage, Table::Outbox, vec![message()]).await?;
    let outgoing = worker.claim_message().await?;
    let tried_once = NewRecord { state: retry_in(1, Duration::ZERO, "no"), ..delivery("billing") };
    insert(storage, Table::Inbox, vec![tried_once]).await?;
    let incoming = worker.claim(lane("billing"), 1).await?;
    incoming.one()?;
    Ok([outgoing, incoming])
}

pub(super) async fn what_the_dead_held_is_taken_over(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let [outgoing, incoming] = holding(&worker).await?;
    let taken_over = worker.dies().await?;
    ensure_eq!(taken_over, TakenOver { nodes: vec![worker.node], outbox: 1, inbox: 1 }, "what was taken over");
    let next = storage.next_due(v1(), vec![Lane::Outbox, suspects("billing")]).await?;
    ensure_eq!(next, vec![Some(Duration::ZERO); 2], "when what was taken over is due");
    let heir = Worker::join(&storage).await?;
    for (lane, former, attempts) in [(Lane::Outbox, outgoing, 2), (suspects("billing"), incoming, 3)] {
        let taken = heir.claim(lane, 10).await?;
        ensure_eq!(taken.ids(), former.ids(), "messages that the heir claims");
        ensure_eq!(taken.one()?.attempts, attempts, "attempts: that of the dead node counts");
    }
    ensure_eq!(storage.take_over(Vec::new()).await?, TakenOver::default(), "what a second takeover finds");
    Ok(())
}

pub(super) async fn nothing_is_taken_from_a_live_node(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    holding(&worker).await?;
    fixture.pass(SHORT * 2).await;
    let (other, dead) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    let taken = dead.dies().await?;
    ensure_eq!(taken, TakenOver { nodes: vec![dead.node], outbox: 0, inbox: 0 }, "taken beside a live node");
    ensure_eq!(other.claim(Lane::Outbox, 10).await?.records.len(), 0, "records claimed from under a live node");
    Ok(())
}

/// By the database's own clock, which is told with each heartbeat.
pub(super) async fn a_lease_is_as_long_as_it_is_said_to_be(fixture: &dyn StorageFixture) -> CheckResult {
    const LEASE: Duration = Duration::from_millis(1_500);
    /// The database's clock may tick in milliseconds.
    const TICK: Duration = Duration::from_millis(2);
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    for _ in 0..20 {
        let asked = Instant::now();
        let answer = storage.heartbeat(worker.node, LEASE).await?;
        let took = asked.elapsed();
        let Lease::Held { now, .. } = answer else { return Err("a live node was answered as Lost".into()) };
        let until = worker.sign().await?.until;
        ensure!(until <= later(now, LEASE + TICK), "a lease of {LEASE:?} was renewed until {until}, it was {now}");
        // On a busy machine the heartbeat itself may take longer than what a wrong unit makes.
        if took < Duration::from_millis(300) {
            ensure!(
                later(until, took + TICK) >= later(now, LEASE),
                "a lease of {LEASE:?} was renewed until {until}, it was {now}"
            );
            return Ok(());
        }
    }
    Err("no heartbeat was answered within 300 ms".into())
}

pub(super) async fn a_former_owner_cannot_settle(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let former = Worker::join(&storage).await?;
    insert(&storage, Table::Outbox, messages(2)).await?;
    let old = former.claim(Lane::Outbox, 2).await?;
    former.dies().await?;
    let heir = Worker::join(&storage).await?;
    let new = heir.claim_message().await?;
    let before = all(&storage, Table::Outbox).await?;
    for state in [succeeded as fn(u32) -> cap_core::lifecycle::State, |attempts| dead(attempts, "late")] {
        let settled = storage.settle(Table::Outbox, old.settlements(state)).await?;
        ensure_eq!(settled, vec![Settled::Lost; 2], "settlements of a former owner");
        ensure_eq!(all(&storage, Table::Outbox).await?, before, "records after they were lost");
    }
    heir.settle(Table::Outbox, &new, succeeded).await
}

pub(super) async fn takeovers_at_once_take_each_record_once(fixture: &dyn StorageFixture) -> CheckResult {
    const MANY: usize = 60;
    let handles = opened_many(fixture, 4).await?;
    let worker = Worker::join(&handles[0]).await?;
    insert(&handles[0], Table::Outbox, messages(MANY)).await?;
    worker.claim(Lane::Outbox, MANY).await?;
    let dead = worker.sign().await?;
    let mut calls = JoinSet::new();
    for storage in handles.clone() {
        calls.spawn(async move { storage.take_over(vec![dead]).await });
    }
    let mut total = TakenOver::default();
    while let Some(taken) = calls.join_next().await {
        let taken = taken.map_err(|error| Failure::new(error.to_string()))??;
        total.outbox += taken.outbox;
        total.nodes.extend(taken.nodes);
    }
    ensure_eq!(total.outbox, MANY as u64, "records that all takeovers together took");
    ensure_eq!(total.nodes, vec![worker.node], "nodes that all takeovers together found dead");
    let heir = Worker::join(&handles[0]).await?;
    ensure_eq!(heir.claim(Lane::Outbox, ALL).await?.ids().len(), MANY, "records that the heir claims");
    Ok(())
}

pub(super) async fn what_a_receiver_held_is_taken_over(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let receiver = Worker::join(&storage).await?;
    let held = NewRecord { state: received(true), ..delivery("billing") };
    stored(&storage.insert(Table::Inbox, vec![held.clone()], Some(Claim::by(receiver.node))).await?)?;
    ensure_eq!(receiver.dies().await?.inbox, 1, "inbox records taken over");
    let taken = Worker::join(&storage).await?.claim(suspects("billing"), 10).await?;
    ensure_eq!((&taken.one()?.message_id, taken.one()?.attempts), (&held.message_id, 2), "what the heir claims");
    Ok(())
}

pub(super) async fn leaving_gives_everything_back_uncounted(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let [outgoing, incoming] = holding(&worker).await?;
    storage.leave(worker.node).await?;
    ensure!(!may_claim(&worker).await?, "a node that left could claim");
    ensure_eq!(storage.heartbeat(worker.node, LONG).await?, Lease::Lost, "heartbeat of a node that left");
    let settled = storage.settle(Table::Outbox, outgoing.settlements(succeeded)).await?;
    ensure_eq!(settled, vec![Settled::Lost], "settlement of a node that left");
    let heir = Worker::join(&storage).await?;
    for (lane, former, attempts) in [(Lane::Outbox, outgoing, 1), (lane("billing"), incoming, 2)] {
        let taken = heir.claim(lane, 10).await?;
        ensure_eq!(taken.ids(), former.ids(), "messages that the heir claims");
        ensure_eq!(taken.one()?.attempts, attempts, "attempts: that of the node that left does not count");
    }
    storage.leave(NodeId::generate()).await?;
    Ok(())
}

pub(super) async fn leaving_touches_no_other_node(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let (leaver, stayer) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    insert(&storage, Table::Outbox, messages(2)).await?;
    leaver.claim_message().await?;
    let kept = stayer.claim_message().await?;
    storage.leave(leaver.node).await?;
    ensure!(may_claim(&stayer).await?, "a node could not claim after another left");
    stayer.settle(Table::Outbox, &kept, succeeded).await
}

pub(super) async fn a_release_undoes_a_claim(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let records = messages(3);
    insert(&storage, Table::Outbox, records.clone()).await?;
    let taken = worker.claim(Lane::Outbox, 3).await?;
    ensure_eq!(storage.release(Table::Outbox, taken.claim).await?, 3, "released records");
    let settled = storage.settle(Table::Outbox, taken.settlements(succeeded)).await?;
    ensure_eq!(settled, vec![Settled::Lost; 3], "settlements after the release");
    let again = worker.claim(Lane::Outbox, 10).await?;
    ensure_eq!(again.ids(), new_ids(&records), "what can be claimed again at once");
    let attempts: BTreeSet<_> = again.records.iter().map(|record| record.attempts).collect();
    ensure_eq!(attempts, BTreeSet::from([1]), "attempts: the released one does not count");
    worker.settle(Table::Outbox, &again, succeeded).await?;
    ensure_eq!(storage.release(Table::Outbox, again.claim).await?, 0, "released after the settlement");
    let never = Claim::by(worker.node);
    ensure_eq!(storage.release(Table::Outbox, never).await?, 0, "released of a claim that never took place");
    let statuses: BTreeSet<_> = all(&storage, Table::Outbox).await?.iter().map(|record| record.status).collect();
    ensure_eq!(statuses, BTreeSet::from([Status::Succeeded]), "statuses in the end");
    Ok(())
}

pub(super) async fn a_release_touches_only_its_token(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    insert(&storage, Table::Outbox, messages(2)).await?;
    insert(&storage, Table::Inbox, vec![delivery("billing")]).await?;
    let released = worker.claim_message().await?;
    let kept = worker.claim_message().await?;
    let incoming = worker.claim(lane("billing"), 1).await?;
    ensure_eq!(storage.release(Table::Outbox, released.claim).await?, 1, "released records");
    worker.settle(Table::Outbox, &kept, succeeded).await?;
    worker.settle(Table::Inbox, &incoming, succeeded).await
}
