//! Topics that a group gets messages of and that this node has no subscription for: in a rolling deployment the node of
//! the other version has one. Their messages stay in the inbox for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use cap_core::{Group, Timestamp, Topic};
use tokio::time::Instant;

/// So many topics are told apart. Those of more are looked at again and again.
const MOST: usize = 256;
/// How often at the most messages that wait for a handler are looked at for the time that they have waited.
const LOOK: Duration = Duration::from_secs(600);

/// The topics that this node leaves alone in one group.
#[derive(Debug)]
pub(crate) struct Unhandled {
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    topics: Vec<(Topic, SystemTime)>,
    /// Those that were known before the last look, which shows whether anything of them is left.
    former: Vec<(Topic, SystemTime)>,
    next_look: Instant,
}

impl Unhandled {
    /// Messages wait at most for `limit`.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            state: Mutex::new(State {
                topics: Vec::new(),
                former: Vec::new(),
                next_look: Instant::now() + pause(limit),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message of `topic` came that nobody here can handle.
    pub(crate) fn note(&self, group: &Group, topic: &Topic) {
        let mut state = self.state();
        if state.topics.iter().any(|(known, _)| known == topic) {
            return;
        }
        if state.topics.len() == MOST {
            state.topics.remove(0);
        }
        let former = state.former.iter().position(|(known, _)| known == topic);
        let former = former.map(|place| state.former.swap_remove(place));
        let is_known = former.is_some();
        state.topics.push(former.unwrap_or_else(|| (topic.clone(), SystemTime::now())));
        drop(state);
        if is_known {
            return;
        }
        tracing::warn!(
            messaging.destination.name = %topic.shown(),
            messaging.consumer.group.name = %group.shown(),
            "no subscription of this node matches the topic: its messages wait in the inbox for a node that has one"
        );
    }

    /// What a claim leaves alone.
    pub(crate) fn topics(&self) -> Vec<Topic> {
        self.state().topics.iter().map(|(topic, _)| topic.clone()).collect()
    }

    /// After which a message is due again that this node cannot handle.
    pub(crate) fn pause(&self) -> Duration {
        // Of more topics than are told apart, some are claimed again.
        if self.state().topics.len() < MOST { Duration::ZERO } else { Duration::from_secs(1) }
    }

    /// The topics, and since when.
    pub(crate) fn since(&self) -> Vec<(Topic, SystemTime)> {
        self.state().topics.clone()
    }

    /// When the messages that wait are to be looked at, if there are any.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let state = self.state();
        (!state.topics.is_empty()).then_some(state.next_look)
    }

    /// Whether it is time to look at the messages that wait; if so the next time begins, and topics of which nothing is
    /// found are forgotten.
    pub(crate) fn is_look_due(&self) -> bool {
        let mut state = self.state();
        let is_due = !state.topics.is_empty() && state.next_look <= Instant::now();
        if is_due {
            state.next_look = Instant::now() + pause(self.limit);
            state.former = std::mem::take(&mut state.topics);
        }
        is_due
    }

    /// Why a message that came at `added` is not waited for any longer, if so. The clocks of the database and of this
    /// host may differ: what counts in days does not mind.
    pub(crate) fn is_over(&self, group: &Group, topic: &Topic, added: Timestamp) -> Option<String> {
        let age = Timestamp::now().as_micros().saturating_sub(added.as_micros());
        (age >= cap_core::time::micros(self.limit)).then(|| {
            format!("no subscription of group `{group}` matches topic `{topic}`, on no node for {:?}", self.limit)
        })
    }
}

fn pause(limit: Duration) -> Duration {
    (limit / 4).clamp(Duration::from_millis(100), LOOK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_told_once_and_old_ones_make_room() {
        let (unhandled, group) = (Unhandled::new(Duration::from_secs(60)), Group::from_stored("billing.v1"));
        assert_eq!(unhandled.next_look(), None);
        for number in 0..=MOST {
            let topic = Topic::from_stored(&format!("t.{number}"));
            unhandled.note(&group, &topic);
            unhandled.note(&group, &topic);
        }
        let topics = unhandled.topics();
        assert_eq!((topics.len(), topics[0].as_str()), (MOST, "t.1"));
        assert!(unhandled.next_look().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_forgets_topics_of_which_nothing_waits_and_keeps_since_when_the_others_do() {
        let (unhandled, group) = (Unhandled::new(Duration::from_secs(60)), Group::from_stored("billing.v1"));
        let [gone, left] = ["gone", "left"].map(Topic::from_stored);
        unhandled.note(&group, &gone);
        unhandled.note(&group, &left);
        let since = unhandled.since();
        assert!(!unhandled.is_look_due());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(unhandled.is_look_due());
        unhandled.note(&group, &left);
        assert_eq!(unhandled.since(), since[1..]);
    }

    #[test]
    fn a_message_is_given_up_when_it_has_waited_for_the_limit() {
        let (unhandled, group) = (Unhandled::new(Duration::from_secs(60)), Group::from_stored("billing.v1"));
        let topic = Topic::from_stored("a");
        let ago = |seconds: i64| Timestamp::from_micros(Timestamp::now().as_micros() - seconds * 1_000_000);
        assert_eq!(unhandled.is_over(&group, &topic, ago(50)), None);
        assert!(unhandled.is_over(&group, &topic, ago(61)).is_some());
        assert!(Unhandled::new(cap_core::time::FAR).is_over(&group, &topic, ago(1_000_000_000)).is_none());
    }
}
