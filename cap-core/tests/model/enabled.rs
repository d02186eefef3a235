//! What may happen next.

use super::database::Insertion;
use super::faults::Fault;
use super::setup::{Kind, Setup};
use super::state::{Delivery, Holder, Lease, Record, Row, Slot, Stage, Task, Transaction, Verdict, When, World};
use super::step::{Step, Take};

impl World {
    /// Every step that can be taken now, within what the budget still allows.
    pub(crate) fn enabled(&self, setup: &Setup) -> Vec<Step> {
        let mut steps = Vec::new();
        self.environment(setup, &mut steps);
        for node in 0..self.nodes.len() {
            self.membership(node, setup, &mut steps);
            if self.nodes[node].up {
                self.claims(node, setup, &mut steps);
                self.consuming(node, setup, &mut steps);
                for &task in &self.nodes[node].tasks {
                    self.work(node, task, setup, &mut steps);
                }
            }
        }
        steps.retain(|step| step.mishap().is_none_or(|mishap| self.budget.allows(mishap)));
        steps
    }

    /// The records that a claim by `node` may take.
    pub(crate) fn claimable<'a>(&'a self, node: usize, setup: &'a Setup) -> impl Iterator<Item = Record> + 'a {
        records(setup).filter(move |&record| self.is_claimable(record, node, setup))
    }

    fn environment(&self, setup: &Setup, steps: &mut Vec<Step>) {
        for message in 0..count(setup) {
            if self.transaction(message) == Transaction::Open {
                steps.extend([Step::Commit(message), Step::RollBack(message)]);
            }
        }
        for record in records(setup) {
            let Some(row) = self.row(record) else { continue };
            if row.due == Some(When::Later) {
                steps.push(Step::TimePasses(record));
            }
            if row.is_dead() || (setup.has(Fault::RequeueTakesHeld) && row.holder.is_some()) {
                steps.push(Step::Requeue(record));
            }
            if setup.collects && self.may_collect(record, row, setup) {
                steps.push(Step::Collect(record));
            }
        }
        if !setup.durable {
            steps.push(Step::BrokerCrash);
        }
    }

    /// A terminal record may go when no copy of its message can come any more: the window in which ids are remembered
    /// is longer than a broker takes to deliver again.
    fn may_collect(&self, record: Record, row: &Row, setup: &Setup) -> bool {
        let message = record.message();
        if setup.has(Fault::CollectsWaiting) && row.holder.is_none() {
            return self.transaction(message) == Transaction::Committed;
        }
        let outbox = self.slot(Record::Outbox(message));
        let is_sent = outbox.row().is_none_or(Row::is_terminal);
        let is_in_memory = self.nodes.iter().flat_map(|node| &node.tasks).any(|task| task.record.message() == message);
        let has_copies = (0..setup.groups).any(|group| self.copies(message, group) > 0);
        row.expires && is_sent && !is_in_memory && !has_copies
    }

    fn membership(&self, node: usize, setup: &Setup, steps: &mut Vec<Step>) {
        let memory = &self.nodes[node];
        if !memory.up {
            steps.push(Step::Join(node));
            return;
        }
        steps.extend([Step::Crash(node), Step::Leave(node)]);
        match memory.lease {
            Lease::Live => steps.push(Step::LeaseRunsOut(node)),
            Lease::RunOut => steps.push(Step::Heartbeat(node)),
        }
        // Whoever takes over, it has the same effect: the first node that is up stands for all.
        if self.nodes[..node].iter().all(|other| !other.up) {
            self.take_overs(node, setup, steps);
        }
    }

    fn take_overs(&self, node: usize, setup: &Setup, steps: &mut Vec<Step>) {
        let holders = || self.slots().filter_map(|slot| slot.row().and_then(|row| row.holder));
        if holders().any(|holder| self.is_forfeit(holder, setup)) {
            steps.push(Step::TakeOver(node));
        }
        let last =
            holders().filter_map(|holder| if let Holder::Ghost(ghost) = holder { Some(ghost) } else { None }).max();
        if let Some(last) = last.filter(|_| !setup.has(Fault::NoTakeOver)) {
            steps.extend((0..=last).map(|ghost| Step::TakeOverFromGhost(node, ghost)));
        }
    }

    /// A claim that is answered takes one record: one that takes many is as many claims in a row. Only for a claim
    /// whose answer is lost it matters that many are held under one token.
    fn claims(&self, node: usize, setup: &Setup, steps: &mut Vec<Step>) {
        let claimable: Vec<Record> = self.claimable(node, setup).collect();
        for &record in &claimable {
            steps.push(Step::Claim(node, record));
            steps.push(Step::ClaimUnanswered(node, record, Take::One));
            let lane: Vec<_> = claimable.iter().filter(|other| self.is_same_lane(**other, record)).collect();
            if lane.len() > 1 && *lane[0] == record {
                steps.push(Step::ClaimUnanswered(node, record, Take::All));
            }
        }
        steps.extend(self.nodes[node].unsure.iter().map(|&token| Step::Release(node, token)));
    }

