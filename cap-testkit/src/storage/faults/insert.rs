//! The faults of inserting.

use std::time::Duration;

use cap_core::lifecycle::received;
use cap_core::storage::{Claim, Inserted, NewRecord, Storage, Table};
use cap_core::{Due, ErrorKind, MessageId, RecordId, Result, Status, Timestamp, Topic, Version};

use super::double::{
    Altered, Double, LONG, VERY_LONG, briefly_kept, cut_at_4000, due_changed, error, reason_changed, whole_seconds_up,
};
use super::fault::StorageFault as Fault;
use super::suspect::without_crashes;

impl Double {
    pub(super) async fn insert(
        &self,
        table: Table,
        mut records: Vec<NewRecord>,
        mut claim: Option<Claim>,
    ) -> Result<Vec<Inserted>> {
        self.is_broken()?;
        if self.has(Fault::WorkNeedsFirstRuntime) {
            self.until_runtime_runs().await?;
        }
        let _lent = if self.has(Fault::ConnectionsReturnWhereUsed) { Some(self.connection().await?) } else { None };
        if let Err(refused) = self.is_writable() {
            if self.has(Fault::EnvironmentStoresAll) {
                self.inner().insert(table, records, claim).await?;
            }
            return Err(refused);
        }
        self.memo().groups.extend(records.iter().filter_map(|record| record.group.clone()));
        for record in &mut records {
            self.mangle(record, claim.is_some());
        }
        if self.meets_taken_address(Fault::TakenAddressFails) {
            return Err(error(ErrorKind::Environment, "duplicate key value violates unique constraint"));
        }
        if self.meets_taken_address(Fault::TakenAddressIsDuplicate) {
            return Ok(vec![Inserted::Duplicate; records.len()]);
        }
        let inner = self.inner();
        match self.fault {
            Some(Fault::InsertForgets) => {
                return Ok((1..).zip(&records).map(|(id, _)| Inserted::Stored(RecordId(id))).collect());
            }
            Some(Fault::EmptyListFails) if records.is_empty() => {
                return Err(error(ErrorKind::Rejected, "syntax error near `)`"));
            }
            Some(Fault::LargeBatchFails) if records.len() > 1_000 => {
                return Err(error(ErrorKind::Rejected, "too many variables"));
            }
            Some(Fault::InsertDoesNotWaitForTransaction) => {
                let is_pending = |record: &NewRecord| self.memo().pending.contains(&record.message_id);
                if records.iter().any(is_pending) {
                    return Ok(vec![Inserted::Stored(RecordId(0)); records.len()]);
                }
            }
            Some(Fault::FarFutureRefused) if records.iter().any(|record| is_due(record, is_very_far)) => {
                return Err(error(ErrorKind::Rejected, "datetime field overflow"));
            }
            Some(Fault::EarliestRefused) if records.iter().any(|record| is_due(record, is_first_second)) => {
                return Err(error(ErrorKind::Rejected, "incorrect datetime value"));
            }
            Some(Fault::InsertWaitsForTransactions) => self.until_no_transaction_is_open().await,
            Some(Fault::InsertOfLockedFails) if self.knows_locked(table, &records).await? => {
                return Err(error(ErrorKind::Unavailable, "lock wait timeout exceeded"));
            }
            Some(Fault::InsertOfLockedTakesBatchWithIt) if self.knows_locked(table, &records).await? => {
                return Ok(vec![Inserted::Duplicate; records.len()]);
            }
            Some(Fault::DuplicateTakesBatchWithIt) => {
                for record in &records {
                    if self.is_known(table, record).await? {
                        return Ok(vec![Inserted::Duplicate; records.len()]);
                    }
                }
            }
            Some(Fault::DuplicateOverwrites) => return self.overwrite(table, records).await,
            Some(Fault::InboxIgnoresGroupInKey) if table == Table::Inbox => {
                return self.insert_new_ids_only(table, records, claim).await;
            }
            Some(Fault::FinishedForgotten) => self.delete_finished(table, &records).await?,
            Some(Fault::ReceiverHoldsNothing) => claim = None,
            Some(Fault::ReceiverIsGhost) if claim.is_some() => {
                let ghost = self.join_ghost().await?;
                claim = claim.map(|claim| Claim { node: ghost.node, ..claim });
            }
            Some(Fault::InsertDropsOrphans) => {
                let number = records.len();
                records.retain(|record| !is_orphan(table, record, claim));
                inner.insert(table, records, claim).await?;
                return Ok(vec![Inserted::Stored(RecordId(0)); number]);
            }
            Some(Fault::InsertTakesOrphans) => {
                for record in records.iter_mut().filter(|record| is_orphan(table, record, claim)) {
                    record.state = received(false);
                    record.group = self.memo().groups.first().cloned();
                }
            }
            Some(Fault::InsertInTwoSteps) => {
                let rest = records.split_off(records.len() / 2);
                let mut inserted = inner.insert(table, records, claim).await?;
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                inserted.extend(inner.insert(table, rest, claim).await?);
                return Ok(inserted);
            }
            _ => {}
        }
        let mut result = inner.insert(table, records.clone(), claim).await;
        let kind = result.as_ref().err().map(|error| error.kind());
        if kind == Some(ErrorKind::Rejected) && self.has(Fault::RefusedInsertStoresSome) {
            inner.insert(table, records[..1].to_vec(), claim).await?;
        }
        if kind == Some(ErrorKind::LeaseLost)
            && (self.has(Fault::InsertWithoutLease) || (self.has(Fault::InsertOneWithoutLease) && records.len() == 1))
            && let Some(claim) = claim
        {
            inner.join(claim.node, LONG).await?;
            result = inner.insert(table, records, Some(claim)).await;
        }
        if let (Some(ErrorKind::Rejected), Some(spoiled)) = (kind, self.refusal()) {
            return Err(error(spoiled, "the content is too long"));
        }
        let mut inserted = result?;
        match self.fault {
            Some(Fault::InsertAnswersReversed) => inserted.reverse(),
            Some(Fault::InsertMixesNewOnes) if !inserted.contains(&Inserted::Duplicate) => inserted.reverse(),
            Some(Fault::InsertAnswersStored) => inserted
                .iter_mut()
                .filter(|outcome| **outcome == Inserted::Duplicate)
                .for_each(|outcome| *outcome = Inserted::Stored(RecordId(0))),
            _ => {}
        }
        Ok(inserted)
    }

