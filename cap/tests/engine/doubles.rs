//! Backends with faults that real ones have seldom: an answer that is lost after the work was done, a panic, an outage.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cap::lifecycle::State;
use cap::memory::{MemoryStorage, MemoryTransaction, MemoryTransport};
use cap::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Enlist, Inserted, Lane, Lease, NewRecord, Query, Record, Settled,
    Settlement, Sign, StorageCapabilities, TakenOver,
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
    /// The settlement of one record finds it locked by somebody's open transaction.
    SettleFindsLocked(Table),
    /// The insert is made, its answer is lost.
    InsertAnswerLost(Table),
    /// A look for what is due fails.
    LookFails,
    /// A heartbeat fails.
    HeartbeatFails,
    /// A heartbeat panics.
    HeartbeatPanics,
    /// A heartbeat is never answered.
    HeartbeatHangs,
    /// The node was taken for dead: what it held is due again, and its heartbeat says so.
    LeaseLost,
    /// A node cannot join.
    JoinFails,
    /// Collecting fails.
    CollectFails,
    /// A look at records fails.
    ListFails,
}

/// What may hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    TakeOver,
    Release,
    Leave,
    Insert,
    Settle,
    /// Each of them: the database is frozen.
    Any,
}

/// What is about to be written.
pub(crate) enum Writes<'w> {
    Insert(Table, &'w [NewRecord]),
    Settle(&'w [Settlement]),
    Claim,
}

type Refuse = dyn Fn(Writes<'_>) -> Option<Error> + Send;

struct Refuses(Box<Refuse>);

impl std::fmt::Debug for Refuses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refuses")
    }
}

/// The error of a database that blames what it was given, or somebody else.
pub(crate) fn refusal(kind: ErrorKind) -> Error {
    Error::new(kind, "write to", "the double", "on purpose")
}

/// A memory storage that has each of its faults once, in any order.
#[derive(Debug, Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: MemoryStorage,
    faults: Arc<Mutex<Vec<Fault>>>,
    late: Arc<Mutex<Option<ClaimRequest>>>,
    hanging: watch::Sender<Option<Call>>,
    refusing: Arc<Mutex<Option<Refuses>>>,
    pub(crate) heartbeats: watch::Sender<u32>,
    /// How many nodes have joined.
    pub(crate) joined: watch::Sender<u32>,
}

impl Faulty {
    pub(crate) fn new(inner: MemoryStorage, faults: &[Fault]) -> Self {
        Self {
            inner,
            faults: Arc::new(Mutex::new(faults.to_vec())),
            late: Arc::default(),
            hanging: watch::Sender::new(None),
            refusing: Arc::default(),
            heartbeats: watch::Sender::new(0),
            joined: watch::Sender::new(0),
        }
    }

    /// One more.
    pub(crate) fn add(&self, fault: Fault) {
        self.faults.lock().unwrap().push(fault);
    }

