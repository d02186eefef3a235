//! What can happen, and what it does.

use super::database::Insertion;
use super::faults::Fault;
use super::setup::{Kind, Mishap, Setup};
use super::state::{
    Delivery, Holder, Lease, Node, Record, Slot, Stage, Task, Token, Told, Transaction, Verdict, When, Witness, World,
};

/// One atomic step. The number in front is the node that takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Commit(u8),
    RollBack(u8),
    TimePasses(Record),
    LeaseRunsOut(usize),

    Join(usize),
    Heartbeat(usize),
    TakeOver(usize),
    /// The lease of a process that is gone runs out, and a node takes over.
    TakeOverFromGhost(usize, u8),
    /// As if only one record were taken over.
    TakeOverOne(usize, Record),
    Leave(usize),
    Crash(usize),

    Claim(usize, Record),
    /// The claim is carried out, its answer is lost.
    ClaimUnanswered(usize, Record, Take),
    Release(usize, Token),
    /// It is written that the record is tried alone from now on.
    Isolate(usize, Task),
    IsolateUnanswered(usize, Task),
    Settle(usize, Task),
    SettleUnanswered(usize, Task),

    Send(usize, Task),
    SendFails(usize, Task, Verdict),
    Confirm(usize, Task),
    ConfirmLost(usize, Task, Verdict),

    Receive(usize, u8, u8),
    Insert(usize, Delivery, Insertion),
    InsertUnanswered(usize, Delivery, Insertion),
    Ack(usize, Delivery),
    /// The insert finds the record there and writes nothing; the delivery is acknowledged. Nothing can come between
    /// that could not come before.
    Discard(usize, Delivery),
    ConsumerLoss(usize),
    BrokerCrash,

    Handle(usize, Task),
    HandleUnanswered(usize, Task),
    HandlerFails(usize, Task, Verdict),

    Collect(Record),
    Requeue(Record),
}

/// How much a claim takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Take {
    One,
    All,
}

impl Step {
    /// What kind of mishap it is, if it is one.
    pub(crate) fn mishap(self) -> Option<Mishap> {
        Some(match self {
            Self::LeaseRunsOut(_) => Mishap::LeaseExpiry,
            Self::Leave(_) => Mishap::Leave,
            Self::Crash(_) => Mishap::Crash,
            Self::SendFails(_, _, Verdict::Hopeless) | Self::HandlerFails(_, _, Verdict::Hopeless) => Mishap::Refusal,
            Self::SendFails(..) | Self::ConfirmLost(..) => Mishap::LostConfirm,
            Self::HandlerFails(..) => Mishap::HandlerFailure,
            Self::ConsumerLoss(_) => Mishap::ConsumerLoss,
            Self::BrokerCrash => Mishap::BrokerCrash,
            Self::Requeue(_) => Mishap::Requeue,
            Self::ClaimUnanswered(..)
            | Self::IsolateUnanswered(..)
            | Self::SettleUnanswered(..)
            | Self::InsertUnanswered(..)
            | Self::HandleUnanswered(..) => Mishap::LostAnswer,
            _ => return None,
        })
    }
}

impl Step {
    /// The message that it is about, if it is about one.
    pub(crate) fn message(self) -> Option<u8> {
        Some(match self {
            Self::Commit(message) | Self::RollBack(message) | Self::Receive(_, message, _) => message,
            Self::TimePasses(record)
            | Self::Claim(_, record)
            | Self::ClaimUnanswered(_, record, _)
            | Self::TakeOverOne(_, record)
            | Self::Collect(record)
            | Self::Requeue(record) => record.message(),
            Self::Isolate(_, task)
            | Self::IsolateUnanswered(_, task)
            | Self::Settle(_, task)
            | Self::SettleUnanswered(_, task)
            | Self::Send(_, task)
            | Self::SendFails(_, task, _)
            | Self::Confirm(_, task)
            | Self::ConfirmLost(_, task, _)
            | Self::Handle(_, task)
            | Self::HandleUnanswered(_, task)
            | Self::HandlerFails(_, task, _) => task.record.message(),
            Self::Insert(_, delivery, _)
            | Self::InsertUnanswered(_, delivery, _)
            | Self::Ack(_, delivery)
            | Self::Discard(_, delivery) => delivery.message,
            _ => return None,
        })
    }
}

