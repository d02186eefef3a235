//! A group's consumer: one channel of its own.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use cap_core::transport::{Consumer, Delivery, DeliveryTag, Subscription};
use cap_core::{BoxFuture, Error, ErrorKind, Group, Result};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::bindings::{self, Watched};
use crate::config::Topology;
use crate::connection::Link;
use crate::error::{stopped, unavailable};
use crate::hold::{Hold, Limits};
use crate::intake::{Intake, subject};
use crate::topology;
use crate::transport::Shared;

/// A consumer of a queue. Dropped, its channel is closed, and the broker gives what it holds to others.
pub(crate) struct RabbitConsumer {
    group: Group,
    channel: Channel,
    hold: Arc<Hold>,
    intake: AbortHandle,
    /// Kept bound, unless the broker's operators see to that.
    bindings: Option<(AbortHandle, Arc<Watched>)>,
    closed: watch::Receiver<bool>,
    /// Keep the connection and the runtime that drives it.
    link: Arc<Link>,
    shared: Arc<Shared>,
}

impl RabbitConsumer {
    /// Declares what is missing and begins to consume. Call it on the transport's own runtime.
    pub(crate) async fn open(shared: Arc<Shared>, link: Arc<Link>, wanted: Subscription) -> Result<Self> {
        let settings = &shared.settings;
        let channel = topology::prepare(&link, settings, &wanted).await?;
        let is_kept = settings.topology() == Topology::Declare;
        let watched = is_kept.then(|| shared.bindings.watch(wanted.topics.clone()));
        let bindings = watched.map(|watched| {
            let (link, settings, wanted) = (Arc::clone(&link), Arc::clone(settings), wanted.clone());
            (bindings::keep(link, settings, wanted, Arc::clone(&watched)), watched)
        });
        let limits = Limits { count: wanted.prefetch.min(usize::from(u16::MAX)), bytes: wanted.prefetch_bytes };
        let (group, hold) = (wanted.group, Arc::new(Hold::new(limits)));
        let (settings, sizes) = (Arc::clone(settings), shared.sizes(&group));
        let intake =
            Intake::begin(settings, group.clone(), channel.clone(), Arc::clone(&hold), sizes, Arc::clone(&link));
        let intake = tokio::spawn(intake.await?.run()).abort_handle();
        let bindings = bindings.map(|(keeping, watched)| (tokio::spawn(keeping).abort_handle(), watched));
        let closed = shared.closed();
        Ok(Self { group, channel, hold, intake, bindings, closed, link, shared })
    }

    fn subject(&self) -> String {
        subject(&self.group, &self.shared.settings)
    }

    /// Waits until something may be handed out. Nothing is awaited between taking and answering: a dropped future has
    /// taken nothing.
    async fn next(&self, max: usize) -> Result<Vec<Delivery>> {
        loop {
            if let Some(ready) = self.hold.hand_out(max) {
                return ready;
            }
            self.hold.came.notified().await;
        }
    }

    /// Takes tags out of what is out, or refuses them: a tag that the broker does not know ends the channel. Tells also
    /// how many of them come before all that stay out: deliveries are handed out in the order of their tags, so up to
    /// there one frame does for all.
    fn take_back(&mut self, operation: &'static str, tags: &[DeliveryTag]) -> Result<(Vec<u64>, usize)> {
        if *self.closed.borrow() {
            return Err(stopped(operation, self.subject()));
        }
        let mut held = self.hold.lock();
        if let Some(error) = held.over() {
            return Err(error.clone());
        }
        let mut tags: Vec<u64> = tags.iter().map(|tag| tag.0).collect();
        tags.sort_unstable();
        tags.dedup();
        if let Err(unknown) = held.take_back(&tags) {
            let (first, reason) = (unknown[0], format!("{} of the tags are not out with this consumer", unknown.len()));
            return Err(Error::new(ErrorKind::Invalid, operation, format!("delivery {first}"), reason));
        }
        let first_out = held.first_out().unwrap_or(u64::MAX);
        drop(held);
        self.hold.went.notify_one();
        let contiguous = tags.iter().take_while(|tag| **tag < first_out).count();
        Ok((tags, contiguous))
    }

    fn written(&mut self, operation: &'static str, outcome: lapin::Result<()>) -> Result<()> {
        outcome.map_err(|cause| {
            let error = unavailable(operation, self.subject(), cause.to_string()).because(cause);
            self.hold.end(error.clone());
            error
        })
    }
}

impl Drop for RabbitConsumer {
    fn drop(&mut self) {
        self.intake.abort();
        if let Some((keeping, _)) = &self.bindings {
            keeping.abort();
        }
        // Whatever it was about to ask for: what is unacknowledged goes back now.
        self.link.end_channel(self.channel.clone());
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
                received = self.next(max.max(1)) => received,
            }
        })
    }

    fn ack(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let hold = Arc::clone(&self.hold);
            let _open = hold.gate.lock().await;
            let (tags, contiguous) = self.take_back("acknowledge to", &tags)?;
            let (first, others) = tags.split_at(contiguous);
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
            let hold = Arc::clone(&self.hold);
            let _open = hold.gate.lock().await;
            let (tags, _) = self.take_back("give back to", &tags)?;
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
        let (place, out) = (&self.shared.settings.place, self.hold.lock().count_out());
        f.debug_struct("RabbitConsumer")
            .field("group", &self.group)
            .field("place", place)
            .field("out", &out)
            .finish_non_exhaustive()
    }
}
