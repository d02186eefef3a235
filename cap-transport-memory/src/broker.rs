//! The broker: its groups, its connections and the confirms that are outstanding, behind one lock that is never held
//! across an await.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cap_core::transport::{DeliveryTag, Outgoing, Subscription};
use cap_core::{Error, ErrorKind, Group, Result, Topic};
use tokio::sync::Notify;

use crate::config::MemoryTransportOptions;
use crate::confirms::{Confirms, ConnectionId, Settled, unavailable};
use crate::group::{ConsumerId, GroupQueue, HandedOut, Limits, Queued};

const FULL: &str = "the queue of a group that wants it stayed full";

/// What a subscription gets: where to receive, and what wakes it.
pub(crate) type Joined = (GroupIndex, ConsumerId, Arc<Notify>);

/// The place of a group in [`State::groups`], for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupIndex(usize);

#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) options: MemoryTransportOptions,
    state: Mutex<State>,
    /// Wakes senders that wait for room in a queue.
    room: Notify,
    /// Wakes the thread that keeps the confirms' time limits.
    clock: Condvar,
}

#[derive(Debug, Default)]
struct State {
    groups: Vec<GroupQueue>,
    index: HashMap<Group, GroupIndex>,
    connections: HashSet<ConnectionId>,
    confirms: Confirms,
    last_id: u64,
    clock: Clock,
}

/// What the thread that keeps the time limits is doing.
#[derive(Debug, Default)]
enum Clock {
    #[default]
    NotStarted,
    Idle,
    WaitsUntil(Instant),
    Over,
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn group(&mut self, index: GroupIndex) -> &mut GroupQueue {
        &mut self.groups[index.0]
    }

    /// The groups that want a topic.
    fn route(&self, topic: &Topic) -> Vec<GroupIndex> {
        (0..self.groups.len()).filter(|&place| self.groups[place].wants(topic)).map(GroupIndex).collect()
    }

    /// No sender waits for the full queues that these messages are for, until something is taken from them.
    fn give_up_room(&mut self, messages: &[Outgoing], capacity: Limits) {
        for Outgoing { message, .. } in messages {
            for index in self.route(&message.topic) {
                let group = self.group(index);
                group.is_stuck = group.is_full(capacity);
            }
        }
    }

    fn leave(&mut self, group: GroupIndex, consumer: ConsumerId, settled: &mut Settled) {
        for dropped in self.group(group).leave(consumer) {
            let reason = "the last consumer of a group that wants it went away";
            self.confirms.failed(dropped.ticket, reason, settled);
        }
    }
}

impl Broker {
    pub(crate) fn new(options: MemoryTransportOptions) -> Arc<Self> {
        let (state, room, clock) = (Mutex::default(), Notify::new(), Condvar::new());
        Arc::new(Self { options, state, room, clock })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of others runs under the lock, and each change below is complete before anything could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self) -> ConnectionId {
        let mut state = self.lock();
        let connection = ConnectionId(state.next_id());
        state.connections.insert(connection);
        connection
    }

    pub(crate) fn is_open(&self, connection: ConnectionId) -> bool {
        self.lock().connections.contains(&connection)
    }

    /// Ends a connection: its confirms are outstanding no more, and its consumers are over.
    pub(crate) fn close(&self, connection: ConnectionId) {
        self.lock().connections.remove(&connection);
        self.end(|whose| whose == connection);
    }

    /// Forgets a connection that nobody can use any more. Its confirms and consumers go on.
    pub(crate) fn forget(&self, connection: ConnectionId) {
        self.lock().connections.remove(&connection);
    }

    /// Ends the broker: there is no connection any more.
    pub(crate) fn shut_down(&self) {
        self.end(|_| true);
        self.lock().clock = Clock::Over;
        self.clock.notify_all();
    }

    /// Ends the confirms and the consumers of some connections.
    fn end(&self, ends: impl Fn(ConnectionId) -> bool) {
        let mut settled = Settled::default();
        let mut state = self.lock();
        state.confirms.disconnect(&ends, &mut settled);
        for place in (0..state.groups.len()).map(GroupIndex) {
            for consumer in state.group(place).members_of(&ends) {
                state.leave(place, consumer, &mut settled);
            }
            state.group(place).wake.notify_waiters();
        }
        drop(state);
        self.room.notify_waiters();
        settled.report();
    }

