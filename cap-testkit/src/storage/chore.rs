//! Chores: one node does them for all, and another when that one is gone.

use std::sync::Arc;
use std::time::Duration;

use cap_core::NodeId;
use cap_core::error::ErrorKind;
use cap_core::storage::Chore;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

/// Asks for the chore; answers whether the node has it.
async fn takes(worker: &Worker, term: Duration) -> CheckResult<bool> {
    Ok(worker.storage.take_chore(Chore::Collect, worker.node, term).await?)
}

/// Two nodes, the first of which has the chore for longer than the check takes.
async fn holder_and_other(fixture: &dyn StorageFixture) -> CheckResult<(Worker, Worker)> {
    let storage = opened(fixture).await?;
    let (holder, other) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    ensure!(takes(&holder, LONG).await?, "a chore that nobody had was refused");
    ensure!(!takes(&other, LONG).await?, "a chore was given to a second node");
    Ok((holder, other))
}

pub(super) async fn of_nodes_that_ask_for_a_chore_at_once_one_has_it(fixture: &dyn StorageFixture) -> CheckResult {
    const NODES: usize = 8;
    let start = Arc::new(Barrier::new(NODES));
    let mut asking = JoinSet::new();
    for storage in opened_many(fixture, NODES).await? {
        let worker = Worker::join(&storage).await?;
        let start = Arc::clone(&start);
        asking.spawn(async move {
            start.wait().await;
            let has_it = takes(&worker, LONG).await?;
            CheckResult::Ok((worker, has_it))
        });
    }
    let mut nodes = Vec::new();
    while let Some(asked) = asking.join_next().await {
        nodes.push(asked.map_err(|error| Failure::new(error.to_string()))??);
    }
    ensure_eq!(nodes.iter().filter(|(_, has_it)| *has_it).count(), 1, "nodes that have the chore");
    for (worker, has_it) in nodes {
        ensure_eq!(takes(&worker, LONG).await?, has_it, "whether the node has the chore, asked again");
    }
    Ok(())
}

pub(super) async fn the_node_that_has_a_chore_gets_it_again(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let (holder, other) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    for term in [SHORT, LONG] {
        ensure!(takes(&holder, term).await?, "the node that has the chore was refused");
    }
    fixture.pass(SHORT + MARGIN).await;
    ensure!(!takes(&other, LONG).await?, "another node got the chore after the first term, in spite of the second");
    ensure!(takes(&holder, SHORT).await?, "the node that has the chore was refused");
    fixture.pass(SHORT + MARGIN).await;
    ensure!(takes(&other, LONG).await?, "the chore was not free after its last, shorter term");
    Ok(())
}

/// Found out with the database's own clock: the check only insists where that clock leaves no doubt.
pub(super) async fn a_chore_ends_with_its_term_and_not_before(fixture: &dyn StorageFixture) -> CheckResult {
    const TERM: Duration = Duration::from_millis(1_500);
    let storage = opened(fixture).await?;
    let (former, next) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    let before = database_now(&storage).await?;
    ensure!(takes(&former, TERM).await?, "a chore that nobody had was refused");
    fixture.pass(Duration::from_millis(1_200)).await;
    if takes(&next, LONG).await? {
        let now = database_now(&storage).await?;
        ensure!(now >= later(before, TERM), "a term of {TERM:?} was over before {now}, begun after {before}");
        return Ok(());
    }
    fixture.pass(Duration::from_millis(300) + MARGIN).await;
    ensure!(takes(&next, LONG).await?, "the chore was not free after its term of {TERM:?}");
    ensure!(!takes(&former, LONG).await?, "the former node got the chore back while another has it");
    Ok(())
}

pub(super) async fn a_chore_is_free_when_its_node_leaves(fixture: &dyn StorageFixture) -> CheckResult {
    let (holder, other) = holder_and_other(fixture).await?;
    let leaver = Worker::join(&holder.storage).await?;
    leaver.storage.leave(leaver.node).await?;
    ensure!(!takes(&other, LONG).await?, "the chore was free after another node than its own had left");
    holder.storage.leave(holder.node).await?;
    ensure!(takes(&other, LONG).await?, "the chore was not free after its node had left");
    Ok(())
}

pub(super) async fn a_chore_is_free_when_its_node_is_taken_over(fixture: &dyn StorageFixture) -> CheckResult {
    let (holder, other) = holder_and_other(fixture).await?;
    Worker::join(&holder.storage).await?.dies().await?;
    ensure!(!takes(&other, LONG).await?, "the chore was free after another node than its own was taken over");
    ensure_eq!(holder.dies().await?.nodes, vec![holder.node], "nodes that were taken over");
    ensure!(takes(&other, LONG).await?, "the chore was not free after its node was taken over");
    Ok(())
}

pub(super) async fn a_chore_is_not_for_a_node_that_is_not_registered(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let stranger = Worker { storage: storage.clone(), node: NodeId::generate() };
    let dead = Worker::join(&storage).await?;
    dead.dies().await?;
    for (worker, name) in [(stranger, "that never joined"), (dead, "that was taken over from")] {
        match worker.storage.take_chore(Chore::Collect, worker.node, LONG).await {
            Ok(answer) => return Err(Failure::new(format!("a node {name} was answered {answer}"))),
            Err(error) => ensure_eq!(error.kind(), ErrorKind::LeaseLost, "kind of the error for a node {name}"),
        }
    }
    ensure!(takes(&Worker::join(&storage).await?, LONG).await?, "the chore was not free, though nobody could take it");
    Ok(())
}

pub(super) async fn a_chore_waits_for_no_open_transaction(fixture: &dyn StorageFixture) -> CheckResult {
    /// For what must not wait for a transaction which stays open: it would take for ever.
    const PATIENCE: Duration = Duration::from_secs(5);
    let storage = opened(fixture).await?;
    let (holder, other) = (Worker::join(&storage).await?, Worker::join(&storage).await?);
    let mut tx = fixture.begin().await?;
    stored(&tx.publish(vec![message()]).await?)?;
    let asking =
        tokio::spawn(async move { CheckResult::Ok([takes(&holder, LONG).await?, takes(&other, LONG).await?]) });
    let answers = async { asking.await.map_err(|error| Failure::new(error.to_string()))? };
    if fixture.single_writer() {
        tx.rollback().await?;
        ensure_eq!(answers.await?, [true, false], "which of two nodes has the chore");
        return Ok(());
    }
    let Ok(answers) = tokio::time::timeout(PATIENCE, answers).await else {
        return Err("the chore waited for a transaction that has only inserted".into());
    };
    ensure_eq!(answers?, [true, false], "which of two nodes has the chore, beside the open transaction");
    tx.commit().await?;
    Ok(())
}
