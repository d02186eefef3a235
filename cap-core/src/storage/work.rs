//! What is done to records: stored, claimed, settled.

use std::time::Duration;

use super::{Lane, Record};
use crate::id::{ClaimToken, NodeId, RecordId};
use crate::lifecycle::State;
use crate::name::{Topic, Version};

/// Who claims, and the token that fences this one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The node.
    pub node: NodeId,
    /// Fresh for each claim.
    pub token: ClaimToken,
}

impl Claim {
    /// A claim by `node` with a fresh token.
    pub fn by(node: NodeId) -> Self {
        Self { node, token: ClaimToken::generate() }
    }
}

/// What happened to one record of an insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is stored at this address.
    Stored(RecordId),
    /// A record of this message id (and group) is there already; nothing was written.
    Duplicate,
}

/// What to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Whose records.
    pub lane: Lane,
    /// Only records of this version.
    pub version: Version,
    /// Who claims.
    pub claim: Claim,
    /// At most so many records.
    pub limit: usize,
    /// At most so many bytes of content together; the first record is taken whatever its size.
    pub bytes: usize,
    /// Records of these topics are left alone: this node cannot handle them, or may not send them now. Seldom more than a
    /// few.
    pub except: Vec<Topic>,
}

impl ClaimRequest {
    /// A claim of at most `limit` records of any topic and size.
    pub fn new(lane: Lane, version: Version, claim: Claim, limit: usize) -> Self {
        Self { lane, version, claim, limit, bytes: usize::MAX, except: Vec::new() }
    }
}

/// The answer to a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claimed {
    /// The records, now in flight, each with its attempt counted.
    pub records: Vec<Record>,
    /// In how long the lane's next waiting record, of no excepted topic, is due, when fewer than `limit` records were
    /// claimed. `None` when none waits, or the limit was reached.
    pub next_due: Option<Duration>,
}

/// The outcome of one attempt, to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Which record.
    pub record: RecordId,
    /// The token that it was claimed with.
    pub token: ClaimToken,
    /// What to write.
    pub state: State,
}

/// What happened to one settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It is written.
    Written,
    /// The record is no longer held under this token; nothing was written.
    Lost,
    /// An open transaction holds the record locked: nothing was written, and the same settlement may be written later.
    Locked,
}
