//! What this node holds of the storage's records, without their contents.

use cap_core::lifecycle::{Begun, State};
use cap_core::storage::{Claim, NewRecord, Record};
use cap_core::{ClaimToken, Group, MessageId, RecordId, Topic};

use crate::engine::scheduler::suspects_of;
use crate::engine::slots::Slot;
use crate::engine::suspects::Company;

/// A claimed record that this node works on, without its content.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) record: RecordId,
    pub(crate) token: ClaimToken,
    pub(crate) message_id: MessageId,
    pub(crate) topic: Topic,
    pub(crate) group: Option<Group>,
    pub(crate) begun: Begun,
    pub(crate) lane: usize,
    /// Of a suspect, which others may be beside it: until its outcome is written. Were it less, one that was tried alone and
    /// is innocent could be taken for what kills the process a moment later.
    pub(crate) company: Option<Company>,
    /// Of the group's or the relay's room; free again when this is dropped.
    pub(crate) slot: Slot,
    /// Of its subscription's share of the group's room.
    pub(crate) share: Option<Slot>,
}

impl Held {
    /// The lane in which the record waits once `state` is written.
    pub(crate) fn lane_after(&self, state: &State) -> usize {
        if self.group.is_some() && state.crashes() > 0 { suspects_of(self.lane) } else { self.lane }
    }

    pub(crate) fn new(record: &Record, claim: Claim, lane: usize, mut slot: Slot) -> Self {
        slot.weigh(record.content.len());
        Self {
            record: record.id,
            token: claim.token,
            message_id: record.message_id.clone(),
            topic: record.topic.clone(),
            group: record.group.clone(),
            begun: Begun { attempts: record.attempts, crashes: record.crashes, reason: record.reason.clone() },
            lane,
            company: None,
            slot,
            share: None,
        }
    }

    /// Of a record that was inserted with a claim, for a subscription.
    pub(crate) fn fresh(
        record: RecordId,
        inserted: &NewRecord,
        claim: Claim,
        lane: usize,
        mut slot: Slot,
        mut share: Slot,
    ) -> Self {
        slot.weigh(inserted.content.len());
        share.weigh(inserted.content.len());
        Self {
            record,
            token: claim.token,
            message_id: inserted.message_id.clone(),
            topic: inserted.topic.clone(),
            group: inserted.group.clone(),
            begun: Begun::first(),
            lane,
            company: None,
            slot,
            share: Some(share),
        }
    }
}
