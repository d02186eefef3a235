//! What operators ask for.

use crate::id::{MessageId, RecordId};
use crate::lifecycle::Status;
use crate::name::{Group, Topic, Version};

/// How many records there are of each kind, in one table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Status `Scheduled`.
    pub scheduled: u64,
    /// Status `Delayed`.
    pub delayed: u64,
    /// Status `Queued`: in flight.
    pub queued: u64,
    /// Status `Succeeded`.
    pub succeeded: u64,
    /// Status `Failed` with a due time: will be tried again.
    pub retrying: u64,
    /// Status `Failed` without: waits for a person.
    pub dead: u64,
}

impl Counts {
    /// Records that somebody has to work on now or soon: all that are neither terminal nor published for later.
    pub fn pending(&self) -> u64 {
        self.scheduled + self.queued + self.retrying
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.pending() + self.delayed + self.succeeded + self.dead
    }

    /// Counts `number` records of a status, dead ones among the failed.
    pub fn add(&mut self, status: Status, dead: bool, number: u64) {
        let slot = match status {
            Status::Scheduled => &mut self.scheduled,
            Status::Delayed => &mut self.delayed,
            Status::Queued => &mut self.queued,
            Status::Succeeded => &mut self.succeeded,
            Status::Failed if dead => &mut self.dead,
            Status::Failed => &mut self.retrying,
        };
        *slot += number;
    }
}

/// Which records to list: those that match every given field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Of this version.
    pub version: Option<Version>,
    /// With this status.
    pub status: Option<Status>,
    /// With this exact topic.
    pub topic: Option<Topic>,
    /// Of this effective group.
    pub group: Option<Group>,
    /// With this message id.
    pub message_id: Option<MessageId>,
    /// Only addresses above this one: the last of the page before.
    pub after: Option<RecordId>,
    /// At most so many; 0 answers none.
    pub limit: usize,
}
