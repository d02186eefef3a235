//! Nodes, their leases, and their chores.

use std::fmt;

use crate::id::NodeId;
use crate::time::Timestamp;

/// Work that one node does for all, as doing it everywhere would be waste. The database names it by its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Chore {
    /// Deleting expired records.
    Collect,
}

impl Chore {
    /// Its name in the database: `collect`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Collect => "collect",
        }
    }
}

impl fmt::Display for Chore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a heartbeat learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// The lease is renewed.
    Held {
        /// The database's clock.
        now: Timestamp,
        /// The last signs of life of the other nodes.
        others: Vec<Sign>,
    },
    /// The node was taken over from, or was never there: what it held may be another's by now.
    Lost,
}

/// A node's last sign of life: the next one has another end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sign {
    /// Whose it is.
    pub node: NodeId,
    /// When its lease ends, by the clock that the database had then.
    pub until: Timestamp,
}

/// What a takeover did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// Nodes that gave no other sign of life; they are forgotten.
    pub nodes: Vec<NodeId>,
    /// Outbox records that are due again.
    pub outbox: u64,
    /// Inbox records that are due again.
    pub inbox: u64,
}
