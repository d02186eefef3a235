//! Handlers inside the transaction that settles their own record.

use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cap_core::backend::Attempt;
use cap_core::storage::{Settled, Settlement, Table, Transact, Transacted, Work};
use cap_core::{BoxFuture, ErrorKind, HandlerError, Result};
use rusqlite::{Connection, params};

use crate::error::{Fallible, Fault};
use crate::job::{self, Done};
use crate::session::Session;
use crate::sql::Sql;
use crate::storage::SqliteStorage;
use crate::{insert, settle};

/// What a transactional handler writes through: a [`rusqlite::Connection`] inside a transaction and a savepoint of the
/// storage's.
///
/// - Everything on the connection is allowed, savepoints of your own too, but do not end the transaction (`COMMIT`,
///   `ROLLBACK`) and do not change the connection's settings: it is the one that the storage writes with. A handler
///   that ends the transaction is answered with an error, and so is what was written together with it: it may or may
///   not be stored, and is found out and done again.
/// - Keep it short. SQLite has one writer: while a handler works, nobody else writes to the file, so that everybody's
///   claims and settlements wait. The node keeps its lease meanwhile, however long it takes.
pub struct SqliteTx<'t> {
    connection: &'t Connection,
}

impl Deref for SqliteTx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

impl fmt::Debug for SqliteTx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteTx")
    }
}

impl Transact for SqliteStorage {
    type Tx<'t> = SqliteTx<'t>;

    fn transact(&self, settlement: Settlement, work: Work<Self>) -> BoxFuture<'_, Result<Transacted>> {
        let attempt = Attempt::on("commit a handler's work with", Table::Inbox);
        Box::pin(self.writer().run_done(attempt, move |session| transact(session, &settlement, work)))
    }
}

/// Runs on the writer's thread, in a savepoint.
fn transact(
    session: &mut Session<'_>,
    settlement: &Settlement,
    work: Work<SqliteStorage>,
) -> Fallible<Done<Transacted>> {
    let Session { connection, sql, leases, .. } = *session;
    if settle::settle(session.statement(&sql.received.settle)?, std::slice::from_ref(settlement))? != [Settled::Written]
    {
        return Ok(Done::Undone(Transacted::Lost));
    }

    let mut tx = SqliteTx { connection };
    leases.begin_work(settlement.record);
    let worked = catch_unwind(AssertUnwindSafe(|| work(&mut tx)))
        .unwrap_or_else(|panic| Err(HandlerError::retry(format!("the handler panicked: {}", job::text_of(&*panic)))));
    leases.end_work();
    if connection.is_autocommit() {
        return Err(broken_out(worked.err(), is_held(connection, sql, settlement)));
    }
    let published = match worked {
        Ok(published) => published,
        Err(error) => return Ok(Done::Undone(Transacted::RolledBack(error))),
    };

    insert::insert_over(connection, session.statement(&sql.published.insert)?, Table::Outbox, &published, None)?;
    if session.commit_may_be_refused()? {
        return Ok(Done::KeptUnlessRefused(Transacted::Committed, |error| {
            Transacted::RolledBack(HandlerError::retry(error.reason()))
        }));
    }
    Ok(Done::Kept(Transacted::Committed))
}

/// Whether nothing is left of the settlement, once the transaction is over.
fn is_held(connection: &Connection, sql: &Sql, settlement: &Settlement) -> bool {
    let held = params![settlement.record.0, settlement.token.to_string()];
    connection.query_row(&sql.is_held, held, |row| row.get(0)).unwrap_or(false)
}

/// SQLite itself rolls everything back when the disk is full or fails: that is what a handler's error with nothing left
/// behind is, and no fault of the message.
fn broken_out(error: Option<HandlerError>, is_held: bool) -> Fault {
    if let Some(error) = error.as_ref().filter(|_| is_held) {
        let reason = format!("SQLite rolled the transaction back while the handler worked, which answered: {error}");
        return Fault::said(ErrorKind::Environment, reason);
    }
    let after = error.map(|error| format!(" (it answered: {error})")).unwrap_or_default();
    Fault::said(
        ErrorKind::Rejected,
        format!(
            "the transaction was over when the handler returned{after}: it ran COMMIT or ROLLBACK, which it must not; \
             what it wrote may be stored or not"
        ),
    )
}
