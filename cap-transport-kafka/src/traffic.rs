//! What is on its way to the brokers, and how much of it one topic may have.
//!
//! librdkafka has one queue for all topics. A topic that is not confirmed (no leader, too few replicas, no right to write)
//! must neither fill it nor keep its callers waiting. So a topic may have at most [`SHARE`] times as much on its way as is
//! left for all others: however many topics are stuck, some room is left. And a topic that is in trouble is given one
//! message each [`PAUSE`], to see whether it is over; what else is sent to it is answered at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cap_core::transport::Confirm;
use cap_core::{Error, ErrorKind, MessageId, Topic};
use tokio::sync::Notify;

use crate::error::unavailable;

/// A topic may have so many times as much on its way as is free.
const SHARE: usize = 4;
/// How long a topic that is in trouble is left alone between two messages that try it.
const PAUSE: Duration = Duration::from_secs(1);
pub(crate) const CLOSED: &str = "the transport is closed";

/// Messages and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Load {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Load {
    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes -= bytes;
    }
}

/// What is told of a message on its way.
#[derive(Debug)]
struct Sent {
    id: MessageId,
    bytes: usize,
    since: Instant,
    /// None if its outcome was told before librdkafka knew it.
    confirm: Option<Confirm>,
}

/// Why nothing gets through to a topic at present.
#[derive(Debug)]
struct Trouble {
    kind: ErrorKind,
    reason: String,
    /// When the next message may try.
    until: Instant,
}

/// What one topic has on its way.
#[derive(Debug)]
struct Lane {
    sent: BTreeMap<u64, Sent>,
    load: Load,
    trouble: Option<Trouble>,
    /// When something of it arrived last.
    arrived: Option<Instant>,
    /// When something of it was settled last, or begun when there was nothing.
    moved: Instant,
    /// When it was last looked at by somebody, since it is slow.
    looked_at: Option<Instant>,
}

/// Why a message is not on its way.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There is no room now; the topic has not moved since.
    Full(Instant),
    /// It has its outcome.
    Told,
}

/// What became of a message of a topic.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) reason: String,
}

impl Failure {
    fn error(&self, id: &MessageId, topic: &Topic) -> Error {
        Error::new(self.kind, "send", subject(id, topic), self.reason.clone())
    }
}

pub(crate) fn subject(id: &MessageId, topic: &Topic) -> String {
    format!("message {id} to topic `{topic}`")
}

#[derive(Debug, Default)]
struct State {
    lanes: HashMap<Topic, Lane>,
    load: Load,
    last_ticket: u64,
    /// The last sign of life of the brokers, or that there was none.
    sign: Option<(Instant, bool)>,
    is_closed: bool,
    /// Nobody looks after slow topics any more.
    is_retired: bool,
}

#[derive(Debug)]
pub(crate) struct Traffic {
    limit: Load,
    state: Mutex<State>,
    /// Wakes who waits for room.
    room: Notify,
    /// Wakes who looks after slow topics.
    work: Condvar,
}

