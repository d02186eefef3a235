//! One group: what it wants, what waits for it, and who consumes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use cap_core::transport::DeliveryTag;
use cap_core::{Error, Group, Message, Result, Topic, TopicPattern};
use tokio::sync::Notify;

use crate::confirms::{ConnectionId, Ticket};

/// A consumer of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConsumerId(pub(crate) u64);

/// A message on its way through one group.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) message: Arc<Message>,
    pub(crate) ticket: Ticket,
    pub(crate) redelivered: bool,
}

impl Queued {
    fn bytes(&self) -> usize {
        self.message.payload.len()
    }
}

/// A message handed out, as the consumer turns it into a delivery.
#[derive(Debug)]
pub(crate) struct HandedOut {
    pub(crate) tag: DeliveryTag,
    pub(crate) message: Arc<Message>,
    pub(crate) redelivered: bool,
}

#[derive(Debug)]
struct Member {
    connection: ConnectionId,
    limits: Limits,
    last_tag: u64,
    /// Ordered by tag, which is the order in which they were handed out.
    out: BTreeMap<DeliveryTag, Queued>,
    /// What the bodies of `out` come to.
    bytes_out: usize,
}

/// How much may be out with one consumer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Member {
    /// Whether one more may be handed out; a single one may, whatever its size.
    fn has_room_for(&self, queued: &Queued) -> bool {
        let fits = self.bytes_out.saturating_add(queued.bytes()) <= self.limits.bytes;
        self.out.is_empty() || self.out.len() < self.limits.messages && fits
    }
}

/// The state of a group. It stays when its last consumer leaves, so that a message for it is refused rather than
/// unroutable.
#[derive(Debug)]
pub(crate) struct GroupQueue {
    pub(crate) name: Group,
    wants: Vec<TopicPattern>,
    queue: VecDeque<Queued>,
    /// What the bodies of `queue` come to.
    bytes_waiting: usize,
    members: HashMap<ConsumerId, Member>,
    /// A sender waited in vain for room, and nothing was taken since: no other need wait.
    pub(crate) is_stuck: bool,
    /// Wakes the members that wait: there may be messages, or they may be over.
    pub(crate) wake: Arc<Notify>,
}

impl GroupQueue {
    pub(crate) fn new(name: Group) -> Self {
        let wake = Arc::new(Notify::new());
        Self {
            name,
            wants: Vec::new(),
            queue: VecDeque::new(),
            bytes_waiting: 0,
            members: HashMap::new(),
            is_stuck: false,
            wake,
        }
    }

    /// Adds to what the group wants.
    pub(crate) fn want(&mut self, topics: Vec<TopicPattern>) {
        for topic in topics {
            if !self.wants.contains(&topic) {
                self.wants.push(topic);
            }
        }
    }

    pub(crate) fn wants(&self, topic: &Topic) -> bool {
        self.wants.iter().any(|pattern| pattern.matches(topic))
    }

    pub(crate) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// Whether some wait to be handed out.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether as many messages wait as it holds, or as many bytes.
    pub(crate) fn is_full(&self, capacity: Limits) -> bool {
        self.queue.len() >= capacity.messages || self.bytes_waiting >= capacity.bytes
    }

    /// How many wait or are out.
    pub(crate) fn backlog(&self) -> usize {
        self.queue.len() + self.members.values().map(|member| member.out.len()).sum::<usize>()
    }

    pub(crate) fn push(&mut self, queued: Queued) {
        self.bytes_waiting += queued.bytes();
        self.queue.push_back(queued);
    }

    pub(crate) fn join(&mut self, consumer: ConsumerId, connection: ConnectionId, limits: Limits) {
        let member = Member { connection, limits, last_tag: 0, out: BTreeMap::new(), bytes_out: 0 };
        self.members.insert(consumer, member);
    }

    /// The consumers of some connections.
    pub(crate) fn members_of(&self, connections: impl Fn(ConnectionId) -> bool) -> Vec<ConsumerId> {
        let belong = |member: &Member| connections(member.connection);
        self.members.iter().filter(|(_, member)| belong(member)).map(|(consumer, _)| *consumer).collect()
    }

    /// Takes a consumer out. What it held goes to the others; the last one leaves nothing behind, and what there was is
    /// returned.
    pub(crate) fn leave(&mut self, consumer: ConsumerId) -> Vec<Queued> {
        let Some(member) = self.members.remove(&consumer) else {
            return Vec::new();
        };
        self.put_back(member.out.into_values());
        if self.has_members() {
            return Vec::new();
        }
        self.is_stuck = false;
        self.bytes_waiting = 0;
        self.queue.drain(..).collect()
    }

    /// Hands out as many as wait, as the member's limits leave room for, and as `max` allows.
    pub(crate) fn take(&mut self, consumer: ConsumerId, max: usize) -> Result<Vec<HandedOut>> {
        let member = self.members.get_mut(&consumer).ok_or_else(|| stopped("receive from", &self.name))?;
        let mut handed_out = Vec::new();
        while handed_out.len() < max {
            let Some(queued) = self.queue.pop_front_if(|first| member.has_room_for(first)) else {
                break;
            };
            self.is_stuck = false;
            self.bytes_waiting -= queued.bytes();
            member.bytes_out += queued.bytes();
            member.last_tag += 1;
            let tag = DeliveryTag(member.last_tag);
            let message = Arc::clone(&queued.message);
            handed_out.push(HandedOut { tag, message, redelivered: queued.redelivered });
            member.out.insert(tag, queued);
        }
        Ok(handed_out)
    }

    /// Takes deliveries back from a consumer, with the tags that it does not hold.
    pub(crate) fn take_back(
        &mut self,
        consumer: ConsumerId,
        tags: &[DeliveryTag],
        operation: &'static str,
    ) -> Result<(Vec<Queued>, Vec<DeliveryTag>)> {
        let member = self.members.get_mut(&consumer).ok_or_else(|| stopped(operation, &self.name))?;
        let (mut returned, mut unknown) = (BTreeMap::new(), Vec::new());
        for tag in tags {
            match member.out.remove(tag) {
                Some(queued) => {
                    member.bytes_out -= queued.bytes();
                    returned.insert(*tag, queued);
                }
                None => unknown.push(*tag),
            }
        }
        Ok((returned.into_values().collect(), unknown))
    }

    /// Puts messages that were handed out back to the front, in the order in which they stood there.
    pub(crate) fn put_back(&mut self, messages: impl DoubleEndedIterator<Item = Queued>) {
        for queued in messages.rev() {
            self.bytes_waiting += queued.bytes();
            self.queue.push_front(Queued { redelivered: true, ..queued });
        }
        self.wake.notify_waiters();
    }
}

pub(crate) fn stopped(operation: &'static str, group: &Group) -> Error {
    let reason = "this consumer's transport was closed";
    Error::new(cap_core::ErrorKind::Stopped, operation, format!("group `{group}`"), reason)
}
