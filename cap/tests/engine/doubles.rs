//! Backends with faults that real ones have seldom: an answer that is lost after the work was done, a panic, an outage.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cap::lifecycle::State;
use cap::memory::{MemoryStorage, MemoryTransaction, MemoryTransport};
use cap::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Enlist, Inserted, Lane, Lease, NewRecord, Query, Record, Settled,
    Settlement, StorageCapabilities, TakenOver,
};
use cap::transport::{Consumer, Outgoing, Subscription, TransportCapabilities};
use cap::{BoxFuture, Error, ErrorKind, Group, NodeId, RecordId, Result, Storage, Table, Topic, Transport, Version};
use tokio::sync::watch;

/// Where a fault strikes, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The claim is made, its answer is lost.
    ClaimAnswerLost(Table),
    /// The claim fails, and is carried out after it was released.
    ClaimCarriedOutLate(Table),
    /// The claim panics.
    ClaimPanics(Table),
    /// The settlement is written, its answer is lost.
    SettleAnswerLost(Table),
    /// The settlement is not written.
    SettleRefused(Table),
    /// The insert is made, its answer is lost.
    InsertAnswerLost(Table),
}

/// What may hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    TakeOver,
    Release,
}

/// A memory storage that has each of its faults once, in any order.
#[derive(Debug, Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: MemoryStorage,
    faults: Arc<Mutex<Vec<Fault>>>,
    late: Arc<Mutex<Option<ClaimRequest>>>,
    hanging: Arc<Mutex<Option<Call>>>,
    pub(crate) heartbeats: watch::Sender<u32>,
}

impl Faulty {
    pub(crate) fn new(inner: MemoryStorage, faults: &[Fault]) -> Self {
        Self {
            inner,
            faults: Arc::new(Mutex::new(faults.to_vec())),
            late: Arc::default(),
            hanging: Arc::default(),
            heartbeats: watch::Sender::new(0),
        }
    }

    /// From now on this call is never answered.
    pub(crate) fn hang(&self, call: Call) {
        *self.hanging.lock().unwrap() = Some(call);
    }

    async fn may_hang(&self, call: Call) {
        let hangs = *self.hanging.lock().unwrap() == Some(call);
        if hangs {
            std::future::pending::<()>().await;
        }
    }

    fn strikes(&self, fault: Fault) -> bool {
        let mut faults = self.faults.lock().unwrap();
        let found = faults.iter().position(|waiting| *waiting == fault);
        found.map(|index| faults.remove(index)).is_some()
    }

    /// Faults that have not struck.
    pub(crate) fn left(&self) -> usize {
        self.faults.lock().unwrap().len()
    }
}

pub(crate) fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "reach", "the double", "the connection was lost")
}

