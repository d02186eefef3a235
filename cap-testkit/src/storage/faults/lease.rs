//! The faults of leases.

use std::time::Duration;

use cap_core::storage::{Claim, ClaimRequest, Lane, Lease, Sign, Storage, Table, TakenOver};
use cap_core::{ErrorKind, NodeId, Result, Timestamp, Version};

use super::double::{ALL, Double, LONG, VERY_LONG, error, whole_seconds_up};
use super::fault::StorageFault as Fault;

impl Double {
    fn rounded(&self, lease: Duration) -> Duration {
        match self.fault {
            Some(Fault::LeaseRoundedDown) => Duration::from_secs(lease.as_secs()),
            Some(Fault::LeaseRoundedUp) => whole_seconds_up(lease),
            Some(Fault::LongLeaseOverflows) if lease > VERY_LONG => Duration::ZERO,
            _ => lease,
        }
    }

    pub(super) async fn join(&self, node: NodeId, lease: Duration) -> Result<()> {
        if self.has(Fault::JoinNeedsRuntime) {
            self.until_runtime_runs().await?;
        }
        let is_new = self.memo().nodes.insert(node);
        match self.fault {
            Some(Fault::JoinForgets) => Ok(()),
            Some(Fault::JoinOnlyOnce) if !is_new => Ok(()),
            _ => self.inner().join(node, self.rounded(lease)).await,
        }
    }

    /// Whether a node is registered, found out without renewing its lease.
    async fn is_registered(&self, node: NodeId) -> bool {
        let (lane, version) = (Lane::Outbox, Version::default());
        let request = ClaimRequest::new(lane, version, Claim::by(node), 0);
        self.inner().claim(request).await.is_ok()
    }

    /// The database's clock, and the last signs of all nodes.
    async fn signs(&self) -> Result<(Timestamp, Vec<Sign>)> {
        let (inner, observer) = (self.inner(), NodeId::generate());
        inner.join(observer, LONG).await?;
        let answer = inner.heartbeat(observer, LONG).await?;
        inner.leave(observer).await?;
        match answer {
            Lease::Held { now, others } => Ok((now, others)),
            Lease::Lost => Err(error(ErrorKind::LeaseLost, "it had just joined")),
        }
    }

    /// The last signs of the nodes whose leases have ended by the database's clock.
    async fn ended(&self) -> Result<Vec<Sign>> {
        let (now, signs) = self.signs().await?;
        Ok(signs.into_iter().filter(|sign| sign.until <= now).collect())
    }

    /// The last signs of these nodes as they are now.
    async fn fresh(&self, dead: &[Sign]) -> Result<Vec<Sign>> {
        let (_, mut signs) = self.signs().await?;
        signs.retain(|sign| dead.iter().any(|dead| dead.node == sign.node));
        Ok(signs)
    }

    pub(super) async fn heartbeat(&self, node: NodeId, lease: Duration) -> Result<Lease> {
        let inner = self.inner();
        if self.has(Fault::HeartbeatForgets) && self.is_registered(node).await {
            let (now, others) = self.signs().await?;
            return Ok(Lease::Held { now, others: others.into_iter().filter(|sign| sign.node != node).collect() });
        }
        if self.has(Fault::LeaseEndsByClock) && self.ended().await?.iter().any(|sign| sign.node == node) {
            return Ok(Lease::Lost);
        }
        if self.has(Fault::HeartbeatNeedsRuntime) || self.has(Fault::HeartbeatKeepsFirstRuntime) {
            self.until_runtime_runs().await?;
        }
        if self.has(Fault::LeaveForgetsLocked) && !self.memo().nodes.contains(&node) {
            return Ok(Lease::Lost);
        }
        if self.has(Fault::LongLeaseRefused) && lease > VERY_LONG {
            return Err(error(ErrorKind::Rejected, "interval out of range"));
        }
        if self.has(Fault::HeartbeatWaitsForTransactions) {
            self.until_no_transaction_is_open().await;
        }
        let lease = if self.has(Fault::HeartbeatOnlyExtends) { lease.max(LONG) } else { lease };
        let answer = inner.heartbeat(node, self.rounded(lease)).await?;
        match (self.fault, answer) {
            (Some(Fault::HeartbeatRevives), Lease::Lost) if self.memo().nodes.contains(&node) => {
                inner.join(node, lease).await?;
                inner.heartbeat(node, lease).await
            }
            (Some(Fault::SignsOfOwn), Lease::Held { now, .. }) => {
                Ok(Lease::Held { now, others: self.signs().await?.1 })
            }
            (Some(Fault::SignsMissing), Lease::Held { now, .. }) => Ok(Lease::Held { now, others: Vec::new() }),
            (_, answer) => Ok(answer),
        }
    }

