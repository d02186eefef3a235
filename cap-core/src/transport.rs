//! The transport trait: what a broker must promise so that no message is lost.
//!
//! A transport carries [`Message`]s from the relay to groups. It knows nothing of storages and decides nothing about
//! retries. Every method states its promises in a numbered list; a check of `cap-testkit` quotes them as `send/2`.

use std::fmt;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::headers::Headers;
use crate::message::Message;
use crate::name::{Group, Topic};
use crate::pattern::TopicPattern;
use crate::storage::BoxFuture;

/// What a transport offers beyond the least. What is not declared must answer `Unsupported`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransportCapabilities {
    /// A confirmed message outlives the process and the broker's restart. Where this is not so, a message is confirmed
    /// only after every group has acknowledged it, so that the outbox still holds it until then.
    pub durable: bool,
    /// A group that has subscribed once gets what was sent while it had no consumer.
    pub keeps_backlog: bool,
    /// Messages of one sender and topic reach a single consumer in the order sent, unless redelivered.
    pub ordered: bool,
    /// Patterns with `*` and `#` can be subscribed.
    pub wildcards: bool,
    /// [`Transport::backlog`] answers.
    pub reports_backlog: bool,
    /// [`Transport::unrouted`] answers.
    pub checks_routes: bool,
    /// The largest body, in bytes, if there is a limit worth knowing.
    pub max_body: Option<usize>,
}

/// A message on its way out, with the place where its outcome is to be reported.
#[derive(Debug)]
pub struct Outgoing {
    /// What to send: body = payload, metadata = headers, routing key or topic name = topic.
    pub message: Message,
    /// Where to report.
    pub confirm: Confirm,
}

/// Reports the outcome of one sent message, exactly once. Dropped unused it reports `Unavailable`, so that a transport
/// cannot lose a message by forgetting it.
pub struct Confirm(Option<Box<dyn FnOnce(Result<()>) + Send>>);

impl Confirm {
    /// Calls `report` with the outcome.
    pub fn new(report: impl FnOnce(Result<()>) + Send + 'static) -> Self {
        Self(Some(Box::new(report)))
    }

    /// Reports `outcome`.
    pub fn report(mut self, outcome: Result<()>) {
        if let Some(report) = self.0.take() {
            report(outcome);
        }
    }
}

impl Drop for Confirm {
    fn drop(&mut self) {
        if let Some(report) = self.0.take() {
            report(Err(Error::new(
                ErrorKind::Unavailable,
                "send",
                "a message",
                "the transport gave it up without an outcome",
            )));
        }
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirm")
    }
}

/// What a group wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The effective group name: the queue or consumer group.
    pub group: Group,
    /// The topics, exact or patterns.
    pub topics: Vec<TopicPattern>,
    /// At most so many deliveries may be handed out and neither acknowledged nor released; at least 1.
    pub prefetch: usize,
    /// At most so many bytes of bodies may be in this process that were neither acknowledged nor released, handed out or
    /// not; one message is allowed whatever its size.
    pub prefetch_bytes: usize,
}

/// Identifies a delivery to the consumer that it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryTag(pub u64);

/// A message that the broker handed over, as it came: it may be foreign, with none of our headers.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    /// For acknowledging.
    pub tag: DeliveryTag,
    /// The routing key or topic name.
    pub topic: String,
    /// Its headers, as text; what was null is absent, what was no text was made text.
    pub headers: Headers,
    /// Its body.
    pub body: Bytes,
    /// An identity that every delivery of this message has and no other message, if the broker gives one: for messages
    /// without an id of their own.
    pub origin: Option<String>,
    /// Whether the broker says that it was delivered before.
    pub redelivered: bool,
}

impl fmt::Debug for Delivery {
    /// Without body and header values: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("tag", &self.tag)
            .field("topic", &self.topic)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}

