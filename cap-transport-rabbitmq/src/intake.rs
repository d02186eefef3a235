//! Takes deliveries from the broker as they come, so that their bytes are counted, and asks for more or fewer.
//!
//! RabbitMQ keeps a consumer's prefetch for as long as the consumer lives, so another prefetch takes another consumer: the
//! old one is cancelled, what it delivered stays valid, and a new one begins on the same channel. What a quorum queue has on
//! its way when it is cancelled goes back to the queue, to be delivered again and out of order. So more is asked for only
//! when nothing can be on its way: when all that was asked for has come and none of it is acknowledged. To get there,
//! acknowledgements are held back for a moment. Less is asked for at once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use cap_core::{Error, Group, Result};
use futures_core::Stream;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;

use crate::connection::Link;
use crate::error::{call, unavailable};
use crate::hold::Hold;
use crate::settings::Settings;
use crate::sizes::Sizes;
use crate::wire;

/// How long acknowledgements are held back at most: a broker that has more sends it sooner, and where it has not, handlers wait
/// for the acknowledgements of what came.
const HELD_BACK: Duration = Duration::from_millis(5);
/// How often the channel is looked at while nothing is asked for.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) struct Intake {
    pub(crate) settings: Arc<Settings>,
    pub(crate) group: Group,
    pub(crate) channel: Channel,
    pub(crate) hold: Arc<Hold>,
    /// Of the group, in this process.
    pub(crate) sizes: Arc<Mutex<Sizes>>,
    deliveries: lapin::Consumer,
    /// The prefetch of the consumer that there is.
    asked: usize,
    /// The last tag that another consumer delivered before it.
    before: u64,
    last: u64,
    /// How many have to come before more is asked for, and how many have come since that was tried.
    patience: usize,
    since_tried: usize,
    /// Keeps the connection and the runtime that drives it.
    _link: Arc<Link>,
}

impl Intake {
    /// Begins to consume from a queue that was declared.
    pub(crate) async fn begin(
        settings: Arc<Settings>,
        group: Group,
        channel: Channel,
        hold: Arc<Hold>,
        sizes: Arc<Mutex<Sizes>>,
        link: Arc<Link>,
    ) -> Result<Self> {
        let asked = lock(&sizes).fitting(hold.limits.count, hold.limits.bytes);
        let consuming = consume(&channel, &group, asked).await;
        let deliveries = consuming.map_err(|cause| call("subscribe to", subject(&group, &settings), cause, ""))?;
        let (before, last, patience, since_tried) = (0, 0, asked, 0);
        let _link = link;
        Ok(Self {
            settings,
            group,
            channel,
            hold,
            sizes,
            deliveries,
            asked,
            before,
            last,
            patience,
            since_tried,
            _link,
        })
    }

    /// Takes what comes until the consumer is over.
    pub(crate) async fn run(mut self) {
        let error = loop {
            if let Err(error) = self.take_one().await {
                break error;
            }
            let changed = if self.exceeds() {
                self.change().await
            } else if self.could_be_more() {
                self.ask_for_more().await
            } else {
                Ok(())
            };
            if let Err(error) = changed {
                break error;
            }
        };
        self.hold.end(error);
    }

    async fn take_one(&mut self) -> Result<()> {
        match poll_fn(|cx| Pin::new(&mut self.deliveries).poll_next(cx)).await {
            Some(Ok(delivery)) => {
                self.keep(delivery);
                Ok(())
            }
            Some(Err(cause)) => Err(self.lost(cause)),
            None => Err(self.ended()),
        }
    }

    fn keep(&mut self, delivery: Delivery) {
        self.last = delivery.delivery_tag;
        self.since_tried += 1;
        lock(&self.sizes).note(delivery.data.len());
        self.hold.lock().push(wire::delivery(delivery));
        self.hold.came.notify_one();
    }

    /// Whether what was asked for may exceed the budget.
    fn exceeds(&self) -> bool {
        let limits = self.hold.limits;
        let sizes = lock(&self.sizes);
        let most = self.asked.saturating_mul(sizes.largest().unwrap_or(0));
        self.asked > 1 && most > limits.bytes && sizes.fitting(limits.count, limits.bytes) < self.asked
    }

    /// Whether twice as much as was asked for would fit, and it is time to try.
    fn could_be_more(&self) -> bool {
        let limits = self.hold.limits;
        let fitting = lock(&self.sizes).fitting(limits.count, limits.bytes);
        self.since_tried >= self.patience && fitting >= self.asked * 2
    }

    /// Whether all that was asked for has come, and is not acknowledged.
    fn is_exhausted(&self) -> bool {
        let held = self.hold.lock();
        held.count() - held.count_up_to(self.before) >= self.asked
    }

    /// Asks for more if the broker has as much as was asked for.
    async fn ask_for_more(&mut self) -> Result<()> {
        let hold = Arc::clone(&self.hold);
        let held_back = hold.gate.lock().await;
        let until = tokio::time::Instant::now() + HELD_BACK;
        while !self.is_exhausted() {
            match tokio::time::timeout_at(until, self.take_one()).await {
                Ok(taken) => taken?,
                // It has not: nobody misses more.
                Err(_) => {
                    (self.since_tried, self.patience) = (0, self.patience.saturating_mul(2));
                    return Ok(());
                }
            }
        }
        if self.exceeds() {
            return Ok(());
        }
        self.cancel().await?;
        drop(held_back);
        self.consume_again().await
    }

