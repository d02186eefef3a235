//! What is stored.

use std::fmt;
use std::sync::Arc;

use crate::id::{MessageId, NodeId, RecordId};
use crate::lifecycle::{State, Status};
use crate::name::{Group, Topic, Version};
use crate::time::Timestamp;

/// One of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `published`: what this service sends.
    Outbox,
    /// `received`: what was delivered to this service's groups.
    Inbox,
}

impl Table {
    /// The table's name: `published` or `received`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbox => "published",
            Self::Inbox => "received",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outbox => "outbox",
            Self::Inbox => "inbox",
        })
    }
}

/// What is claimed together: the whole outbox, or one group's part of the inbox, in which suspects have a lane of their
/// own, so that they delay nobody.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The outbox, all of it.
    Outbox,
    /// The inbox records of one (effective) group, but for its suspects: those whose `Crashes` is 0.
    Inbox(Group),
    /// The suspects of one (effective) group: its inbox records whose `Crashes` is above 0.
    Suspects(Group),
}

impl Lane {
    /// The table it is part of.
    pub fn table(&self) -> Table {
        match self {
            Self::Outbox => Table::Outbox,
            Self::Inbox(_) | Self::Suspects(_) => Table::Inbox,
        }
    }

    /// The group, in the inbox.
    pub fn group(&self) -> Option<&Group> {
        match self {
            Self::Outbox => None,
            Self::Inbox(group) | Self::Suspects(group) => Some(group),
        }
    }
}

/// A record to be inserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// The message's id: the key of the uniqueness rule.
    pub message_id: MessageId,
    /// The engine version that it belongs to.
    pub version: Version,
    /// The column `Name`.
    pub topic: Topic,
    /// The effective group, for the inbox.
    pub group: Option<Group>,
    /// The wrapper object as JSON text; written once.
    pub content: Arc<str>,
    /// Status, attempts, due time, expiry and reason.
    pub state: State,
}

/// A claimed or listed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its address.
    pub id: RecordId,
    /// The message's id.
    pub message_id: MessageId,
    /// The engine version that it belongs to.
    pub version: Version,
    /// The column `Name`.
    pub topic: Topic,
    /// The effective group, in the inbox.
    pub group: Option<Group>,
    /// The wrapper object, as it was inserted.
    pub content: Arc<str>,
    /// Its status.
    pub status: Status,
    /// How many attempts have begun, that of a fresh claim included.
    pub attempts: u32,
    /// How many attempts in a row ended with their process.
    pub crashes: u32,
    /// When it was inserted.
    pub added: Timestamp,
    /// When it is due, if it waits.
    pub due: Option<Timestamp>,
    /// When it may be collected, if it is terminal.
    pub expires: Option<Timestamp>,
    /// The node that holds it.
    pub owner: Option<NodeId>,
    /// Why the last attempt failed.
    pub reason: Option<String>,
}
