//! Steps and worlds for people.

use std::fmt;
use std::fmt::Write as _;

use super::database::Insertion;
use super::state::{Delivery, Lease, Mark, Record, Slot, Stage, World};
use super::step::{Step, Take};

/// The steps, one a line, and where they lead.
pub(crate) fn story(steps: &[Step], end: &World) -> String {
    let mut story = String::new();
    for (number, step) in (1..).zip(steps) {
        let _ = writeln!(story, "{number:>4}. {step}");
    }
    let _ = write!(story, "in the end:\n{end}");
    story
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Commit(message) => write!(f, "the user commits message {message}"),
            Self::RollBack(message) => write!(f, "the user rolls message {message} back"),
            Self::TimePasses(record) => write!(f, "time passes: {record} is due"),
            Self::LeaseRunsOut(node) => write!(f, "node {node} is slow: its lease runs out"),
            Self::Join(node) => write!(f, "node {node} joins under a new id"),
            Self::Heartbeat(node) => write!(f, "node {node} learns that its lease has run out, and joins anew"),
            Self::TakeOver(node) => write!(f, "node {node} takes over from the dead"),
            Self::TakeOverFromGhost(node, _) => {
                write!(f, "the lease of a crashed node runs out, node {node} takes over")
            }
            Self::TakeOverOne(node, record) => write!(f, "node {node} takes {record} over from the dead"),
            Self::Leave(node) => write!(f, "node {node} leaves"),
            Self::Crash(node) => write!(f, "node {node} crashes"),
            Self::Claim(node, record) => write!(f, "node {node} claims {record}"),
            Self::ClaimUnanswered(node, record, Take::One) => {
                write!(f, "node {node} claims {record}, but the answer is lost")
            }
            Self::ClaimUnanswered(node, record, Take::All) => {
                write!(f, "node {node} claims all that is due with {record}, but the answer is lost")
            }
            Self::Release(node, _) => write!(f, "node {node} releases a claim without an answer"),
            Self::Isolate(node, task) => write!(f, "node {node} writes that {} is tried alone", task.record),
            Self::IsolateUnanswered(node, task) => {
                write!(f, "node {node} writes that {} is tried alone, but the answer is lost", task.record)
            }
            Self::Settle(node, task) => write!(f, "node {node} settles {}: {}", task.record, task.stage),
            Self::SettleUnanswered(node, task) => {
                write!(f, "node {node} settles {}: {}, but the answer is lost", task.record, task.stage)
            }
            Self::Send(node, task) => write!(f, "node {node} sends {}, the broker takes it", task.record),
            Self::SendFails(node, task, verdict) => {
                write!(f, "node {node} cannot send {}: {verdict:?}", task.record)
            }
            Self::Confirm(node, task) => write!(f, "the broker confirms {} to node {node}", task.record),
            Self::ConfirmLost(node, task, verdict) => {
                write!(f, "node {node} loses the confirm of {}: {verdict:?}", task.record)
            }
            Self::Receive(node, message, group) => {
                write!(f, "node {node} receives message {message} for group {group}")
            }
            Self::Insert(node, delivery, how) => write!(f, "node {node} inserts {delivery} {how}"),
            Self::InsertUnanswered(node, delivery, how) => {
                write!(f, "node {node} inserts {delivery} {how}, but the answer is lost")
            }
            Self::Ack(node, delivery) => write!(f, "node {node} acknowledges {delivery}"),
            Self::Discard(node, delivery) => write!(f, "node {node} finds {delivery} in the inbox and acknowledges it"),
            Self::ConsumerLoss(node) => write!(f, "node {node} loses its consumer: deliveries go back"),
            Self::BrokerCrash => write!(f, "the broker restarts empty"),
            Self::Handle(node, task) => write!(f, "node {node} handles {}", task.record),
            Self::HandleUnanswered(node, task) => {
                write!(f, "node {node} handles {} and commits, but the answer is lost", task.record)
            }
            Self::HandlerFails(node, task, verdict) => {
                write!(f, "node {node} handles {} and fails: {verdict:?}", task.record)
            }
            Self::Collect(record) => write!(f, "the collector deletes {record}"),
            Self::Requeue(record) => write!(f, "a person requeues {record}"),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outbox(message) => write!(f, "outbox record {message}"),
            Self::Inbox(message, group) => write!(f, "inbox record {message} of group {group}"),
        }
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its delivery of message {} for group {}", self.message, self.group)
    }
}

impl fmt::Display for Insertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Claimed => "and holds it",
            Self::Waiting => "to wait",
            Self::Parked => "as dead",
        })
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apart => f.write_str("to be tried alone"),
            Self::Begun => f.write_str("begun"),
            Self::Sent => f.write_str("sent"),
            Self::Settling(verdict) => write!(f, "{verdict:?}"),
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, message) in self.messages.iter().enumerate() {
            writeln!(f, "  message {number}: {:?}, outbox {}", message.transaction, message.outbox)?;
            for (number, group) in message.groups.iter().enumerate() {
                let (ready, acked, inbox, effects) = (group.ready, group.acked, group.inbox, group.effects);
                writeln!(
                    f,
                    "    group {number}: {ready} in the queue, acked {acked}, inbox {inbox}, {effects} effects"
                )?;
            }
        }
        for (number, node) in self.nodes.iter().enumerate() {
            match (node.up, node.lease) {
                (false, _) => writeln!(f, "  node {number}: down")?,
                (true, Lease::Live) => writeln!(f, "  node {number}: live")?,
                (true, Lease::RunOut) => writeln!(f, "  node {number}: up, its lease run out")?,
            }
            for task in &node.tasks {
                let former = if task.former { " from a former life" } else { "" };
                let alone = if task.on_trial { ", alone" } else { "" };
                let repeats = if task.repeats { ", written but unanswered" } else { "" };
                writeln!(
                    f,
                    "    works on {}{former}: attempt {}, {}{alone}{repeats}",
                    task.record, task.attempts, task.stage
                )?;
            }
            for delivery in &node.deliveries {
                writeln!(f, "    has {delivery}, in the inbox: {}", delivery.inserted)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = match self {
            Self::Absent => return f.write_str("nothing"),
            Self::Collected(status) => return write!(f, "{status} and collected"),
            Self::Stored(row) => row,
        };
        write!(f, "{} after {} attempts and {} crashes", row.status, row.attempts, row.crashes)?;
        if let Some(Mark { crashes, again }) = row.alone {
            write!(f, ", tried alone {}after {crashes}", if again { "again " } else { "" })?;
        }
        match (row.holder, row.due) {
            (Some(holder), _) => write!(f, ", held by {holder:?}"),
            (None, Some(due)) => write!(f, ", due {due:?}"),
            (None, None) => Ok(()),
        }
    }
}
