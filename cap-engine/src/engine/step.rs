//! What an engine does, step by step, told to whoever listens: for tests that wait for signals instead of time, and
//! for crash tests that kill the process right there.

use std::fmt;
use std::sync::Arc;

use cap_core::MessageId;

/// A step that was just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// A publish of its own transaction is committed.
    Published,
    /// The relay has claimed an outbox record.
    Claimed,
    /// The transport has taken a message over.
    Sent,
    /// The broker has confirmed a message.
    Confirmed,
    /// The outbox record's outcome is written.
    OutboxSettled,
    /// The broker has delivered a message.
    Received,
    /// The inbox record is committed.
    Stored,
    /// The delivery is acknowledged.
    Acknowledged,
    /// A handler begins.
    HandlerBegins,
    /// A handler has ended, its outcome not yet written.
    HandlerEnded,
    /// The inbox record's outcome is written.
    InboxSettled,
}

impl Step {
    /// All of them, in the order of a message's way.
    pub const ALL: [Self; 11] = [
        Self::Published,
        Self::Claimed,
        Self::Sent,
        Self::Confirmed,
        Self::OutboxSettled,
        Self::Received,
        Self::Stored,
        Self::Acknowledged,
        Self::HandlerBegins,
        Self::HandlerEnded,
        Self::InboxSettled,
    ];
}

/// Called with each step and the message that it was done for.
#[derive(Clone)]
pub(crate) struct Steps(pub(crate) Option<Arc<StepFn>>);

pub(crate) type StepFn = dyn Fn(Step, &MessageId) + Send + Sync;

impl Steps {
    pub(crate) fn tell(&self, step: Step, id: &MessageId) {
        if let Some(listener) = &self.0 {
            listener(step, id);
        }
    }

    pub(crate) fn tell_all<'a>(&self, step: Step, ids: impl IntoIterator<Item = &'a MessageId>) {
        if let Some(listener) = &self.0 {
            ids.into_iter().for_each(|id| listener(step, id));
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Steps")
    }
}
