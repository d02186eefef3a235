//! The user's transaction, and publishing inside of it.

use std::fmt;
use std::sync::Arc;

use cap_core::RecordId;
use cap_core::error::{ErrorKind, Result};
use cap_core::storage::{Enlist, Inserted, NewRecord, Settled, Settlement, Table};

use crate::state::{Key, Row};
use crate::storage::{MemoryStorage, Shared};

/// A transaction: business data and published messages become visible together when it is committed, and not at all
/// when it is rolled back or dropped.
///
/// It sees its own writes and all that others have committed meanwhile (read committed). A message id that one open
/// transaction has published cannot be published by another before that one ends: another transaction is refused with
/// `Unavailable`, an insert outside of transactions waits.
///
/// ```
/// # use cap_storage_memory::MemoryStorage;
/// let storage = MemoryStorage::new();
/// let mut tx = storage.begin();
/// tx.put("order/1", "placed");
/// let before_the_discount = tx.savepoint();
/// tx.put("order/1", "placed, 10 % off");
/// tx.rollback_to(before_the_discount);
/// tx.commit();
/// assert_eq!(storage.get("order/1").as_deref(), Some("placed"));
/// ```
#[must_use = "a transaction that is dropped is rolled back"]
pub struct MemoryTransaction {
    shared: Arc<Shared>,
    id: u64,
    staged: Vec<Staged>,
    /// The inbox record that it settles, and may have locked, if it was lent to a handler.
    settlement: Option<Settlement>,
}

/// One write that waits for the commit.
enum Staged {
    Record(i64, Row),
    Put(String, Option<String>),
}

/// A point in a transaction to which it can be rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Savepoint {
    writes: usize,
}

impl MemoryTransaction {
    pub(crate) fn begin(shared: Arc<Shared>) -> Self {
        let id = shared.lock().next_tx();
        Self { shared, id, staged: Vec::new(), settlement: None }
    }

    /// Writes a business value.
    pub fn put(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.staged.push(Staged::Put(key.into(), Some(value.into())));
    }

    /// Removes a business value.
    pub fn remove(&mut self, key: impl Into<String>) {
        self.staged.push(Staged::Put(key.into(), None));
    }

    /// A business value, as this transaction sees it.
    pub fn get(&self, key: &str) -> Option<String> {
        let own = self.staged.iter().rev().find_map(|write| match write {
            Staged::Put(written, value) if written == key => Some(value.clone()),
            _ => None,
        });
        own.unwrap_or_else(|| self.shared.lock().business.get(key).cloned())
    }

