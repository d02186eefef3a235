//! Random histories, longer than what can be explored: three nodes, five messages, two groups, hundreds of steps.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::invariants;
use super::setup::{Budget, Kind, Mishap, Setup, rules};
use super::state::{Record, Transaction, World};
use super::step::Step;
use super::trace;

/// Which of the steps that can be taken is taken: a place among them, in 65 536ths.
type Choice = u16;

/// How a history goes on: at most so many mishaps of 100 steps, then which step it is.
#[derive(Debug, Clone)]
struct Course {
    mishaps: u8,
    steps: Vec<(u8, Choice)>,
    /// What happens after that, when nothing more goes wrong.
    healing: Vec<Choice>,
}

fn courses() -> impl Strategy<Value = Course> {
    let steps = proptest::collection::vec((0..100_u8, any::<Choice>()), 200..400);
    let healing = proptest::collection::vec(any::<Choice>(), 64);
    (0..50_u8, steps, healing).prop_map(|(mishaps, steps, healing)| Course { mishaps, steps, healing })
}

fn setup(messages: [Kind; 5], durable: bool, budget: Budget) -> Setup {
    Setup { groups: 2, nodes: 3, rules: rules(3, 2), limit: 3, budget, durable, collects: true, ..Setup::of(&messages) }
}

/// Mishaps of every kind, each `times`.
fn any_mishap(times: u8) -> Budget {
    use Mishap::{
        BrokerCrash, ConsumerLoss, Crash, HandlerFailure, LeaseExpiry, Leave, LostAnswer, LostConfirm, Refusal, Requeue,
    };
    let kinds = [
        BrokerCrash,
        ConsumerLoss,
        Crash,
        HandlerFailure,
        LeaseExpiry,
        Leave,
        LostAnswer,
        LostConfirm,
        Refusal,
        Requeue,
    ];
    Budget::of(10 * times, &kinds.map(|kind| (kind, times)))
}

/// A world, and how it came about.
struct History<'a> {
    setup: &'a Setup,
    world: World,
    steps: Vec<Step>,
}

impl<'a> History<'a> {
    fn new(setup: &'a Setup) -> Self {
        Self { setup, world: World::start(setup), steps: Vec::new() }
    }

    /// Takes one of `steps`; if there is none, nothing happens.
    fn take(&mut self, steps: &[Step], choice: Choice) -> TestCaseResult {
        let place = (usize::from(choice) * steps.len()) >> Choice::BITS;
        let Some(&step) = steps.get(place) else { return Ok(()) };
        self.world = self.world.after(step, self.setup).renamed();
        self.steps.push(step);
        let broken = invariants::broken(&self.world, self.setup);
        prop_assert!(broken.is_none(), "{} is broken:\n{}", broken.unwrap_or_default(), self.story());
        Ok(())
    }

    fn live(&mut self, course: &Course) -> TestCaseResult {
        for &(dice, choice) in &course.steps {
            let is_mishap = |step: &Step| step.mishap().is_some();
            let (mishaps, calm): (Vec<_>, Vec<_>) = self.world.enabled(self.setup).into_iter().partition(is_mishap);
            let steps = if dice < course.mishaps && !mishaps.is_empty() { mishaps } else { calm };
            self.take(&steps, choice)?;
        }
        Ok(())
    }

    /// Nothing more goes wrong; whatever can happen by itself happens, in any order, until all is quiet.
    fn heal(&mut self, course: &Course) -> TestCaseResult {
        self.world.budget = Budget::NONE;
        for &choice in course.healing.iter().cycle() {
            let steps = self.world.enabled(self.setup);
            if steps.is_empty() {
                break;
            }
            prop_assert!(self.steps.len() < 5_000, "it never comes to rest:\n{}", self.story());
            self.take(&steps, choice)?;
        }
        prop_assert!(invariants::all_is_done(&self.world, self.setup), "something is left to do:\n{}", self.story());
        Ok(())
    }

    /// What was committed was handled at every group, exactly once if transactionally, unless it is dead for a reason.
    fn everything_was_handled(&self) -> TestCaseResult {
        for (message, &kind) in (0..).zip(&self.setup.messages) {
            if self.world.transaction(message) != Transaction::Committed {
                continue;
            }
            for group in 0..self.setup.groups {
                let effects = self.world.group(message, group).effects;
                if self.world.slot(Record::Inbox(message, group)).has_succeeded() {
                    let once = kind != Kind::Transactional || effects == 1;
                    prop_assert!(effects >= 1 && once, "message {message} in group {group}:\n{}", self.story());
                }
            }
        }
        Ok(())
    }

    fn story(&self) -> String {
        trace::story(&self.steps, &self.world)
    }
}

fn keeps_the_promises(setup: &Setup, course: &Course) -> TestCaseResult {
    let mut history = History::new(setup);
    history.live(course)?;
    history.heal(course)?;
    history.everything_was_handled()
}

proptest! {
    // A failure is told as a story, which is worth more than a seed.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_long_history_keeps_every_promise_and_ends_well(course in courses()) {
        let messages = [Kind::Plain, Kind::Transactional, Kind::Transactional, Kind::Later, Kind::Unreadable];
        keeps_the_promises(&setup(messages, true, any_mishap(6)), &course)?;
    }

    #[test]
    fn a_long_history_with_a_killer_ends_well(course in courses()) {
        let messages = [Kind::Plain, Kind::Transactional, Kind::Killer, Kind::Later, Kind::Transactional];
        keeps_the_promises(&setup(messages, true, any_mishap(3)), &course)?;
    }

    #[test]
    fn a_long_history_of_a_forgetful_broker_ends_well(course in courses()) {
        let messages = [Kind::Plain, Kind::Transactional, Kind::Plain, Kind::Later, Kind::Transactional];
        keeps_the_promises(&setup(messages, false, any_mishap(6)), &course)?;
    }
}