impl Storage for Faulty {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    /// Without wake-ups of its own, so that the engine's can be seen.
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities { watches: false, ..self.inner.capabilities() }
    }
    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.prepare()
    }
    fn insert(
        &self,
        table: Table,
        records: Vec<NewRecord>,
        claim: Option<Claim>,
    ) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        Box::pin(async move {
            let answer = self.inner.insert(table, records, claim).await;
            if self.strikes(Fault::InsertAnswerLost(table)) { Err(away()) } else { answer }
        })
    }
    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        Box::pin(async move {
            let table = request.lane.table();
            let due = self.inner.next_due(request.version.clone(), vec![request.lane.clone()]).await?;
            if due == [Some(Duration::ZERO)] && self.strikes(Fault::ClaimCarriedOutLate(table)) {
                *self.late.lock().unwrap() = Some(request);
                return Err(away());
            }
            let answer = self.inner.claim(request).await;
            if answer.as_ref().is_ok_and(|claimed| claimed.records.is_empty()) {
                return answer;
            }
            assert!(!self.strikes(Fault::ClaimPanics(table)), "on purpose");
            if self.strikes(Fault::ClaimAnswerLost(table)) { Err(away()) } else { answer }
        })
    }
    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        Box::pin(async move {
            if self.strikes(Fault::SettleRefused(table)) {
                return Err(away());
            }
            let answer = self.inner.settle(table, settlements).await;
            if self.strikes(Fault::SettleAnswerLost(table)) { Err(away()) } else { answer }
        })
    }
    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            self.may_hang(Call::Release).await;
            let released = self.inner.release(table, claim).await;
            let late = self.late.lock().unwrap().take();
            if let Some(late) = late {
                assert_eq!(late.claim, claim);
                assert!(!self.inner.claim(late).await?.records.is_empty());
            }
            released
        })
    }
    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        self.inner.next_due(version, lanes)
    }
    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        self.inner.join(node, lease)
    }
    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        self.heartbeats.send_modify(|heartbeats| *heartbeats += 1);
        self.inner.heartbeat(node, lease)
    }
    fn take_over(&self) -> BoxFuture<'_, Result<TakenOver>> {
        Box::pin(async {
            self.may_hang(Call::TakeOver).await;
            self.inner.take_over().await
        })
    }
    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        self.inner.leave(node)
    }
    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        self.inner.take_chore(chore, node, term)
    }
    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        self.inner.collect(table, limit)
    }
    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        self.inner.counts(table, version)
    }
    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        self.inner.list(table, query)
    }
    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        self.inner.requeue(table, records, state)
    }
    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        self.inner.delete(table, records)
    }
}

impl<'c> Enlist<&'c mut MemoryTransaction> for Faulty {
    type Receipt = Result<Vec<Inserted>>;

    fn enlist(&self, connection: &'c mut MemoryTransaction, records: Vec<NewRecord>) -> Self::Receipt {
        self.inner.enlist(connection, records)
    }
}

/// What happens to the messages of one send, before the memory transport gets the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The broker is not there.
    Away,
    /// It takes the messages over, but the confirms are lost.
    ConfirmsLost,
    /// It delivers each message twice.
    Twice,
}

/// A memory transport with one trouble for each of its first sends.
#[derive(Debug, Clone)]
pub(crate) struct Troubled {
    inner: MemoryTransport,
    troubles: Arc<Mutex<VecDeque<Trouble>>>,
}

impl Troubled {
    pub(crate) fn new(troubles: impl IntoIterator<Item = Trouble>) -> Self {
        Self { inner: MemoryTransport::new(), troubles: Arc::new(Mutex::new(troubles.into_iter().collect())) }
    }

    /// Sends that are yet to go wrong.
    pub(crate) fn left(&self) -> usize {
        self.troubles.lock().unwrap().len()
    }
}

fn unheard(message: cap::Message) -> Outgoing {
    Outgoing { message, confirm: cap::transport::Confirm::new(|_| ()) }
}

impl Transport for Troubled {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn capabilities(&self) -> TransportCapabilities {
        self.inner.capabilities()
    }
    fn connect(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.connect()
    }
    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()> {
        let trouble = self.troubles.lock().unwrap().pop_front();
        Box::pin(async move {
            match trouble {
                None => self.inner.send(messages).await,
                Some(Trouble::Away) => messages.into_iter().for_each(|sent| sent.confirm.report(Err(away()))),
                Some(Trouble::ConfirmsLost) => {
                    self.inner.send(messages.iter().map(|sent| unheard(sent.message.clone())).collect()).await;
                    drop(messages);
                }
                Some(Trouble::Twice) => {
                    self.inner.send(messages.iter().map(|sent| unheard(sent.message.clone())).collect()).await;
                    self.inner.send(messages).await;
                }
            }
        })
    }
    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        self.inner.subscribe(subscription)
    }
    fn backlog(&self, group: Group) -> BoxFuture<'_, Result<u64>> {
        self.inner.backlog(group)
    }
    fn unrouted(&self, topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        self.inner.unrouted(topics)
    }
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}