impl Traffic {
    pub(crate) fn new(limit: Load) -> Self {
        Self { limit, state: Mutex::default(), room: Notify::new(), work: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn room(&self) -> &Notify {
        &self.room
    }

    /// Takes a message among those on their way, and its confirm. Its ticket, or why not.
    pub(crate) fn enter(
        &self,
        (id, topic): (&MessageId, &Topic),
        bytes: usize,
        confirm: Confirm,
        now: Instant,
    ) -> std::result::Result<u64, (Refusal, Option<Confirm>)> {
        let mut state = self.lock();
        if state.is_closed {
            drop(state);
            confirm.report(Err(unavailable("send", subject(id, topic), CLOSED)));
            return Err((Refusal::Told, None));
        }
        let free = Load {
            messages: self.limit.messages.saturating_sub(state.load.messages),
            bytes: self.limit.bytes.saturating_sub(state.load.bytes),
        };
        let all = state.load;
        let State { lanes, last_ticket, load, .. } = &mut *state;
        if !lanes.contains_key(topic) {
            lanes.insert(topic.clone(), Lane::new(now));
        }
        let Some(lane) = lanes.get_mut(topic) else {
            return Err((Refusal::Full(now), Some(confirm)));
        };
        if let Some(trouble) = lane.trouble.as_ref().filter(|trouble| now < trouble.until) {
            let error = Failure { kind: trouble.kind, reason: trouble.reason.clone() }.error(id, topic);
            drop(state);
            confirm.report(Err(error));
            return Err((Refusal::Told, None));
        }
        if !lane.has_room(bytes, all, free, self.limit) {
            // An empty lane has not moved since there was nothing to move: it waits for others.
            let moved = if lane.sent.is_empty() { now } else { lane.moved };
            return Err((Refusal::Full(moved), Some(confirm)));
        }
        if let Some(trouble) = &mut lane.trouble {
            trouble.until = now + PAUSE;
        }
        if lane.sent.is_empty() {
            lane.moved = now;
        }
        *last_ticket += 1;
        let ticket = *last_ticket;
        lane.sent.insert(ticket, Sent { id: id.clone(), bytes, since: now, confirm: Some(confirm) });
        lane.load.add(bytes);
        load.add(bytes);
        let is_first = load.messages == 1;
        drop(state);
        if is_first {
            self.work.notify_all();
        }
        Ok(ticket)
    }

    /// A message has arrived.
    pub(crate) fn confirmed(&self, topic: &Topic, ticket: u64, now: Instant) {
        let mut state = self.lock();
        state.sign = Some((now, true));
        if let Some(lane) = state.lanes.get_mut(topic) {
            lane.trouble = None;
            lane.arrived = Some(now);
        }
        self.settle(state, topic, ticket, now, Ok(()));
    }

    /// A message was not taken over, and it is its topic's affair: the next ones are answered with the same for a while.
    pub(crate) fn refused_by_topic(&self, topic: &Topic, ticket: u64, now: Instant, failure: Failure) {
        let mut state = self.lock();
        if let Some(lane) = state.lanes.get_mut(topic) {
            lane.is_in_trouble(&failure, now);
        }
        self.settle(state, topic, ticket, now, Err(failure));
    }

    /// A message was not taken over.
    pub(crate) fn failed(&self, topic: &Topic, ticket: u64, now: Instant, failure: Failure) {
        let state = self.lock();
        self.settle(state, topic, ticket, now, Err(failure));
    }

    fn settle(
        &self,
        mut state: MutexGuard<'_, State>,
        topic: &Topic,
        ticket: u64,
        now: Instant,
        outcome: std::result::Result<(), Failure>,
    ) {
        let State { lanes, load, .. } = &mut *state;
        let Some(lane) = lanes.get_mut(topic) else { return };
        let Some(sent) = lane.sent.remove(&ticket) else { return };
        lane.load.remove(sent.bytes);
        load.remove(sent.bytes);
        lane.moved = now;
        if lane.sent.is_empty() && lane.trouble.as_ref().is_none_or(|trouble| trouble.until + PAUSE < now) {
            lanes.remove(topic);
        }
        drop(state);
        self.room.notify_waiters();
        if let Some(confirm) = sent.confirm {
            confirm.report(outcome.map_err(|failure| failure.error(&sent.id, topic)));
        }
    }

    /// Since when a message is on its way.
    pub(crate) fn since(&self, topic: &Topic, ticket: u64) -> Option<Instant> {
        self.lock().lanes.get(topic)?.sent.get(&ticket).map(|sent| sent.since)
    }

    /// Whether the topic took another message since then.
    pub(crate) fn took_since(&self, topic: &Topic, since: Instant) -> bool {
        self.lock().lanes.get(topic).and_then(|lane| lane.arrived).is_some_and(|arrived| arrived > since)
    }

    /// Whether the brokers have given a sign of life since then, and none that they are away.
    pub(crate) fn is_alive_since(&self, since: Instant) -> bool {
        self.lock().sign.is_some_and(|(at, is_alive)| is_alive && at > since)
    }

    /// A broker has answered, or none has.
    pub(crate) fn sign_of_life(&self, now: Instant, is_alive: bool) {
        self.lock().sign = Some((now, is_alive));
    }

    /// Topics whose oldest message waits for longer than `limit`, and that nobody has looked at for so long.
    pub(crate) fn slow(&self, now: Instant, limit: Duration, max: usize) -> Vec<Topic> {
        let mut state = self.lock();
        let mut slow = Vec::new();
        for (topic, lane) in &mut state.lanes {
            let is_slow =
                lane.sent.values().find(|sent| sent.confirm.is_some()).is_some_and(|sent| sent.since + limit <= now);
            if is_slow && slow.len() < max && lane.looked_at.is_none_or(|at| at + limit <= now) {
                lane.looked_at = Some(now);
                slow.push(topic.clone());
            }
        }
        slow
    }

    /// Tells the outcome of all messages to a topic that wait for longer than `limit`, before librdkafka gives them up:
    /// what is wrong with the topic is known. Their room stays taken until it does.
    pub(crate) fn give_up(&self, topic: &Topic, now: Instant, limit: Duration, failure: &Failure) {
        let mut told = Vec::new();
        let mut state = self.lock();
        if let Some(lane) = state.lanes.get_mut(topic) {
            for sent in lane.sent.values_mut().filter(|sent| sent.since + limit <= now) {
                if let Some(confirm) = sent.confirm.take() {
                    told.push((confirm, failure.error(&sent.id, topic)));
                }
            }
            // One partition of several may be without a leader while others go on.
            if lane.moved + limit <= now {
                lane.is_in_trouble(failure, now);
            }
        }
        drop(state);
        self.room.notify_waiters();
        for (confirm, error) in told {
            confirm.report(Err(error));
        }
    }

    /// Waits until there is something to look after; then for a while. Whether there will be more.
    pub(crate) fn watch(&self, pause: Duration) -> bool {
        let state = self.lock();
        let idles = |state: &mut State| !state.is_retired && state.load.messages == 0;
        let state = self.work.wait_while(state, idles).unwrap_or_else(PoisonError::into_inner);
        let lives = |state: &mut State| !state.is_retired;
        let (state, _) = self.work.wait_timeout_while(state, pause, lives).unwrap_or_else(PoisonError::into_inner);
        !state.is_retired
    }

    /// Nobody looks after slow topics any more.
    pub(crate) fn retire(&self) {
        self.lock().is_retired = true;
        self.work.notify_all();
    }

    /// Lets nothing more in.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.room.notify_waiters();
        self.retire();
    }

    #[cfg(test)]
    fn load(&self) -> Load {
        self.lock().load
    }
}

impl Lane {
    fn new(now: Instant) -> Self {
        Self { sent: BTreeMap::new(), load: Load::default(), trouble: None, arrived: None, moved: now, looked_at: None }
    }

