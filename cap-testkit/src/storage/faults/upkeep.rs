//! The faults of preparing, collecting, counting, listing, requeueing, deleting and watching.

use std::sync::atomic::{AtomicBool, Ordering};

use cap_core::lifecycle::{State, requeued};
use cap_core::storage::{Claim, Counts, Query, Record, Settlement, Storage, Table, Wake};
use cap_core::{ErrorKind, RecordId, Result, Timestamp, Version};

use super::double::{Double, KNOWN_SCHEMA, error, given_back};
use super::fault::StorageFault as Fault;
use super::suspect::suspect;

impl Double {
    pub(super) async fn prepare(&self) -> Result<()> {
        if let Some(reason) = &self.unusable {
            return Err(error(ErrorKind::Unavailable, reason));
        }
        let schema = self.schema.load(Ordering::SeqCst);
        if schema != KNOWN_SCHEMA && !self.has(Fault::SchemaNotChecked) {
            let versions = format!("the tables have schema version {schema}, this code knows {KNOWN_SCHEMA}");
            let names_nothing = self.has(Fault::SchemaErrorNamesNothing);
            return Err(error(ErrorKind::Schema, if names_nothing { "unknown schema version" } else { &versions }));
        }
        match self.fault {
            Some(Fault::PrepareWipes) => self.wipe().await?,
            Some(Fault::PrepareWorksOnce) if self.is_prepared.load(Ordering::SeqCst) => {
                return Err(error(ErrorKind::Rejected, "table `published` already exists"));
            }
            Some(Fault::PrepareRaces) => self.race().await?,
            _ => {}
        }
        self.is_prepared.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn wipe(&self) -> Result<()> {
        for table in [Table::Outbox, Table::Inbox] {
            let addresses = self.all(table).await?.iter().map(|record| record.id).collect();
            self.inner().delete(table, addresses).await?;
        }
        Ok(())
    }

    async fn race(&self) -> Result<()> {
        self.preparing.fetch_add(1, Ordering::SeqCst);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let others = self.preparing.load(Ordering::SeqCst) - 1;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.preparing.fetch_sub(1, Ordering::SeqCst);
        if others > 0 {
            return Err(error(ErrorKind::Rejected, "table `published` already exists"));
        }
        Ok(())
    }

    pub(super) async fn collect(&self, table: Table, limit: usize) -> Result<u64> {
        let inner = self.inner();
        let is_v1 = |record: &Record| record.version == Version::default();
        match self.fault {
            Some(Fault::CollectDeadlocks) if self.first_time() => {
                Err(error(ErrorKind::Unavailable, "deadlock found when trying to get lock"))
            }
            Some(Fault::CollectTakesUnexpired) => {
                self.delete_where(table, limit, |record| record.expires.is_some()).await
            }
            Some(Fault::CollectTakesWaiting) => {
                let waiting = self.delete_where(table, limit, |record| record.due.is_some()).await?;
                Ok(waiting + inner.collect(table, limit).await?)
            }
            Some(Fault::CollectIgnoresLimit) => inner.collect(table, usize::MAX).await,
            Some(Fault::CollectOnlyV1) => {
                self.delete_where(table, limit, |record| is_v1(record) && record.expires.is_some()).await
            }
            Some(Fault::CollectCountsTwice) => {
                let collected = inner.collect(table, limit).await?;
                let mut memo = self.memo();
                if collected > 0 {
                    memo.collected = collected;
                }
                Ok(memo.collected)
            }
            _ => inner.collect(table, limit).await,
        }
    }

    async fn delete_where(&self, table: Table, limit: usize, delete: impl Fn(&Record) -> bool) -> Result<u64> {
        let records = self.all(table).await?;
        let addresses = records.iter().filter(|record| delete(record)).take(limit).map(|record| record.id);
        self.inner().delete(table, addresses.collect()).await
    }

    pub(super) async fn counts(&self, table: Table, version: Version) -> Result<Counts> {
        let mut counts = self.inner().counts(table, version).await?;
        if self.has(Fault::CountsDeadAsRetrying) {
            counts.retrying += std::mem::take(&mut counts.dead);
        }
        Ok(counts)
    }

    pub(super) async fn list(&self, table: Table, mut query: Query) -> Result<Vec<Record>> {
        let shift = |after: Option<RecordId>, by| after.map(|RecordId(id)| RecordId(id + by));
        match self.fault {
            Some(Fault::ListIgnoresTopic) => query.topic = None,
            Some(Fault::ListIgnoresStatus) => query.status = None,
            Some(Fault::PagesOverlap) => query.after = shift(query.after, -1),
            Some(Fault::PagesSkip) => query.after = shift(query.after, 1),
            _ => {}
        }
        let mut records = self.inner().list(table, query).await?;
        for record in &mut records {
            let was_settled = self.memo().settled.contains(&(table, record.id));
            let added = record.added.as_micros();
            match self.fault {
                Some(Fault::SettleRewritesContent) if was_settled => {
                    record.content = format!(" {}", record.content).into()
                }
                Some(Fault::SettleMovesAdded) if was_settled => record.added = Timestamp::from_micros(added + 1),
                Some(Fault::ListHidesCrashes) => record.crashes = 0,
                Some(Fault::SettleKeepsCrashes) => self.tell_crashes(table, record),
                Some(Fault::ClockInLocalTime) => record.added = Timestamp::from_micros(added + 3_600_000_000),
                Some(Fault::ClockInSeconds) => record.added = Timestamp::from_micros(added - added % 1_000_000),
                _ => {}
            }
        }
        if self.has(Fault::ListUnordered) {
            records.reverse();
        }
        Ok(records)
    }

    pub(super) async fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> Result<u64> {
        let inner = self.inner();
        match self.fault {
            Some(Fault::EmptyListFails) if records.is_empty() => {
                Err(error(ErrorKind::Rejected, "syntax error near `)`"))
            }
            Some(Fault::RequeueKeepsCrashes) => inner.requeue(table, records, suspect(2)).await,
            Some(Fault::RequeueKeepsAttempts) => inner.requeue(table, records, given_back(4)).await,
            Some(Fault::RequeueTakesHeld) => {
                let holds = self.holds(table).await?;
                let settlements: Vec<_> = holds
                    .into_iter()
                    .filter(|(record, _)| records.contains(&record.id))
                    .map(|(record, token)| Settlement { record: record.id, token, state: requeued() })
                    .collect();
                inner.settle(table, settlements).await?;
                inner.requeue(table, records, state).await
            }
            _ => inner.requeue(table, records, state).await,
        }
    }

    pub(super) async fn delete(&self, table: Table, records: Vec<RecordId>) -> Result<u64> {
        let inner = self.inner();
        match self.fault {
            Some(Fault::DeleteTakesHeld) => {
                for (record, token) in self.holds(table).await? {
                    if let Some(node) = record.owner
                        && records.contains(&record.id)
                    {
                        inner.release(table, Claim { node, token }).await?;
                    }
                }
                inner.delete(table, records).await
            }
            Some(Fault::DeleteKeepsWaiting) => {
                let named: Vec<_> =
                    self.all(table).await?.into_iter().filter(|record| records.contains(&record.id)).collect();
                let waiting = named.iter().filter(|record| record.due.is_some()).count() as u64;
                let finished = named.iter().filter(|record| record.expires.is_some()).map(|record| record.id);
                Ok(waiting + inner.delete(table, finished.collect()).await?)
            }
            _ => inner.delete(table, records).await,
        }
    }

    pub(super) async fn watch(&self, wake: Wake) -> Result<()> {
        let inner = self.inner();
        match self.fault {
            Some(Fault::WatchIsSilent) => std::future::pending().await,
            Some(Fault::WatchKnowsOutboxOnly) => {
                let outbox_only = Wake::new(move |table| {
                    if table == Table::Outbox {
                        wake.wake(table);
                    }
                });
                inner.watch(outbox_only).await
            }
            Some(Fault::WatchNeverListens) => inner.watch(Wake::new(move |table| wake.wake(table))).await,
            Some(Fault::WatchListensTooSoon) => {
                let is_deaf = AtomicBool::new(true);
                wake.listens();
                let not_the_first = Wake::new(move |table| {
                    if !is_deaf.swap(false, Ordering::SeqCst) {
                        wake.wake(table);
                    }
                });
                inner.watch(not_the_first).await
            }
            Some(Fault::WatchListensLate) => {
                let late = Wake::new(move |table| {
                    wake.wake(table);
                    wake.listens();
                });
                inner.watch(late).await
            }
            Some(Fault::DroppedWatchBreaksHandle) => {
                let _breaks = Breaks(&self.is_broken);
                inner.watch(wake).await
            }
            _ => inner.watch(wake).await,
        }
    }
}

struct Breaks<'a>(&'a AtomicBool);

impl Drop for Breaks<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
