//! The fixture of a double: the user's transactions and transactional handlers, with their faults.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cap_core::storage::{BoxFuture, Inserted, NewRecord, Settlement, Storage, StorageCapabilities, Table, Transacted};
use cap_core::{Error, ErrorKind, HandlerError, MessageId, RecordId, Result};

use super::double::{Double, KNOWN_SCHEMA, Lent, Manner, SECRET, error, given_back};
use super::fault::StorageFault as Fault;
use super::storage::{FaultyStorage, unusable};
use crate::storage::fixture::{HandlerTransaction, Script, ScriptEnd, StorageFixture, UserTransaction};

/// The memory storage with one fault, or with none. It pretends to be persistent, to have a schema version and to
/// connect with a password, so that every check applies to it.
#[derive(Debug)]
pub struct FaultyFixture {
    double: Arc<Double>,
}

impl FaultyFixture {
    /// An empty database that makes this mistake.
    pub fn new(fault: Fault) -> Self {
        Self::of(Some(fault), Manner::Full)
    }

    /// One without a fault. Like the two that follow it must pass every check: what fails on it is wrong itself.
    pub fn sound() -> Self {
        Self::of(None, Manner::Full)
    }

    /// One without a fault that offers the least.
    pub fn modest() -> Self {
        Self::of(None, Manner::Modest)
    }

    /// One without a fault in which every write waits for the transaction that is open, and whose clock nobody moves.
    pub fn single_writer() -> Self {
        Self::of(None, Manner::SingleWriter)
    }

    fn of(fault: Option<Fault>, manner: Manner) -> Self {
        Self { double: Arc::new(Double::new(fault, manner)) }
    }

    fn refuses(&self, operation: &'static str) -> Result<()> {
        if self.double.manner == Manner::Modest {
            return Err(Error::unsupported(operation, "the modest double"));
        }
        Ok(())
    }

    /// Commits effects as the user would, apart from everything else.
    fn keep(&self, effects: &[String]) {
        let mut tx = self.double.inner().begin();
        for effect in effects {
            tx.put(effect.clone(), "");
        }
        tx.commit();
    }

    fn undo_all_effects(&self) {
        let memory = self.double.inner();
        let mut tx = memory.begin();
        for (effect, _) in memory.entries() {
            tx.remove(effect);
        }
        tx.commit();
    }

    /// The script with everything in its transaction but the settlement.
    async fn play_unsettled(&self, script: Script) -> Result<Transacted> {
        self.keep(&script.effects);
        self.double.inner().insert(Table::Outbox, script.publish, None).await?;
        Ok(Transacted::Committed)
    }

    async fn spoiled_transact(&self, settlement: Settlement, mut script: Script) -> Result<Transacted> {
        self.refuses("run a transactional handler in")?;
        let effects = script.effects.clone();
        let end = script.end.clone();
        match self.double.fault {
            Some(Fault::HandlerForgetsSettlement) if end == ScriptEnd::Succeed => {
                return self.play_unsettled(script).await;
            }
            Some(Fault::HandlerForgetsMessages) => script.publish.clear(),
            Some(Fault::HandlerFailsOnDuplicate) => {
                let mut ids = HashSet::new();
                for record in &script.publish {
                    if self.double.is_known(Table::Outbox, record).await? || !ids.insert(record.message_id.clone()) {
                        return Ok(Transacted::RolledBack(HandlerError::retry("unique constraint violated")));
                    }
                }
            }
            _ => {}
        }
        let result = self.double.fixture().transact(settlement.clone(), script).await;
        if self.double.has(Fault::RefusedHandlerKeepsEffects) && result.is_err() {
            self.keep(&effects);
        }
        let outcome = result?;
        match (self.double.fault, &outcome) {
            (Some(Fault::FailedHandlerKeepsEffects), _) if matches!(end, ScriptEnd::Fail(_)) => self.keep(&effects),
            (Some(Fault::PanickedHandlerKeepsEffects), _) if end == ScriptEnd::Panic => self.keep(&effects),
            (Some(Fault::HandlerIgnoresToken), Transacted::Lost) => self.keep(&effects),
            (Some(Fault::HandlersShareTransaction), Transacted::RolledBack(_)) => self.undo_all_effects(),
            (Some(Fault::FailedHandlerGivesRecordBack), Transacted::RolledBack(_)) => {
                let settlement = Settlement { state: given_back(0), ..settlement };
                self.double.inner().settle(Table::Inbox, vec![settlement]).await?;
            }
            _ => {}
        }
        Ok(outcome)
    }
}

