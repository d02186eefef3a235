//! Messages of transactions that may still be open.
//!
//! Nobody tells when the caller commits. What was published in his transaction is known, though, and so is what claims bring:
//! as long as some of it has not come, claims are made for it at short intervals, so that it is found at once however late
//! the commit is. One that is rolled back, or that another node claims first, never comes: each is waited for so only for a
//! while, and afterwards found like the messages of other processes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use cap_core::MessageId;
use tokio::time::Instant;

/// The longest pause between two claims while messages are waited for.
pub(super) const LONGEST: Duration = Duration::from_millis(25);

/// How long a message is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many are waited for at most; the oldest give way.
const MOST: usize = 10_000;

/// As many that have come are kept in the order before they are removed.
const FEW: usize = 100;

/// The messages that are waited for.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// When each was published.
    open: HashMap<MessageId, Instant>,
    /// The same in their order, with those that have come since.
    order: VecDeque<(MessageId, Instant)>,
}

impl Commits {
    /// These were published in a transaction of the caller's.
    pub(super) fn expect(&mut self, messages: impl IntoIterator<Item = MessageId>, now: Instant) {
        for message in messages {
            self.open.insert(message.clone(), now);
            self.order.push_back((message, now));
        }
        if self.order.len() > 2 * self.open.len() + FEW {
            self.order.retain(|(message, since)| self.open.get(message) == Some(since));
        }
        while self.open.len() > MOST {
            self.forget_first();
        }
    }

    /// These were claimed.
    pub(super) fn came<'m>(&mut self, messages: impl IntoIterator<Item = &'m MessageId>) {
        if self.open.is_empty() {
            return;
        }
        for message in messages {
            self.open.remove(message);
        }
        if self.open.is_empty() {
            self.order.clear();
        }
    }

    /// Whether some are waited for now.
    pub(super) fn is_waiting(&mut self, now: Instant) -> bool {
        while self.order.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= PATIENCE) {
            self.forget_first();
        }
        !self.open.is_empty()
    }

    fn forget_first(&mut self) {
        let Some((message, since)) = self.order.pop_front() else { return };
        // It may have been published once more.
        if self.open.get(&message) == Some(&since) {
            self.open.remove(&message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MessageId {
        MessageId::try_from(text).unwrap()
    }

    #[test]
    fn a_message_is_waited_for_until_it_comes_or_for_a_minute() {
        let now = Instant::now();
        let mut commits = Commits::default();
        assert!(!commits.is_waiting(now));
        commits.expect([id("a"), id("b")], now);
        commits.came(&[id("a"), id("other")]);
        assert!(commits.is_waiting(now + Duration::from_secs(59)));
        commits.came(&[id("b")]);
        assert!(!commits.is_waiting(now) && commits.order.is_empty());

        commits.expect([id("rolled back")], now);
        assert!(!commits.is_waiting(now + PATIENCE));
    }

    #[test]
    fn one_that_is_published_again_is_waited_for_again() {
        let now = Instant::now();
        let mut commits = Commits::default();
        commits.expect([id("a")], now);
        commits.expect([id("a")], now + Duration::from_secs(30));
        assert!(commits.is_waiting(now + PATIENCE));
        assert!(!commits.is_waiting(now + PATIENCE + Duration::from_secs(30)));
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut commits = Commits::default();
        commits.expect((0..2 * MOST).map(|number| id(&number.to_string())), now);
        assert_eq!((commits.open.len(), commits.order.len()), (MOST, MOST));
    }

    #[test]
    fn many_that_come_soon_leave_one_that_is_late_in_its_place() {
        let now = Instant::now();
        let mut commits = Commits::default();
        commits.expect([id("late")], now);
        for number in 0..2 * MOST {
            let message = id(&number.to_string());
            commits.expect([message.clone()], now);
            commits.came([&message]);
        }
        assert!(commits.is_waiting(now));
        assert!(commits.order.len() <= FEW + 4, "{} are kept", commits.order.len());
    }
}
