//! Publishing inside the caller's own transaction.

use cap_core::backend::Attempt;
use cap_core::storage::{Enlist, Inserted, NewRecord, Table};
use cap_core::{ErrorKind, Result};
use rusqlite::{Connection, Savepoint, Transaction};

use crate::error::{Fallible, Fault, is_missing};
use crate::insert;
use crate::sql::Sql;
use crate::storage::SqliteStorage;
use crate::transact::SqliteTx;

const SAVEPOINT: &str = "SAVEPOINT cap_publish";
const RELEASE: &str = "RELEASE cap_publish";
const ROLLBACK_TO: &str = "ROLLBACK TO cap_publish";

fn enlist(sql: &Sql, connection: &Connection, records: &[NewRecord]) -> Result<Vec<Inserted>> {
    let inserted = match records {
        [] => return Ok(Vec::new()),
        [_] => insert(sql, connection, records),
        _ => insert_all_or_none(sql, connection, records),
    };
    inserted.map_err(|fault| {
        let place = format!("sqlite {}", connection.path().filter(|path| !path.is_empty()).unwrap_or("in memory"));
        explain(fault, sql).into_error(Attempt::on("publish to", Table::Outbox), &place)
    })
}

/// One after the other over one prepared statement.
fn insert(sql: &Sql, connection: &Connection, records: &[NewRecord]) -> Fallible<Vec<Inserted>> {
    let mut statement = connection.prepare(&sql.published.insert)?;
    insert::insert_over(connection, &mut statement, Table::Outbox, records, None)
}

/// In a savepoint: without a transaction of the caller's it is one, and within it a failure leaves nothing behind.
fn insert_all_or_none(sql: &Sql, connection: &Connection, records: &[NewRecord]) -> Fallible<Vec<Inserted>> {
    connection.execute_batch(SAVEPOINT)?;
    let inserted = insert(sql, connection, records).and_then(|inserted| {
        connection.execute_batch(RELEASE)?;
        Ok(inserted)
    });
    if inserted.is_err() {
        // Fails only if SQLite has rolled everything back itself; the first error is the one to tell.
        drop(connection.execute_batch(ROLLBACK_TO).and_then(|()| connection.execute_batch(RELEASE)));
    }
    inserted
}

fn explain(fault: Fault, sql: &Sql) -> Fault {
    match fault {
        Fault::Sqlite(error) if is_missing(&error) => Fault::said(
            ErrorKind::Environment,
            format!(
                "this connection has no usable table {:?}: it is open on another database than the storage, or \
                 `prepare` has not run on this file",
                sql.names.published
            ),
        ),
        other => other,
    }
}

macro_rules! enlist_in {
    ($($connection:ty),+ $(,)?) => {$(
        impl Enlist<$connection> for SqliteStorage {
            type Receipt = Result<Vec<Inserted>>;

            fn enlist(&self, connection: $connection, records: Vec<NewRecord>) -> Self::Receipt {
                enlist(self.sql(), connection, &records)
            }
        }
    )+};
}

enlist_in! {
    &Connection,
    &mut Connection,
    &Transaction<'_>,
    &mut Transaction<'_>,
    &Savepoint<'_>,
    &mut Savepoint<'_>,
    &SqliteTx<'_>,
    &mut SqliteTx<'_>,
}
