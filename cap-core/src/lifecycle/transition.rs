//! The transitions, one function each.

use std::time::Duration;

use crate::lifecycle::reason;
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

/// An attempt that has begun, as the claim that began it tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Begun {
    /// How many attempts have begun, this one included.
    pub attempts: u32,
    /// How many of the attempts before it ended, one after the other, with their process.
    pub crashes: u32,
    /// Why the last attempt that came to an end failed, or that it is tried alone.
    pub reason: Option<String>,
}

impl Begun {
    /// The first attempt of a record that was inserted with a claim.
    pub fn first() -> Self {
        Self::number(1)
    }

    /// Attempt number `attempts` of a record that is no suspect.
    pub fn number(attempts: u32) -> Self {
        Self { attempts, ..Self::default() }
    }
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
    /// The same, for something that is to be told of: what it waits for (a full queue, a missing one).
    Waits(Duration, String),
}

/// Whether a record that was just claimed may be worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// Go on.
    Run,
    /// So many attempts took their process down with them that it is to be tried with no other suspect beside it, after
    /// this is written ([`State::status`] is `Queued`): should the process die twice so, it was this record.
    Alone(State),
    /// It was tried alone twice, and its process died each time. It is dead; write this instead.
    Exhausted(State),
}

/// What goes before the number of crashes in the reason of a record that is tried alone.
const ALONE: &str = "tried alone after crashes: ";
/// The same when its process died with it the first time that it was alone.
const ALONE_AGAIN: &str = "tried alone again after crashes: ";

/// A newly published record, due at `due`.
pub fn scheduled(due: Due) -> State {
    let status = if due == Due::Now { Status::Scheduled } else { Status::Delayed };
    checked(State { status, attempts: 0, crashes: 0, due: Some(due.bounded()), expires: None, reason: None })
}

/// A newly received record. `claimed`: its receiver goes on to work on it at once, so its first attempt begins;
/// otherwise it waits in the inbox.
pub fn received(claimed: bool) -> State {
    if claimed {
        return in_flight(&Begun::first());
    }
    scheduled(Due::Now)
}

/// A delivery that can never be handled: it is kept, dead, with the reason, in place of a new record.
pub fn parked(reason: impl AsRef<str>, rules: &Rules) -> State {
    dead(&Begun::default(), reason.as_ref(), rules)
}

/// Whether the attempt that a claim has just begun may run.
///
/// Whoever is in flight when a process dies is a suspect, the innocent with the guilty, so crashes alone condemn nobody.
/// After one less than [`RetryPolicy::crashes`] of them a record is tried alone, which is written down first. If its process
/// dies then, it may still have been another that did it: one that was no suspect before, or nobody in the process at all. That
/// one is a suspect now, and kept away. So it is tried alone again, and given up only if its process dies that time, too.
pub fn begin(begun: &Begun, rules: &Rules) -> Begin {
    if !rules.retry.tries_alone_after(begun.crashes) {
        return Begin::Run;
    }
    let ended_with_its_process = |mark: &str| {
        let marked = begun.reason.as_deref().and_then(|reason| reason.strip_prefix(mark)?.parse::<u32>().ok());
        marked.is_some_and(|crashes| crashes < begun.crashes)
    };
    if ended_with_its_process(ALONE_AGAIN) {
        let reason =
            format!("given up: {} attempts in a row ended with their process, the last two alone", begun.crashes);
        return Begin::Exhausted(dead(begun, &reason, rules));
    }
    let mark = if ended_with_its_process(ALONE) { ALONE_AGAIN } else { ALONE };
    let reason = Some(format!("{mark}{}", begun.crashes));
    Begin::Alone(in_flight(&Begun { reason, ..begun.clone() }))
}

/// What to write after the attempt ended in `outcome`. `roll` in `0.0..1.0` is the jitter's dice.
pub fn settle(begun: &Begun, outcome: Outcome, rules: &Rules, roll: f64) -> State {
    let attempts = begun.attempts;
    match outcome {
        Outcome::Succeeded => checked(State {
            status: Status::Succeeded,
            attempts,
            crashes: 0,
            due: None,
            expires: Some(rules.keep_succeeded),
            reason: None,
        }),
        Outcome::Failed(reason) if rules.retry.allows_another(attempts) => checked(State {
            status: Status::Failed,
            attempts,
            crashes: 0,
            due: Some(Due::In(rules.retry.delay_after(attempts, roll)).bounded()),
            expires: None,
            reason: Some(reason::cut(&reason)),
        }),
        Outcome::Failed(reason) | Outcome::Hopeless(reason) => {
            dead(&Begun { crashes: 0, ..begun.clone() }, &reason, rules)
        }
        // As it was before the attempt.
        Outcome::GivenBack(pause) => given_back(begun, pause, begun.reason.clone()),
        Outcome::Waits(pause, reason) => given_back(begun, pause, Some(reason::cut(&reason))),
    }
}

