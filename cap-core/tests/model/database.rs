//! The database: what `cap_core::storage::Storage` promises, with the states that core computes.

use std::time::Duration;

use cap_core::lifecycle::{self, Begin, Begun, Outcome, RetryPolicy, Rules, State, Status};
use cap_core::time::Due;

use super::faults::Fault;
use super::setup::{Kind, Setup};
use super::state::{
    Holder, Lease, Mark, Record, Row, Slot, Stage, Task, Token, Told, Transaction, Verdict, When, World,
};

/// The pause after which a failed send is due again.
const PAUSE: Duration = Duration::from_secs(1);

/// How an inbox insert is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Insertion {
    /// Held by the receiver, its first attempt begun.
    Claimed,
    /// Left for whoever claims it.
    Waiting,
    /// Dead from the beginning.
    Parked,
}

/// The state of a newly published message.
pub(crate) fn published(kind: Kind) -> State {
    lifecycle::scheduled(if kind == Kind::Later { Due::In(PAUSE) } else { Due::Now })
}

/// An attempt that has begun, as core wants to know of it.
fn begun(told: Told) -> Begun {
    Begun { attempts: told.attempts.into(), crashes: told.crashes.into(), reason: told.alone.map(Mark::reason) }
}

impl Task {
    fn told(self) -> Told {
        Told { attempts: self.attempts, crashes: self.crashes, alone: self.alone }
    }
}

/// What core would write if the last crashes had come when the record was tried alone.
fn given_up(begun: Begun, setup: &Setup) -> State {
    let retry = RetryPolicy { crashes: 1, ..setup.rules.retry.clone() };
    let rules = Rules { retry, ..setup.rules.clone() };
    let mark = Mark { crashes: 0, again: true };
    let alone = Begun { crashes: begun.crashes.max(1), reason: Some(mark.reason()), ..begun };
    match lifecycle::begin(&alone, &rules) {
        Begin::Exhausted(state) => state,
        Begin::Run | Begin::Alone(_) => unreachable!("it was tried alone before"),
    }
}

/// The state that settles an attempt.
fn settled(task: Task, verdict: Verdict, setup: &Setup) -> State {
    let begun = begun(task.told());
    let outcome = match verdict {
        Verdict::Succeeded => Outcome::Succeeded,
        Verdict::Failed => Outcome::Failed("it failed".to_owned()),
        Verdict::Hopeless => Outcome::Hopeless("it is hopeless".to_owned()),
        Verdict::GivenBack => Outcome::GivenBack(PAUSE),
        Verdict::Exhausted => match lifecycle::begin(&begun, &setup.rules) {
            Begin::Exhausted(state) => return state,
            // Only the mistakes give up what core does not.
            Begin::Run | Begin::Alone(_) => return given_up(begun, setup),
        },
    };
    lifecycle::settle(&begun, outcome, &setup.rules, 0.5)
}

impl World {
    /// Ends the transaction that publishes a message.
    pub(crate) fn end(&mut self, message: u8, transaction: Transaction) {
        let message = &mut self.messages[usize::from(message)];
        message.transaction = transaction;
        if transaction == Transaction::RolledBack {
            message.outbox = Slot::Absent;
        }
    }

    /// `Storage::insert` into the inbox, where it is not there yet. Answers the token if it is held.
    pub(crate) fn insert(&mut self, record: Record, how: Insertion, node: usize, setup: &Setup) -> Option<Token> {
        let Record::Inbox(message, group) = record else { unreachable!("only deliveries are inserted") };
        self.group_mut(message, group).inserted += 1;
        let token = self.fresh_token();
        let state = match how {
            Insertion::Claimed => lifecycle::received(true),
            Insertion::Waiting => lifecycle::received(false),
            Insertion::Parked => lifecycle::parked("it cannot be read", &setup.rules),
        };
        self.write(record, &state);
        if how != Insertion::Claimed {
            return None;
        }
        self.hold(record, node, token);
        Some(token)
    }