    /// From now on what is written is refused as this says.
    pub(crate) fn refuse(&self, refuse: impl Fn(Writes<'_>) -> Option<Error> + Send + 'static) {
        *self.refusing.lock().unwrap() = Some(Refuses(Box::new(refuse)));
    }

    fn refusal(&self, writes: Writes<'_>) -> Option<Error> {
        self.refusing.lock().unwrap().as_ref().and_then(|Refuses(refuse)| refuse(writes))
    }

    /// From now on this call is not answered.
    pub(crate) fn hang(&self, call: Call) {
        self.hanging.send_replace(Some(call));
    }

    /// What hung is carried out.
    pub(crate) fn thaw(&self) {
        self.hanging.send_replace(None);
    }

    async fn may_hang(&self, call: Call) {
        let answers = |hanging: &Option<Call>| hanging.is_none_or(|hanging| hanging != call && hanging != Call::Any);
        self.hanging.subscribe().wait_for(answers).await.unwrap();
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
            self.may_hang(Call::Insert).await;
            if let Some(error) = self.refusal(Writes::Insert(table, &records)) {
                return Err(error);
            }
            let answer = self.inner.insert(table, records, claim).await;
            if self.strikes(Fault::InsertAnswerLost(table)) { Err(away()) } else { answer }
        })
    }
    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        Box::pin(async move {
            self.may_hang(Call::Any).await;
            if let Some(error) = self.refusal(Writes::Claim) {
                return Err(error);
            }
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
            self.may_hang(Call::Settle).await;
            if self.strikes(Fault::SettleRefused(table)) {
                return Err(away());
            }
            if let Some(error) = self.refusal(Writes::Settle(&settlements)) {
                return Err(error);
            }
            if settlements.len() > 1 && self.strikes(Fault::SettleFindsLocked(table)) {
                let others = self.inner.settle(table, settlements[1..].to_vec()).await?;
                return Ok(std::iter::once(Settled::Locked).chain(others).collect());
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
        if self.strikes(Fault::LookFails) {
            return Box::pin(async { Err(away()) });
        }
        Box::pin(async move {
            self.may_hang(Call::Any).await;
            self.inner.next_due(version, lanes).await
        })
    }
    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        if self.strikes(Fault::JoinFails) {
            return Box::pin(async { Err(away()) });
        }
        self.joined.send_modify(|joined| *joined += 1);
        self.inner.join(node, lease)
    }
    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        self.heartbeats.send_modify(|heartbeats| *heartbeats += 1);
        if self.strikes(Fault::HeartbeatFails) {
            return Box::pin(async { Err(away()) });
        }
        if self.strikes(Fault::HeartbeatPanics) {
            return Box::pin(async { panic!("on purpose") });
        }
        if self.strikes(Fault::HeartbeatHangs) {
            return Box::pin(std::future::pending());
        }
        if self.strikes(Fault::LeaseLost) {
            return Box::pin(async move { self.inner.leave(node).await.map(|()| Lease::Lost) });
        }
        Box::pin(async move {
            self.may_hang(Call::Any).await;
            self.inner.heartbeat(node, lease).await
        })
    }
    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        Box::pin(async move {
            self.may_hang(Call::TakeOver).await;
            self.inner.take_over(dead).await
        })
    }
    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.may_hang(Call::Leave).await;
            self.inner.leave(node).await
        })
    }
    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        self.inner.take_chore(chore, node, term)
    }
    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        if self.strikes(Fault::CollectFails) {
            return Box::pin(async { Err(away()) });
        }
        self.inner.collect(table, limit)
    }
    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        self.inner.counts(table, version)
    }
    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        if self.strikes(Fault::ListFails) {
            return Box::pin(async { Err(away()) });
        }
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
    refusing: Arc<Mutex<Option<RefusesToSend>>>,
    pub(crate) obstacle: Arc<Mutex<Option<Error>>>,
    /// From when it is set it confirms nothing and is never closed.
    frozen: watch::Sender<bool>,
    /// What was sent meanwhile.
    unconfirmed: Arc<Mutex<Vec<Outgoing>>>,
    /// How many consumers were made.
    pub(crate) subscribed: watch::Sender<u32>,
}

type RefuseToSend = dyn Fn(&cap::Message) -> Option<Error> + Send;

struct RefusesToSend(Box<RefuseToSend>);

impl std::fmt::Debug for RefusesToSend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RefusesToSend")
    }
}

impl Troubled {
    pub(crate) fn new(troubles: impl IntoIterator<Item = Trouble>) -> Self {
        Self::over(MemoryTransport::new(), troubles)
    }

    pub(crate) fn over(inner: MemoryTransport, troubles: impl IntoIterator<Item = Trouble>) -> Self {
        let troubles = Arc::new(Mutex::new(troubles.into_iter().collect()));
        let (frozen, unconfirmed) = (watch::Sender::new(false), Arc::default());
        let (refusing, obstacle, subscribed) = (Arc::default(), Arc::default(), watch::Sender::new(0));
        Self { inner, troubles, refusing, obstacle, frozen, unconfirmed, subscribed }
    }

    /// From now on the broker answers nothing.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// From now on what is sent is refused as this says.
    pub(crate) fn refuse(&self, refuse: impl Fn(&cap::Message) -> Option<Error> + Send + 'static) {
        *self.refusing.lock().unwrap() = Some(RefusesToSend(Box::new(refuse)));
    }

    fn refused(&self, messages: Vec<Outgoing>) -> Vec<Outgoing> {
        let refusing = self.refusing.lock().unwrap();
        let Some(RefusesToSend(refuse)) = &*refusing else { return messages };
        let taken = messages.into_iter().filter_map(|sent| match refuse(&sent.message) {
            Some(error) => {
                sent.confirm.report(Err(error));
                None
            }
            None => Some(sent),
        });
        taken.collect()
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
        if *self.frozen.borrow() {
            self.unconfirmed.lock().unwrap().extend(messages);
            return Box::pin(async {});
        }
        let trouble = self.troubles.lock().unwrap().pop_front();
        Box::pin(async move {
            match trouble {
                None => self.inner.send(self.refused(messages)).await,
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
    fn obstacle(&self) -> Option<Error> {
        self.obstacle.lock().unwrap().clone()
    }
    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        self.subscribed.send_modify(|subscribed| *subscribed += 1);
        self.inner.subscribe(subscription)
    }
    fn backlog(&self, group: Group) -> BoxFuture<'_, Result<u64>> {
        self.inner.backlog(group)
    }
    fn unrouted(&self, topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        self.inner.unrouted(topics)
    }
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        if *self.frozen.borrow() {
            return Box::pin(std::future::pending());
        }
        self.inner.close()
    }
}