impl Witness {
    fn see(&mut self, step: Step, mishap: Mishap) {
        let has_failed = matches!(
            step,
            Step::SendFails(_, _, Verdict::Failed)
                | Step::ConfirmLost(_, _, Verdict::Failed)
                | Step::HandlerFails(_, _, Verdict::Failed)
        );
        self.failed += u8::from(has_failed);
        self.cut_short += u8::from(matches!(mishap, Mishap::Crash | Mishap::LeaseExpiry));
        self.left += u8::from(mishap == Mishap::Leave);
        self.requeued += u8::from(mishap == Mishap::Requeue);
        self.refused |= mishap == Mishap::Refusal;
    }
}

impl World {
    /// The world after `step`, which must be enabled.
    pub(crate) fn after(&self, step: Step, setup: &Setup) -> Self {
        let mut world = self.clone();
        if let Some(mishap) = step.mishap() {
            world.budget.spend(mishap);
            world.witness.see(step, mishap);
        }
        world.take(step, setup);
        world
    }

    fn take(&mut self, step: Step, setup: &Setup) {
        match step {
            Step::Commit(message) => self.end(message, Transaction::Committed),
            Step::RollBack(message) => self.end(message, Transaction::RolledBack),
            Step::TimePasses(record) => self.time_passes(record),
            Step::LeaseRunsOut(node) => {
                self.strikes_trials_of(node, None, setup);
                self.nodes[node].lease = Lease::RunOut;
            }
            Step::Join(node) => self.nodes[node] = Node { up: true, lease: Lease::Live, ..Node::DOWN },
            Step::Heartbeat(node) => self.heartbeat(node, setup),
            Step::TakeOver(_) => self.take_over(setup),
            Step::TakeOverFromGhost(_, ghost) => {
                self.rename_holder(Holder::Ghost(ghost), Holder::Dead);
                self.take_over(setup);
            }
            Step::TakeOverOne(_, record) => self.take_over_one(record),
            Step::Leave(node) => {
                self.end_trials(node, setup);
                self.sign_off(node);
                self.redeliver(node);
                self.nodes[node] = Node::DOWN;
            }
            Step::Crash(node) => {
                self.strikes_trials_of(node, None, setup);
                self.crash(node, setup);
            }
            Step::Claim(node, record) => {
                let token = self.fresh_token();
                let told = self.claim(record, node, token, setup);
                self.add(node, record, token, told, setup);
            }
            Step::ClaimUnanswered(node, record, take) => self.claim_unanswered(node, record, take, setup),
            Step::Release(node, token) => {
                self.release(token, node, setup);
                let unsure = &mut self.nodes[node].unsure;
                unsure.remove(unsure.iter().position(|&known| known == token).expect("a token in doubt"));
            }
            Step::Isolate(node, task) => self.begin_trial(node, task, setup),
            Step::IsolateUnanswered(node, task) => {
                self.isolate(task, setup);
                let task = self.task_mut(node, task);
                task.stage = Stage::Settling(Verdict::GivenBack);
                // Nobody may kill it before that is undone.
                task.on_trial = !setup.has(Fault::UnansweredMarkLetsGo);
                self.notice_late_trial(node, setup);
            }
            Step::Settle(node, task) => {
                let verdict = if let Stage::Settling(verdict) = task.stage { verdict } else { Verdict::Succeeded };
                self.settle(task, verdict, setup);
                self.drop_task(node, task);
            }
            Step::SettleUnanswered(node, task) => {
                let Stage::Settling(verdict) = task.stage else { unreachable!("only what is decided is settled") };
                self.settle(task, verdict, setup);
                self.task_mut(node, task).repeats = true;
            }
            Step::Send(node, task) => {
                self.broker_takes(task.record, setup);
                self.task_mut(node, task).stage = Stage::Sent;
            }
            Step::SendFails(node, task, verdict) => self.task_mut(node, task).stage = Stage::Settling(verdict),
            Step::Confirm(node, task) => {
                let Record::Outbox(message) = task.record else { unreachable!("only the outbox is sent") };
                self.messages[usize::from(message)].confirmed = true;
                self.task_mut(node, task).stage = Stage::Settling(Verdict::Succeeded);
            }
            Step::ConfirmLost(node, task, _) if setup.has(Fault::GiveBackForgotten) => self.drop_task(node, task),
            Step::ConfirmLost(node, task, verdict) => self.task_mut(node, task).stage = Stage::Settling(verdict),
            Step::Receive(node, message, group) => {
                self.group_mut(message, group).ready -= 1;
                self.nodes[node].deliveries.push(Delivery { message, group, inserted: false });
            }
            Step::Insert(node, delivery, how) => self.insert_delivery(node, delivery, how, setup),
            Step::InsertUnanswered(node, delivery, how) => {
                let token = self.insert(Record::Inbox(delivery.message, delivery.group), how, node, setup);
                self.doubt(node, token, setup);
            }
            Step::Ack(node, delivery) | Step::Discard(node, delivery) => {
                let deliveries = &mut self.nodes[node].deliveries;
                deliveries.remove(deliveries.iter().position(|&out| out == delivery).expect("a delivery that is out"));
                self.group_mut(delivery.message, delivery.group).acked = true;
            }
            Step::ConsumerLoss(node) => self.redeliver(node),
            Step::BrokerCrash => self.broker_crashes(),
            Step::Handle(node, task) => self.handle(node, task, setup),
            Step::HandleUnanswered(node, task) => {
                self.transact(task, setup);
                self.task_mut(node, task).repeats = true;
            }
            Step::HandlerFails(node, task, verdict) => self.task_mut(node, task).stage = Stage::Settling(verdict),
            Step::Collect(record) => {
                let Slot::Stored(row) = *self.slot(record) else { unreachable!("only what is there is collected") };
                self.witness.collected_early |= !row.is_terminal();
                *self.slot_mut(record) = Slot::Collected(row.status);
            }
            Step::Requeue(record) => self.requeue(record),
        }
    }