    /// Whether one more message may be on its way. A topic that has none may have one, if need be beyond the limit of bytes,
    /// so that large messages of others do not shut it out.
    fn has_room(&self, bytes: usize, all: Load, free: Load, limit: Load) -> bool {
        if free.messages == 0 {
            return false;
        }
        if self.load.messages == 0 {
            return all.messages == 0 || all.bytes.saturating_add(bytes) <= limit.bytes.saturating_mul(2);
        }
        let has_messages = self.load.messages < free.messages.saturating_mul(SHARE);
        has_messages && bytes <= free.bytes && self.load.bytes < free.bytes.saturating_mul(SHARE)
    }

    fn is_in_trouble(&mut self, failure: &Failure, now: Instant) {
        self.trouble = Some(Trouble { kind: failure.kind, reason: failure.reason.clone(), until: now + PAUSE });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Outcomes = Arc<Mutex<Vec<Option<ErrorKind>>>>;

    struct Scene {
        traffic: Traffic,
        now: Instant,
        outcomes: Outcomes,
    }

    impl Scene {
        fn new(messages: usize, bytes: usize) -> Self {
            Self { traffic: Traffic::new(Load { messages, bytes }), now: Instant::now(), outcomes: Outcomes::default() }
        }

        fn enter(&self, topic: &str, bytes: usize) -> Option<u64> {
            let (id, topic) = (MessageId::generate(), Topic::try_from(topic).unwrap());
            let outcomes = Arc::clone(&self.outcomes);
            let confirm = Confirm::new(move |outcome: cap_core::Result<()>| {
                outcomes.lock().unwrap().push(outcome.err().map(|error| error.kind()));
            });
            match self.traffic.enter((&id, &topic), bytes, confirm, self.now) {
                Ok(ticket) => Some(ticket),
                Err((_, confirm)) => {
                    // The test asks only for what was told by the table itself.
                    std::mem::forget(confirm);
                    None
                }
            }
        }

        fn fill(&self, topic: &str, bytes: usize) -> usize {
            std::iter::from_fn(|| self.enter(topic, bytes)).count()
        }

        fn told(&self) -> Vec<Option<ErrorKind>> {
            std::mem::take(&mut *self.outcomes.lock().unwrap())
        }
    }

    fn topic(name: &str) -> Topic {
        name.parse().unwrap()
    }

    fn failure(kind: ErrorKind) -> Failure {
        Failure { kind, reason: "it has no leader".into() }
    }

    #[test]
    fn however_many_topics_are_stuck_there_is_room_for_another() {
        let scene = Scene::new(1_000, usize::MAX);
        assert_eq!(scene.fill("stuck.0", 1), 800, "alone it has most of the window");
        for number in 1..4 {
            assert!(scene.fill(&format!("stuck.{number}"), 1) > 0);
        }
        assert!(scene.fill("healthy", 1) > 0);
    }

    #[test]
    fn bytes_count_as_messages_do_and_one_message_is_let_in_whatever_its_size() {
        let scene = Scene::new(1_000, 100);
        assert_eq!(scene.fill("stuck", 10), 8);
        assert!(scene.enter("other", 90).is_some(), "one beyond the limit");
        assert!(scene.enter("other", 1).is_none());
        assert!(scene.enter("third", 90).is_none(), "and no more than twice the limit");
        let scene = Scene::new(1_000, 100);
        assert!(scene.enter("large", 1_000).is_some());
        assert!(scene.enter("large", 1).is_none());
    }

    #[test]
    fn a_topic_in_trouble_is_tried_with_one_message_each_pause_and_the_rest_is_answered_at_once() {
        let mut scene = Scene::new(100, usize::MAX);
        let first = scene.enter("sick", 1).unwrap();
        scene.traffic.refused_by_topic(&topic("sick"), first, scene.now, failure(ErrorKind::Environment));
        assert_eq!(scene.told(), [Some(ErrorKind::Environment)]);
        assert_eq!(scene.enter("sick", 1), None);
        assert_eq!(scene.told(), [Some(ErrorKind::Environment)]);
        assert!(scene.enter("well", 1).is_some());
        scene.now += PAUSE;
        let probe = scene.enter("sick", 1).expect("a probe");
        assert_eq!((scene.enter("sick", 1), scene.told().len()), (None, 1));
        scene.traffic.confirmed(&topic("sick"), probe, scene.now);
        assert!(scene.enter("sick", 1).is_some() && scene.enter("sick", 1).is_some(), "it is over");
    }

    #[test]
    fn a_fault_of_the_message_is_no_trouble_of_its_topic() {
        let scene = Scene::new(100, usize::MAX);
        for kind in [ErrorKind::Invalid, ErrorKind::Unavailable, ErrorKind::Environment] {
            let ticket = scene.enter("order", 1).unwrap();
            scene.traffic.failed(&topic("order"), ticket, scene.now, failure(kind));
            assert!(scene.enter("order", 1).is_some());
        }
    }

    #[test]
    fn what_waits_too_long_is_told_once_and_keeps_its_room() {
        let mut scene = Scene::new(100, usize::MAX);
        let limit = Duration::from_secs(1);
        let ticket = scene.enter("sick", 1).unwrap();
        assert_eq!(scene.traffic.slow(scene.now, limit, 9), []);
        scene.now += limit;
        assert_eq!(scene.traffic.slow(scene.now, limit, 9), [topic("sick")]);
        assert_eq!(scene.traffic.slow(scene.now, limit, 9), [], "it was looked at");
        scene.traffic.give_up(&topic("sick"), scene.now, limit, &failure(ErrorKind::Environment));
        assert_eq!(scene.told(), [Some(ErrorKind::Environment)]);
        assert_eq!(scene.traffic.load().messages, 1);
        scene.traffic.confirmed(&topic("sick"), ticket, scene.now);
        assert_eq!((scene.traffic.load(), scene.told()), (Load::default(), vec![]));
    }
}