impl StorageFixture for FaultyFixture {
    fn capabilities(&self) -> StorageCapabilities {
        self.double.capabilities()
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Storage>>> {
        let nobody_is_left = Arc::strong_count(&self.double.handles) == 1;
        if self.double.has(Fault::ReopenedIsEmpty) && nobody_is_left {
            self.double.forget_everything();
        }
        Box::pin(async {
            if self.double.has(Fault::JoinNeedsRuntime) || self.double.has(Fault::HeartbeatNeedsRuntime) {
                self.double.until_runtime_runs().await?;
            }
            Ok(Arc::new(FaultyStorage::new(&self.double)) as Arc<dyn Storage>)
        })
    }

    fn effects(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async { self.double.fixture().effects().await })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn UserTransaction>>> {
        Box::pin(async {
            self.refuses("begin a transaction of")?;
            let inner = self.double.fixture().begin().await?;
            Ok(Box::new(FaultyTransaction::new(&self.double, inner)) as Box<dyn UserTransaction>)
        })
    }

    fn transact(&self, settlement: Settlement, script: Script) -> BoxFuture<'_, Result<Transacted>> {
        Box::pin(self.spoiled_transact(settlement, script))
    }

    fn begin_handler(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<Box<dyn HandlerTransaction>>>> {
        Box::pin(async {
            self.refuses("begin a handler's transaction in")?;
            let record = settlement.record;
            let lent = match self.double.has(Fault::HandlersReturnWhereTheyRan) {
                true => Some(self.double.connection().await?),
                false => None,
            };
            let Some(inner) = self.double.fixture().begin_handler(settlement).await? else { return Ok(None) };
            Ok(Some(Box::new(FaultyHandler::new(&self.double, inner, record, lent)) as Box<dyn HandlerTransaction>))
        })
    }

    fn pass(&self, time: Duration) -> BoxFuture<'_, ()> {
        if self.double.manner == Manner::SingleWriter {
            return Box::pin(tokio::time::sleep(time));
        }
        self.double.inner().advance(time);
        Box::pin(async {})
    }

    fn single_writer(&self) -> bool {
        self.double.manner == Manner::SingleWriter
    }

    fn can_refuse_writes(&self) -> bool {
        self.double.manner == Manner::Full
    }

    fn set_writable(&self, writable: bool) -> BoxFuture<'_, Result<()>> {
        self.double.is_writable.store(writable, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn can_set_addresses_back(&self) -> bool {
        self.double.manner == Manner::Full
    }

    fn set_addresses_back(&self) -> BoxFuture<'_, Result<()>> {
        self.double.are_addresses_behind.store(true, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn set_unknown_schema_version(&self) -> BoxFuture<'_, Result<()>> {
        self.double.schema.store(KNOWN_SCHEMA + 96, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn unusable(&self) -> Option<(Arc<dyn Storage>, String)> {
        (self.double.manner == Manner::Full).then(|| unusable(self.double.fault))
    }

    fn secret(&self) -> Option<String> {
        Some(SECRET.to_owned())
    }
}

struct FaultyTransaction {
    double: Arc<Double>,
    /// Always there, until it is committed, rolled back or leaked.
    inner: Option<Box<dyn UserTransaction>>,
    published: Vec<MessageId>,
    last_batch: Vec<NewRecord>,
    is_doomed: bool,
}

impl FaultyTransaction {
    fn new(double: &Arc<Double>, inner: Box<dyn UserTransaction>) -> Self {
        double.transactions.send_modify(|open| *open += 1);
        let (published, last_batch) = (Vec::new(), Vec::new());
        Self { double: Arc::clone(double), inner: Some(inner), published, last_batch, is_doomed: false }
    }

    fn inner(&mut self) -> Result<&mut Box<dyn UserTransaction>> {
        if self.is_doomed {
            return Err(error(ErrorKind::Rejected, "the current transaction is aborted"));
        }
        self.inner.as_mut().ok_or_else(|| error(ErrorKind::Invalid, "the transaction has ended"))
    }
}

impl Drop for FaultyTransaction {
    fn drop(&mut self) {
        self.double.transactions.send_modify(|open| *open -= 1);
        let mut memo = self.double.memo();
        for id in &self.published {
            memo.pending.remove(id);
        }
        drop(memo);
        if self.double.has(Fault::RollbackKeepsIds) {
            std::mem::forget(self.inner.take());
        }
    }
}

impl UserTransaction for FaultyTransaction {
    fn write(&mut self, effect: String) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.inner()?.write(effect).await })
    }

