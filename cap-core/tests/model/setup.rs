//! How large a model is: who takes part, and how much may go wrong.

use std::time::Duration;

use cap_core::lifecycle::{RetryPolicy, Rules};

use super::faults::Fault;

/// How a message is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// The handler's effect happens first, outside of the database.
    Plain,
    /// The handler's effect and the record's success are one commit.
    Transactional,
    /// Handling it takes the process down.
    Killer,
    /// It cannot be decoded: it is parked in the inbox.
    Unreadable,
    /// As `Plain`, but published for later.
    Later,
}

/// What may go wrong or interrupt, each kind at most so often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// A process ends, its memory is gone.
    Crash,
    /// The lease of a process that works runs out: it was too slow.
    LeaseExpiry,
    /// A send ends with its outcome unknown.
    LostConfirm,
    /// The database did what it was asked, but the answer did not arrive.
    LostAnswer,
    /// A node stops in good order before its work is done.
    Leave,
    /// A consumer loses its connection: what it did not acknowledge is delivered again.
    ConsumerLoss,
    /// A broker that is not durable forgets everything.
    BrokerCrash,
    /// A handler fails and may succeed another time.
    HandlerFailure,
    /// A send or a handler fails for good.
    Refusal,
    /// A person gives a dead record a new life.
    Requeue,
}

const MISHAPS: usize = Mishap::Requeue as usize + 1;

/// How many mishaps there may still be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Budget {
    each: [u8; MISHAPS],
    together: u8,
}

impl Budget {
    pub(crate) const NONE: Self = Self { each: [0; MISHAPS], together: 0 };

    /// At most `together` mishaps, each kind at most as often as listed.
    pub(crate) fn of(together: u8, each: &[(Mishap, u8)]) -> Self {
        let mut budget = Self { together, ..Self::NONE };
        for &(mishap, times) in each {
            budget.each[mishap as usize] = times;
        }
        budget
    }

    pub(crate) fn allows(&self, mishap: Mishap) -> bool {
        self.together > 0 && self.each[mishap as usize] > 0
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.together == 0
    }

    pub(crate) fn spend(&mut self, mishap: Mishap) {
        self.each[mishap as usize] -= 1;
        self.together -= 1;
        if self.together == 0 {
            self.each = [0; MISHAPS];
        }
    }
}

/// One model.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) messages: Vec<Kind>,
    pub(crate) groups: u8,
    pub(crate) nodes: usize,
    pub(crate) rules: Rules,
    pub(crate) limit: u32,
    pub(crate) budget: Budget,
    /// Whether the broker survives its own restart. If not, it confirms only what every group has acknowledged.
    pub(crate) durable: bool,
    /// Whether a receiver may also leave a new record to whoever claims it.
    pub(crate) leaves_waiting: bool,
    /// Whether terminal records are collected, once no copy is on its way any more: the dedupe window.
    pub(crate) collects: bool,
    /// Whether one order of independent steps stands for all.
    pub(crate) reduces: bool,
    /// The mistake that is built in.
    pub(crate) fault: Option<Fault>,
}

impl Setup {
    /// Two nodes, one group, at most two attempts, tried alone after the first crash, nothing going wrong.
    pub(crate) fn of(messages: &[Kind]) -> Self {
        Self {
            messages: messages.to_vec(),
            groups: 1,
            nodes: 2,
            rules: rules(2, 1),
            limit: 2,
            budget: Budget::NONE,
            durable: true,
            leaves_waiting: true,
            collects: false,
            reduces: false,
            fault: None,
        }
    }

    pub(crate) fn mishaps(self, together: u8, each: &[(Mishap, u8)]) -> Self {
        Self { budget: Budget::of(together, each), ..self }
    }

    /// Tried alone after so many crashes.
    pub(crate) fn crashes(self, crashes: u32) -> Self {
        Self { rules: rules(self.limit, crashes), ..self }
    }

    pub(crate) fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    /// Each receiver goes on to work on what it inserts.
    pub(crate) fn claims_at_once(self) -> Self {
        Self { leaves_waiting: false, ..self }
    }

    pub(crate) fn groups(self, groups: u8) -> Self {
        Self { groups, ..self }
    }

    /// With a broker that forgets everything when it restarts.
    pub(crate) fn forgetful(self) -> Self {
        Self { durable: false, ..self }
    }

    pub(crate) fn collecting(self) -> Self {
        Self { collects: true, ..self }
    }

    pub(crate) fn reduced(self) -> Self {
        Self { reduces: true, ..self }
    }

    pub(crate) fn with(self, fault: Fault) -> Self {
        Self { fault: Some(fault), ..self }
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

/// At most `limit` attempts, a second apart; after so many crashes alone.
pub(crate) fn rules(limit: u32, crashes: u32) -> Rules {
    Rules {
        retry: RetryPolicy { crashes, ..RetryPolicy::fixed(limit, Duration::from_secs(1)) },
        keep_succeeded: Duration::from_secs(60),
        keep_dead: Duration::from_secs(60),
    }
}
