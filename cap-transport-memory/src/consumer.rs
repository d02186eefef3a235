//! A group's consumer.

use std::fmt;
use std::sync::Arc;

use cap_core::transport::{Consumer, Delivery, DeliveryTag};
use cap_core::{BoxFuture, Result};
use tokio::sync::Notify;

use crate::broker::{Broker, GroupIndex};
use crate::group::{ConsumerId, HandedOut};

/// A consumer of an in-process broker; dropped, it leaves its group.
pub(crate) struct MemoryConsumer {
    pub(crate) broker: Arc<Broker>,
    pub(crate) group: GroupIndex,
    pub(crate) id: ConsumerId,
    pub(crate) wake: Arc<Notify>,
}

impl Consumer for MemoryConsumer {
    /// A `max` of 0 is taken as 1.
    fn receive(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>>> {
        Box::pin(async move {
            loop {
                let woken = self.wake.notified();
                tokio::pin!(woken);
                woken.as_mut().enable();
                // Nothing is awaited between taking and answering: a dropped future has taken nothing.
                let taken = self.broker.take(self.group, self.id, max.max(1))?;
                if !taken.is_empty() {
                    return Ok(taken.into_iter().map(delivery).collect());
                }
                woken.await;
            }
        })
    }

    fn ack(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.broker.ack(self.group, self.id, &tags) })
    }

    fn release(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.broker.release(self.group, self.id, &tags) })
    }
}

fn delivery(handed_out: HandedOut) -> Delivery {
    let HandedOut { tag, message, redelivered } = handed_out;
    Delivery {
        tag,
        topic: message.topic.as_str().to_owned(),
        headers: message.headers.clone(),
        body: message.payload.clone(),
        origin: Some(message.id.as_str().to_owned()),
        redelivered,
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.broker.leave(self.group, self.id);
    }
}

impl fmt::Debug for MemoryConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConsumer").field("group", &self.group).field("id", &self.id).finish_non_exhaustive()
    }
}