    /// Whether `Storage::claim` by `node` may take a record.
    pub(crate) fn is_claimable(&self, record: Record, node: usize, setup: &Setup) -> bool {
        let Some(row) = self.row(record) else { return false };
        let message = record.message();
        let committed = self.transaction(message) == Transaction::Committed;
        let is_waiting = row.due == Some(When::Now) && row.holder.is_none();
        let is_anothers = row.status == Status::Queued && !row.is_held_by(node);
        self.nodes[node].lives()
            && (committed || setup.has(Fault::ClaimSeesUncommitted))
            && (is_waiting || (is_anothers && setup.has(Fault::ClaimTakesHeld)))
    }

    /// `Storage::claim` of one record: in flight, its attempt counted.
    pub(crate) fn claim(&mut self, record: Record, node: usize, token: Token, setup: &Setup) -> Told {
        let Slot::Stored(row) = self.slot_mut(record) else { unreachable!("only what is there is claimed") };
        let counts = row.attempts == 0 || !setup.has(Fault::OnlyFirstAttemptCounts);
        row.attempts += u8::from(counts);
        row.status = Status::Queued;
        row.due = None;
        let told = Told { attempts: row.attempts, crashes: row.crashes, alone: row.alone };
        self.hold(record, node, token);
        told
    }

    /// Whether what was claimed may run, as core decides.
    pub(crate) fn first_stage(told: Told, setup: &Setup) -> Stage {
        let is_marked = told.alone.is_some_and(|mark| match setup.fault {
            Some(Fault::MarkNotCompared) => mark.again,
            Some(Fault::OneTrialBuries) => mark.is_of_a_crash(told.crashes),
            _ => false,
        });
        match lifecycle::begin(&begun(told), &setup.rules) {
            Begin::Alone(_) if is_marked || setup.has(Fault::NoTrial) => Stage::Settling(Verdict::Exhausted),
            Begin::Alone(_) if setup.has(Fault::TrialNotWritten) => Stage::Begun,
            Begin::Alone(_) => Stage::Apart,
            Begin::Exhausted(_) if setup.has(Fault::ExhaustedTried) => Stage::Begun,
            Begin::Exhausted(_) if setup.has(Fault::ExhaustedGivenBack) => Stage::Settling(Verdict::GivenBack),
            Begin::Exhausted(_) => Stage::Settling(Verdict::Exhausted),
            Begin::Run => Stage::Begun,
        }
    }

    /// `Storage::settle` of one record. Answers whether it was written.
    pub(crate) fn settle(&mut self, task: Task, verdict: Verdict, setup: &Setup) -> bool {
        let Some(row) = self.row(task.record) else { return false };
        let is_held = row.is_held_under(task.token);
        if !is_held && !setup.has(Fault::SettleIgnoresToken) {
            return false;
        }
        let crashes = row.crashes;
        self.witness.foreign_write |= !is_held;
        self.write(task.record, &settled(task, verdict, setup));
        if setup.has(Fault::SettleKeepsCrashes)
            && let Slot::Stored(row) = self.slot_mut(task.record)
        {
            row.crashes = crashes;
        }
        if let (Record::Inbox(message, group), Verdict::Failed) = (task.record, verdict) {
            self.group_mut(message, group).failed += 1;
        }
        true
    }

    /// `Storage::settle` with the state that says that a record is tried alone: it stays held. Answers whether it was
    /// written.
    pub(crate) fn isolate(&mut self, task: Task, setup: &Setup) -> bool {
        let Begin::Alone(state) = lifecycle::begin(&begun(task.told()), &setup.rules) else {
            unreachable!("begin wanted it tried alone when it was claimed")
        };
        let Some(Row { holder, token, .. }) =
            self.row(task.record).filter(|row| row.is_held_under(task.token)).copied()
        else {
            return false;
        };
        self.write(task.record, &state);
        if let Slot::Stored(row) = self.slot_mut(task.record) {
            (row.holder, row.token) = (holder, token);
        }
        true
    }