    fn publish(&mut self, records: Vec<NewRecord>) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        Box::pin(async {
            let ids = records.iter().map(|record| record.message_id.clone());
            self.published.extend(ids.clone());
            self.double.memo().pending.extend(ids);
            if self.double.meets_taken_address(Fault::TakenAddressFailsTransaction) {
                self.is_doomed = true;
                return Err(error(ErrorKind::Environment, "duplicate key value violates unique constraint"));
            }
            match self.double.fault {
                Some(Fault::EnlistForgets) => return Ok(vec![Inserted::Stored(RecordId(0)); records.len()]),
                Some(Fault::EnlistKeepsLastBatchOnly) => {
                    let answer = vec![Inserted::Stored(RecordId(0)); records.len()];
                    self.last_batch = records;
                    return Ok(answer);
                }
                Some(Fault::EnlistCommitsAtOnce) => {
                    return self.double.inner().insert(Table::Outbox, records, None).await;
                }
                _ => {}
            }
            let inserted = self.inner()?.publish(records).await?;
            self.is_doomed =
                self.double.has(Fault::DuplicateDoomsTransaction) && inserted.contains(&Inserted::Duplicate);
            Ok(inserted)
        })
    }

    fn savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.inner()?.savepoint().await })
    }

    fn rollback_to_savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if self.double.has(Fault::SavepointForgotten) {
                return Ok(());
            }
            self.inner()?.rollback_to_savepoint().await
        })
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let last_batch = std::mem::take(&mut self.last_batch);
            self.inner()?.publish(last_batch).await?;
            match self.inner.take() {
                Some(inner) => inner.commit().await,
                None => Ok(()),
            }
        })
    }

    fn rollback(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            match self.inner.take() {
                Some(inner) if self.double.has(Fault::RollbackKeepsIds) => std::mem::forget(inner),
                Some(inner) => return inner.rollback().await,
                None => {}
            }
            Ok(())
        })
    }
}

struct FaultyHandler {
    double: Arc<Double>,
    inner: Option<Box<dyn HandlerTransaction>>,
    record: RecordId,
    /// Its connection, where that matters.
    _lent: Option<Lent>,
}

impl FaultyHandler {
    fn new(double: &Arc<Double>, inner: Box<dyn HandlerTransaction>, record: RecordId, lent: Option<Lent>) -> Self {
        double.transactions.send_modify(|open| *open += 1);
        double.memo().locked.insert(record);
        Self { double: Arc::clone(double), inner: Some(inner), record, _lent: lent }
    }

    fn inner(&mut self) -> Result<Box<dyn HandlerTransaction>> {
        self.inner.take().ok_or_else(|| error(ErrorKind::Invalid, "the transaction has ended"))
    }
}

impl Drop for FaultyHandler {
    fn drop(&mut self) {
        drop(self.inner.take());
        self.double.memo().locked.remove(&self.record);
        self.double.transactions.send_modify(|open| *open -= 1);
    }
}

impl HandlerTransaction for FaultyHandler {
    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.inner()?.commit().await })
    }

    fn rollback(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.inner()?.rollback().await })
    }
}
