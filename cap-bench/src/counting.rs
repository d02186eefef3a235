//! A storage that counts what it is asked, and asks another one: inserts into the inbox only while its gate is open.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::lifecycle::State;
use cap_core::storage::{
    BoxFuture, Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled,
    Settlement, Sign, StorageCapabilities, TakenOver, Wake,
};
use cap_core::{NodeId, RecordId, Result, Storage, Table, Version};
use tokio::sync::watch;

/// The wrapper.
#[derive(Debug, Clone)]
pub(crate) struct Counting<S> {
    inner: S,
    calls: Calls,
    gate: Option<watch::Receiver<bool>>,
}

/// Calls so far by method, and the records that these wrote or took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls(Counters, Counters);

type Counters = Arc<Mutex<BTreeMap<&'static str, u64>>>;

impl Calls {
    fn count(&self, method: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(method).or_default() += 1;
    }

    /// Calls by method, with how many records they wrote or took together.
    pub(crate) fn summary(&self) -> String {
        let records = self.1.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = |(method, calls): (&'static str, u64)| match records.get(method) {
            Some(records) => format!("{method} {calls} ({records} records)"),
            None => format!("{method} {calls}"),
        };
        self.by_method().into_iter().map(told).collect::<Vec<_>>().join(", ")
    }

    fn records(&self, method: &'static str, number: usize) {
        *self.1.lock().unwrap_or_else(PoisonError::into_inner).entry(method).or_default() += number as u64;
    }

    pub(crate) fn total(&self) -> u64 {
        self.by_method().values().sum()
    }

    pub(crate) fn by_method(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S> Counting<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, calls: Calls::default(), gate: None }
    }

    /// Inserts into the inbox wait until `gate` says true: a database that hangs, but for the heartbeats.
    pub(crate) fn gated(inner: S, gate: watch::Receiver<bool>) -> Self {
        Self { gate: Some(gate), ..Self::new(inner) }
    }

    pub(crate) fn calls(&self) -> Calls {
        self.calls.clone()
    }
}

macro_rules! counted {
    ($(fn $method:ident(&self $(, $argument:ident: $type:ty)*) -> $answer:ty;)*) => {
        $(fn $method(&self $(, $argument: $type)*) -> BoxFuture<'_, Result<$answer>> {
            self.calls.count(stringify!($method));
            self.inner.$method($($argument),*)
        })*
    };
}

impl<S: Storage> Storage for Counting<S> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> StorageCapabilities {
        self.inner.capabilities()
    }

    /// It runs all the time; what it asks the server is not seen here.
    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        self.inner.watch(wake)
    }

    fn insert(
        &self,
        table: Table,
        records: Vec<NewRecord>,
        claim: Option<Claim>,
    ) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        self.calls.count("insert");
        self.calls.records("insert", records.len());
        let gate = self.gate.clone().filter(|_| table == Table::Inbox);
        Box::pin(async move {
            if let Some(mut gate) = gate {
                // Without whoever opens it, it is open.
                let _ = gate.wait_for(|is_open| *is_open).await;
            }
            self.inner.insert(table, records, claim).await
        })
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        self.calls.count("claim");
        Box::pin(async move {
            let claimed = self.inner.claim(request).await?;
            self.calls.records("claim", claimed.records.len());
            Ok(claimed)
        })
    }

    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        self.calls.count("settle");
        self.calls.records("settle", settlements.len());
        self.inner.settle(table, settlements)
    }

    counted! {
        fn prepare(&self) -> ();
        fn release(&self, table: Table, claim: Claim) -> u64;
        fn next_due(&self, version: Version, lanes: Vec<Lane>) -> Vec<Option<Duration>>;
        fn join(&self, node: NodeId, lease: Duration) -> ();
        fn heartbeat(&self, node: NodeId, lease: Duration) -> Lease;
        fn take_over(&self, dead: Vec<Sign>) -> TakenOver;
        fn leave(&self, node: NodeId) -> ();
        fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> bool;
        fn collect(&self, table: Table, limit: usize) -> u64;
        fn counts(&self, table: Table, version: Version) -> Counts;
        fn list(&self, table: Table, query: Query) -> Vec<Record>;
        fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> u64;
        fn delete(&self, table: Table, records: Vec<RecordId>) -> u64;
    }
}
