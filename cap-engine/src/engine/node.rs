//! The node's identity: it joins, gives signs of life, takes from the dead, and fences itself when its own lease is
//! lost, to go on under a new id.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::storage::{Claim, Lease, Sign};
use cap_core::{Error, ErrorKind, NodeId, Result, Storage, Table};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::engine::backoff::Pause;
use crate::engine::errand::Errand;
use crate::engine::scheduler::Scheduler;
use crate::engine::signs::Signs;

/// How many claims without an answer one life bears.
const DOUBTS: usize = 32;

/// One life under one id.
#[derive(Debug, Clone)]
pub(crate) struct Epoch {
    pub(crate) id: NodeId,
    /// Cancelled when the lease is lost: what this life holds may be another's.
    pub(crate) fenced: Arc<CancellationToken>,
}

/// The node as the loops see it.
#[derive(Debug)]
pub(crate) struct Node {
    epoch: watch::Sender<Option<Epoch>>,
    /// How many signs of life the storage has taken.
    signs: watch::Sender<u64>,
    renew: Notify,
    renew_because: Mutex<String>,
    doubts: Mutex<Vec<(Table, Claim)>>,
    lease: Duration,
    heartbeat: Duration,
}

impl Node {
    pub(crate) fn new(lease: Duration, heartbeat: Duration) -> Self {
        let (epoch, signs, renew) = (watch::Sender::new(None), watch::Sender::new(0), Notify::new());
        Self { epoch, signs, renew, renew_because: Mutex::default(), doubts: Mutex::default(), lease, heartbeat }
    }

    /// The present life, if the lease is held.
    pub(crate) fn current(&self) -> Option<Epoch> {
        self.epoch.borrow().clone()
    }

    /// Waits for a life with a lease.
    pub(crate) async fn joined(&self) -> Epoch {
        let mut changes = self.epoch.subscribe();
        loop {
            if let Some(epoch) = changes.borrow_and_update().clone() {
                return epoch;
            }
            // The sender is a field of the node that is borrowed here: it cannot be gone.
            let _ = changes.changed().await;
        }
    }

    /// Waits until the storage has taken a sign of life: it answers, and can be written to.
    pub(crate) async fn next_sign(&self) {
        let mut signs = self.signs.subscribe();
        // The sender is a field of the node that is borrowed here: it cannot be gone.
        let _ = signs.changed().await;
    }

    fn signed(&self) {
        self.signs.send_modify(|signs| *signs += 1);
    }

    /// The storage says that this life has no lease: nothing more is claimed under it, and a new one begins.
    pub(crate) fn lost(&self, epoch: &Epoch) {
        if self.current().is_some_and(|current| current.id == epoch.id) {
            self.fence();
            self.renew("the storage says that another node has taken over from it");
        }
    }

    /// A claim's answer never came, and it was released. But what was sent may still be carried out, later than the
    /// release, and would be held by nobody's knowledge: it is released again with every heartbeat of this life.
    pub(crate) fn doubt(&self, table: Table, claim: Claim) {
        let mut doubts = self.doubts();
        if doubts.len() >= DOUBTS {
            // So many failures end this life: under a new id nothing of it can be carried out any more.
            return self.renew(&format!("{DOUBTS} claims had no answer"));
        }
        doubts.push((table, claim));
    }

