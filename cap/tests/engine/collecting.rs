//! The collector: one node does it for all. The test plays the storage's part in it, and time is virtual.

use std::time::Duration;

use cap::lifecycle::State;
use cap::memory::{MemoryStorage, MemoryTransport};
use cap::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled, Settlement,
    Sign, StorageCapabilities, TakenOver,
};
use cap::{BoxFuture, Cap, Error, ErrorKind, NodeId, Options, RecordId, Result, Storage, Table, Version};
use tokio::sync::{mpsc, oneshot};

use crate::support::PATIENCE;

const EVERY: Duration = Duration::from_secs(60);
const BATCH: u64 = 10;

/// What the collector asks, and where the answer goes.
#[derive(Debug)]
enum Asked {
    Chore(NodeId, Duration, oneshot::Sender<Result<bool>>),
    Collect(Table, oneshot::Sender<Result<u64>>),
}

/// A memory storage whose collecting is the test's.
#[derive(Debug)]
struct Scripted {
    inner: MemoryStorage,
    asked: mpsc::UnboundedSender<Asked>,
}

async fn answer<T>(
    asked: &mpsc::UnboundedSender<Asked>,
    ask: impl FnOnce(oneshot::Sender<Result<T>>) -> Asked,
) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    // At its end the test listens no more.
    let _ = asked.send(ask(sender));
    receiver.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "ask", "the test", "it has ended")))
}

macro_rules! delegated {
    ($(fn $method:ident(&self $(, $argument:ident: $type:ty)*) -> $answer:ty;)*) => {
        $(fn $method(&self $(, $argument: $type)*) -> BoxFuture<'_, Result<$answer>> {
            self.inner.$method($($argument),*)
        })*
    };
}

impl Storage for Scripted {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities { watches: false, ..self.inner.capabilities() }
    }

    fn take_chore(&self, _: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        Box::pin(answer(&self.asked, move |reply| Asked::Chore(node, term, reply)))
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        assert_eq!(limit as u64, BATCH);
        Box::pin(answer(&self.asked, move |reply| Asked::Collect(table, reply)))
    }

    delegated! {
        fn prepare(&self) -> ();
        fn insert(&self, table: Table, records: Vec<NewRecord>, claim: Option<Claim>) -> Vec<Inserted>;
        fn claim(&self, request: ClaimRequest) -> Claimed;
        fn settle(&self, table: Table, settlements: Vec<Settlement>) -> Vec<Settled>;
        fn release(&self, table: Table, claim: Claim) -> u64;
        fn next_due(&self, version: Version, lanes: Vec<Lane>) -> Vec<Option<Duration>>;
        fn join(&self, node: NodeId, lease: Duration) -> ();
        fn heartbeat(&self, node: NodeId, lease: Duration) -> Lease;
        fn take_over(&self, dead: Vec<Sign>) -> TakenOver;
        fn leave(&self, node: NodeId) -> ();
        fn counts(&self, table: Table, version: Version) -> Counts;
        fn list(&self, table: Table, query: Query) -> Vec<Record>;
        fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> u64;
        fn delete(&self, table: Table, records: Vec<RecordId>) -> u64;
    }
}

/// An engine, and what its collector asks.
struct Collecting {
    asked: mpsc::UnboundedReceiver<Asked>,
    cap: Cap,
}

impl Collecting {
    async fn start() -> Self {
        let (sender, asked) = mpsc::unbounded_channel();
        let options = Options {
            collect_every: EVERY,
            collect_batch: BATCH as usize,
            lease: Duration::from_secs(3600),
            heartbeat: Duration::from_secs(600),
            poll: Duration::from_secs(3600),
            ..Options::default()
        };
        let storage = Scripted { inner: MemoryStorage::new(), asked: sender };
        let cap = Cap::builder().storage(storage).transport(MemoryTransport::new()).options(options);
        let cap = cap.start().await.unwrap();
        let mut collecting = Self { asked, cap: cap.erased() };
        collecting.joins(None).await;
        collecting
    }

    /// The node's keeper has a clock of its own: waits, without this clock going on, until it has joined under an id that
    /// is not `former`.
    async fn joins(&mut self, former: Option<NodeId>) {
        while self.cap.health().node.is_none_or(|node| Some(node) == former) {
            let pause = || std::thread::sleep(Duration::from_millis(1));
            tokio::task::spawn_blocking(pause).await.unwrap();
        }
    }

    async fn next(&mut self) -> Asked {
        tokio::time::timeout(EVERY * 2 + PATIENCE, self.asked.recv()).await.expect("it asks nothing").unwrap()
    }

    /// It asks whether it is its turn, and is told; gives the node that asked.
    async fn asks_for_its_turn(&mut self, reply: Result<bool>) -> NodeId {
        match self.next().await {
            Asked::Chore(node, term, sender) => {
                assert!(term > EVERY && term <= EVERY * 2, "a term of {term:?} for rounds every {EVERY:?}");
                sender.send(reply).unwrap();
                node
            }
            other => panic!("it does {other:?} instead of asking for its turn"),
        }
    }

    /// It collects; gives where the number of what it has collected goes.
    async fn collects(&mut self, table: Table) -> oneshot::Sender<Result<u64>> {
        match self.next().await {
            Asked::Collect(collected, sender) => {
                assert_eq!(collected, table);
                sender
            }
            other => panic!("it does {other:?} instead of collecting"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_turn_it_is_not_asks_again_at_the_next_round() {
    let mut collector = Collecting::start().await;
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        collector.asks_for_its_turn(Ok(false)).await;
    }
    assert!(began.elapsed() > EVERY, "it asked three times within {:?}", began.elapsed());
    collector.asks_for_its_turn(Ok(true)).await;
    collector.collects(Table::Outbox).await.send(Ok(0)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_turn_it_is_asks_once_for_a_round() {
    let mut collector = Collecting::start().await;
    collector.asks_for_its_turn(Ok(true)).await;
    for _ in 0..20 {
        collector.collects(Table::Outbox).await.send(Ok(BATCH)).unwrap();
    }
    collector.collects(Table::Outbox).await.send(Ok(BATCH - 1)).unwrap();
    collector.collects(Table::Inbox).await.send(Ok(0)).unwrap();
    collector.asks_for_its_turn(Ok(true)).await;
}

#[tokio::test(start_paused = true)]
async fn in_a_long_round_a_node_asks_again_and_stops_when_its_turn_is_over() {
    let mut collector = Collecting::start().await;
    collector.asks_for_its_turn(Ok(true)).await;
    for is_its_turn in [true, false] {
        let collected = collector.collects(Table::Outbox).await;
        tokio::time::advance(EVERY).await;
        collected.send(Ok(BATCH)).unwrap();
        collector.asks_for_its_turn(Ok(is_its_turn)).await;
    }
    // The next round: nothing more of this one, and nothing of the inbox.
    collector.asks_for_its_turn(Ok(true)).await;
    collector.collects(Table::Outbox).await.send(Ok(0)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_lease_collects_nothing_and_asks_again_under_a_new_id() {
    let mut collector = Collecting::start().await;
    let lost = Error::new(ErrorKind::LeaseLost, "take a chore from", "the test", "no lease");
    let former = collector.asks_for_its_turn(Err(lost)).await;
    collector.joins(Some(former)).await;
    assert_ne!(collector.asks_for_its_turn(Ok(false)).await, former);
}