    pub(super) async fn take_over(&self, mut dead: Vec<Sign>) -> Result<TakenOver> {
        let inner = self.inner();
        if self.has(Fault::TakeOverWaitsForTransactions) {
            self.until_no_transaction_is_open().await;
        }
        match self.fault {
            Some(Fault::TakeOverIgnoresSign) => dead = self.fresh(&dead).await?,
            Some(Fault::TakeOverByClock) => dead.extend(self.ended().await?),
            _ => {}
        }
        match self.fault {
            Some(Fault::TakeOverForgetsLocked) => {
                let taken = inner.take_over(dead).await?;
                self.keep_owners_of_locked().await?;
                Ok(taken)
            }
            Some(Fault::TakeOverOfLockedFails) if !self.memo().locked.is_empty() => {
                Err(error(ErrorKind::Unavailable, "lock wait timeout exceeded"))
            }
            Some(Fault::TakeOverForgets) => Ok(TakenOver::default()),
            Some(Fault::TakeOverUncounts) => {
                let held = [self.holds(Table::Outbox).await?.len(), self.holds(Table::Inbox).await?.len()];
                let mut taken = TakenOver::default();
                for Sign { node, .. } in self.fresh(&dead).await?.into_iter().filter(|sign| dead.contains(sign)) {
                    inner.leave(node).await?;
                    taken.nodes.push(node);
                }
                taken.outbox = (held[0] - self.holds(Table::Outbox).await?.len()) as u64;
                taken.inbox = (held[1] - self.holds(Table::Inbox).await?.len()) as u64;
                Ok(taken)
            }
            Some(Fault::TakeOverOnlyOutbox) => {
                let taken = inner.take_over(dead).await?;
                let claim = self.join_ghost().await?;
                let groups = self.memo().groups.clone();
                for lane in groups.into_iter().flat_map(|group| [Lane::Inbox(group.clone()), Lane::Suspects(group)]) {
                    inner.claim(ClaimRequest::new(lane, Version::default(), claim, ALL)).await?;
                }
                Ok(taken)
            }
            Some(Fault::TakeOverFromTheLiving) => {
                self.take_from_all(|_| true).await?;
                Ok(TakenOver::default())
            }
            Some(Fault::TakeOverCountsTwice) => {
                let taken = inner.take_over(dead).await?;
                let mut memo = self.memo();
                if taken != TakenOver::default() {
                    memo.taken_over = taken;
                }
                Ok(memo.taken_over.clone())
            }
            Some(Fault::TakeOverKeepsChore | Fault::TakeOverFreesEveryChore) => {
                let taken = inner.take_over(dead).await?;
                self.spoil_freed_chores(&taken.nodes).await?;
                Ok(taken)
            }
            Some(Fault::TakeOverForgetsCrash | Fault::TakeOverCountsOneCrash | Fault::TakeOverForgetsReason) => {
                let held = [self.held(Table::Outbox).await?, self.held(Table::Inbox).await?];
                let taken = inner.take_over(dead).await?;
                self.spoil_given_back(Table::Outbox, &held[0]).await?;
                self.spoil_given_back(Table::Inbox, &held[1]).await?;
                Ok(taken)
            }
            _ => inner.take_over(dead).await,
        }
    }

    /// The owner of what is locked lives for ever.
    async fn keep_owners_of_locked(&self) -> Result<()> {
        let locked = self.memo().locked.clone();
        let records = self.all(Table::Inbox).await?.into_iter().filter(|record| locked.contains(&record.id));
        for owner in records.filter_map(|record| record.owner) {
            self.inner().join(owner, LONG).await?;
        }
        Ok(())
    }

    /// Takes from every node; those that `stay` remain with a lease.
    async fn take_from_all(&self, stay: impl Fn(NodeId) -> bool) -> Result<()> {
        let nodes = self.memo().nodes.clone();
        for node in nodes {
            self.inner().leave(node).await?;
            if stay(node) {
                self.inner().join(node, LONG).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn leave(&self, node: NodeId) -> Result<()> {
        let inner = self.inner();
        match self.fault {
            Some(Fault::LeaveForgets) => Ok(()),
            Some(Fault::LeaveWaitsForTransactions) => {
                self.until_no_transaction_is_open().await;
                inner.leave(node).await
            }
            Some(Fault::LeaveForgetsLocked) => {
                inner.leave(node).await?;
                self.memo().nodes.remove(&node);
                self.keep_owners_of_locked().await
            }
            Some(Fault::LeaveCounts) => {
                let (_, mut dead) = self.signs().await?;
                dead.retain(|sign| sign.node == node);
                inner.take_over(dead).await.map(drop)
            }
            Some(Fault::LeaveTakesFromAll) => self.take_from_all(|other| other != node).await,
            Some(Fault::LeaveKeepsChore | Fault::LeaveFreesEveryChore) => {
                inner.leave(node).await?;
                self.spoil_freed_chores(&[node]).await
            }
            Some(Fault::LeaveCountsCrash | Fault::LeaveForgetsCrashes | Fault::LeaveForgetsReason) => {
                let held = [self.held(Table::Outbox).await?, self.held(Table::Inbox).await?];
                inner.leave(node).await?;
                self.spoil_given_back(Table::Outbox, &held[0]).await?;
                self.spoil_given_back(Table::Inbox, &held[1]).await
            }
            _ => inner.leave(node).await,
        }
    }
}
