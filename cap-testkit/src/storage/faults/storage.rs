//! The double as a storage: every call goes to the part of its subject.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cap_core::error::Result;
use cap_core::lifecycle::State;
use cap_core::storage::{
    BoxFuture, Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled,
    Settlement, Sign, Storage, StorageCapabilities, Table, TakenOver, Wake,
};
use cap_core::{Error, NodeId, RecordId, Version};

use super::double::{Double, Manner, SECRET};
use super::fault::StorageFault as Fault;

/// A handle on a double's database.
#[derive(Clone)]
pub(super) struct FaultyStorage {
    pub(super) double: Arc<Double>,
    _open: Arc<()>,
}

impl FaultyStorage {
    pub(super) fn new(double: &Arc<Double>) -> Self {
        Self { double: Arc::clone(double), _open: Arc::clone(&double.handles) }
    }
}

impl fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = if self.double.has(Fault::DebugShowsSecret) { SECRET } else { "…" };
        f.debug_struct("FaultyStorage").field("password", &password).finish_non_exhaustive()
    }
}

impl Storage for FaultyStorage {
    fn describe(&self) -> String {
        let password = if self.double.has(Fault::DescribeShowsSecret) { SECRET } else { "…" };
        format!("double cap:{password}@memory")
    }

    fn capabilities(&self) -> StorageCapabilities {
        let capabilities = self.double.capabilities();
        let changes = self.double.has(Fault::CapabilitiesChange) && self.double.is_prepared.load(Ordering::SeqCst);
        StorageCapabilities { shared: changes, ..capabilities }
    }

    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.double.prepare())
    }

    fn insert(
        &self,
        table: Table,
        records: Vec<NewRecord>,
        claim: Option<Claim>,
    ) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.insert(table, records, claim).await
        })
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.claim(request).await
        })
    }

    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.settle(table, settlements).await
        })
    }

    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.release(table, claim).await
        })
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        Box::pin(self.double.next_due(version, lanes))
    }

    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.join(node, lease).await
        })
    }

    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.heartbeat(node, lease).await
        })
    }

    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.take_over(dead).await
        })
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.leave(node).await
        })
    }

    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.take_chore(chore, node, term).await
        })
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.collect(table, limit).await
        })
    }

    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        Box::pin(self.double.counts(table, version))
    }

    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        Box::pin(self.double.list(table, query))
    }

    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.requeue(table, records, state).await
        })
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            self.double.writes().await;
            self.double.delete(table, records).await
        })
    }

    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        if self.double.manner == Manner::Modest {
            return Box::pin(async { Err(Error::unsupported("watch for commits in", self.describe())) });
        }
        Box::pin(self.double.watch(wake))
    }
}

/// A double whose database cannot be opened, and the place that its error must name.
pub(super) fn unusable(fault: Option<Fault>) -> (Arc<dyn Storage>, String) {
    const PLACE: &str = "nowhere.example/orders";
    let reason = match fault {
        Some(Fault::UnusableIsReady) => None,
        Some(Fault::UnusableIsNotNamed) => Some("connection refused".to_owned()),
        Some(Fault::ErrorShowsSecret) => Some(format!("connection to cap:{SECRET}@{PLACE} refused")),
        _ => Some(format!("connection to {PLACE} refused")),
    };
    let mut double = Double::new(fault, Manner::Full);
    double.unusable = reason;
    (Arc::new(FaultyStorage::new(&Arc::new(double))), PLACE.into())
}