fn given_back(begun: &Begun, pause: Duration, reason: Option<String>) -> State {
    checked(State {
        status: Status::Scheduled,
        attempts: begun.attempts.saturating_sub(1),
        crashes: begun.crashes,
        due: Some(if pause.is_zero() { Due::Now } else { Due::In(pause).bounded() }),
        expires: None,
        reason,
    })
}

/// A terminal record that a person wants tried again, with all its attempts before it.
pub fn requeued() -> State {
    scheduled(Due::Now)
}

fn in_flight(begun: &Begun) -> State {
    let Begun { attempts, crashes, reason } = begun.clone();
    checked(State { status: Status::Queued, attempts, crashes, due: None, expires: None, reason })
}

/// The only function that makes a record dead. Whoever writes what it answers notifies: the engine does so for every
/// settled or inserted state for which [`State::is_dead`] holds.
fn dead(begun: &Begun, reason: &str, rules: &Rules) -> State {
    checked(State {
        status: Status::Failed,
        attempts: begun.attempts,
        crashes: begun.crashes,
        due: None,
        expires: Some(rules.keep_dead),
        reason: Some(reason::cut(reason)),
    })
}

fn checked(mut state: State) -> State {
    state.expires = state.expires.map(|expires| expires.min(crate::time::FAR));
    debug_assert_eq!(state.check(), Ok(()), "{state:?}");
    state
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lifecycle::Limit;
    use crate::time::{FAR, Timestamp};

    fn rules(limit: Limit) -> Rules {
        Rules {
            retry: RetryPolicy { limit, ..RetryPolicy::default() },
            keep_succeeded: Duration::from_secs(86_400),
            keep_dead: Duration::from_secs(1_296_000),
        }
    }

    fn begun(attempts: u32) -> Begun {
        Begun::number(attempts)
    }

    fn suspect(crashes: u32, reason: Option<String>) -> Begun {
        Begun { attempts: crashes + 1, crashes, reason }
    }

    #[test]
    fn a_failure_is_tried_again_until_the_limit_and_then_is_dead_with_its_reason() {
        let rules = rules(Limit::Attempts(3));
        for attempts in 1..3 {
            let state = settle(&begun(attempts), Outcome::Failed("no".into()), &rules, 0.5);
            assert_eq!((state.status(), state.is_dead()), (Status::Failed, false));
        }
        let state = settle(&begun(3), Outcome::Failed("no".into()), &rules, 0.5);
        assert!(state.is_dead());
        assert_eq!((state.reason(), state.expires()), (Some("no"), Some(rules.keep_dead)));
    }

    #[test]
    fn a_hopeless_failure_is_dead_at_once() {
        assert!(settle(&begun(1), Outcome::Hopeless("bad".into()), &rules(Limit::None), 0.5).is_dead());
    }

    #[test]
    fn what_is_given_back_is_as_it_was_before_the_attempt() {
        let begun = Begun { attempts: 4, crashes: 2, reason: Some("no".into()) };
        let state = settle(&begun, Outcome::GivenBack(Duration::ZERO), &rules(Limit::Attempts(4)), 0.5);
        assert_eq!((state.status(), state.attempts(), state.due()), (Status::Scheduled, 3, Some(Due::Now)));
        assert_eq!((state.crashes(), state.reason()), (2, Some("no")));
    }

    #[test]
    fn an_attempt_that_ended_in_this_process_ends_the_suspicion() {
        for outcome in [Outcome::Succeeded, Outcome::Failed("no".into()), Outcome::Hopeless("no".into())] {
            assert_eq!(settle(&suspect(5, None), outcome, &rules(Limit::None), 0.5).crashes(), 0);
        }
    }

    /// The reason that says that it is tried alone.
    fn mark(begun: &Begun, rules: &Rules) -> Option<String> {
        let Begin::Alone(state) = begin(begun, rules) else { panic!("not tried alone: {begun:?}") };
        assert_eq!((state.status(), state.crashes()), (Status::Queued, begun.crashes));
        state.reason().map(ToOwned::to_owned)
    }

    #[test]
    fn a_message_that_kills_its_process_is_tried_alone_twice_before_it_is_given_up() {
        let rules = rules(Limit::Attempts(50));
        assert_eq!(begin(&suspect(8, None), &rules), Begin::Run);
        let first = mark(&suspect(9, None), &rules);
        // Given back by a stop: it has not been tried.
        assert_eq!(mark(&suspect(9, first.clone()), &rules), first);
        let second = mark(&suspect(10, first.clone()), &rules);
        assert_ne!(second, first);
        let Begin::Exhausted(state) = begin(&suspect(11, second), &rules) else { panic!("tried alone again") };
        assert!(state.is_dead());
    }

    #[test]
    fn a_crash_while_it_waits_to_be_tried_alone_buries_nobody() {
        let rules = rules(Limit::Attempts(50));
        let first = mark(&suspect(9, None), &rules);
        // The second trial never began: the record says of the first only, and its crashes are more by several.
        let second = mark(&suspect(15, first), &rules);
        assert!(matches!(begin(&suspect(16, second), &rules), Begin::Exhausted(_)));
    }

    #[test]
    fn no_policy_buries_a_message_that_was_tried_alone_once() {
        for crashes in [0, 1, 2] {
            let mut rules = rules(Limit::Attempts(1));
            rules.retry.crashes = crashes;
            let second = mark(&suspect(2, mark(&suspect(1, None), &rules)), &rules);
            assert!(matches!(begin(&suspect(3, second), &rules), Begin::Exhausted(_)), "{crashes}");
        }
    }

    #[test]
    fn a_few_crashes_do_not_kill_a_message_even_if_a_single_failure_does() {
        let rules = rules(Limit::Attempts(1));
        assert_eq!(begin(&suspect(8, None), &rules), Begin::Run);
        assert!(settle(&begun(2), Outcome::Failed("no".into()), &rules, 0.5).is_dead());
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
            "\\PC{0,20}|\\PC{4090,4110}".prop_map(Outcome::Failed),
            "\\PC{0,20}".prop_map(Outcome::Hopeless),
            any::<Duration>().prop_map(Outcome::GivenBack),
            (any::<Duration>(), "\\PC{0,20}").prop_map(|(pause, reason)| Outcome::Waits(pause, reason)),
        ]
    }

    fn dues() -> impl Strategy<Value = Due> {
        prop_oneof![
            Just(Due::Now),
            any::<Duration>().prop_map(Due::In),
            Just(Due::In(Duration::MAX)),
            any::<i64>().prop_map(|micros| Due::At(Timestamp::from_micros(micros))),
            Just(Due::At(Timestamp::from_micros(i64::MAX))),
            Just(Due::At(Timestamp::from_micros(i64::MIN))),
        ]
    }

    proptest! {
        #[test]
        fn every_transition_keeps_the_invariants(
            attempts in 1u32..,
            crashes: u32,
            outcome in outcomes(),
            roll in 0.0..1.0f64,
            limit in 1u32..100,
            keep: Duration,
        ) {
            let rules = Rules { keep_succeeded: keep, keep_dead: keep, ..rules(Limit::Attempts(limit)) };
            let begun = Begun { attempts, crashes, reason: None };
            let state = settle(&begun, outcome.clone(), &rules, roll);
            prop_assert_eq!(state.check(), Ok(()));
            prop_assert_eq!(state.status() == Status::Succeeded, outcome == Outcome::Succeeded);
            match begin(&begun, &rules) {
                Begin::Run => prop_assert!(crashes + 1 < rules.retry.crashes),
                Begin::Alone(state) => prop_assert_eq!(state.check(), Ok(())),
                Begin::Exhausted(_) => prop_assert!(false, "it was not tried alone"),
            }
        }

        #[test]
        fn no_time_is_so_far_off_that_a_database_or_a_clock_overflows(due in dues()) {
            match scheduled(due).due() {
                Some(Due::In(delay)) => prop_assert!(delay <= FAR),
                Some(Due::At(moment)) => prop_assert!(Timestamp::EARLIEST <= moment && moment <= Timestamp::LATEST),
                due => prop_assert_eq!(due, Some(Due::Now)),
            }
        }
    }
}
