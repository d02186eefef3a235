//! Handlers in the transaction that settles their record.

use super::{BoxFuture, NewRecord, Settlement, Storage};
use crate::error::Result;
use crate::handler_error::HandlerError;

/// Work for [`Transact::transact`]: it may write through the transaction, and answers what to publish with it.
pub type Work<S> = Box<dyn for<'t> FnOnce(&mut <S as Transact>::Tx<'t>) -> Result<Vec<NewRecord>, HandlerError> + Send>;

/// How [`Transact::transact`] ended.
#[derive(Debug)]
pub enum Transacted {
    /// Everything is committed: the work's writes, the messages it published and the settlement.
    Committed,
    /// The work failed; nothing of it is left, the record is held as before.
    RolledBack(HandlerError),
    /// The record is no longer held under the token; nothing of the work is left.
    Lost,
}

/// Handlers that work inside the transaction that settles their own record (promise 5), for storages with a
/// synchronous driver.
///
/// 1. The work's writes, the records it answers (into the outbox; `Duplicate` ones are left out) and the settlement
///    are one commit.
/// 2. If the work fails or panics, nothing of it is left, and the record is held as before.
/// 3. If the record is not held under the settlement's token, the answer is `Lost` and nothing of the work is left.
/// 4. An error is the storage's own failure, not the work's. If its kind is `Unavailable` all or nothing is committed;
///    for any other nothing is.
pub trait Transact: Storage {
    /// What the work writes through.
    type Tx<'t>;

    /// Runs `work` and writes `settlement` of an inbox record, in one transaction.
    fn transact(&self, settlement: Settlement, work: Work<Self>) -> BoxFuture<'_, Result<Transacted>>
    where
        Self: Sized;
}

/// The same for storages with an asynchronous driver: the engine begins the transaction, lends it to the handler through the
/// extractor `Tx`, and commits it.
///
/// 1. The handler's writes, the records that are committed with it (into the outbox; `Duplicate` ones are left out) and
///    the settlement are one commit.
/// 2. Nothing is left of a transaction that is rolled back or dropped; the record is then held as before.
/// 3. If the record is not held under the settlement's token, `begin` answers `None` and nothing is begun. If it is lost
///    later, `commit` answers `LeaseLost` and nothing is committed; a database with locks keeps the record locked
///    instead, so that nobody can take it before this transaction ends.
/// 4. After an error of `commit` all or nothing is committed if its kind is `Unavailable`; for any other nothing is.
pub trait TransactAsync: Storage {
    /// The driver's own transaction, owned.
    type Tx: Send + 'static;

    /// Begins a transaction, and writes `settlement` of an inbox record in it.
    fn begin(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<Self::Tx>>>;

    /// Inserts `records` into the outbox in it, and commits.
    fn commit(&self, tx: Self::Tx, records: Vec<NewRecord>) -> BoxFuture<'_, Result<()>>;

    /// Takes everything back.
    fn rollback(&self, tx: Self::Tx) -> BoxFuture<'_, Result<()>>;
}