    fn time_passes(&mut self, record: Record) {
        if let Slot::Stored(row) = self.slot_mut(record) {
            row.due = Some(When::Now);
        }
    }

    /// A node learns that its lease has run out: it goes on under a new id. What it was doing it may still finish.
    fn heartbeat(&mut self, node: usize, setup: &Setup) {
        self.nodes[node].lease = Lease::Live;
        if setup.has(Fault::HeartbeatRevives) {
            return;
        }
        self.rename_holder(Holder::Node(node), Holder::Dead);
        for task in &mut self.nodes[node].tasks {
            task.former = true;
        }
    }

    fn crash(&mut self, node: usize, setup: &Setup) {
        if !setup.has(Fault::RestartKeepsId) {
            let ghost = if self.nodes[node].lives() { self.fresh_ghost() } else { Holder::Dead };
            self.rename_holder(Holder::Node(node), ghost);
        }
        self.redeliver(node);
        self.nodes[node] = Node::DOWN;
    }

    /// The broker notices that a consumer is gone.
    fn redeliver(&mut self, node: usize) {
        for delivery in std::mem::take(&mut self.nodes[node].deliveries) {
            self.group_mut(delivery.message, delivery.group).ready += 1;
        }
    }

    fn claim_unanswered(&mut self, node: usize, record: Record, take: Take, setup: &Setup) {
        let token = self.fresh_token();
        let taken = match take {
            Take::One => vec![record],
            Take::All => self.claimable(node, setup).filter(|other| self.is_same_lane(*other, record)).collect(),
        };
        for record in taken {
            self.claim(record, node, token, setup);
        }
        self.doubt(node, Some(token), setup);
    }

    /// A node remembers the token of a claim that may or may not have taken place.
    fn doubt(&mut self, node: usize, token: Option<Token>, setup: &Setup) {
        if !setup.has(Fault::LostClaimForgotten) {
            self.nodes[node].unsure.extend(token);
        }
    }

    fn broker_takes(&mut self, record: Record, setup: &Setup) {
        let Record::Outbox(message) = record else { unreachable!("only the outbox is sent") };
        let routed = if setup.has(Fault::ConfirmWithoutRouting) { setup.groups - 1 } else { setup.groups };
        for group in 0..routed {
            self.group_mut(message, group).ready += 1;
        }
    }

    /// A broker that is not durable loses its queues and its connections.
    fn broker_crashes(&mut self) {
        for group in self.messages.iter_mut().flat_map(|message| &mut message.groups) {
            group.ready = 0;
        }
        for node in &mut self.nodes {
            node.deliveries.clear();
            for task in node.tasks.iter_mut().filter(|task| task.stage == Stage::Sent) {
                task.stage = Stage::Settling(Verdict::GivenBack);
            }
        }
    }

    fn insert_delivery(&mut self, node: usize, delivery: Delivery, how: Insertion, setup: &Setup) {
        let record = Record::Inbox(delivery.message, delivery.group);
        let inserted = self.insert(record, how, node, setup);
        let out = self.nodes[node].deliveries.iter_mut().find(|out| **out == delivery);
        out.expect("a delivery that is out").inserted = true;
        if let Some(token) = inserted {
            self.add(node, record, token, Told { attempts: 1, crashes: 0, alone: None }, setup);
        }
    }