    /// Adds a consumer to a group, and the group if it is new.
    pub(crate) fn subscribe(&self, connection: ConnectionId, subscription: Subscription) -> Result<Joined> {
        let Subscription { group, topics, prefetch, prefetch_bytes } = subscription;
        if prefetch == 0 {
            return Err(Error::invalid(format!("a subscription of group `{group}`"), "its prefetch is 0"));
        }
        let mut state = self.lock();
        if !state.connections.contains(&connection) {
            return Err(stopped("subscribe", format!("group `{group}`")));
        }
        let index = match state.index.get(&group) {
            Some(index) => *index,
            None => {
                let index = GroupIndex(state.groups.len());
                state.groups.push(GroupQueue::new(group.clone()));
                state.index.insert(group, index);
                index
            }
        };
        let consumer = ConsumerId(state.next_id());
        let group = state.group(index);
        group.want(topics);
        group.join(consumer, connection, Limits { messages: prefetch, bytes: prefetch_bytes });
        Ok((index, consumer, Arc::clone(&group.wake)))
    }

    /// Takes a consumer out of its group.
    pub(crate) fn leave(&self, group: GroupIndex, consumer: ConsumerId) {
        let mut settled = Settled::default();
        self.lock().leave(group, consumer, &mut settled);
        self.room.notify_waiters();
        settled.report();
    }

    /// Hands messages out; none if none wait.
    pub(crate) fn take(&self, group: GroupIndex, consumer: ConsumerId, max: usize) -> Result<Vec<HandedOut>> {
        let mut state = self.lock();
        let group = state.group(group);
        let was_full = group.is_full(self.options.capacity());
        let taken = group.take(consumer, max)?;
        drop(state);
        if was_full && !taken.is_empty() {
            self.room.notify_waiters();
        }
        Ok(taken)
    }

    pub(crate) fn ack(&self, group: GroupIndex, consumer: ConsumerId, tags: &[DeliveryTag]) -> Result<()> {
        let mut settled = Settled::default();
        let mut state = self.lock();
        let (acknowledged, unknown) = state.group(group).take_back(consumer, tags, "acknowledge to")?;
        for queued in acknowledged {
            state.confirms.acknowledged(queued.ticket, &mut settled);
        }
        drop(state);
        settled.report();
        refuse_unknown("acknowledge", &unknown)
    }

    pub(crate) fn release(&self, group: GroupIndex, consumer: ConsumerId, tags: &[DeliveryTag]) -> Result<()> {
        let mut state = self.lock();
        let group = state.group(group);
        let (released, unknown) = group.take_back(consumer, tags, "give back to")?;
        group.put_back(released.into_iter());
        refuse_unknown("give back", &unknown)
    }

    pub(crate) fn backlog(&self, connection: ConnectionId, group: &Group) -> Result<u64> {
        let state = self.lock();
        if !state.connections.contains(&connection) {
            return Err(stopped("tell the backlog of", format!("group `{group}`")));
        }
        let held = state.index.get(group).map_or(0, |index| state.groups[index.0].backlog());
        Ok(u64::try_from(held).unwrap_or(u64::MAX))
    }

    /// Those of the topics that no group wants, whether or not it has a consumer now.
    pub(crate) fn unrouted(&self, connection: ConnectionId, mut topics: Vec<Topic>) -> Result<Vec<Topic>> {
        let state = self.lock();
        if !state.connections.contains(&connection) {
            return Err(stopped("tell the routes of", "the in-process broker".into()));
        }
        topics.retain(|topic| state.route(topic).is_empty());
        Ok(topics)
    }

