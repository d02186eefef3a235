//! Partitions, and where a group is in them.

use std::sync::Arc;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
}

/// An offset that is to be committed, or to be fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) place: Place,
    pub(crate) offset: i64,
    pub(crate) metadata: String,
}

/// How a partition begins.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// The offset that the group has got to, if it is known.
    pub(crate) start: Option<i64>,
    /// What was stored with it.
    pub(crate) metadata: String,
    /// Everything before it may have been delivered to another member.
    pub(crate) delivered_before: i64,
}
