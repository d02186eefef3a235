//! The faults of what a claim is to leave: excepted topics, and what would be too many bytes.

use std::collections::BTreeSet;
use std::time::Duration;

use cap_core::storage::{ClaimRequest, Claimed, Lane, Record, Settlement, Storage};
use cap_core::{Result, Topic};

use super::double::{Double, given_back};
use super::fault::StorageFault as Fault;

fn is_of_lane(record: &Record, lane: &Lane) -> bool {
    let is_right = match lane {
        Lane::Outbox => true,
        Lane::Inbox(_) => record.crashes == 0,
        Lane::Suspects(_) => record.crashes > 0,
    };
    is_right && record.group.as_ref() == lane.group()
}

fn fits_pattern(name: &str, pattern: &str) -> bool {
    let fits = |(char, any): (char, char)| char == any || any == '_';
    name.chars().count() == pattern.chars().count() && name.chars().zip(pattern.chars()).all(fits)
}

impl Double {
    /// The waiting records of a lane, excepted ones included, earliest due first.
    async fn waiting(&self, request: &ClaimRequest) -> Result<Vec<Record>> {
        let mut records = self.all(request.lane.table()).await?;
        records.retain(|record| {
            record.due.is_some() && record.version == request.version && is_of_lane(record, &request.lane)
        });
        records.sort_by_key(|record| (record.due, record.id));
        Ok(records)
    }

    async fn except_alike(&self, request: &mut ClaimRequest, is_alike: impl Fn(&Topic, &Topic) -> bool) -> Result<()> {
        let names: BTreeSet<Topic> = self.waiting(request).await?.into_iter().map(|record| record.topic).collect();
        let alike = names.into_iter().filter(|name| request.except.iter().any(|other| is_alike(name, other)));
        request.except.extend(alike.collect::<Vec<_>>());
        Ok(())
    }

    /// Spoils a request before it is answered. Answers whether everything is left, though something is due.
    pub(super) async fn leaves_all(&self, request: &mut ClaimRequest) -> Result<bool> {
        let is_excepted = |record: &Record| request.except.contains(&record.topic);
        match self.fault {
            Some(Fault::ClaimIgnoresExceptions) => request.except.clear(),
            Some(Fault::ClaimIgnoresBytes) => request.bytes = usize::MAX,
            Some(Fault::ExceptsWithoutCase) => {
                let is_alike = |one: &Topic, other: &Topic| one.as_str().eq_ignore_ascii_case(other.as_str());
                self.except_alike(request, is_alike).await?;
            }
            Some(Fault::ExceptsByPattern) => {
                let is_alike = |one: &Topic, other: &Topic| fits_pattern(one.as_str(), other.as_str());
                self.except_alike(request, is_alike).await?;
            }
            Some(Fault::ExceptsWithinAHundred) => {
                let first = self.waiting(request).await?.into_iter().take(100);
                let free = first.filter(|record| !is_excepted(record)).count();
                request.limit = request.limit.min(free);
            }
            Some(Fault::ClaimCountsCharacters) => {
                let waiting = self.waiting(request).await?;
                let sizes = waiting.iter().map(|record| record.content.chars().count());
                request.limit = request.limit.min(fitting(sizes, request.bytes));
                request.bytes = usize::MAX;
            }
            Some(Fault::ClaimLeavesTheLarge) => {
                let waiting = self.waiting(request).await?;
                return Ok(waiting.first().is_some_and(|record| record.content.len() > request.bytes));
            }
            Some(Fault::ExceptedCountAsBytes) => {
                let waiting = self.waiting(request).await?;
                let seen = fitting(waiting.iter().map(|record| record.content.len()), request.bytes);
                let free = waiting.iter().take(seen).filter(|record| !is_excepted(record)).count();
                if free == 0 && seen < waiting.len() {
                    return Ok(true);
                }
                request.limit = request.limit.min(free);
            }
            _ => {}
        }
        Ok(false)
    }

    pub(super) async fn spoil_bounds(&self, request: &ClaimRequest, claimed: &mut Claimed) -> Result<()> {
        let is_cut = claimed.records.len() < request.limit && claimed.next_due == Some(Duration::ZERO);
        let next = ClaimRequest { limit: 1, bytes: usize::MAX, ..request.clone() };
        match self.fault {
            Some(Fault::ClaimNextDueCountsExcepted) if claimed.records.len() < request.limit => {
                let lanes = vec![request.lane.clone()];
                claimed.next_due = self.inner().next_due(request.version.clone(), lanes).await?.pop().flatten();
            }
            Some(Fault::ClaimCutSaysNothing) if is_cut => claimed.next_due = None,
            Some(Fault::ClaimCutLosesOne) if is_cut => drop(self.inner().claim(next).await?),
            Some(Fault::ClaimSkipsTheLarge) if is_cut => {
                let left = self.inner().claim(next).await?.records;
                let settlement = |record: &Record| Settlement {
                    record: record.id,
                    token: request.claim.token,
                    state: given_back(record.attempts - 1),
                };
                self.inner().settle(request.lane.table(), left.iter().map(settlement).collect()).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// How many of the first fit, one at least.
fn fitting(sizes: impl Iterator<Item = usize>, bytes: usize) -> usize {
    let mut sum = 0_usize;
    let fits = |size: &usize| {
        sum = sum.saturating_add(*size);
        sum <= bytes
    };
    sizes.take_while(fits).count().max(1)
}
