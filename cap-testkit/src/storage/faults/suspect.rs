//! The faults of crashes and of the lanes of suspects.

use std::collections::HashMap;
use std::time::Duration;

use cap_core::lifecycle::{Begun, Outcome, Rules, State, settle};
use cap_core::storage::{ClaimRequest, Claimed, Lane, Record, Settlement, Storage, Table};
use cap_core::{Due, RecordId, Result, RetryPolicy, Status, Version};

use super::double::{ALL, Double};
use super::fault::StorageFault as Fault;

fn given_back(begun: &Begun, pause: Duration) -> State {
    let rules = Rules { retry: RetryPolicy::never(), keep_succeeded: Duration::ZERO, keep_dead: Duration::ZERO };
    settle(begun, Outcome::GivenBack(pause), &rules, 0.5)
}

/// Due at once, after so many crashes and no attempt.
pub(super) fn suspect(crashes: u32) -> State {
    given_back(&Begun { attempts: 1, crashes, reason: None }, Duration::ZERO)
}

/// A waiting state without its crashes; others come back as they were.
pub(super) fn without_crashes(state: State) -> State {
    if state.status() != Status::Scheduled || state.crashes() == 0 {
        return state;
    }
    let pause = if let Some(Due::In(pause)) = state.due() { pause } else { Duration::ZERO };
    let reason = state.reason().map(ToOwned::to_owned);
    given_back(&Begun { attempts: state.attempts() + 1, crashes: 0, reason }, pause)
}

/// The other lane of the same group.
fn other_lane(lane: &Lane) -> Option<Lane> {
    match lane {
        Lane::Outbox => None,
        Lane::Inbox(group) => Some(Lane::Suspects(group.clone())),
        Lane::Suspects(group) => Some(Lane::Inbox(group.clone())),
    }
}

impl Double {
    /// The crashes of all records in flight.
    pub(super) async fn held(&self, table: Table) -> Result<HashMap<RecordId, u32>> {
        let records = self.all(table).await?.into_iter();
        Ok(records.filter(|record| record.status == Status::Queued).map(|record| (record.id, record.crashes)).collect())
    }

    /// What was in flight before and waits now was given back: spoils its crashes or its reason.
    pub(super) async fn spoil_given_back(&self, table: Table, before: &HashMap<RecordId, u32>) -> Result<()> {
        let ghost = self.join_ghost().await?;
        let groups = self.memo().groups.clone().into_iter();
        let lanes = match table {
            Table::Outbox => vec![Lane::Outbox],
            Table::Inbox => groups.flat_map(|group| [Lane::Inbox(group.clone()), Lane::Suspects(group)]).collect(),
        };
        let mut settlements = Vec::new();
        for lane in lanes {
            let request = ClaimRequest::new(lane, Version::default(), ghost, ALL);
            for record in self.inner().claim(request).await?.records {
                let state = given_back(&self.spoiled(&record, before.get(&record.id)), Duration::ZERO);
                settlements.push(Settlement { record: record.id, token: ghost.token, state });
            }
        }
        self.inner().settle(table, settlements).await.map(drop)
    }

    fn spoiled(&self, record: &Record, before: Option<&u32>) -> Begun {
        let Record { attempts, crashes, .. } = *record;
        let begun = Begun { attempts, crashes, reason: record.reason.clone() };
        let Some(&before) = before else { return begun };
        match self.fault {
            Some(Fault::TakeOverForgetsCrash) => Begun { crashes: before, ..begun },
            Some(Fault::TakeOverCountsOneCrash) => Begun { crashes: 1, ..begun },
            Some(Fault::LeaveCountsCrash | Fault::ReleaseCountsCrash) => Begun { crashes: before + 1, ..begun },
            Some(Fault::LeaveForgetsCrashes) => Begun { crashes: 0, ..begun },
            Some(Fault::TakeOverForgetsReason | Fault::LeaveForgetsReason | Fault::ReleaseForgetsReason) => {
                Begun { reason: None, ..begun }
            }
            _ => begun,
        }
    }

    /// Remembers the crashes that the records have now, to tell them ever after.
    pub(super) async fn keep_crashes(&self, table: Table, settlements: &[Settlement]) -> Result<()> {
        let records = self.all(table).await?;
        let mut memo = self.memo();
        for settlement in settlements {
            let found = records.iter().find(|record| record.id == settlement.record);
            if let Some(record) = found {
                memo.crashes.entry((table, record.id)).or_insert(record.crashes);
            }
        }
        Ok(())
    }

    pub(super) fn tell_crashes(&self, table: Table, record: &mut Record) {
        if let Some(crashes) = self.memo().crashes.get(&(table, record.id)) {
            record.crashes = *crashes;
        }
    }

    pub(super) async fn next_of_both(&self, version: &Version, lane: &Lane) -> Result<Option<Duration>> {
        let lanes = [Some(lane.clone()), other_lane(lane)].into_iter().flatten().collect();
        let next = self.inner().next_due(version.clone(), lanes).await?;
        Ok(next.into_iter().flatten().min())
    }

    pub(super) async fn spoil_lanes(&self, request: &ClaimRequest, claimed: &mut Claimed) -> Result<()> {
        let also = match (self.fault, &request.lane) {
            (Some(Fault::ClaimTakesSuspects), Lane::Inbox(_)) => other_lane(&request.lane),
            (Some(Fault::SuspectsClaimTakesAll), Lane::Suspects(_)) => other_lane(&request.lane),
            (Some(Fault::SuspectsOutOfOrder), Lane::Suspects(_)) => {
                claimed.records.reverse();
                None
            }
            (Some(Fault::ClaimNextDueMixesLanes), _) if claimed.records.len() < request.limit => {
                claimed.next_due = self.next_of_both(&request.version, &request.lane).await?;
                None
            }
            _ => None,
        };
        if let Some(lane) = also {
            let request = ClaimRequest { lane, ..request.clone() };
            claimed.records.extend(self.inner().claim(request).await?.records);
        }
        Ok(())
    }
}