    /// The kind of error that takes the place of `Rejected`.
    fn refusal(&self) -> Option<ErrorKind> {
        match self.fault {
            Some(Fault::RefusalIsEnvironment) => Some(ErrorKind::Environment),
            Some(Fault::RefusalIsUnavailable) => Some(ErrorKind::Unavailable),
            _ => None,
        }
    }

    fn mangle(&self, record: &mut NewRecord, is_claimed: bool) {
        let state = record.state.clone();
        match self.fault {
            Some(Fault::ContentNormalized) => record.content = record.content.replace(' ', "").into(),
            Some(Fault::ContentWithoutEmoji) => {
                record.content = record.content.replace(|c: char| c.len_utf8() > 3, "?").into();
            }
            Some(Fault::ContentCutAt64K) => {
                record.content = record.content.chars().take(65_535).collect::<String>().into();
            }
            Some(Fault::TopicCut) => {
                record.topic = Topic::from_stored(&record.topic.as_str().chars().take(64).collect::<String>());
            }
            Some(Fault::IdsWithoutCase) => {
                let small = record.message_id.as_str().to_lowercase();
                if let Ok(id) = MessageId::try_from(small.as_str()) {
                    record.message_id = id;
                }
            }
            Some(Fault::ReasonLost) => {
                record.state = Altered { reason: String::new(), ..Altered::of(&state) }.apply(state);
            }
            Some(Fault::ReasonCutAt4000) => record.state = reason_changed(state, cut_at_4000),
            Some(Fault::ReasonWithoutEmoji) => {
                record.state = reason_changed(state, |reason| reason.replace(|c: char| c.len_utf8() > 3, "?"));
            }
            Some(Fault::LongRetentionOverflows) => record.state = briefly_kept(state),
            Some(Fault::AttemptsStartAtZero) => {
                record.state = Altered { attempts: 0, ..Altered::of(&state) }.apply(state);
            }
            Some(Fault::InsertForgetsCrashes) => record.state = without_crashes(state),
            Some(Fault::DueForgotten) => record.state = due_changed(state, |_| Due::Now),
            Some(Fault::VersionForgotten) => record.version = Version::default(),
            Some(Fault::DelayRoundedUp) => record.state = due_changed(state, delay_up),
            Some(Fault::MomentRoundedUp) => record.state = due_changed(state, moment_up),
            Some(Fault::FarFutureOverflows) => record.state = due_changed(state, near_only),
            Some(Fault::ReceiverHoldsNothing) if state.status() == Status::Queued => record.state = received(false),
            Some(Fault::ReceiverHoldsEverything) if is_claimed && state.status() == Status::Scheduled => {
                record.state = received(true);
            }
            _ => {}
        }
    }

