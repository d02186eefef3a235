//! A shop: an engine on memory backends, and a place where handlers leave what they saw.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use cap::memory::{MemoryStorage, MemoryTransport};
use cap::storage::{Lease, Query, Record, Storage};
use cap::{Cap, Json, NodeId, Options, RetryPolicy, Table, Version};
use tokio::sync::{Mutex, mpsc};

/// Long enough for anything that should happen at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What handlers saw, in order.
pub(crate) struct Seen<T>(mpsc::UnboundedSender<T>, Arc<Mutex<mpsc::UnboundedReceiver<T>>>);

impl<T> Clone for Seen<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), Arc::clone(&self.1))
    }
}

impl<T> Seen<T> {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self(sender, Arc::new(Mutex::new(receiver)))
    }

    pub(crate) fn push(&self, value: T) {
        self.0.send(value).unwrap_or_else(|_| unreachable!("the receiver is ours"));
    }

    /// Waits for the next one.
    pub(crate) async fn next(&self) -> T {
        let mut receiver = self.1.lock().await;
        tokio::time::timeout(PATIENCE, receiver.recv()).await.expect("nothing came").unwrap()
    }

    /// What is there now.
    pub(crate) async fn rest(&self) -> Vec<T> {
        let mut receiver = self.1.lock().await;
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }
}

/// A handler that leaves the payload.
pub(crate) fn record<T: Send + 'static>(
    seen: &Seen<T>,
) -> impl Fn(Json<T>) -> Ready<()> + Clone + Send + Sync + 'static {
    let seen = seen.clone();
    move |Json(payload)| {
        seen.push(payload);
        ready(())
    }
}

/// Looks again and again, until there is something.
pub(crate) async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            // Between two looks.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("it never came to be")
}

/// An hour between polls: what happens all the same was woken.
pub(crate) fn never_polling() -> Options {
    Options { poll: Duration::from_secs(3600), ..options() }
}

/// Options with short times.
pub(crate) fn options() -> Options {
    Options {
        lease: Duration::from_millis(600),
        heartbeat: Duration::from_millis(100),
        poll: Duration::from_millis(100),
        retry: RetryPolicy::fixed(3, Duration::from_millis(1)),
        drain: Duration::from_secs(5),
        ..Options::default()
    }
}

pub(crate) struct Shop {
    pub(crate) storage: MemoryStorage,
    pub(crate) transport: MemoryTransport,
}

impl Shop {
    pub(crate) fn new() -> Self {
        Self { storage: MemoryStorage::new(), transport: MemoryTransport::new() }
    }

    pub(crate) fn builder(&self) -> cap::CapBuilder<Arc<MemoryStorage>> {
        Cap::builder().storage(self.storage.clone()).transport(self.transport.clone()).options(options())
    }

    pub(crate) async fn records(&self, table: Table) -> Vec<Record> {
        let query = Query { version: Some(Version::default()), limit: 10_000, ..Query::default() };
        self.storage.list(table, query).await.unwrap()
    }
}

/// A node gives no sign any more, and another says that it is dead.
pub(crate) async fn dies(storage: &MemoryStorage, node: NodeId) {
    let (heir, lease) = (NodeId::generate(), Duration::from_secs(60));
    storage.join(heir, lease).await.unwrap();
    let Lease::Held { others, .. } = storage.heartbeat(heir, lease).await.unwrap() else {
        panic!("it had just joined")
    };
    storage.leave(heir).await.unwrap();
    storage.take_over(others.into_iter().filter(|sign| sign.node == node).collect()).await.unwrap();
}

/// Waits until the engine is ready, or is not.
pub(crate) async fn becomes<S: ?Sized>(cap: &Cap<S>, ready: bool) {
    eventually(async || (cap.health().ready == ready).then_some(())).await;
}

pub(crate) async fn idle<S: ?Sized>(cap: &Cap<S>) {
    match tokio::time::timeout(PATIENCE, cap.wait_idle()).await {
        Ok(idle) => idle.unwrap(),
        Err(_) => panic!("it never became idle: {} in flight, {:?}", cap.in_flight(), cap.health()),
    }
}
