//! What the broker has refused lately: topics that may not be written, and messages for which it broke off. Neither is
//! sent among others again, so that the same cause does not end one channel after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cap_core::{Error, ErrorKind, Message, MessageId, Topic};

/// How long nothing is sent that was refused; then one message is, to see whether it still is.
const PAUSE: Duration = Duration::from_secs(2);
/// How many topics are remembered.
const MAX_TOPICS: usize = 1_000;
/// How many messages are remembered.
const MAX_CULPRITS: usize = 256;

/// What is to be done with a message.
#[derive(Debug)]
pub(crate) enum Screened {
    /// Nothing is known against it.
    Free,
    /// It is to be sent with none beside it: it, or its topic, was refused before.
    Alone,
    /// The broker would refuse it.
    Refused(Error),
}

#[derive(Debug, Default)]
pub(crate) struct Refusals {
    any: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// None: the exchange, with all its topics.
    forbidden: HashMap<Option<Topic>, Forbidden>,
    culprits: VecDeque<MessageId>,
}

#[derive(Debug)]
struct Forbidden {
    until: Instant,
    reason: String,
}

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a message that is to be sent at `now`.
    pub(crate) fn screen(&self, message: &Message, now: Instant) -> Screened {
        if !self.any.load(Ordering::Relaxed) {
            return Screened::Free;
        }
        let mut inner = self.lock();
        for place in [Some(message.topic.clone()), None] {
            let Some(forbidden) = inner.forbidden.get_mut(&place) else {
                continue;
            };
            if forbidden.until <= now {
                forbidden.until = now + PAUSE;
                return Screened::Alone;
            }
            let subject = format!("message {} to topic `{}`", message.id, message.topic);
            return Screened::Refused(Error::new(ErrorKind::Environment, "send", subject, &forbidden.reason));
        }
        if inner.culprits.contains(&message.id) { Screened::Alone } else { Screened::Free }
    }

    /// Notes that a topic (or none: the exchange) may not be written.
    pub(crate) fn forbid(&self, topic: Option<Topic>, reason: String, now: Instant) {
        let mut inner = self.lock();
        if inner.forbidden.len() >= MAX_TOPICS {
            inner.forbidden.retain(|_, forbidden| forbidden.until > now);
        }
        if inner.forbidden.len() < MAX_TOPICS {
            inner.forbidden.insert(topic, Forbidden { until: now + PAUSE, reason });
        }
        self.any.store(true, Ordering::Relaxed);
    }

    /// Notes that the broker broke off because of a message.
    pub(crate) fn blame(&self, id: &MessageId) {
        let mut inner = self.lock();
        if inner.culprits.contains(id) {
            return;
        }
        if inner.culprits.len() >= MAX_CULPRITS {
            inner.culprits.pop_front();
        }
        inner.culprits.push_back(id.clone());
        self.any.store(true, Ordering::Relaxed);
    }

    /// Notes that the broker answered to a message that was sent alone.
    pub(crate) fn clear(&self, message: &Message) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = self.lock();
        inner.forbidden.remove(&Some(message.topic.clone()));
        inner.forbidden.remove(&None);
        inner.culprits.retain(|culprit| *culprit != message.id);
        self.any.store(!inner.forbidden.is_empty() || !inner.culprits.is_empty(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(topic: &str) -> Message {
        let (id, headers) = (MessageId::generate(), Default::default());
        Message { id, topic: topic.parse().unwrap(), headers, payload: Bytes::new() }
    }

    #[test]
    fn a_forbidden_topic_is_tried_once_in_each_pause_and_free_when_that_works() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let (one, other) = (message("a"), message("b"));
        refusals.forbid(Some(one.topic.clone()), "no right".into(), now);
        assert!(
            matches!(refusals.screen(&one, now), Screened::Refused(error) if error.kind() == ErrorKind::Environment)
        );
        assert!(matches!(refusals.screen(&other, now), Screened::Free));
        assert!(matches!(refusals.screen(&one, now + PAUSE), Screened::Alone));
        assert!(matches!(refusals.screen(&one, now + PAUSE), Screened::Refused(_)), "one at a time");
        refusals.clear(&one);
        assert!(matches!(refusals.screen(&one, now), Screened::Free));
    }

    #[test]
    fn a_message_that_broke_a_channel_goes_alone_and_few_are_remembered() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let first = message("a");
        refusals.blame(&first.id);
        assert!(matches!(refusals.screen(&first, now), Screened::Alone));
        assert!(matches!(refusals.screen(&message("a"), now), Screened::Free));
        (0..MAX_CULPRITS).for_each(|_| refusals.blame(&MessageId::generate()));
        assert!(matches!(refusals.screen(&first, now), Screened::Free));
    }
}
