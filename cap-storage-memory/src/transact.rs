//! Handlers inside the transaction that settles their record.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cap_core::HandlerError;
use cap_core::error::{Error, ErrorKind, Result};
use cap_core::storage::{BoxFuture, NewRecord, Settled, Settlement, Table, Transact, TransactAsync, Transacted, Work};

use crate::enlist::MemoryTransaction;
use crate::storage::MemoryStorage;

impl Transact for MemoryStorage {
    type Tx<'t> = MemoryTransaction;

    /// A panic of the work is caught and answered as a failure that may be tried again.
    fn transact(&self, settlement: Settlement, work: Work<Self>) -> BoxFuture<'_, Result<Transacted>> {
        Box::pin(async move {
            if !self.shared.lock().records(Table::Inbox).is_held(settlement.record, settlement.token) {
                return Ok(Transacted::Lost);
            }
            let mut tx = self.begin();
            // Unwind safe: after a panic the transaction is only dropped.
            let done = catch_unwind(AssertUnwindSafe(|| work(&mut tx)))
                .unwrap_or_else(|panic| Err(HandlerError::retry(panic_reason(&*panic))));
            let messages = match done {
                Ok(messages) => messages,
                Err(error) => return Ok(Transacted::RolledBack(error)),
            };
            // The transaction may hold ids of its own while it waits; `lock_wait` ends a deadlock.
            self.unless_locked(|| tx.publish(self, &messages)).await?;
            match tx.commit_settled(Table::Inbox, &settlement) {
                Settled::Written => Ok(Transacted::Committed),
                Settled::Lost => Ok(Transacted::Lost),
                Settled::Locked => Err(locked()),
            }
        })
    }
}

fn locked() -> Error {
    let reason = "another open transaction has the record locked";
    MemoryStorage::error(ErrorKind::Unavailable, "run a handler in", reason)
}

/// A commit that comes too late is refused, unless the record is locked meanwhile
/// ([`lock_records`](crate::MemoryStorageOptions::lock_records)): then it cannot be too late.
impl TransactAsync for MemoryStorage {
    type Tx = MemoryTransaction;

    fn begin(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<MemoryTransaction>>> {
        Box::pin(async move {
            {
                let mut database = self.shared.lock();
                let inbox = database.records(Table::Inbox);
                if !inbox.is_held(settlement.record, settlement.token) {
                    return Ok(None);
                }
                if self.shared.options.lock_records && !inbox.lock(settlement.record) {
                    return Err(locked());
                }
            }
            Ok(Some(MemoryStorage::begin(self).settling(settlement)))
        })
    }

    fn commit(&self, mut tx: MemoryTransaction, records: Vec<NewRecord>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.unless_locked(|| tx.publish(self, &records)).await?;
            match tx.commit_own() {
                Settled::Written => Ok(()),
                Settled::Lost | Settled::Locked => {
                    let reason = "the record is another node's by now";
                    Err(Self::error(ErrorKind::LeaseLost, "commit a handler's work in", reason))
                }
            }
        })
    }

    fn rollback(&self, tx: MemoryTransaction) -> BoxFuture<'_, Result<()>> {
        tx.rollback();
        Box::pin(std::future::ready(Ok(())))
    }
}

fn panic_reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("without a text"))
}