    async fn overwrite(&self, table: Table, records: Vec<NewRecord>) -> Result<Vec<Inserted>> {
        let mut inserted = Vec::new();
        for record in records {
            let known = self.of_message(table, &record.message_id).await?;
            let addresses = known.iter().map(|record| record.id).collect();
            self.inner().delete(table, addresses).await?;
            let outcome = self.inner().insert(table, vec![record], None).await?;
            inserted.extend(if known.is_empty() { outcome } else { vec![Inserted::Duplicate] });
        }
        Ok(inserted)
    }

    async fn insert_new_ids_only(
        &self,
        table: Table,
        records: Vec<NewRecord>,
        claim: Option<Claim>,
    ) -> Result<Vec<Inserted>> {
        let mut inserted = Vec::new();
        for record in records {
            if !self.of_message(table, &record.message_id).await?.is_empty() {
                inserted.push(Inserted::Duplicate);
                continue;
            }
            inserted.extend(self.inner().insert(table, vec![record], claim).await?);
        }
        Ok(inserted)
    }

    async fn knows_locked(&self, table: Table, records: &[NewRecord]) -> Result<bool> {
        for record in records {
            let known = self.of_message(table, &record.message_id).await?;
            if known.iter().any(|known| self.memo().locked.contains(&known.id)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn delete_finished(&self, table: Table, records: &[NewRecord]) -> Result<()> {
        for record in records {
            let known = self.of_message(table, &record.message_id).await?;
            let finished = known.iter().filter(|record| record.expires.is_some()).map(|record| record.id);
            self.inner().delete(table, finished.collect()).await?;
        }
        Ok(())
    }
}

fn is_orphan(table: Table, record: &NewRecord, claim: Option<Claim>) -> bool {
    let is_held_by_nobody = record.state.status() == Status::Queued && claim.is_none();
    is_held_by_nobody || (table == Table::Inbox && record.group.is_none())
}

fn is_due(record: &NewRecord, is: impl Fn(Due) -> bool) -> bool {
    record.state.due().is_some_and(is)
}

fn is_very_far(due: Due) -> bool {
    matches!(due, Due::In(delay) if delay > VERY_LONG)
}

fn is_first_second(due: Due) -> bool {
    matches!(due, Due::At(moment) if moment.as_micros() < 1_000_000)
}

fn delay_up(due: Due) -> Due {
    match due {
        Due::In(delay) => Due::In(whole_seconds_up(delay)),
        other => other,
    }
}

fn moment_up(due: Due) -> Due {
    match due {
        Due::At(moment) => {
            let micros = moment.as_micros();
            Due::At(Timestamp::from_micros(micros + (1_000_000 - micros.rem_euclid(1_000_000)) % 1_000_000))
        }
        other => other,
    }
}

fn near_only(due: Due) -> Due {
    const FIFTY_YEARS: Duration = Duration::from_secs(50 * 365 * 86_400);
    match due {
        Due::In(delay) if delay > FIFTY_YEARS => Due::Now,
        other => other,
    }
}
