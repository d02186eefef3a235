//! The faults of leases.

use std::time::Duration;

use cap_core::storage::{Claim, ClaimRequest, Lane, Lease, Storage, Table, TakenOver};
use cap_core::{NodeId, Result, Version};

use super::double::{ALL, Double, LONG, whole_seconds_up};
use super::fault::StorageFault as Fault;

impl Double {
    fn rounded(&self, lease: Duration) -> Duration {
        match self.fault {
            Some(Fault::LeaseRoundedDown) => Duration::from_secs(lease.as_secs()),
            Some(Fault::LeaseRoundedUp) => whole_seconds_up(lease),
            _ => lease,
        }
    }

    pub(super) async fn join(&self, node: NodeId, lease: Duration) -> Result<()> {
        let is_new = self.memo().nodes.insert(node);
        match self.fault {
            Some(Fault::JoinForgets) => Ok(()),
            Some(Fault::JoinOnlyOnce) if !is_new => Ok(()),
            _ => self.inner().join(node, self.rounded(lease)).await,
        }
    }

    /// Whether a node has a lease, found out without renewing it.
    async fn is_live(&self, node: NodeId) -> bool {
        let (lane, version) = (Lane::Outbox, Version::default());
        let request = ClaimRequest { lane, version, claim: Claim::by(node), limit: 0 };
        self.inner().claim(request).await.is_ok()
    }

    pub(super) async fn heartbeat(&self, node: NodeId, lease: Duration) -> Result<Lease> {
        let inner = self.inner();
        if self.has(Fault::HeartbeatForgets) && self.is_live(node).await {
            return Ok(Lease::Held { next_expiry: None });
        }
        let lease = if self.has(Fault::HeartbeatOnlyExtends) { lease.max(LONG) } else { lease };
        let answer = inner.heartbeat(node, self.rounded(lease)).await?;
        match (self.fault, answer) {
            (Some(Fault::HeartbeatRevives), Lease::Lost) if self.memo().nodes.contains(&node) => {
                inner.join(node, lease).await?;
                Ok(Lease::Held { next_expiry: None })
            }
            (Some(Fault::NextExpiryIsOwn), Lease::Held { next_expiry }) => {
                Ok(Lease::Held { next_expiry: Some(next_expiry.map_or(lease, |next| next.min(lease))) })
            }
            (Some(Fault::NextExpiryMissing), Lease::Held { .. }) => Ok(Lease::Held { next_expiry: None }),
            (_, answer) => Ok(answer),
        }
    }

    pub(super) async fn take_over(&self) -> Result<TakenOver> {
        let inner = self.inner();
        match self.fault {
            Some(Fault::TakeOverForgets) => Ok(TakenOver::default()),
            Some(Fault::TakeOverUncounts) => {
                let held = [self.holds(Table::Outbox).await?.len(), self.holds(Table::Inbox).await?.len()];
                let nodes = self.memo().nodes.clone();
                let mut taken = TakenOver::default();
                for node in nodes {
                    if !self.is_live(node).await {
                        inner.leave(node).await?;
                        self.memo().nodes.remove(&node);
                        taken.nodes.push(node);
                    }
                }
                taken.outbox = (held[0] - self.holds(Table::Outbox).await?.len()) as u64;
                taken.inbox = (held[1] - self.holds(Table::Inbox).await?.len()) as u64;
                Ok(taken)
            }
            Some(Fault::TakeOverOnlyOutbox) => {
                let taken = inner.take_over().await?;
                let claim = self.join_ghost().await?;
                let groups = self.memo().groups.clone();
                for group in groups {
                    let (lane, version) = (Lane::Inbox(group), Version::default());
                    inner.claim(ClaimRequest { lane, version, claim, limit: ALL }).await?;
                }
                Ok(taken)
            }
            Some(Fault::TakeOverFromTheLiving) => {
                self.take_from_all(|_| true).await?;
                Ok(TakenOver::default())
            }
            Some(Fault::TakeOverCountsTwice) => {
                let taken = inner.take_over().await?;
                let mut memo = self.memo();
                if taken != TakenOver::default() {
                    memo.taken_over = taken;
                }
                Ok(memo.taken_over.clone())
            }
            Some(Fault::TakeOverKeepsChore | Fault::TakeOverFreesEveryChore) => {
                let taken = inner.take_over().await?;
                self.spoil_freed_chores(&taken.nodes).await?;
                Ok(taken)
            }
            _ => inner.take_over().await,
        }
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
            Some(Fault::LeaveCounts) => {
                inner.heartbeat(node, Duration::ZERO).await?;
                inner.take_over().await.map(drop)
            }
            Some(Fault::LeaveTakesFromAll) => self.take_from_all(|other| other != node).await,
            Some(Fault::LeaveKeepsChore | Fault::LeaveFreesEveryChore) => {
                inner.leave(node).await?;
                self.spoil_freed_chores(&[node]).await
            }
            _ => inner.leave(node).await,
        }
    }
}
