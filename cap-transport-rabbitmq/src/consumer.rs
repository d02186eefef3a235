//! A group's consumer: one channel of its own.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cap_core::transport::{Consumer, Delivery, DeliveryTag, Subscription};
use cap_core::{BoxFuture, Error, ErrorKind, Group, Result};
use futures_core::Stream;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::watch;

use crate::connection::Link;
use crate::error::{call, stopped, unavailable};
use crate::transport::Shared;
use crate::{topology, wire};

/// A consumer of a queue. Dropped, its channel is closed, and the broker gives what it holds to others.
pub(crate) struct RabbitConsumer {
    group: Group,
    channel: Channel,
    deliveries: lapin::Consumer,
    /// What was handed out and neither acknowledged nor released, in the order of the tags.
    out: VecDeque<u64>,
    over: Option<Error>,
    closed: watch::Receiver<bool>,
    /// Keep the connection and the runtime that drives it.
    _link: Arc<Link>,
    shared: Arc<Shared>,
}

impl RabbitConsumer {
    /// Declares what is missing and begins to consume.
    pub(crate) async fn open(shared: Arc<Shared>, link: Arc<Link>, wanted: Subscription) -> Result<Self> {
        let settings = &shared.settings;
        let subject = || format!("queue `{}` on {}", wanted.group, settings.place);
        let failed = |cause| call("subscribe to", subject(), cause, "");
        let channel = link.channel().await.map_err(failed)?;
        topology::declare_exchange(&channel, settings).await?;
        topology::declare_queue(&channel, settings, &wanted).await?;
        let prefetch = u16::try_from(wanted.prefetch).unwrap_or(u16::MAX);
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
        let (queue, tag) = (wanted.group.as_str().into(), "".into());
        let consuming = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
        let deliveries = consuming.await.map_err(failed)?;
        let closed = shared.closed();
        let (group, out) = (wanted.group, VecDeque::new());
        Ok(Self { group, channel, deliveries, out, over: None, closed, _link: link, shared })
    }

    fn subject(&self) -> String {
        format!("queue `{}` on {}", self.group, self.shared.settings.place)
    }

    /// Everything that is there, if there is anything: nothing is lost between two polls, because nothing is kept.
    fn poll_ready(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Vec<Delivery>>> {
        let mut ready = Vec::new();
        while ready.len() < max && self.over.is_none() {
            match Pin::new(&mut self.deliveries).poll_next(cx) {
                Poll::Ready(Some(Ok(delivery))) => {
                    self.out.push_back(delivery.delivery_tag);
                    ready.push(wire::delivery(delivery));
                }
                Poll::Ready(Some(Err(cause))) => {
                    let reason = format!("the connection or the channel was lost: {cause}");
                    self.over = Some(unavailable("receive from", self.subject(), reason).because(cause));
                }
                Poll::Ready(None) => {
                    let reason = "the broker ended it: the queue was deleted, or its node went away";
                    self.over = Some(unavailable("receive from", self.subject(), reason));
                }
                Poll::Pending => break,
            }
        }
        match &self.over {
            _ if !ready.is_empty() => Poll::Ready(Ok(ready)),
            Some(error) => Poll::Ready(Err(error.clone())),
            None => Poll::Pending,
        }
    }

    /// Takes tags out of what is out, or refuses them: a tag that the broker does not know ends the channel.
    fn take_back(&mut self, operation: &'static str, tags: &[DeliveryTag]) -> Result<Vec<u64>> {
        if *self.closed.borrow() {
            return Err(stopped(operation, self.subject()));
        }
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        let mut tags: Vec<u64> = tags.iter().map(|tag| tag.0).collect();
        tags.sort_unstable();
        tags.dedup();
        let mut out = self.out.iter().peekable();
        let mut is_out = |tag: &u64| {
            while out.next_if(|out| *out < tag).is_some() {}
            out.next_if_eq(&tag).is_some()
        };
        let unknown: Vec<u64> = tags.iter().copied().filter(|tag| !is_out(tag)).collect();
        if let Some(first) = unknown.first() {
            let reason = format!("{} of the tags are not out with this consumer", unknown.len());
            return Err(Error::new(ErrorKind::Invalid, operation, format!("delivery {first}"), reason));
        }
        let mut taken = tags.iter().peekable();
        self.out.retain(|tag| taken.next_if_eq(&tag).is_none());
        Ok(tags)
    }

    fn written(&mut self, operation: &'static str, outcome: lapin::Result<()>) -> Result<()> {
        outcome.map_err(|cause| {
            let error = unavailable(operation, self.subject(), cause.to_string()).because(cause);
            self.over = Some(error.clone());
            error
        })
    }

    /// How many of the tags, which were taken back, come before all that stay out. Deliveries are handed out in the order
    /// of their tags, so up to there one frame does for all.
    fn contiguous(&self, tags: &[u64]) -> usize {
        let first_out = self.out.front().copied().unwrap_or(u64::MAX);
        tags.iter().take_while(|tag| **tag < first_out).count()
    }
}

impl Consumer for RabbitConsumer {
    /// A `max` of 0 is taken as 1.
    fn receive(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>>> {
        Box::pin(async move {
            let mut closed = self.closed.clone();
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => Err(stopped("receive from", self.subject())),
                received = poll_fn(|cx| self.poll_ready(cx, max.max(1))) => received,
            }
        })
    }

    fn ack(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let tags = self.take_back("acknowledge to", &tags)?;
            let (first, others) = tags.split_at(self.contiguous(&tags));
            let all_up_to = first.last().map(|tag| (*tag, first.len() > 1));
            let singles = others.iter().map(|tag| (*tag, false));
            let writing = all_up_to.into_iter().chain(singles).map(|(tag, multiple)| {
                let channel = &self.channel;
                async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await }
            });
            let outcome = write_all(writing).await;
            self.written("acknowledge to", outcome)
        })
    }

    fn release(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let tags = self.take_back("give back to", &tags)?;
            let writing = tags.into_iter().map(|tag| {
                let channel = &self.channel;
                async move { channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await }
            });
            let outcome = write_all(writing).await;
            self.written("give back to", outcome)
        })
    }
}

/// Writes frames without waiting for one after the other.
async fn write_all(frames: impl Iterator<Item = impl Future<Output = lapin::Result<()>> + Send>) -> lapin::Result<()> {
    let mut writing: Vec<_> = frames.map(Box::pin).collect();
    let mut outcome = Ok(());
    poll_fn(|cx| {
        writing.retain_mut(|frame| match frame.as_mut().poll(cx) {
            Poll::Ready(Err(cause)) => {
                outcome = Err(cause);
                false
            }
            written => written.is_pending(),
        });
        if writing.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outcome
}

impl fmt::Debug for RabbitConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, out) = (&self.shared.settings.place, self.out.len());
        f.debug_struct("RabbitConsumer")
            .field("group", &self.group)
            .field("place", place)
            .field("out", &out)
            .finish_non_exhaustive()
    }
}
