//! The transitions, one function each.

use std::time::Duration;

use crate::lifecycle::retry::RetryPolicy;
use crate::lifecycle::state::{State, Status};
use crate::time::Due;

/// What governs the records of one table or subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// When to try again.
    pub retry: RetryPolicy,
    /// How long a succeeded record is kept.
    pub keep_succeeded: Duration,
    /// How long a dead record is kept.
    pub keep_dead: Duration,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Sent and confirmed, or handled.
    Succeeded,
    /// It failed and may succeed another time.
    Failed(String),
    /// It failed and no further attempt can help.
    Hopeless(String),
    /// The attempt never happened (a shutdown, a broker that is away): it does not count, and the record is due after
    /// this pause.
    GivenBack(Duration),
}

/// Whether a record that was just claimed may be worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// Go on.
    Run,
    /// More attempts have begun than are allowed, and the last one never ended: they took their process down with them.
    /// It is dead; write this instead.
    Exhausted(State),
}

/// A newly published record, due at `due`.
pub fn scheduled(due: Due) -> State {
    let status = if due == Due::Now { Status::Scheduled } else { Status::Delayed };
    checked(State { status, attempts: 0, due: Some(due), expires: None, reason: None })
}

/// A newly received record. `claimed`: its receiver goes on to work on it at once, so its first attempt begins;
/// otherwise it waits in the inbox.
pub fn received(claimed: bool) -> State {
    if claimed {
        return checked(State { status: Status::Queued, attempts: 1, due: None, expires: None, reason: None });
    }
    scheduled(Due::Now)
}

/// A delivery that can never be handled: it is kept, dead, with the reason, in place of a new record.
pub fn parked(reason: impl Into<String>, rules: &Rules) -> State {
    dead(0, reason.into(), rules)
}

/// Whether the attempt that a claim has just counted may run. `attempts` counts it already.
pub fn begin(attempts: u32, rules: &Rules) -> Begin {
    let earlier = attempts.saturating_sub(1);
    if earlier == 0 || rules.retry.allows_another_begin(earlier) {
        return Begin::Run;
    }
    let reason = format!("given up: {earlier} attempts were begun and the last one never finished");
    Begin::Exhausted(dead(earlier, reason, rules))
}

/// Whether a claimed record may be what kills its processes: attempts vanished more than once, and none ever ended to
/// give a reason. It is worked on with no other suspect beside it: attempts are counted when a record is claimed, so each
/// crash counts for all that were in flight, and only apart can the innocent be told from the guilty.
pub fn is_suspect(attempts: u32, reason: Option<&str>) -> bool {
    attempts > 2 && reason.is_none()
}

/// What to write after attempt number `attempts` ended in `outcome`. `roll` in `0.0..1.0` is the jitter's dice.
pub fn settle(attempts: u32, outcome: Outcome, rules: &Rules, roll: f64) -> State {
    match outcome {
        Outcome::Succeeded => checked(State {
            status: Status::Succeeded,
            attempts,
            due: None,
            expires: Some(rules.keep_succeeded),
            reason: None,
        }),
        Outcome::Failed(reason) if rules.retry.allows_another(attempts) => checked(State {
            status: Status::Failed,
            attempts,
            due: Some(Due::In(rules.retry.delay_after(attempts, roll))),
            expires: None,
            reason: Some(reason),
        }),
        Outcome::Failed(reason) | Outcome::Hopeless(reason) => dead(attempts, reason, rules),
        Outcome::GivenBack(pause) => checked(State {
            status: Status::Scheduled,
            attempts: attempts.saturating_sub(1),
            due: Some(if pause.is_zero() { Due::Now } else { Due::In(pause) }),
            expires: None,
            reason: None,
        }),
    }
}

/// A terminal record that a person wants tried again, with all its attempts before it.
pub fn requeued() -> State {
    scheduled(Due::Now)
}