    /// Ends the present consumer and begins another with the prefetch that fits now.
    async fn change(&mut self) -> Result<()> {
        self.cancel().await?;
        self.consume_again().await
    }

    async fn consume_again(&mut self) -> Result<()> {
        let asked = self.room().await?;
        let limit = self.settings.connect_timeout();
        let consuming = tokio::time::timeout(limit, consume(&self.channel, &self.group, asked)).await;
        self.deliveries = match consuming {
            Ok(Ok(deliveries)) => deliveries,
            Ok(Err(cause)) => return Err(self.lost(cause)),
            Err(_) => return Err(self.silent(limit)),
        };
        tracing::debug!(messaging.consumer.group.name = %self.group, from = self.asked, to = asked, "another prefetch");
        (self.asked, self.before) = (asked, self.last);
        (self.patience, self.since_tried) = (asked, 0);
        Ok(())
    }

    /// Cancels the present consumer, and takes what it has delivered: what is over the budget goes back to the queue. The
    /// broker sees the cancel first, so it does not come again at once.
    async fn cancel(&mut self) -> Result<()> {
        let limit = self.settings.connect_timeout();
        let (channel, tag) = (self.channel.clone(), self.deliveries.tag());
        let mut cancelling = pin!(async move { channel.basic_cancel(tag, BasicCancelOptions::default()).await });
        let mut is_cancelled = false;
        let taking = async {
            loop {
                let next = poll_fn(|cx| {
                    if !is_cancelled && let Poll::Ready(done) = cancelling.as_mut().poll(cx) {
                        is_cancelled = true;
                        if let Err(cause) = done {
                            return Poll::Ready(Some(Err(cause)));
                        }
                    }
                    Pin::new(&mut self.deliveries).poll_next(cx)
                });
                match next.await {
                    Some(Ok(delivery)) if self.is_too_much(&delivery) => self.give_back(delivery).await?,
                    Some(Ok(delivery)) => self.keep(delivery),
                    Some(Err(cause)) => return Err(self.lost(cause)),
                    None => return Ok(()),
                }
            }
        };
        match tokio::time::timeout(limit, taking).await {
            Ok(taken) => taken,
            Err(_) => Err(self.silent(limit)),
        }
    }

    fn is_too_much(&self, delivery: &Delivery) -> bool {
        let held = self.hold.lock();
        held.count() > 0 && held.bytes() + delivery.data.len() > self.hold.limits.bytes
    }

    async fn give_back(&mut self, delivery: Delivery) -> Result<()> {
        self.last = delivery.delivery_tag;
        lock(&self.sizes).note(delivery.data.len());
        let options = BasicNackOptions { multiple: false, requeue: true };
        self.channel.basic_nack(delivery.delivery_tag, options).await.map_err(|cause| self.lost(cause))
    }

    /// Waits until there is room for a message, and tells for how many.
    async fn room(&self) -> Result<usize> {
        let limits = self.hold.limits;
        loop {
            if !self.channel.status().connected() {
                return Err(self.closed());
            }
            let (fitting, largest) = {
                let sizes = lock(&self.sizes);
                (sizes.fitting(limits.count, limits.bytes), sizes.largest().unwrap_or(0))
            };
            let (count, bytes) = {
                let held = self.hold.lock();
                (held.count(), held.bytes())
            };
            let room = limits.bytes.saturating_sub(bytes) / largest.max(1);
            let asked = fitting.saturating_sub(count).min(room);
            if asked > 0 || count == 0 {
                return Ok(asked.max(1));
            }
            let _ = tokio::time::timeout(LOOK, self.hold.went.notified()).await;
        }
    }

    fn lost(&self, cause: lapin::Error) -> Error {
        if crate::blame::lacks_exchange(&cause) {
            return self.ended();
        }
        let reason = format!("the connection or the channel was lost: {cause}");
        unavailable("receive from", subject(&self.group, &self.settings), reason).because(cause)
    }

    fn closed(&self) -> Error {
        let reason = "the connection or the channel was lost";
        unavailable("receive from", subject(&self.group, &self.settings), reason)
    }

    fn ended(&self) -> Error {
        let reason = "the broker ended it: the queue was deleted, or its node went away";
        unavailable("receive from", subject(&self.group, &self.settings), reason)
    }

    fn silent(&self, limit: Duration) -> Error {
        let reason = format!("the broker did not answer within {limit:?} when it was asked for another prefetch");
        unavailable("receive from", subject(&self.group, &self.settings), reason)
    }
}

async fn consume(channel: &Channel, group: &Group, asked: usize) -> lapin::Result<lapin::Consumer> {
    let prefetch = u16::try_from(asked).unwrap_or(u16::MAX);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let (queue, tag) = (group.as_str().into(), "".into());
    channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default()).await
}

fn lock(sizes: &Mutex<Sizes>) -> std::sync::MutexGuard<'_, Sizes> {
    sizes.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn subject(group: &Group, settings: &Settings) -> String {
    format!("queue `{group}` on {}", settings.place)
}
