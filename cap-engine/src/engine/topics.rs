//! Topics that cannot be sent to at present: their queue is full, they have none, they may not be written. Each has a
//! breaker of its own, so that it is no affair of the others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use cap_core::{Error, ErrorKind, Topic};
use tokio::time::Instant;

use crate::engine::backoff::Pause;

/// A breaker that nothing has met for so long after its pause has nobody waiting behind it.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How many messages of a topic try whether it takes some again.
const PROBES: u32 = 4;

/// The longest pause of a topic that has no queue: what waits for one is sent within a second of its appearing.
const LONGEST_UNROUTABLE: Duration = Duration::from_millis(750);
/// How much longer it is for each topic that takes nothing, so that many of them do not fill the day.
const FOR_EACH_BROKEN: Duration = Duration::from_millis(5);

/// The breakers that are not closed.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    /// How many there are: nobody takes the lock while there are none.
    broken: AtomicUsize,
    breakers: Mutex<HashMap<Topic, Breaker>>,
}

#[derive(Debug)]
struct Breaker {
    pause: Pause,
    open_until: Instant,
    /// How many may still be sent of those that try it.
    probes: u32,
    /// Whether a claim has looked for messages that try it since the pause was over.
    is_looked_for: bool,
    since: SystemTime,
    error: Error,
}

/// What a claim is to know of the topics.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Open {
    /// It leaves these alone.
    pub(crate) topics: Vec<Topic>,
    /// It looks for messages that try others: a few do.
    pub(crate) some_are_tried: bool,
}

/// What becomes of a message that was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is sent.
    Send,
    /// It is due again after this pause.
    Wait(Duration),
}

impl Topics {
    fn breakers(&self) -> MutexGuard<'_, HashMap<Topic, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn are_all_closed(&self) -> bool {
        self.broken.load(Ordering::Acquire) == 0
    }

    /// What a claim that is about to be made leaves alone, and what it tries.
    pub(crate) fn open(&self) -> Open {
        if self.are_all_closed() {
            return Open::default();
        }
        let now = Instant::now();
        let mut breakers = self.breakers();
        breakers.retain(|_, breaker| breaker.open_until + FORGOTTEN > now);
        self.broken.store(breakers.len(), Ordering::Release);
        let mut open = Open::default();
        for (topic, breaker) in breakers.iter_mut() {
            if breaker.open_until > now {
                open.topics.push(topic.clone());
            } else {
                open.some_are_tried |= !std::mem::replace(&mut breaker.is_looked_for, true);
            }
        }
        open
    }

    /// When the first topic may be tried again.
    pub(crate) fn next_probe(&self) -> Option<Instant> {
        if self.are_all_closed() {
            return None;
        }
        let now = Instant::now();
        self.breakers().values().map(|breaker| breaker.open_until).filter(|until| *until > now).min()
    }

    /// Whether a message of `topic` may be sent now.
    pub(crate) fn admit(&self, topic: &Topic) -> Admission {
        if self.are_all_closed() {
            return Admission::Send;
        }
        let now = Instant::now();
        let mut breakers = self.breakers();
        let broken = breakers.len();
        let Some(breaker) = breakers.get_mut(topic) else { return Admission::Send };
        if breaker.open_until > now {
            return Admission::Wait(breaker.open_until - now);
        }
        breaker.probes = breaker.probes.saturating_sub(1);
        if breaker.probes == 0 {
            // Those that try it are on their way: the others wait for what comes of it.
            breaker.open_again(now, broken);
        }
        Admission::Send
    }

    /// A message of `topic` was refused for the topic's sake; answers after which pause it is due again.
    pub(crate) fn refused(&self, topic: &Topic, error: Error) -> Duration {
        let now = Instant::now();
        let mut breakers = self.breakers();
        let broken = breakers.len();
        let breaker = breakers.entry(topic.clone()).or_insert_with(|| {
            tracing::warn!(messaging.destination.name = %topic.shown(), error.message = %error, "the topic takes no messages: they wait in the outbox");
            let pause = Pause::of_probes();
            let since = SystemTime::now();
            Breaker { pause, open_until: now, probes: 0, is_looked_for: false, since, error: error.clone() }
        });
        breaker.error = error;
        let wait = if breaker.open_until > now { breaker.open_until - now } else { breaker.open_again(now, broken) };
        self.broken.store(breakers.len(), Ordering::Release);
        wait
    }

    /// A message of `topic` came through; answers whether some wait for that.
    pub(crate) fn accepted(&self, topic: &Topic) -> bool {
        if self.are_all_closed() {
            return false;
        }
        let mut breakers = self.breakers();
        let was_broken = breakers.remove(topic).is_some();
        self.broken.store(breakers.len(), Ordering::Release);
        if was_broken {
            tracing::info!(messaging.destination.name = %topic.shown(), "the topic takes messages again");
        }
        was_broken
    }

    /// The topics, since when and why they take nothing.
    pub(crate) fn since(&self) -> Vec<(Topic, SystemTime, Error)> {
        let breakers = self.breakers();
        breakers.iter().map(|(topic, breaker)| (topic.clone(), breaker.since, breaker.error.clone())).collect()
    }
}