    /// Marks this point of the transaction.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint { writes: self.staged.len() }
    }

    /// Undoes what was written and published since `savepoint`. The savepoint stays and can be used again.
    pub fn rollback_to(&mut self, savepoint: Savepoint) {
        let first = savepoint.writes.min(self.staged.len());
        let undone = self.staged.split_off(first);
        self.unlock(&undone);
    }

    /// Makes everything visible at once. It cannot fail: the limits were checked when the messages were published.
    pub fn commit(mut self) {
        let shared = Arc::clone(&self.shared);
        let published = self.apply(&mut shared.lock());
        self.end(published);
    }

    /// Forgets everything; dropping the transaction does the same.
    pub fn rollback(self) {
        drop(self);
    }

    /// It is to settle an inbox record when it is committed.
    pub(crate) fn settling(mut self, settlement: Settlement) -> Self {
        self.settlement = Some(settlement);
        self
    }

    /// Commits together with the settlement that it was begun with.
    pub(crate) fn commit_own(mut self) -> Settled {
        let Some(settlement) = self.settlement.take() else { return Settled::Lost };
        self.shared.lock().records(Table::Inbox).unlock(settlement.record);
        self.commit_settled(Table::Inbox, &settlement)
    }

    /// Commits together with a settlement, or does nothing when the record is not held any more.
    pub(crate) fn commit_settled(mut self, table: Table, settlement: &Settlement) -> Settled {
        let shared = Arc::clone(&self.shared);
        let published = {
            let mut database = shared.lock();
            let now = database.now();
            let settled = database.records(table).settle(settlement, now);
            if settled != Settled::Written {
                return settled;
            }
            self.apply(&mut database)
        };
        self.end(published);
        Settled::Written
    }

    fn apply(&mut self, database: &mut crate::state::Database) -> bool {
        let mut published = false;
        for write in self.staged.drain(..) {
            match write {
                Staged::Record(id, row) => {
                    database.reserved.remove(&row.key());
                    database.records(Table::Outbox).insert(id, row);
                    published = true;
                }
                Staged::Put(key, Some(value)) => drop(database.business.insert(key, value)),
                Staged::Put(key, None) => drop(database.business.remove(&key)),
            }
        }
        published
    }

    fn end(self, published: bool) {
        if published {
            self.shared.wake(Table::Outbox);
            self.shared.unlocked.notify_waiters();
        }
    }

    fn unlock(&self, undone: &[Staged]) {
        let mut database = self.shared.lock();
        for write in undone {
            if let Staged::Record(_, row) = write {
                database.reserved.remove(&row.key());
            }
        }
        drop(database);
        self.shared.unlocked.notify_waiters();
    }

    /// Publishes `records`; `None` when another open transaction has published one of the ids, and then nothing is
    /// changed.
    pub(crate) fn publish(&mut self, storage: &MemoryStorage, records: &[NewRecord]) -> Result<Option<Vec<Inserted>>> {
        storage.check(Table::Outbox, records, None)?;
        let shared = Arc::clone(&self.shared);
        let mut database = shared.lock();
        let is_locked = |record: &NewRecord| {
            let key: Key = (record.message_id.clone(), None);
            database.reserved.get(&key).is_some_and(|owner| *owner != self.id)
        };
        if records.iter().any(is_locked) {
            return Ok(None);
        }
        storage.check_room(&database, records.len())?;
        let now = database.now();
        let insert = |record: &NewRecord| {
            let row = Row::new(record, None, now);
            let key = row.key();
            if database.reserved.contains_key(&key) || database.records(Table::Outbox).has(&key) {
                return Inserted::Duplicate;
            }
            let id = database.records(Table::Outbox).next_id();
            database.reserved.insert(key, self.id);
            self.staged.push(Staged::Record(id, row));
            Inserted::Stored(RecordId(id))
        };
        Ok(Some(records.iter().map(insert).collect()))
    }
}

impl Drop for MemoryTransaction {
    fn drop(&mut self) {
        if let Some(settlement) = self.settlement.take() {
            self.shared.lock().records(Table::Inbox).unlock(settlement.record);
        }
        if !self.staged.is_empty() {
            let undone = std::mem::take(&mut self.staged);
            self.unlock(&undone);
        }
    }
}

impl fmt::Debug for MemoryTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransaction").field("id", &self.id).field("writes", &self.staged.len()).finish()
    }
}

impl Enlist<&mut MemoryTransaction> for MemoryStorage {
    type Receipt = Result<Vec<Inserted>>;

    /// # Errors
    /// - `Invalid` when the transaction is one of another database.
    /// - `Unavailable` when another open transaction has published one of the ids, or the storage is full.
    /// - `Rejected` when a content is too long, `Invalid` when a record is in flight already.
    fn enlist(&self, tx: &mut MemoryTransaction, records: Vec<NewRecord>) -> Self::Receipt {
        if !Arc::ptr_eq(&self.shared, &tx.shared) {
            let reason = "the transaction belongs to another database";
            return Err(Self::error(ErrorKind::Invalid, "publish to", reason));
        }
        let locked = || {
            let reason = "another open transaction has published a message of the same id";
            Self::error(ErrorKind::Unavailable, "publish to", reason)
        };
        tx.publish(self, &records)?.ok_or_else(locked)
    }
}