    fn doubts(&self) -> MutexGuard<'_, Vec<(Table, Claim)>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn release_doubts(&self, storage: &Arc<dyn Storage>, scheduler: &Scheduler) {
        let doubts = self.doubts().clone();
        for (table, claim) in doubts {
            match storage.release(table, claim).await {
                Ok(0) => {}
                Ok(released) => {
                    tracing::warn!(cap.table = %table, cap.released = released, "a claim was carried out after it had been released: released again");
                    scheduler.wake_table(table);
                }
                Err(error) => {
                    tracing::debug!(cap.table = %table, error.message = %error, "could not release a doubtful claim again")
                }
            }
        }
    }

    /// Begins a new life: the present one may hold records that nobody works on (a loop of it has panicked), or has
    /// lost its lease.
    pub(crate) fn renew(&self, because: &str) {
        because.clone_into(&mut self.renew_because.lock().unwrap_or_else(PoisonError::into_inner));
        self.renew.notify_one();
    }

    /// One life, from joining to the loss of the lease (an error) or to `stop` (with the lease still held).
    pub(crate) async fn live(&self, engine: &Arc<Engine>) -> Result<()> {
        let Engine { storage, scheduler, .. } = &**engine;
        let id = NodeId::generate();
        let joined = Instant::now();
        storage.join(id, self.lease).await?;
        self.signed();
        self.doubts().clear();
        let mut end = FenceOnDrop(Some(self));
        let epoch = Epoch { id, fenced: Arc::default() };
        tracing::info!(cap.node = %id, cap.storage = storage.describe(), "joined");
        self.epoch.send_replace(Some(epoch));
        engine.health.well("node");
        scheduler.wake_table(Table::Outbox);
        scheduler.wake_table(Table::Inbox);

        let Some(ended) = self.hold(id, joined, engine).await else {
            end.0 = None;
            return Ok(());
        };
        self.fence();
        tracing::warn!(cap.node = %id, cap.reason = %ended, "fenced: going on under a new id");
        // What this life still holds is due again at once; if that fails, the lapse of the lease does it. The next life
        // does not wait for it.
        Errand::default().send(engine, async move |engine| {
            if let Err(error) = engine.storage.leave(id).await {
                tracing::debug!(cap.node = %id, error.message = %error, "could not sign off");
            }
        });
        Err(ended)
    }

    /// Keeps the lease, which began when the node `joined`; answers why it ended, or nothing when it was told to stop.
    /// Nothing but a heartbeat is waited for: what else is to be done must not cost the lease, and must not keep the
    /// node from noticing that it is over.
    async fn hold(&self, id: NodeId, joined: Instant, engine: &Arc<Engine>) -> Option<Error> {
        let lost = |kind, reason: String| Some(Error::new(kind, "go on as", format!("node {id}"), reason));
        let (mut takeover, mut release) = (Errand::default(), Errand::default());
        let mut signs = Signs::new(self.lease);
        let mut held_until = joined + self.lease;
        // The first look at the others is at once, and the first takeover follows it.
        let mut next_sign = joined;
        let mut next_takeover = joined + self.heartbeat;
        loop {
            let renew = tokio::select! {
                () = tokio::time::sleep_until(next_sign.min(next_takeover)) => false,
                () = self.renew.notified() => true,
                () = engine.stop.keeper.cancelled() => return None,
            };
            if renew {
                let because = self.renew_because.lock().unwrap_or_else(PoisonError::into_inner).clone();
                return lost(ErrorKind::LeaseLost, because);
            }
            if Instant::now() >= next_takeover {
                next_takeover = Instant::now() + self.lease;
                let dead = signs.dead();
                takeover.send(engine, async move |engine| {
                    if let Err(error) = engine.node.take_over(dead, &engine.storage, &engine.scheduler).await {
                        tracing::warn!(cap.node = %id, error.message = %error, "could not take over from dead nodes");
                    }
                });
            }
            if Instant::now() < next_sign {
                continue;
            }
            let asked = Instant::now();
            let answer = tokio::select! {
                answer = self.heartbeat_in_time(id, &engine.storage, held_until) => answer,
                () = engine.stop.keeper.cancelled() => return None,
            };
            match answer {
                Some(Ok(Lease::Held { now, others })) => {
                    self.signed();
                    held_until = asked + self.lease;
                    next_sign = asked + self.heartbeat;
                    engine.health.well("node");
                    release.send(engine, async |engine| {
                        engine.node.release_doubts(&engine.storage, &engine.scheduler).await;
                    });
                    let is_first = signs.look(asked, now, others);
                    if is_first {
                        next_takeover = Instant::now();
                    }
                    next_takeover = signs.next().map_or(next_takeover, |dies| dies.min(next_takeover));
                }
                Some(Ok(Lease::Lost)) => {
                    return lost(ErrorKind::LeaseLost, "another node has taken over from it".into());
                }
                Some(Err(error)) if Instant::now() < held_until => {
                    tracing::warn!(cap.node = %id, error.message = %error, "heartbeat failed and will be tried again");
                    // Not later than the lease: its end is noticed when it comes.
                    next_sign = (Instant::now() + self.heartbeat / 5).min(held_until);
                }
                Some(Err(error)) => return lost(ErrorKind::LeaseLost, error.reason().to_owned()),
                None => return lost(ErrorKind::LeaseLost, format!("no answer within its lease of {:?}", self.lease)),
            }
        }
    }

    /// A heartbeat; `None` if the lease ends before it is answered. The storage's future goes on to its end all the same.
    async fn heartbeat_in_time(
        &self,
        id: NodeId,
        storage: &Arc<dyn Storage>,
        held_until: Instant,
    ) -> Option<Result<Lease>> {
        let (storage, lease) = (Arc::clone(storage), self.lease);
        let mut asking = tokio::spawn(async move { storage.heartbeat(id, lease).await });
        tokio::select! {
            answer = &mut asking => Some(answer.unwrap_or_else(|panic| {
                Err(Error::new(ErrorKind::Internal, "renew the lease of", format!("node {id}"), panic.to_string()))
            })),
            () = tokio::time::sleep_until(held_until) => {
                self.fence();
                None
            }
        }
    }

    async fn take_over(&self, dead: Vec<Sign>, storage: &Arc<dyn Storage>, scheduler: &Scheduler) -> Result<()> {
        let taken = storage.take_over(dead).await?;
        if !taken.nodes.is_empty() || taken.outbox + taken.inbox > 0 {
            tracing::info!(
                cap.nodes = taken.nodes.len(),
                cap.outbox = taken.outbox,
                cap.inbox = taken.inbox,
                "took over from dead nodes"
            );
            scheduler.wake_table(Table::Outbox);
            scheduler.wake_table(Table::Inbox);
        }
        Ok(())
    }

    /// Ends the present life in this process: nothing more is claimed under it, and its handlers are told and ended.
    pub(crate) fn fence(&self) {
        if let Some(epoch) = self.epoch.send_replace(None) {
            epoch.fenced.cancel();
        }
    }
}

/// However a life ends, a panic included, nobody goes on claiming under its id.
struct FenceOnDrop<'a>(Option<&'a Node>);

impl Drop for FenceOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.0 {
            node.fence();
        }
    }
}

/// Signs the node off at the end of a stop.
pub(crate) async fn leave(engine: Arc<Engine>) {
    let Some(epoch) = engine.node.current() else { return };
    let mut pause = Pause::quick();
    for _ in 0..5 {
        match engine.storage.leave(epoch.id).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(cap.node = %epoch.id, error.message = %error, "could not sign off"),
        }
        pause.wait().await;
    }
}
