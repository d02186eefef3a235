//! The faults of claiming, settling, releasing and of the next due time.

use std::collections::HashSet;
use std::time::Duration;

use cap_core::lifecycle::{received, scheduled};
use cap_core::storage::{Claim, ClaimRequest, Claimed, Lane, Settled, Settlement, Storage, Table};
use cap_core::{Due, ErrorKind, Result, Status, Version};

use super::double::{ALL, Altered, Double, LONG, due_again, error, given_back};
use super::fault::StorageFault as Fault;

impl Double {
    pub(super) async fn claim(&self, mut request: ClaimRequest) -> Result<Claimed> {
        let inner = self.inner();
        match self.fault {
            Some(Fault::ClaimIgnoresLimit) => request.limit = ALL,
            Some(Fault::ClaimWaitsForTransactions) => self.until_no_transaction_is_open().await,
            Some(Fault::ClaimScans) => drop(self.all(request.lane.table()).await?),
            _ => {}
        }
        let mut result = inner.claim(request.clone()).await;
        if self.has(Fault::ClaimWithoutLease) && result.is_err() {
            inner.join(request.claim.node, LONG).await?;
            result = inner.claim(request.clone()).await;
        }
        let mut claimed = result?;
        if self.has(Fault::ClaimIgnoresGroup) && request.lane.table() == Table::Inbox {
            let groups = self.memo().groups.clone();
            for group in groups {
                let request = ClaimRequest { lane: Lane::Inbox(group), ..request.clone() };
                claimed.records.extend(inner.claim(request).await?.records);
            }
        }
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
            Some(Fault::ClaimHidesOwner) => claimed.records.iter_mut().for_each(|record| record.owner = None),
            Some(Fault::ClaimDoesNotCount) => {
                let settlement = |record: &cap_core::storage::Record| Settlement {
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
        self.memo().settled.extend(settlements.iter().map(|settlement| (table, settlement.record)));
        for settlement in &mut settlements {
            self.spoil_settlement(table, settlement);
        }
        match self.fault {
            Some(Fault::EmptyListFails) if settlements.is_empty() => {
                return Err(error(ErrorKind::Rejected, "syntax error near `)`"));
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
            Some(Fault::SettleAnswersReversed) => settled.reverse(),
            Some(Fault::SecondSettlementWritten) => settled.fill(Settled::Written),
            _ => {}
        }
        Ok(settled)
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
            Some(Fault::NextDueCountsHeld) => {
                for (lane, next) in lanes.into_iter().zip(&mut next) {
                    let held = self.holds(lane.table()).await?;
                    let group = if let Lane::Inbox(group) = lane { Some(group) } else { None };
                    if held.iter().any(|(record, _)| record.group == group && record.version == version) {
                        *next = Some(Duration::ZERO);
                    }
                }
            }
            _ => {}
        }
        Ok(next)
    }
}
