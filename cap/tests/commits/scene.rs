//! What the tests share: an engine that tells when a message arrives, and how long that took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cap::memory::MemoryTransport;
use cap::storage::Storage;
use cap::{Cap, CapBuilder, Json, MessageId, Options};
use tokio::sync::{Mutex, mpsc};

pub(crate) const TOPIC: &str = "order.placed";

/// How many transactions are open side by side.
pub(crate) const TRANSACTIONS: usize = 20;

/// How long they are open. Without looking for them they would be found by a poll, or half a second later.
pub(crate) const OPEN: Duration = Duration::from_secs(2);

/// How soon most of them arrive.
pub(crate) const SOON: Duration = Duration::from_millis(50);

/// So far apart that a poll is no explanation.
const POLL: Duration = Duration::from_secs(10);

/// A name that no other test uses.
pub(crate) fn name() -> String {
    format!("cap_commits_{}", MessageId::generate())
}

pub(crate) fn url(variable: &str, server: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "this test needs a server and {variable} is not set: `scripts/backends up {server}`, \
             then `eval \"$(scripts/backends env)\"`"
        )
    })
}

/// The messages that came to a handler, and when.
pub(crate) struct Arrivals {
    sender: mpsc::UnboundedSender<(usize, Instant)>,
    receiver: Mutex<mpsc::UnboundedReceiver<(usize, Instant)>>,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(receiver) }
    }

    pub(crate) async fn start<S: Storage>(&self, builder: CapBuilder<Arc<S>>) -> Cap<S> {
        let sender = self.sender.clone();
        let builder = builder.transport(MemoryTransport::new()).options(Options { poll: POLL, ..Options::default() });
        let handler = move |Json(number): Json<usize>| {
            let sent = sender.send((number, Instant::now()));
            async move { sent.map_err(|_| std::io::Error::other("the test is over")) }
        };
        builder.subscribe(TOPIC, "billing", handler).start().await.unwrap()
    }

    /// Lets transactions, which have published one message each, be open for a while, and commits one after the other: most
    /// of the messages must be here so soon.
    pub(crate) async fn check(&self, commits: impl IntoIterator<Item = impl Future<Output = ()>>, soon: Duration) {
        tokio::time::sleep(OPEN).await;
        let mut delays = Delays::default();
        for (number, commit) in commits.into_iter().enumerate() {
            commit.await;
            delays.push(self.delay_of(number).await);
        }
        delays.check(soon);
    }

    /// Waits for this message, whose transaction has just been committed.
    pub(crate) async fn delay_of(&self, number: usize) -> Duration {
        let committed = Instant::now();
        let mut receiver = self.receiver.lock().await;
        let arrival = tokio::time::timeout(2 * POLL, receiver.recv());
        let (came, at) = arrival.await.expect("nothing came").expect("the sender is ours");
        assert_eq!(came, number, "another one was committed");
        at.saturating_duration_since(committed)
    }
}

/// How long each took from its commit to its handler.
#[derive(Default)]
pub(crate) struct Delays(Vec<Duration>);

impl Delays {
    pub(crate) fn push(&mut self, delay: Duration) {
        self.0.push(delay);
    }

    /// Most are there soon, and none has waited for a poll.
    pub(crate) fn check(mut self, soon: Duration) {
        self.0.sort_unstable();
        let median = self.0[(self.0.len() - 1) / 2];
        assert!(median < soon, "the median is {median:?}: {:?}", self.0);
        assert!(self.0.iter().all(|delay| *delay < POLL), "{:?}", self.0);
    }
}