/// The only function that makes a record dead. Whoever writes what it answers notifies: the engine does so for every
/// settled or inserted state for which [`State::is_dead`] holds.
fn dead(attempts: u32, reason: String, rules: &Rules) -> State {
    checked(State { status: Status::Failed, attempts, due: None, expires: Some(rules.keep_dead), reason: Some(reason) })
}

fn checked(state: State) -> State {
    debug_assert_eq!(state.check(), Ok(()), "{state:?}");
    state
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lifecycle::Limit;

    fn rules(limit: Limit) -> Rules {
        Rules {
            retry: RetryPolicy { limit, ..RetryPolicy::default() },
            keep_succeeded: Duration::from_secs(86_400),
            keep_dead: Duration::from_secs(1_296_000),
        }
    }

    #[test]
    fn a_failure_is_tried_again_until_the_limit_and_then_is_dead_with_its_reason() {
        let rules = rules(Limit::Attempts(3));
        for attempts in 1..3 {
            let state = settle(attempts, Outcome::Failed("no".into()), &rules, 0.5);
            assert_eq!((state.status(), state.is_dead()), (Status::Failed, false));
        }
        let state = settle(3, Outcome::Failed("no".into()), &rules, 0.5);
        assert!(state.is_dead());
        assert_eq!((state.reason(), state.expires()), (Some("no"), Some(rules.keep_dead)));
    }

    #[test]
    fn a_hopeless_failure_is_dead_at_once() {
        assert!(settle(1, Outcome::Hopeless("bad".into()), &rules(Limit::None), 0.5).is_dead());
    }

    #[test]
    fn what_is_given_back_has_not_used_an_attempt() {
        let state = settle(4, Outcome::GivenBack(Duration::ZERO), &rules(Limit::Attempts(4)), 0.5);
        assert_eq!((state.status(), state.attempts(), state.due()), (Status::Scheduled, 3, Some(Due::Now)));
    }

    #[test]
    fn a_message_that_kills_its_process_is_not_tried_for_ever() {
        let rules = rules(Limit::Attempts(50));
        assert_eq!(begin(50, &rules), Begin::Run);
        let Begin::Exhausted(state) = begin(51, &rules) else { panic!("a 51st attempt of 50 was allowed") };
        assert!(state.is_dead());
        assert_eq!(state.attempts(), 50);
    }

    #[test]
    fn a_few_crashes_do_not_kill_a_message_even_if_a_single_failure_does() {
        let rules = rules(Limit::Attempts(1));
        assert_eq!(begin(10, &rules), Begin::Run);
        assert!(matches!(begin(11, &rules), Begin::Exhausted(_)));
        assert!(settle(2, Outcome::Failed("no".into()), &rules, 0.5).is_dead());
    }

    #[test]
    fn a_record_published_for_later_is_delayed_and_never_expires_before_it_is_done() {
        let state = scheduled(Due::In(Duration::from_secs(5)));
        assert_eq!((state.status(), state.expires()), (Status::Delayed, None));
        assert_eq!(scheduled(Due::Now).status(), Status::Scheduled);
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Succeeded),
            ".{0,20}".prop_map(Outcome::Failed),
            ".{0,20}".prop_map(Outcome::Hopeless),
            (0u64..100_000).prop_map(|ms| Outcome::GivenBack(Duration::from_millis(ms))),
        ]
    }

    proptest! {
        #[test]
        fn every_transition_keeps_the_invariants(attempts in 1u32.., outcome in outcomes(), roll in 0.0..1.0f64, limit in 1u32..100) {
            let rules = rules(Limit::Attempts(limit));
            let state = settle(attempts, outcome.clone(), &rules, roll);
            prop_assert_eq!(state.check(), Ok(()));
            prop_assert_eq!(state.status() == Status::Succeeded, outcome == Outcome::Succeeded);
            if let Begin::Exhausted(state) = begin(attempts, &rules) {
                prop_assert_eq!(state.check(), Ok(()));
                prop_assert!(attempts > limit.max(rules.retry.crashes));
            }
        }
    }
}
