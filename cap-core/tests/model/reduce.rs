//! Fewer interleavings that show as much: the partial order of steps.
//!
//! Two steps that do not touch the same things lead to the same world in either order. In a large model only one order
//! is explored where that is safe. The small models explore all of them, and a test compares the two.

use super::enabled::records;
use super::setup::{Kind, Mishap, Setup};
use super::state::{Holder, Record, Slot, Stage, Task, Token, Transaction, World};
use super::step::Step;

impl World {
    /// The steps that are explored from this world: all, or some that stand for all.
    pub(crate) fn explored(&self, setup: &Setup) -> Vec<Step> {
        let mut steps = self.enabled(setup);
        if !setup.reduces {
            return steps;
        }
        if let Some(message) = self.undecided() {
            steps.retain(|step| matches!(step, Step::Commit(m) | Step::RollBack(m) if *m == message));
            return steps;
        }
        if let Some(&step) = steps.iter().find(|step| self.is_harmless(**step, setup)) {
            return vec![step];
        }
        steps.retain(|step| !self.hits_nobody(*step));
        if !self.is_calm_for_good(setup) {
            return steps;
        }
        steps.extend(self.left_behind(setup).map(|record| Step::TakeOverOne(0, record)));
        let furthest = steps.iter().filter_map(|step| step.message()).max();
        steps.retain(|step| step.message().is_some() && step.message() == furthest);
        steps
    }

    /// A message whose transaction is open: whether it is committed can be decided before anything else happens,
    /// because nothing else touches it.
    fn undecided(&self) -> Option<u8> {
        let open = self.messages.iter().position(|message| message.transaction == Transaction::Open);
        open.map(|message| u8::try_from(message).expect("few messages"))
    }

    /// A step that changes nothing that another step or a promise depends on, so that it may as well happen now.
    fn is_harmless(&self, step: Step, setup: &Setup) -> bool {
        match step {
            // A node that is up and idle can do, or leave undone, whatever one that is down can.
            Step::Join(_) => true,
            // A node under a new id can do, or leave undone, whatever it could under one that has run out. Only its
            // leave would give back more.
            Step::Heartbeat(_) => !self.budget.allows(Mishap::Leave),
            // A stale token never fits again.
            Step::Release(_, token) => token == Token::STALE,
            Step::Settle(_, task) | Step::Confirm(_, task) => self.is_stale(task),
            Step::Isolate(_, task) => !self.row(task.record).is_some_and(|row| row.is_held_under(task.token)),
            Step::Handle(_, task) => {
                self.is_stale(task) && setup.messages[usize::from(task.record.message())] == Kind::Transactional
            }
            // Once the record is in the inbox, its copies at the broker come to nothing.
            Step::Receive(_, message, group) => self.is_in_inbox(message, group),
            Step::Ack(_, delivery) | Step::Discard(_, delivery) => self.is_in_inbox(delivery.message, delivery.group),
            _ => false,
        }
    }

    fn is_stale(&self, task: Task) -> bool {
        let is_past_sending = matches!(task.record, Record::Inbox(..)) || task.stage != Stage::Begun;
        is_past_sending && !self.row(task.record).is_some_and(|row| row.is_held_under(task.token))
    }

    fn is_in_inbox(&self, message: u8, group: u8) -> bool {
        self.group(message, group).inbox != Slot::Absent
    }

    /// A mishap of a node that does nothing is a mishap less, and no more.
    fn hits_nobody(&self, step: Step) -> bool {
        let (Step::Crash(node) | Step::Leave(node) | Step::LeaseRunsOut(node)) = step else { return false };
        let memory = &self.nodes[node];
        let holds = |slot: &Slot| slot.row().is_some_and(|row| row.is_held_by(node));
        let is_idle = memory.tasks.is_empty() && memory.deliveries.is_empty() && memory.unsure.is_empty();
        is_idle && !self.slots().any(holds)
    }

    /// Whether messages have nothing more to do with each other, because no mishap is left: then one is followed to its
    /// end before the next. What is left behind by the dead is taken over record by record, at any time: that is more
    /// than can happen, not less.
    fn is_calm_for_good(&self, setup: &Setup) -> bool {
        self.budget.is_spent()
            && !setup.messages.contains(&Kind::Killer)
            && self.nodes.iter().all(|node| node.lives() && node.unsure.is_empty())
    }

    /// The records that are held by no process that is there.
    fn left_behind(&self, setup: &Setup) -> impl Iterator<Item = Record> {
        records(setup).filter(|&record| {
            let holder = self.row(record).and_then(|row| row.holder);
            matches!(holder, Some(Holder::Ghost(_) | Holder::Dead))
        })
    }
}
