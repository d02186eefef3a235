//! Several runtimes use one storage. Heartbeats come from a thread with a runtime of its own: they go on whatever the user's
//! runtime is busy with.

use std::future::Future;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::NodeId;
use cap_core::storage::{Lease, Storage, Table};
use tokio::task::JoinSet;

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

/// Keeps threads blocked until it is opened, though not for ever.
#[derive(Default)]
struct Gate {
    blocked: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    const OPEN: usize = usize::MAX;

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As a handler does that computes, or reads a file, without telling the runtime.
    fn block(&self) {
        let mut blocked = self.lock();
        if *blocked == Self::OPEN {
            return;
        }
        *blocked += 1;
        self.changed.notify_all();
        drop(self.changed.wait_timeout_while(blocked, PATIENCE * 2, |blocked| *blocked != Self::OPEN));
    }

    /// Waits until so many threads are blocked, or it is clear that no more will be.
    fn wait_for(&self, threads: usize) {
        let second = Duration::from_secs(1);
        drop(self.changed.wait_timeout_while(self.lock(), second, |blocked| *blocked < threads));
    }

    fn open(&self) {
        *self.lock() = Self::OPEN;
        self.changed.notify_all();
    }
}

/// Does some work on a runtime of a thread of its own, while every worker thread of this one is blocked. Answers none if
/// the work waits for one of them.
fn while_all_are_blocked<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> CheckResult<Option<T>> {
    let workers = tokio::runtime::Handle::current().metrics().num_workers();
    let gate = Arc::new(Gate::default());
    // This thread is one of them. More than the others, since what it spawned last may stay with it.
    for _ in 0..workers {
        let gate = Arc::clone(&gate);
        tokio::spawn(async move { gate.block() });
    }
    let (sender, receiver) = mpsc::channel();
    let others = Arc::clone(&gate);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        others.wait_for(workers - 1);
        let _ = sender.send(runtime.map(|runtime| runtime.block_on(work)));
    });
    let answer = receiver.recv_timeout(PATIENCE);
    gate.open();
    match answer {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) => Err(Failure::new(format!("no runtime could be made: {error}"))),
        Err(_) => Ok(None),
    }
}

/// What the thread of a node does: joins, and says again and again that it lives.
async fn live(storage: Arc<dyn Storage>, node: NodeId) -> cap_core::Result<Vec<Lease>> {
    storage.join(node, LONG).await?;
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(storage.heartbeat(node, LONG).await?);
    }
    Ok(answers)
}

fn lives(storage: &Arc<dyn Storage>, node: NodeId) -> CheckResult {
    let Some(answers) = while_all_are_blocked(live(Arc::clone(storage), node))? else {
        return Err("joining and heartbeats on a runtime of their own waited for the user's, which is blocked".into());
    };
    let answers = answers?;
    ensure!(!answers.contains(&Lease::Lost), "heartbeats on a runtime of their own were answered {answers:?}");
    Ok(())
}

pub(super) async fn heartbeats_go_on_while_every_worker_thread_is_blocked(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    // What has been used here before leaves connections of this runtime behind.
    insert(&storage, Table::Outbox, vec![message()]).await?;
    let worker = Worker { storage: Arc::clone(&storage), node: NodeId::generate() };
    lives(&storage, worker.node)?;
    worker.claim_message().await?;
    Ok(())
}

/// An engine that starts again, or another one on the same storage, has another thread.
pub(super) async fn heartbeats_go_on_from_the_next_runtime(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let nodes = [(); 3].map(|()| NodeId::generate());
    for node in nodes {
        lives(&storage, node)?;
    }
    for node in nodes {
        let lease = storage.heartbeat(node, LONG).await?;
        ensure_eq!(lease != Lease::Lost, true, "whether a node that joined from another runtime lives here, too");
    }
    Ok(())
}

/// More than pools have connections, mostly.
const MANY: usize = 24;

/// A runtime whose threads are all blocked, such as one of the handlers' own, holds up nothing here, though it has used the
/// storage.
pub(super) async fn work_goes_on_while_another_runtime_is_blocked(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let other = other.map_err(|error| Failure::new(error.to_string()))?;
    let used = other.spawn(insert_at_once(Arc::clone(&storage))).await;
    let gate = Arc::new(Gate::default());
    let blocking = Arc::clone(&gate);
    other.spawn(async move { blocking.block() });
    let waiting = Arc::clone(&gate);
    let is_blocked = tokio::task::spawn_blocking(move || waiting.wait_for(1)).await;
    let worked = tokio::time::timeout(PATIENCE, insert_at_once(storage)).await;
    gate.open();
    other.shutdown_background();
    used.map_err(|error| Failure::new(error.to_string()))??;
    is_blocked.map_err(|error| Failure::new(error.to_string()))?;
    worked
        .unwrap_or_else(|_| Err("inserts waited for another runtime that had used the storage, and is blocked".into()))
}

async fn insert_at_once(storage: Arc<dyn Storage>) -> CheckResult {
    let mut inserts = JoinSet::new();
    for _ in 0..MANY {
        let storage = Arc::clone(&storage);
        inserts.spawn(async move { storage.insert(Table::Outbox, vec![message()], None).await });
    }
    while let Some(inserted) = inserts.join_next().await {
        inserted.map_err(|error| Failure::new(error.to_string()))??;
    }
    Ok(())
}
