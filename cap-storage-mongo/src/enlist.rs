//! Publishing inside the caller's own transaction.

use cap_core::backend::Attempt;
use cap_core::storage::{Enlist, Inserted, NewRecord, Table};
use cap_core::{BoxFuture, ErrorKind, Result};
use mongodb::ClientSession;

use crate::error::{Fallible, Fault};
use crate::insert;
use crate::session::{Db, is_in_transaction};
use crate::storage::MongoStorage;

const PUBLISH: Attempt = Attempt::on("publish to", Table::Outbox);

/// The session must have a transaction. The future must be driven to its end, as any of the driver's. What the server
/// refuses because another transaction was quicker ends the caller's transaction; the error is `Unavailable`, and
/// [`driver_error`](crate::driver_error) has the label `TransientTransactionError`.
impl<'c> Enlist<&'c mut ClientSession> for MongoStorage {
    type Receipt = BoxFuture<'c, Result<Vec<Inserted>>>;

    fn enlist(&self, session: &'c mut ClientSession, records: Vec<NewRecord>) -> Self::Receipt {
        let db = self.clients().db();
        Box::pin(async move {
            // Where it was written the caller knows best: the session is theirs.
            let place = "the caller's mongodb session";
            publish(&db, session, &records).await.map_err(|fault| fault.into_error(PUBLISH, place))
        })
    }
}

async fn publish(db: &Db, session: &mut ClientSession, records: &[NewRecord]) -> Fallible<Vec<Inserted>> {
    if !is_in_transaction(session).await? {
        let reason = "the session has no transaction: call `start_transaction` first, so that the message shares the \
                      fate of your data";
        return Err(Fault::said(ErrorKind::Invalid, reason));
    }
    insert::check(Table::Outbox, records, None, db.longest())?;
    // Over the session's own client: it may be another one than the storage's.
    let db = db.over(session.client());
    insert::publish(&db, session, records).await.map_err(|fault| match fault {
        Fault::Said(ErrorKind::Environment, reason) => Fault::said(
            ErrorKind::Environment,
            format!("{reason}; or the session is one of another cluster than the storage's"),
        ),
        other => other,
    })
}