    fn consuming(&self, node: usize, setup: &Setup, steps: &mut Vec<Step>) {
        for message in 0..count(setup) {
            for group in 0..setup.groups {
                if self.group(message, group).ready > 0 {
                    steps.push(Step::Receive(node, message, group));
                }
            }
        }
        if !self.nodes[node].deliveries.is_empty() {
            steps.push(Step::ConsumerLoss(node));
        }
        for &delivery in &self.nodes[node].deliveries {
            let is_there = *self.slot(Record::Inbox(delivery.message, delivery.group)) != Slot::Absent;
            if delivery.inserted || setup.has(Fault::AckBeforeInsert) {
                steps.push(Step::Ack(node, delivery));
            } else if is_there && !setup.has(Fault::NoDedupe) {
                steps.push(Step::Discard(node, delivery));
            } else {
                self.insertions(node, delivery, setup, steps);
            }
        }
    }

    fn insertions(&self, node: usize, delivery: Delivery, setup: &Setup, steps: &mut Vec<Step>) {
        let mut ways = Vec::new();
        if setup.messages[usize::from(delivery.message)] == Kind::Unreadable {
            ways.push(Insertion::Parked);
        } else {
            ways.extend(self.nodes[node].lives().then_some(Insertion::Claimed));
            ways.extend(setup.leaves_waiting.then_some(Insertion::Waiting));
        }
        for how in ways {
            steps.push(Step::Insert(node, delivery, how));
            steps.push(Step::InsertUnanswered(node, delivery, how));
        }
    }

    fn work(&self, node: usize, task: Task, setup: &Setup, steps: &mut Vec<Step>) {
        let is_held = self.row(task.record).is_some_and(|row| row.is_held_under(task.token));
        match (task.record, task.stage) {
            (_, Stage::Settling(_)) => {
                steps.push(Step::Settle(node, task));
                if is_held {
                    steps.push(Step::SettleUnanswered(node, task));
                }
            }
            (_, Stage::Apart) => {
                if !self.has_trial(node) || setup.has(Fault::CompanyInTrial) {
                    steps.push(Step::Isolate(node, task));
                    steps.extend(is_held.then_some(Step::IsolateUnanswered(node, task)));
                }
            }
            (Record::Outbox(_), Stage::Begun) => {
                steps.push(Step::Send(node, task));
                for verdict in [Verdict::GivenBack, Verdict::Failed, Verdict::Hopeless] {
                    steps.push(Step::SendFails(node, task, verdict));
                }
                if setup.has(Fault::MarkBeforeConfirm) {
                    steps.push(Step::Settle(node, task));
                }
            }
            (Record::Outbox(message), Stage::Sent) => {
                if self.may_confirm(message, setup) {
                    steps.push(Step::Confirm(node, task));
                }
                for verdict in [Verdict::GivenBack, Verdict::Failed] {
                    steps.push(Step::ConfirmLost(node, task, verdict));
                }
            }
            (Record::Inbox(..), Stage::Begun) => self.handling(node, task, is_held, setup, steps),
            (Record::Inbox(..), Stage::Sent) => unreachable!("the inbox is not sent"),
        }
    }

    fn handling(&self, node: usize, task: Task, is_held: bool, setup: &Setup, steps: &mut Vec<Step>) {
        // A suspect is not worked on beside one that is tried alone.
        let is_kept_apart = task.crashes > 0 && !task.on_trial && self.has_trial(node);
        if is_kept_apart && !setup.has(Fault::CompanyInTrial) {
            return;
        }
        steps.push(Step::Handle(node, task));
        if task.repeats {
            return;
        }
        let message = task.record.message();
        if is_held && setup.messages[usize::from(message)] == Kind::Transactional {
            steps.push(Step::HandleUnanswered(node, task));
        }
        for verdict in [Verdict::Failed, Verdict::Hopeless] {
            steps.push(Step::HandlerFails(node, task, verdict));
        }
    }

    fn may_confirm(&self, message: u8, setup: &Setup) -> bool {
        let is_acked = (0..setup.groups).all(|group| self.group(message, group).acked);
        setup.durable || is_acked || setup.has(Fault::ConfirmBeforeAck)
    }
}

/// The addresses of all records that there can be.
pub(crate) fn records(setup: &Setup) -> impl Iterator<Item = Record> + use<> {
    let groups = setup.groups;
    (0..count(setup)).flat_map(move |message| {
        std::iter::once(Record::Outbox(message)).chain((0..groups).map(move |group| Record::Inbox(message, group)))
    })
}

fn count(setup: &Setup) -> u8 {
    u8::try_from(setup.messages.len()).expect("few messages")
}
