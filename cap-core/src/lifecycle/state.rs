//! What a record's columns say, and which combinations there may be.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::reason;
use crate::time::Due;

/// The status of a record, stored under these English names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Due, or due later.
    Scheduled,
    /// Published for later.
    Delayed,
    /// Claimed by a node, in flight.
    Queued,
    /// Done.
    Succeeded,
    /// The last attempt failed. With a due time it will be tried again; without, it is dead.
    Failed,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Scheduled, Self::Delayed, Self::Queued, Self::Succeeded, Self::Failed];

    /// The name in the `StatusName` column.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "Scheduled",
            Self::Delayed => "Delayed",
            Self::Queued => "Queued",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

impl std::str::FromStr for Status {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "read", format!("the status {name:.60?}"), "there is no such status")
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a transition writes: everything about a record that changes. Only this module makes one, so that no storage
/// and no engine can invent a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub(super) status: Status,
    pub(super) attempts: u32,
    pub(super) crashes: u32,
    pub(super) due: Option<Due>,
    pub(super) expires: Option<Duration>,
    pub(super) reason: Option<String>,
}

impl State {
    /// The status to write.
    pub fn status(&self) -> Status {
        self.status
    }

    /// How many attempts have begun: the column `Retries`.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How many attempts in a row ended with their process: the column `Crashes`.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// When a claim may take it, by the database's clock; none for records in flight, succeeded and dead.
    pub fn due(&self) -> Option<Due> {
        self.due
    }

    /// How long after the database's present time the collector may delete it; none for all but terminal records.
    pub fn expires(&self) -> Option<Duration> {
        self.expires
    }

    /// Why the last attempt failed, or why it was parked.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The same with a reason in plain ASCII, for a database that refuses the other. Answers nothing if it is plain.
    #[must_use]
    pub fn in_plain_words(&self) -> Option<Self> {
        let reason = self.reason.as_deref().map(reason::plain);
        (reason != self.reason).then(|| Self { reason, ..self.clone() })
    }

    /// Whether it is dead: failed, and nobody will try again without being told to.
    pub fn is_dead(&self) -> bool {
        self.status == Status::Failed && self.due.is_none()
    }

    /// Whether nothing more will happen to it but its deletion.
    pub fn is_terminal(&self) -> bool {
        self.status == Status::Succeeded || self.is_dead()
    }

    /// The invariants of a single record, for model tests, simulations and debug builds.
    ///
    /// # Errors
    /// Names the rule that is broken.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.is_terminal() != self.expires.is_some() {
            return Err("exactly the terminal records expire");
        }
        if self.due.is_some() && (self.status == Status::Queued || self.status == Status::Succeeded) {
            return Err("a record in flight or done has no due time");
        }
        if self.due.is_none() && matches!(self.status, Status::Scheduled | Status::Delayed) {
            return Err("a waiting record has a due time");
        }
        if self.status == Status::Queued && self.attempts == 0 {
            return Err("a record in flight has begun an attempt");
        }
        if self.is_dead() && self.reason.is_none() {
            return Err("a dead record says why");
        }
        if self.reason.as_ref().is_some_and(|reason| reason.len() > reason::MAX_REASON) {
            return Err("a reason is bounded");
        }
        if self.status == Status::Succeeded && self.crashes > 0 {
            return Err("what succeeded is no suspect");
        }
        Ok(())
    }
}
