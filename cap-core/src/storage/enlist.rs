//! Publishing in the caller's own transaction.

use super::{BoxFuture, Inserted, NewRecord, Storage};
use crate::error::{Error, Result};
use crate::id::MessageId;
use crate::published::Published;

/// Publishing inside the caller's own transaction, with the driver's own type `C`: `&rusqlite::Connection`,
/// `&mut sqlx::PgConnection`, `&mut mongodb::ClientSession`.
///
/// 1. The records become visible when the caller commits, and never if the caller rolls back.
/// 2. Nothing is sent and nobody is told before that; the caller's transaction carries nothing but the insert.
/// 3. `Duplicate` leaves the caller's transaction usable.
pub trait Enlist<C>: Storage {
    /// `Result<Vec<Inserted>>` for a synchronous driver, a [`BoxFuture`] of it for an asynchronous one.
    type Receipt: Receipt;

    /// Inserts `records` into the outbox over the caller's connection.
    fn enlist(&self, connection: C, records: Vec<NewRecord>) -> Self::Receipt;
}

/// What [`Enlist::enlist`] answers, seen by the engine: something that becomes a [`Published`].
pub trait Receipt: Sized {
    /// What `publish_in` answers.
    type Published;

    /// The answer when the message was refused before the storage was asked.
    fn refused(error: Error) -> Self::Published;

    /// The answer for messages with these ids; `stored` runs after they were inserted.
    fn published(self, ids: Vec<MessageId>, stored: impl FnOnce() + Send + 'static) -> Self::Published;
}

impl Receipt for Result<Vec<Inserted>> {
    type Published = Result<Published>;

    fn refused(error: Error) -> Self::Published {
        Err(error)
    }

    fn published(self, ids: Vec<MessageId>, stored: impl FnOnce() + Send + 'static) -> Self::Published {
        let inserted = self?;
        stored();
        Ok(Published::new(ids, &inserted))
    }
}

impl<'a> Receipt for BoxFuture<'a, Result<Vec<Inserted>>> {
    type Published = BoxFuture<'a, Result<Published>>;

    fn refused(error: Error) -> Self::Published {
        Box::pin(std::future::ready(Err(error)))
    }

    fn published(self, ids: Vec<MessageId>, stored: impl FnOnce() + Send + 'static) -> Self::Published {
        Box::pin(async move { self.await.published(ids, stored) })
    }
}
