//! Several runtimes use one storage. Heartbeats come from a thread with a runtime of its own: they go on whatever the user's
//! runtime is busy with.

use std::future::Future;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::NodeId;
use cap_core::storage::{Lease, Settlement, Storage, Table};
use tokio::runtime::Runtime;
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

/// Runtimes in which nothing runs any more, such as one of the handlers' own whose threads are all blocked.
#[derive(Default)]
struct Blocked(Vec<Runtime>);

impl Blocked {
    /// One more. In it runs what it is told to, and nothing from the moment in which that has its answer.
    fn add(&mut self) -> CheckResult<&Runtime> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        self.0.push(runtime.map_err(|error| Failure::new(error.to_string()))?);
        self.0.last().ok_or_else(|| "there is no runtime".into())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Runtime::shutdown_background);
    }
}

/// Runs it in a thread of its own, which the caller's waits for.
fn in_a_thread(run: impl FnOnce() -> CheckResult + Send) -> CheckResult {
    let ran = tokio::task::block_in_place(|| std::thread::scope(|scope| scope.spawn(run).join()));
    ran.map_err(|_| Failure::new("it panicked"))?
}

/// They hold up nothing here, though they have used the storage up to that moment: the first one many connections at once,
/// each of the others one.
pub(super) async fn work_goes_on_while_other_runtimes_are_blocked(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let mut blocked = Blocked::default();
    for used in 0..=MANY {
        let storage = Arc::clone(&storage);
        let runtime = blocked.add()?;
        let work = async move { if used == 0 { insert_at_once(storage).await } else { insert_one(storage).await } };
        in_a_thread(|| runtime.block_on(in_time(work))).map_err(|failure| beside(used, &failure))?;
    }
    in_time(insert_at_once(storage)).await.map_err(|failure| beside(MANY, &failure))
}

/// The same for the transactions of handlers, each of which has a connection until it ends.
pub(super) async fn handlers_of_blocked_runtimes_keep_no_connection(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    insert(&storage, Table::Inbox, (0..=MANY).map(|_| delivery("billing")).collect()).await?;
    let mut settlements = worker.claim(lane("billing"), MANY + 1).await?.settlements(succeeded);
    let last = settlements.pop().ok_or("nothing was claimed")?;
    let mut blocked = Blocked::default();
    for (used, settlement) in settlements.into_iter().enumerate() {
        let runtime = blocked.add()?;
        let handling = in_time(handle(fixture, settlement));
        in_a_thread(|| runtime.block_on(handling)).map_err(|failure| beside(used, &failure))?;
    }
    in_time(handle(fixture, last)).await.map_err(|failure| beside(MANY, &failure))
}

async fn in_time(work: impl Future<Output = CheckResult>) -> CheckResult {
    let worked = tokio::time::timeout(PATIENCE, work).await;
    worked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}").into()))
}

fn beside(used: usize, failure: &Failure) -> Failure {
    Failure::new(format!("beside {used} other runtimes that had used the storage, and are blocked: {failure}"))
}

/// A handler that does nothing, in its transaction.
async fn handle(fixture: &dyn StorageFixture, settlement: Settlement) -> CheckResult {
    match fixture.begin_handler(settlement).await? {
        Some(handler) => Ok(handler.commit().await?),
        None => Err("a handler's transaction could not begin on a record that is held".into()),
    }
}

async fn insert_at_once(storage: Arc<dyn Storage>) -> CheckResult {
    let mut inserts = JoinSet::new();
    for _ in 0..MANY {
        inserts.spawn(insert_one(Arc::clone(&storage)));
    }
    while let Some(inserted) = inserts.join_next().await {
        inserted.map_err(|error| Failure::new(error.to_string()))??;
    }
    Ok(())
}

async fn insert_one(storage: Arc<dyn Storage>) -> CheckResult {
    storage.insert(Table::Outbox, vec![message()], None).await?;
    Ok(())
}
