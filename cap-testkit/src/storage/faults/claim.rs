//! The faults of claiming, settling, releasing and of the next due time.

use std::collections::HashSet;
use std::time::Duration;

use cap_core::lifecycle::{received, scheduled};
use cap_core::storage::{Claim, ClaimRequest, Claimed, Lane, Record, Settled, Settlement, Storage, Table};
use cap_core::{Due, ErrorKind, Result, Status, Version};

use super::double::{
    ALL, Altered, Double, LONG, briefly_kept, cut_at_4000, due_again, error, given_back, reason_changed,
};
use super::fault::StorageFault as Fault;
use super::suspect::without_crashes;

impl Double {
    pub(super) async fn claim(&self, mut request: ClaimRequest) -> Result<Claimed> {
        let inner = self.inner();
        if let Err(refused) = self.is_writable() {
            if self.has(Fault::EnvironmentClaimsAll) {
                inner.claim(request).await?;
            }
            return Err(refused);
        }
        match self.fault {
            Some(Fault::ClaimIgnoresLimit) => request.limit = ALL,
            Some(Fault::ClaimWaitsForTransactions) => self.until_no_transaction_is_open().await,
            Some(Fault::ClaimScans) => drop(self.all(request.lane.table()).await?),
            _ => {}
        }
        if self.leaves_all(&mut request).await? {
            return Ok(Claimed { next_due: Some(Duration::ZERO), ..Claimed::default() });
        }
        let mut result = inner.claim(request.clone()).await;
        if self.has(Fault::ClaimWithoutLease) && result.is_err() {
            inner.join(request.claim.node, LONG).await?;
            result = inner.claim(request.clone()).await;
        }
        if self.has(Fault::ClaimOfNobodyTakes) && result.is_err() {
            inner.join(request.claim.node, LONG).await?;
            inner.claim(request.clone()).await?;
        }
        let mut claimed = result?;
        if self.has(Fault::ClaimIgnoresGroup) && request.lane.table() == Table::Inbox {
            let groups = self.memo().groups.clone();
            for group in groups {
                let request = ClaimRequest { lane: Lane::Inbox(group), ..request.clone() };
                claimed.records.extend(inner.claim(request).await?.records);
            }
        }
        self.spoil_lanes(&request, &mut claimed).await?;
        self.spoil_bounds(&request, &mut claimed).await?;
        self.remember_claim(&request.lane, request.claim, &claimed.records);
        self.spoil_claim(&request, &mut claimed).await?;
        Ok(claimed)
    }

