//! What becomes of a message that no group wants at present.

use serde::{Deserialize, Serialize};

/// What becomes of a message that no group wants at present: its topic has no queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unroutable {
    /// It waits in the outbox until its topic has a queue, however long that takes. That spends none of its attempts, and
    /// `Health::waiting` tells of it.
    #[default]
    Wait,
    /// It is dead at once: it waits for a person.
    Dead,
    /// It has succeeded, with a line in the log: nobody need listen.
    Drop,
}
