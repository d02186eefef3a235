//! Confirms that wait for their groups' acknowledgements.

use std::collections::BTreeMap;
use std::time::Instant;

use cap_core::transport::Confirm;
use cap_core::{Error, ErrorKind, Result};

/// A connection of a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// Finds a confirm again; the earliest deadline comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    deadline: Instant,
    sequence: u64,
}

#[derive(Debug)]
struct Waiting {
    confirm: Confirm,
    topic: Box<str>,
    connection: ConnectionId,
    groups_left: usize,
}

/// Outcomes that are certain and not yet told. They are told after the broker's lock is released, because a confirm
/// calls foreign code.
#[derive(Debug, Default)]
#[must_use = "outcomes are to be told"]
pub(crate) struct Settled(Vec<(Confirm, Result<()>)>);

impl Settled {
    pub(crate) fn push(&mut self, confirm: Confirm, outcome: Result<()>) {
        self.0.push((confirm, outcome));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells them. The caller holds no lock.
    pub(crate) fn report(self) {
        for (confirm, outcome) in self.0 {
            confirm.report(outcome);
        }
    }
}

/// The confirms of messages that the broker holds.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    waiting: BTreeMap<Ticket, Waiting>,
    last_sequence: u64,
}

impl Confirms {
    /// Keeps a confirm until `groups` groups have acknowledged, or until the deadline.
    pub(crate) fn add(
        &mut self,
        confirm: Confirm,
        topic: &str,
        connection: ConnectionId,
        groups: usize,
        deadline: Instant,
    ) -> Ticket {
        self.last_sequence += 1;
        let ticket = Ticket { deadline, sequence: self.last_sequence };
        self.waiting.insert(ticket, Waiting { confirm, topic: topic.into(), connection, groups_left: groups });
        ticket
    }

    /// One of the groups has acknowledged; the last one makes it `Ok`.
    pub(crate) fn acknowledged(&mut self, ticket: Ticket, settled: &mut Settled) {
        let Some(waiting) = self.waiting.get_mut(&ticket) else {
            return;
        };
        waiting.groups_left -= 1;
        if waiting.groups_left > 0 {
            return;
        }
        if let Some(waiting) = self.waiting.remove(&ticket) {
            settled.push(waiting.confirm, Ok(()));
        }
    }

    /// One of the groups will not acknowledge.
    pub(crate) fn failed(&mut self, ticket: Ticket, reason: &str, settled: &mut Settled) {
        if let Some(waiting) = self.waiting.remove(&ticket) {
            let error = unavailable(&waiting.topic, reason);
            settled.push(waiting.confirm, Err(error));
        }
    }

    /// The deadline that comes next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(ticket, _)| ticket.deadline)
    }

    /// Gives up those whose deadline has come.
    pub(crate) fn expire(&mut self, now: Instant) -> Settled {
        let mut settled = Settled::default();
        while let Some(first) = self.waiting.first_entry().filter(|first| first.key().deadline <= now) {
            let ticket = *first.key();
            self.failed(ticket, "not every group acknowledged it within the time limit", &mut settled);
        }
        settled
    }

    /// Gives up those of messages that some connections sent.
    pub(crate) fn disconnect(&mut self, ends: impl Fn(ConnectionId) -> bool, settled: &mut Settled) {
        let sent: Vec<Ticket> =
            self.waiting.iter().filter(|(_, waiting)| ends(waiting.connection)).map(|(ticket, _)| *ticket).collect();
        for ticket in sent {
            self.failed(ticket, "the transport was closed before every group acknowledged it", settled);
        }
    }
}

/// The outcome of a message that may get through when it is sent again.
pub(crate) fn unavailable(topic: &str, reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, "send to", format!("topic `{topic}`"), reason)
}