/// A broker.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Kind and place for people, without secrets: `rabbitmq broker-1:5672/orders`.
    fn describe(&self) -> String;

    /// What it offers. Constant.
    fn capabilities(&self) -> TransportCapabilities;

    /// Connects, and declares what sending needs.
    ///
    /// 1. Idempotent; safe to call again after a failure.
    /// 2. A broker that is not there or refuses is an error that says which, within the connect time limit.
    fn connect(&self) -> BoxFuture<'_, Result<()>>;

    /// Takes messages over for sending. It returns when all are on their way, not when they are confirmed: outcomes
    /// come through each message's [`Confirm`], in any order.
    ///
    /// 1. `Ok` is reported only after the broker has taken the message over and could route it to a queue of every
    ///    group that wants it; for a transport that is not durable, only after each of these groups acknowledged it.
    /// 2. A message that no group wants is reported as `Unroutable`.
    /// 3. A broker that is not there, or a connection lost with the outcome unknown, is `Unavailable`; a message that
    ///    the broker refuses for what it is (too large, malformed) is `Invalid`; what lies in the state of its topic or of
    ///    the broker (a full queue, no right to write, no leader) is `Environment`; any other refusal is `Rejected`.
    /// 4. Each outcome is the message's own: one that fails does not hinder the others.
    /// 5. Every outcome is reported within a bounded time, also when the broker hangs or the transport is closed.
    /// 6. Id, topic, headers and payload arrive unchanged, `cap-*` headers included.
    /// 7. Confirms are not waited for one by one: many are outstanding at once.
    /// 8. If the broker breaks off (closes the channel, the connection) because of one message, that message is found
    ///    among all that were on their way and gets the outcome of 3; the others are sent all the same, and what is sent
    ///    later does not wait for it.
    /// 9. If a message is `Unroutable` although a consumer of this handle wants its topic, because somebody has taken away
    ///    what the subscription had made, then it is made again: what is sent soon after reaches the group.
    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()>;

    /// Why nothing can be sent at present although the broker is connected, if so: an alarm by which it takes nothing
    /// more. Answers at once, from what the broker has told.
    ///
    /// 1. `Some` from when the broker has said so until it says that it is over, or the connection ends.
    fn obstacle(&self) -> Option<Error> {
        None
    }

    /// Begins to consume for a group, declaring what is missing.
    ///
    /// 1. Idempotent: any number of consumers of any number of processes may subscribe for one group and share its
    ///    messages; groups do not take each other's. Each group gets each message once.
    /// 2. Topics match by the rules of [`TopicPattern`].
    /// 3. When it answers, messages that are sent from then on reach the group.
    /// 4. What was done counts only for the topic or queue that it was done in: if somebody deletes it and makes it again, or the
    ///    broker comes back without a part of it, nothing that is sent afterwards is taken for done. That it happened is told
    ///    by an error of the consumer, if the group has to begin again.
    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>>;

    /// How many messages the broker holds for a group: not yet delivered, or delivered and unacknowledged.
    ///
    /// 1. Not declared in `capabilities().reports_backlog`: answers `Unsupported`.
    fn backlog(&self, group: Group) -> BoxFuture<'_, Result<u64>> {
        let _ = group;
        Box::pin(async move { Err(Error::unsupported("tell the backlog of a group on", self.describe())) })
    }

    /// Which of these topics no group has a queue for.
    ///
    /// 1. Not declared in `capabilities().checks_routes`: answers `Unsupported`.
    /// 2. Answers exactly those for which a message sent now would be `Unroutable`, in the order given.
    /// 3. Sends nothing: no group sees a probe, nor does anybody else on the broker.
    fn unrouted(&self, topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        let _ = topics;
        Box::pin(async move { Err(Error::unsupported("tell which topics have no queue on", self.describe())) })
    }

    /// Ends everything.
    ///
    /// 1. Idempotent. Outstanding confirms are reported, consumers end, later calls answer `Stopped` (and sends report
    ///    `Unavailable`).
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// A group's consumer. Dropped, it gives back everything that it has not acknowledged.
pub trait Consumer: fmt::Debug + Send {
    /// Waits for deliveries: at least one, at most `max`.
    ///
    /// 1. Cancel-safe: dropped before it answers, it loses no delivery.
    /// 2. Never more than the subscription's prefetch are out at once, and no more bytes than its `prefetch_bytes`, but
    ///    for a single message that is larger: memory is bounded, whatever the broker has and whoever is slow.
    /// 3. An error means that this consumer is over: whatever it handed out will be delivered again, to another.
    fn receive(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>>>;

    /// Tells the broker that deliveries are taken over; they are gone from the group.
    ///
    /// 1. Acknowledging one leaves all others as they are, in whatever order this is done.
    /// 2. What is not acknowledged is delivered again after this consumer ends, with `redelivered` set.
    fn ack(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>>;

    /// Gives deliveries back for another consumer, or this one again.
    ///
    /// 1. They are delivered again, with `redelivered` set, and are not acknowledged.
    fn release(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>>;
}
