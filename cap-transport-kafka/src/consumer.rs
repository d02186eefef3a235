//! A group's consumer: the engine's side of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cap_core::transport::{Consumer, Delivery, DeliveryTag, Subscription};
use cap_core::{BoxFuture, Error, Result};
use tokio::sync::watch;

use crate::error::{connect, stopped};
use crate::post::Post;
use crate::transport::Shared;
use crate::worker::Worker;

/// How long subscribing waits for the group to agree, so that a refusal is told at once. A member that was killed keeps the
/// others waiting for longer.
const AGREE: Duration = Duration::from_secs(5);

/// A member of a group. Dropped, it commits what is acknowledged and leaves the group, which gives what it holds to others.
pub(crate) struct KafkaConsumer {
    post: Arc<Post>,
    closed: watch::Receiver<bool>,
}

impl KafkaConsumer {
    /// Joins the group. `is_awaited`: a topic exists that it wants, so that it gets partitions or is told that there are
    /// none left.
    pub(crate) async fn open(shared: &Shared, wanted: Subscription, is_awaited: bool) -> Result<Self> {
        let settings = Arc::clone(&shared.settings);
        let post = Post::new(&settings, &wanted);
        let consumer = Self { post: Arc::clone(&post), closed: shared.closed() };
        let (closed, count, groups) = (shared.closed(), shared.workers(), shared.groups());
        let mut joined = post.joined();
        Worker { post: Arc::clone(&post), settings: Arc::clone(&settings), wanted, groups, closed, count }.start()?;
        let is_told = |joined: &bool| *joined || post.over().is_some();
        if is_awaited {
            let limit = settings.connect_timeout().min(AGREE);
            let waiting = joined.wait_for(is_told);
            if tokio::time::timeout(limit, waiting).await.is_err() {
                match post.fault() {
                    Some(fault) => return Err(connect(&settings, &fault)),
                    // Another member may be slow to agree. What is sent is kept for the group all the same.
                    None => tracing::info!(subject = post.subject(), "the group is still rebalancing after {limit:?}"),
                }
            }
        }
        match post.over() {
            Some(error) => Err(subscribing(&error)),
            None => Ok(consumer),
        }
    }
}

/// The same, of another operation.
fn subscribing(error: &Error) -> Error {
    Error::new(error.kind(), "subscribe to", error.subject(), error.reason()).because(error.clone())
}

impl Consumer for KafkaConsumer {
    /// A `max` of 0 is taken as 1.
    fn receive(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>>> {
        Box::pin(async move {
            let mut closed = self.closed.clone();
            loop {
                let arrived = self.post.arrived().notified();
                if *closed.borrow() {
                    return Err(stopped("receive from", self.post.subject()));
                }
                // Nothing is awaited between taking and answering: a dropped future has taken nothing.
                let taken = self.post.take(max.max(1))?;
                if !taken.is_empty() {
                    return Ok(taken);
                }
                tokio::select! {
                    biased;
                    _ = closed.wait_for(|closed| *closed) => {}
                    () = arrived => {}
                }
            }
        })
    }

    fn ack(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if *self.closed.borrow() {
                return Err(stopped("acknowledge to", self.post.subject()));
            }
            self.post.ack(&tags)
        })
    }

    fn release(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if *self.closed.borrow() {
                return Err(stopped("give back to", self.post.subject()));
            }
            self.post.release(&tags)
        })
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.post.end();
    }
}

impl fmt::Debug for KafkaConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (subject, out) = (self.post.subject(), self.post.out());
        f.debug_struct("KafkaConsumer").field("subject", &subject).field("out", &out).finish_non_exhaustive()
    }
}