impl Breaker {
    /// `broken`: how many topics take nothing.
    fn open_again(&mut self, now: Instant, broken: usize) -> Duration {
        let longest = match self.error.kind() {
            ErrorKind::Unroutable => {
                let many = u32::try_from(broken).map_or(Duration::MAX, |broken| FOR_EACH_BROKEN.saturating_mul(broken));
                LONGEST_UNROUTABLE.max(many)
            }
            _ => Duration::MAX,
        };
        let pause = self.pause.next_within(longest);
        self.open_until = now + pause;
        self.probes = PROBES;
        self.is_looked_for = false;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Error {
        Error::new(ErrorKind::Environment, "send", "a message", "the queue is full")
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_topic_waits_and_is_tried_with_a_few_while_the_others_go_on() {
        let (topics, full, other) = (Topics::default(), Topic::from_stored("full"), Topic::from_stored("other"));
        assert_eq!(topics.admit(&full), Admission::Send);
        let pause = topics.refused(&full, refusal());
        assert_eq!(topics.open().topics, std::slice::from_ref(&full));
        assert!(matches!(topics.admit(&full), Admission::Wait(left) if left <= pause));
        assert_eq!(topics.admit(&other), Admission::Send);

        tokio::time::advance(pause).await;
        assert_eq!(topics.open(), Open { topics: vec![], some_are_tried: true });
        assert_eq!(topics.open(), Open::default(), "it was looked for");
        let admitted = (0..20).filter(|_| topics.admit(&full) == Admission::Send).count();
        assert_eq!(admitted, PROBES as usize);
        assert_eq!(topics.open().topics, std::slice::from_ref(&full), "before any of those that try it has come back");

        assert!(topics.accepted(&full));
        assert_eq!(topics.admit(&full), Admission::Send);
        assert!(!topics.accepted(&full));
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_of_which_nothing_waits_any_more_is_forgotten() {
        let (topics, full) = (Topics::default(), Topic::from_stored("full"));
        tokio::time::advance(topics.refused(&full, refusal())).await;
        assert_eq!((topics.open().topics.len(), topics.since().len()), (0, 1));
        tokio::time::advance(FORGOTTEN).await;
        assert_eq!((topics.open().topics.len(), topics.since().len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pauses_of_a_topic_grow_to_a_bound() {
        let (topics, full) = (Topics::default(), Topic::from_stored("full"));
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            last = topics.refused(&full, refusal());
            tokio::time::advance(last).await;
        }
        assert!(last >= Duration::from_secs(2) && last <= Duration::from_secs(4), "{last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_without_a_queue_is_tried_more_than_once_a_second_unless_there_are_many() {
        let unroutable = || Error::new(ErrorKind::Unroutable, "send", "a message", "no queue");
        let (topics, topic) = (Topics::default(), Topic::from_stored("nobody"));
        for _ in 0..20 {
            let pause = topics.refused(&topic, unroutable());
            assert!(pause <= LONGEST_UNROUTABLE, "{pause:?}");
            tokio::time::advance(pause).await;
        }
        for other in 0..2_000 {
            topics.refused(&Topic::from_stored(&format!("nobody{other}")), unroutable());
        }
        assert!((0..8).any(|_| topics.refused(&topic, unroutable()) > LONGEST_UNROUTABLE));
    }
}
