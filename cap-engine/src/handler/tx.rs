//! The extractor of a transaction that settles the handler's own record (promise 5), for storages with an asynchronous
//! driver.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cap_core::storage::{NewRecord, TransactAsync};
use cap_core::{BoxFuture, ErrorKind, HandlerError, Result};

use crate::handler::call::Call;
use crate::handler::extract::{FromCall, Requirement};
use crate::handler::handled::Handled;
use crate::handler::to_its_end;

/// The transaction that settles the handler's record; an extractor, and the driver's own transaction by `Deref`.
///
/// What the handler writes through it, what it publishes through [`Outbox`](crate::Outbox), its reply and its record's
/// success are one commit. The engine commits after the handler has returned successfully and takes everything back
/// otherwise; the handler itself neither commits nor keeps it. The record is locked meanwhile.
///
/// It must be dropped when the handler returns: one that was given to a task that still runs is an error, and nothing
/// is committed.
pub struct Tx<S: TransactAsync> {
    transaction: Option<S::Tx>,
    slot: Arc<Slot>,
    storage: Arc<S>,
}

/// Where the transaction is while the handler does not have it.
#[derive(Default)]
pub(crate) struct Slot(Mutex<Lent>);

#[derive(Default)]
enum Lent {
    /// The handler never asked for one.
    #[default]
    Never,
    /// The record was not ours any more when it asked.
    Lost,
    /// The handler has it.
    Out,
    /// It is back.
    Back(Box<dyn Finish>),
}

impl Slot {
    fn lent(&self) -> MutexGuard<'_, Lent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the transaction according to how the handler ended, if it asked for one.
    pub(crate) async fn finish(
        &self,
        handled: Result<Handled, HandlerError>,
        records: impl FnOnce(Option<bytes::Bytes>) -> Result<Vec<NewRecord>> + Send,
    ) -> Result<Handled, HandlerError> {
        let back = match std::mem::take(&mut *self.lent()) {
            Lent::Never => return handled,
            Lent::Lost => return Ok(Handled::Lost),
            Lent::Out => return Err(handled.err().unwrap_or_else(still_out)),
            Lent::Back(back) => back,
        };
        let reply = match handled {
            Ok(Handled::Done(reply)) => reply,
            other => {
                if let Err(error) = back.rollback().await {
                    tracing::warn!(error.message = %error, "a handler's transaction was not rolled back cleanly");
                }
                return other;
            }
        };
        let records = records(reply).map_err(HandlerError::permanent)?;
        match back.commit(records).await {
            Ok(()) => Ok(Handled::Settled),
            Err(error) if error.kind() == ErrorKind::LeaseLost => Ok(Handled::Lost),
            Err(error) => Err(HandlerError::of_storage(&error)),
        }
    }
}

fn still_out() -> HandlerError {
    HandlerError::retry("the handler returned, but its transaction is still in use elsewhere: nothing was committed")
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// A transaction of any storage, to be ended.
trait Finish: Send {
    fn commit(self: Box<Self>, records: Vec<NewRecord>) -> BoxFuture<'static, Result<()>>;
    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

struct Open<S: TransactAsync> {
    transaction: S::Tx,
    storage: Arc<S>,
}

impl<S: TransactAsync> Finish for Open<S> {
    fn commit(self: Box<Self>, records: Vec<NewRecord>) -> BoxFuture<'static, Result<()>> {
        Box::pin(to_its_end(async move { self.storage.commit(self.transaction, records).await }))
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(to_its_end(async move { self.storage.rollback(self.transaction).await }))
    }
}

impl<S: TransactAsync> FromCall for Tx<S> {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        let storage: Arc<S> = Arc::clone(&call.services().storage)
            .downcast()
            .map_err(|_| HandlerError::retry(format!("the engine's storage is no `{}`", std::any::type_name::<S>())))?;
        if !matches!(*call.slot.lent(), Lent::Never) {
            return Err(HandlerError::permanent("a handler has one transaction: `Tx` was asked for twice"));
        }
        let (beginning, success) = (Arc::clone(&storage), call.success().clone());
        let begun = to_its_end(async move { beginning.begin(success).await }).await;
        match begun.map_err(|error| HandlerError::of_storage(&error))? {
            Some(transaction) => {
                *call.slot.lent() = Lent::Out;
                Ok(Self { transaction: Some(transaction), slot: Arc::clone(&call.slot), storage })
            }
            None => {
                *call.slot.lent() = Lent::Lost;
                Err(HandlerError::retry("another node has the record"))
            }
        }
    }

    fn requires(requirements: &mut Vec<Requirement>) {
        requirements.push(Requirement::storage::<S>());
    }
}

impl<S: TransactAsync> Drop for Tx<S> {
    fn drop(&mut self) {
        if let Some(transaction) = self.transaction.take() {
            let storage = Arc::clone(&self.storage);
            *self.slot.lent() = Lent::Back(Box::new(Open { transaction, storage }));
        }
    }
}

impl<S: TransactAsync> Deref for Tx<S> {
    type Target = S::Tx;

    fn deref(&self) -> &S::Tx {
        self.transaction.as_ref().expect("it is there until this is dropped")
    }
}

impl<S: TransactAsync> DerefMut for Tx<S> {
    fn deref_mut(&mut self) -> &mut S::Tx {
        self.transaction.as_mut().expect("it is there until this is dropped")
    }
}

impl<S: TransactAsync> fmt::Debug for Tx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tx")
    }
}

/// The engine's storage, for [`Tx`] to find its own type in.
pub(crate) type AnyStorage = Arc<dyn Any + Send + Sync>;