    /// Takes messages over, waiting for room in the queues for a moment: what other groups want waits with the sender.
    pub(crate) async fn send(self: &Arc<Self>, connection: ConnectionId, messages: Vec<Outgoing>) {
        let deadline = Instant::now() + self.options.timeout();
        let patience = Instant::now() + self.options.patience();
        let mut waiting = messages;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            waiting = self.offer(connection, waiting, deadline);
            if waiting.is_empty() {
                return;
            }
            if tokio::time::timeout_at(patience.into(), room).await.is_err() {
                self.lock().give_up_room(&waiting, self.options.capacity());
                return give_up(waiting, ErrorKind::Environment, FULL);
            }
        }
    }

    /// Queues what has room now and settles what can never be queued; returns the rest. Behind a message that waits for
    /// a group, all others for this group wait as well, so that the order is kept.
    fn offer(self: &Arc<Self>, connection: ConnectionId, messages: Vec<Outgoing>, deadline: Instant) -> Vec<Outgoing> {
        let mut settled = Settled::default();
        let mut held = Vec::new();
        let mut state = self.lock();
        if !state.connections.contains(&connection) {
            drop(state);
            give_up(messages, ErrorKind::Unavailable, "the transport is closed");
            return held;
        }
        if let Err(error) = self.keep_time(&mut state) {
            drop(state);
            give_up(messages, ErrorKind::Unavailable, &format!("no thread could be started: {error}"));
            return held;
        }
        let mut full: Vec<GroupIndex> = Vec::new();
        let mut last_route: Option<(Topic, Vec<GroupIndex>)> = None;
        for Outgoing { message, confirm } in messages {
            let route = match last_route.take() {
                Some((topic, route)) if topic == message.topic => route,
                _ => state.route(&message.topic),
            };
            if let Some(refusal) = self.refuse(&state, &route, &message) {
                settled.push(confirm, Err(refusal));
                continue;
            }
            let capacity = self.options.capacity();
            if route.iter().any(|group| full.contains(group) || state.group(*group).is_full(capacity)) {
                let newly_full = route.iter().filter(|group| !full.contains(group));
                full.extend(newly_full.copied().collect::<Vec<_>>());
                held.push(Outgoing { message, confirm });
                continue;
            }
            let ticket = state.confirms.add(confirm, message.topic.as_str(), connection, route.len(), deadline);
            let message = Arc::new(message);
            for &group in &route {
                let message = Arc::clone(&message);
                state.group(group).push(Queued { message, ticket, redelivered: false });
            }
            last_route = Some((message.topic.clone(), route));
        }
        self.watch(&state, deadline);
        for group in state.groups.iter().filter(|group| group.has_waiting()) {
            group.wake.notify_waiters();
        }
        drop(state);
        settled.report();
        held
    }

    /// Why a message cannot be queued, now or ever.
    fn refuse(&self, state: &State, route: &[GroupIndex], message: &cap_core::Message) -> Option<Error> {
        let topic = &message.topic;
        let subject = || format!("topic `{topic}`");
        if let Some(limit) = self.options.body_limit().filter(|limit| message.payload.len() > *limit) {
            let reason = format!("message {} has {} bytes, the limit is {limit}", message.id, message.payload.len());
            return Some(Error::new(ErrorKind::Invalid, "send to", subject(), reason));
        }
        if route.is_empty() {
            return Some(Error::new(ErrorKind::Unroutable, "send to", subject(), "no group has subscribed to it"));
        }
        let mut groups = route.iter().map(|index| &state.groups[index.0]);
        if let Some(deserted) = groups.clone().find(|group| !group.has_members()) {
            return Some(unavailable(topic.as_str(), format!("group `{}` has no consumer now", deserted.name)));
        }
        let capacity = self.options.capacity();
        let is_stuck = groups.any(|group| group.is_stuck && group.is_full(capacity));
        is_stuck.then(|| Error::new(ErrorKind::Environment, "send to", subject(), FULL))
    }

    /// Starts the thread that keeps the time limits, once. It is a thread and no task because a task would die with the
    /// runtime that happened to send first.
    fn keep_time(self: &Arc<Self>, state: &mut State) -> std::io::Result<()> {
        if !matches!(state.clock, Clock::NotStarted) {
            return Ok(());
        }
        let broker = Arc::clone(self);
        std::thread::Builder::new().name("cap-memory-confirms".into()).spawn(move || broker.expire_confirms())?;
        state.clock = Clock::Idle;
        Ok(())
    }

    /// Wakes the clock if it would wake too late for a deadline.
    fn watch(&self, state: &State, deadline: Instant) {
        let too_late = match state.clock {
            Clock::WaitsUntil(until) => until > deadline,
            Clock::Idle => true,
            Clock::NotStarted | Clock::Over => false,
        };
        if too_late && state.confirms.next_deadline().is_some() {
            self.clock.notify_one();
        }
    }

    fn expire_confirms(&self) {
        let mut state = self.lock();
        while !matches!(state.clock, Clock::Over) {
            let now = Instant::now();
            let expired = state.confirms.expire(now);
            if !expired.is_empty() {
                drop(state);
                expired.report();
                state = self.lock();
                continue;
            }
            let next = state.confirms.next_deadline();
            state.clock = next.map_or(Clock::Idle, Clock::WaitsUntil);
            state = match next {
                Some(until) => {
                    let waited = self.clock.wait_timeout(state, until - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.clock.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn give_up(messages: Vec<Outgoing>, kind: ErrorKind, reason: &str) {
    for Outgoing { message, confirm } in messages {
        confirm.report(Err(Error::new(kind, "send to", format!("topic `{}`", message.topic), reason)));
    }
}

pub(crate) fn stopped(operation: &'static str, subject: String) -> Error {
    Error::new(ErrorKind::Stopped, operation, subject, "the transport is closed")
}

fn refuse_unknown(operation: &'static str, unknown: &[DeliveryTag]) -> Result<()> {
    let Some(first) = unknown.first() else {
        return Ok(());
    };
    let reason = format!("{} of the tags are not out with this consumer", unknown.len());
    Err(Error::new(ErrorKind::Invalid, operation, format!("delivery {}", first.0), reason))
}