    async fn spoil_claim(&self, request: &ClaimRequest, claimed: &mut Claimed) -> Result<()> {
        match self.fault {
            Some(Fault::ClaimAnswersTwice) => {
                let previous = std::mem::replace(&mut self.memo().last_claimed, claimed.records.first().cloned());
                claimed.records.extend(previous);
            }
            Some(Fault::ClaimAnswersReversed) => claimed.records.reverse(),
            Some(Fault::ClaimHidesCrashes) => claimed.records.iter_mut().for_each(|record| record.crashes = 0),
            Some(Fault::ClaimHidesOwner) => claimed.records.iter_mut().for_each(|record| record.owner = None),
            Some(Fault::ClaimDoesNotCount) => {
                let settlement = |record: &Record| Settlement {
                    record: record.id,
                    token: request.claim.token,
                    state: received(true),
                };
                let settlements = claimed.records.iter().map(settlement).collect();
                self.inner().settle(request.lane.table(), settlements).await?;
                claimed.records.iter_mut().for_each(|record| record.attempts = 1);
            }
            Some(Fault::ClaimNextDueTooLate) => claimed.next_due = claimed.next_due.map(|next| next + LONG * 24),
            Some(Fault::ClaimNextDueMissing) => claimed.next_due = None,
            Some(Fault::ClaimByCursor) => {
                let mut memo = self.memo();
                let cursor = memo.cursor;
                claimed.records.retain(|record| Some(record.id) > cursor);
                memo.cursor = claimed.records.iter().map(|record| record.id).max().max(cursor);
            }
            Some(Fault::ClaimDropsOne) if !claimed.records.is_empty() && self.first_time() => {
                claimed.records.pop();
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) async fn settle(&self, table: Table, mut settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        let inner = self.inner();
        self.is_writable()?;
        self.memo().settled.extend(settlements.iter().map(|settlement| (table, settlement.record)));
        for settlement in &mut settlements {
            self.spoil_settlement(table, settlement);
        }
        if self.has(Fault::SettleKeepsCrashes) {
            self.keep_crashes(table, &settlements).await?;
        }
        match self.fault {
            Some(Fault::EmptyListFails) if settlements.is_empty() => {
                return Err(error(ErrorKind::Rejected, "syntax error near `)`"));
            }
            Some(Fault::SettleWaitsForTransactions) => self.until_no_transaction_is_open().await,
            Some(Fault::SettleOfLockedTakesBatchWithIt) if self.has_locked(&settlements) => {
                return Ok(vec![Settled::Locked; settlements.len()]);
            }
            Some(Fault::SettleOfLockedFails) if self.has_locked(&settlements) => {
                return Err(error(ErrorKind::Unavailable, "lock wait timeout exceeded"));
            }
            Some(Fault::LostSettlementTakesBatchWithIt) => {
                let memo = self.memo();
                let is_known =
                    |settlement: &Settlement| memo.tokens.get(&(table, settlement.record)) == Some(&settlement.token);
                if !settlements.iter().all(is_known) {
                    return Ok(vec![Settled::Lost; settlements.len()]);
                }
            }
            Some(Fault::SettleMixesTokens) => {
                let memo = self.memo();
                let shown: HashSet<_> = settlements.iter().map(|settlement| settlement.token).collect();
                for settlement in &mut settlements {
                    if let Some(token) =
                        memo.tokens.get(&(table, settlement.record)).filter(|token| shown.contains(token))
                    {
                        settlement.token = *token;
                    }
                }
            }
            Some(Fault::SettleInTwoSteps) => {
                let rest = settlements.split_off(settlements.len() / 2);
                let mut settled = inner.settle(table, settlements).await?;
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                settled.extend(inner.settle(table, rest).await?);
                return Ok(settled);
            }
            _ => {}
        }
        let mut settled = inner.settle(table, settlements).await?;
        match self.fault {
            Some(Fault::SettleOfLockedIsLost) => {
                let locked = settled.iter_mut().filter(|settled| **settled == Settled::Locked);
                locked.for_each(|settled| *settled = Settled::Lost);
            }
            Some(Fault::SettleAnswersReversed) => settled.reverse(),
            Some(Fault::SecondSettlementWritten) => settled.fill(Settled::Written),
            _ => {}
        }
        Ok(settled)
    }

    fn has_locked(&self, settlements: &[Settlement]) -> bool {
        let memo = self.memo();
        settlements.iter().any(|settlement| memo.locked.contains(&settlement.record))
    }

    fn spoil_settlement(&self, table: Table, settlement: &mut Settlement) {
        let state = settlement.state.clone();
        match self.fault {
            Some(Fault::SettleIgnoresToken) => {
                if let Some(token) = self.memo().tokens.get(&(table, settlement.record)) {
                    settlement.token = *token;
                }
            }
            Some(Fault::SettleForgetsReason) => {
                settlement.state = Altered { reason: String::new(), ..Altered::of(&state) }.apply(state);
            }
            Some(Fault::SettleForgetsDelay) => {
                settlement.state = Altered { delay: Duration::ZERO, ..Altered::of(&state) }.apply(state);
            }
            Some(Fault::SettleInFlightLetsGo) if state.status() == Status::Queued => {
                settlement.state = scheduled(Due::Now);
            }
            Some(Fault::LongRetentionOverflows) => settlement.state = briefly_kept(state),
            Some(Fault::SettledReasonCutAt4000) => settlement.state = reason_changed(state, cut_at_4000),
            Some(Fault::SettleForgetsCrashes) => settlement.state = without_crashes(state),
            Some(Fault::FinishedIsDueAgain) => settlement.state = due_again(state),
            _ => {}
        }
    }

    pub(super) async fn release(&self, table: Table, claim: Claim) -> Result<u64> {
        let inner = self.inner();
        match self.fault {
            Some(Fault::ReleaseForgets) => Ok(0),
            Some(Fault::ReleaseCounts) => {
                let holds = self.holds(table).await?;
                let mine = holds.into_iter().filter(|(_, token)| *token == claim.token);
                let settlements: Vec<_> = mine
                    .map(|(record, token)| Settlement { record: record.id, token, state: given_back(record.attempts) })
                    .collect();
                let number = settlements.len() as u64;
                inner.settle(table, settlements).await?;
                Ok(number)
            }
            Some(Fault::ReleaseTakesAllOfNode) => {
                let claims = self.memo().claims.clone();
                let mut number = 0;
                for other in claims.into_iter().filter(|other| other.node == claim.node) {
                    number += inner.release(table, other).await?;
                }
                Ok(number.min(1))
            }
            Some(Fault::ReleaseCountsCrash | Fault::ReleaseForgetsReason) => {
                let held = self.held(table).await?;
                let released = inner.release(table, claim).await?;
                self.spoil_given_back(table, &held).await?;
                Ok(released)
            }
            _ => inner.release(table, claim).await,
        }
    }

    pub(super) async fn next_due(&self, version: Version, lanes: Vec<Lane>) -> Result<Vec<Option<Duration>>> {
        if self.has(Fault::NextDueWaitsForTransactions) {
            self.until_no_transaction_is_open().await;
        }
        let mut next = self.inner().next_due(version.clone(), lanes.clone()).await?;
        match self.fault {
            Some(Fault::NextDueReversed) => next.reverse(),
            Some(Fault::NextDueMixesLanes) => {
                for (lane, next) in lanes.iter().zip(&mut next) {
                    *next = self.next_of_both(&version, lane).await?;
                }
            }
            Some(Fault::NextDueCountsHeld) => {
                for (lane, next) in lanes.into_iter().zip(&mut next) {
                    let held = self.holds(lane.table()).await?;
                    let is_held =
                        |(record, _): &(Record, _)| record.group.as_ref() == lane.group() && record.version == version;
                    if held.iter().any(is_held) {
                        *next = Some(Duration::ZERO);
                    }
                }
            }
            _ => {}
        }
        Ok(next)
    }
}