    /// `Transact::transact`: the effect and the record's success in one commit. Answers whether it was committed.
    pub(crate) fn transact(&mut self, task: Task, setup: &Setup) -> bool {
        let Record::Inbox(message, group) = task.record else { unreachable!("only the inbox has handlers") };
        let Some(row) = self.row(task.record) else { return false };
        let is_held = row.is_held_under(task.token);
        if !is_held && !setup.has(Fault::TransactIgnoresToken) {
            return false;
        }
        self.witness.foreign_write |= !is_held;
        self.group_mut(message, group).effects += 1;
        self.write(task.record, &settled(task, Verdict::Succeeded, setup));
        true
    }

    /// `Storage::release`: what is held under the token is due again, the attempt not counted.
    pub(crate) fn release(&mut self, token: Token, node: usize, setup: &Setup) {
        let ignores_token = setup.has(Fault::ReleaseIgnoresToken);
        for row in self.rows_mut() {
            if row.is_held_under(token) || (ignores_token && row.is_held_by(node)) {
                due_again(row, row.attempts - 1, 0);
            }
        }
    }

    /// Whether `Storage::take_over` takes a record that is held by this holder.
    pub(crate) fn is_forfeit(&self, holder: Holder, setup: &Setup) -> bool {
        if setup.has(Fault::NoTakeOver) {
            return false;
        }
        match holder {
            Holder::Dead => true,
            Holder::Ghost(_) => setup.has(Fault::TakeOverFromTheLiving),
            Holder::Node(node) => self.nodes[node].lease == Lease::RunOut || setup.has(Fault::TakeOverFromTheLiving),
        }
    }

    /// `Storage::take_over`: what is held without a live lease is due again, its attempts unchanged and a crash counted.
    pub(crate) fn take_over(&mut self, setup: &Setup) {
        let nodes: Vec<_> = (0..self.nodes.len()).filter(|&node| self.is_forfeit(Holder::Node(node), setup)).collect();
        let ghosts = self.is_forfeit(Holder::Ghost(0), setup);
        let crashes = u8::from(!setup.has(Fault::TakeOverForgetsCrash));
        for row in self.rows_mut() {
            let taken = match row.holder {
                Some(Holder::Node(node)) => nodes.contains(&node),
                Some(Holder::Ghost(_)) => ghosts,
                Some(Holder::Dead) => true,
                None => false,
            };
            if taken {
                due_again(row, row.attempts, crashes);
            }
        }
    }

    /// The part of a takeover that concerns one record.
    pub(crate) fn take_over_one(&mut self, record: Record) {
        if let Slot::Stored(row) = self.slot_mut(record) {
            due_again(row, row.attempts, 1);
        }
    }

    /// `Storage::leave`: what the node holds is due again, the attempts not counted.
    pub(crate) fn sign_off(&mut self, node: usize) {
        for row in self.rows_mut() {
            if row.is_held_by(node) {
                due_again(row, row.attempts - 1, 0);
            }
        }
    }

    /// Gives what one holder has to another name.
    pub(crate) fn rename_holder(&mut self, from: Holder, to: Holder) {
        for row in self.rows_mut() {
            if row.holder == Some(from) {
                row.holder = Some(to);
            }
        }
    }

    /// `Storage::requeue` with the state that core computes.
    pub(crate) fn requeue(&mut self, record: Record) {
        self.write(record, &lifecycle::requeued());
    }

    fn hold(&mut self, record: Record, node: usize, token: Token) {
        let Slot::Stored(row) = self.slot_mut(record) else { unreachable!("only what is there is held") };
        row.holder = Some(Holder::Node(node));
        row.token = token;
    }

    fn write(&mut self, record: Record, state: &State) {
        self.witness.unlawful |= state.check().is_err();
        *self.slot_mut(record) = Slot::Stored(Row::of(state));
    }
}

fn due_again(row: &mut Row, attempts: u8, crashes: u8) {
    row.status = Status::Scheduled;
    row.due = Some(When::Now);
    row.attempts = attempts;
    row.crashes += crashes;
    row.holder = None;
    row.token = Token::STALE;
}