    fn handle(&mut self, node: usize, task: Task, setup: &Setup) {
        let Record::Inbox(message, group) = task.record else { unreachable!("only the inbox has handlers") };
        match setup.messages[usize::from(message)] {
            Kind::Transactional if setup.has(Fault::EffectApartFromSuccess) => {
                self.group_mut(message, group).effects += 1;
                self.task_mut(node, task).stage = Stage::Settling(Verdict::Succeeded);
            }
            Kind::Transactional => {
                self.transact(task, setup);
                self.drop_task(node, task);
            }
            Kind::Killer => {
                self.group_mut(message, group).effects += 1;
                self.witness.cut_short += 1;
                if task.crashes == 0 {
                    self.strikes_trials_of(node, Some(task), setup);
                }
                self.crash(node, setup);
            }
            Kind::Plain | Kind::Later | Kind::Unreadable => {
                self.group_mut(message, group).effects += 1;
                self.task_mut(node, task).stage = Stage::Settling(Verdict::Succeeded);
            }
        }
    }

    fn add(&mut self, node: usize, record: Record, token: Token, told: Told, setup: &Setup) {
        let stage = Self::first_stage(told, setup);
        let Told { attempts, crashes, alone } = told;
        let (on_trial, former, repeats) = (false, false, false);
        self.nodes[node].tasks.push(Task { record, token, attempts, crashes, alone, stage, on_trial, former, repeats });
    }

    fn begin_trial(&mut self, node: usize, task: Task, setup: &Setup) {
        if !self.isolate(task, setup) {
            return self.drop_task(node, task);
        }
        let task = self.task_mut(node, task);
        (task.stage, task.on_trial) = (Stage::Begun, true);
        self.notice_late_trial(node, setup);
    }

    /// A node that leaves gives back by settlements what it tries alone, so that nothing says so any more.
    fn end_trials(&mut self, node: usize, setup: &Setup) {
        if setup.has(Fault::LeaveKeepsMark) || setup.has(Fault::MarkNotCompared) {
            return;
        }
        let trials: Vec<Task> = self.nodes[node].tasks.iter().filter(|task| task.on_trial).copied().collect();
        for task in trials {
            self.settle(task, Verdict::GivenBack, setup);
        }
    }

    /// The process of a node ends, or is taken for dead, and with it what it tries alone.
    fn strikes_trials_of(&mut self, node: usize, by: Option<Task>, setup: &Setup) {
        let is_innocent = |task: &Task| match task.record {
            Record::Outbox(_) => true,
            Record::Inbox(message, _) => setup.messages[usize::from(message)] != Kind::Killer,
        };
        let struck = |task: &Task| task.on_trial && Some(*task) != by && is_innocent(task);
        self.witness.unlucky += u8::from(self.nodes[node].tasks.iter().any(struck));
    }

    /// A trial that begins when the lease has run out already.
    fn notice_late_trial(&mut self, node: usize, setup: &Setup) {
        let is_late = self.nodes[node].lease == Lease::RunOut
            || self.nodes[node].tasks.iter().any(|task| task.on_trial && task.former);
        if is_late {
            self.strikes_trials_of(node, None, setup);
        }
    }

    fn task_mut(&mut self, node: usize, task: Task) -> &mut Task {
        let found = self.nodes[node].tasks.iter_mut().find(|known| **known == task);
        found.expect("a task in the node's memory")
    }

    fn drop_task(&mut self, node: usize, task: Task) {
        let tasks = &mut self.nodes[node].tasks;
        tasks.remove(tasks.iter().position(|known| *known == task).expect("a task in the node's memory"));
    }
}

impl World {
    /// Whether two records are claimed together: both of the outbox, or both of one group's inbox, and then both suspects
    /// or neither.
    pub(crate) fn is_same_lane(&self, one: Record, other: Record) -> bool {
        let is_suspect = |record| self.row(record).is_some_and(|row| row.crashes > 0);
        match (one, other) {
            (Record::Outbox(_), Record::Outbox(_)) => true,
            (Record::Inbox(_, group), Record::Inbox(_, other_group)) => {
                group == other_group && is_suspect(one) == is_suspect(other)
            }
            _ => false,
        }
    }
}
