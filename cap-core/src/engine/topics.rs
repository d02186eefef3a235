//! Topics that cannot be sent to at present: their queue is full, they have none, they may not be written. Each has a
//! breaker of its own, so that it is no affair of the others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::engine::backoff::Pause;
use crate::error::Error;
use crate::name::Topic;

/// A breaker that nothing has met for so long after its pause has nobody waiting behind it.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How many messages of a topic try whether it takes some again.
const PROBES: u32 = 4;

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
    since: SystemTime,
    error: Error,
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

    /// What a claim leaves alone.
    pub(crate) fn open(&self) -> Vec<Topic> {
        if self.are_all_closed() {
            return Vec::new();
        }
        let now = Instant::now();
        let mut breakers = self.breakers();
        breakers.retain(|_, breaker| breaker.open_until + FORGOTTEN > now);
        self.broken.store(breakers.len(), Ordering::Release);
        breakers.iter().filter(|(_, breaker)| breaker.open_until > now).map(|(topic, _)| topic.clone()).collect()
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
        let Some(breaker) = breakers.get_mut(topic) else { return Admission::Send };
        if breaker.open_until > now {
            return Admission::Wait(breaker.open_until - now);
        }
        if breaker.probes > 0 {
            breaker.probes -= 1;
            return Admission::Send;
        }
        // Those that try it are on their way: the others wait for what comes of it.
        Admission::Wait(breaker.open_again(now))
    }

    /// A message of `topic` was refused for the topic's sake; answers after which pause it is due again.
    pub(crate) fn refused(&self, topic: &Topic, error: Error) -> Duration {
        let now = Instant::now();
        let mut breakers = self.breakers();
        let breaker = breakers.entry(topic.clone()).or_insert_with(|| {
            tracing::warn!(messaging.destination.name = %topic.shown(), error.message = %error, "the topic takes no messages: they wait in the outbox");
            let pause = Pause::of_probes();
            Breaker { pause, open_until: now, probes: 0, since: SystemTime::now(), error: error.clone() }
        });
        breaker.error = error;
        let wait = if breaker.open_until > now { breaker.open_until - now } else { breaker.open_again(now) };
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
    fn open_again(&mut self, now: Instant) -> Duration {
        let pause = self.pause.next();
        self.open_until = now + pause;
        self.probes = PROBES;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn refusal() -> Error {
        Error::new(ErrorKind::Environment, "send", "a message", "the queue is full")
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_topic_waits_and_is_tried_with_a_few_while_the_others_go_on() {
        let (topics, full, other) = (Topics::default(), Topic::from_stored("full"), Topic::from_stored("other"));
        assert_eq!(topics.admit(&full), Admission::Send);
        let pause = topics.refused(&full, refusal());
        assert_eq!(topics.open(), std::slice::from_ref(&full));
        assert!(matches!(topics.admit(&full), Admission::Wait(left) if left <= pause));
        assert_eq!(topics.admit(&other), Admission::Send);

        tokio::time::advance(pause).await;
        assert_eq!(topics.open(), []);
        let admitted = (0..20).filter(|_| topics.admit(&full) == Admission::Send).count();
        assert_eq!(admitted, PROBES as usize);
        assert_eq!(topics.open(), std::slice::from_ref(&full));

        assert!(topics.accepted(&full));
        assert_eq!(topics.admit(&full), Admission::Send);
        assert!(!topics.accepted(&full));
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_of_which_nothing_waits_any_more_is_forgotten() {
        let (topics, full) = (Topics::default(), Topic::from_stored("full"));
        tokio::time::advance(topics.refused(&full, refusal())).await;
        assert_eq!((topics.open().len(), topics.since().len()), (0, 1));
        tokio::time::advance(FORGOTTEN).await;
        assert_eq!((topics.open().len(), topics.since().len()), (0, 0));
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
}
