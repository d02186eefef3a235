//! Publishing inside the caller's own transaction.

use cap_core::backend::Attempt;
use cap_core::storage::{Enlist, Inserted, NewRecord, Table};
use cap_core::{BoxFuture, ErrorKind, Result};
use cap_storage_sqlx::{Errors, Fallible, Fault};
use sqlx::pool::PoolConnection;
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::error::{is_aborted, is_missing, is_outside_of_transaction};
use crate::session::PostgresServer;
use crate::sql::Sql;
use crate::storage::PostgresStorage;
use crate::{insert, publish, sql};

/// One statement, so that it is all or nothing also outside of a transaction (but see `publish.rs`).
fn enlist<'c>(
    storage: &PostgresStorage,
    connection: &'c mut PgConnection,
    records: Vec<NewRecord>,
) -> BoxFuture<'c, Result<Vec<Inserted>>> {
    let storage = storage.clone();
    Box::pin(async move {
        let inserted = async {
            insert::check(Table::Outbox, &records, None)?;
            if storage.sql().names.lending.is_on() {
                return publish_lent(connection, &storage, &records).await;
            }
            publish::publish(&mut *connection, &storage, &records).await
        };
        let inserted = inserted.await;
        if inserted.as_ref().is_err_and(is_stale) {
            // The connection is the caller's: all that can be done is not to use what was prepared in it again.
            drop(connection.clear_cached_statements().await);
        }
        // Where it was written the caller knows best: the connection is theirs.
        let place = "the caller's postgres connection";
        let attempt = Attempt::on("publish to", Table::Outbox);
        inserted.map_err(|fault| explain(fault, storage.sql()).into_error::<PostgresServer>(attempt, place))
    })
}

/// Where sessions are lent a statement needs a transaction: that of the caller, or one of its own.
async fn publish_lent(
    connection: &mut PgConnection,
    storage: &PostgresStorage,
    records: &[NewRecord],
) -> Fallible<Vec<Inserted>> {
    match sqlx::raw_sql(sql::IN_TRANSACTION).execute(&mut *connection).await {
        Ok(_) => {
            sqlx::raw_sql(sql::FORGET_SAVEPOINT).execute(&mut *connection).await?;
            publish::publish(connection, storage, records).await
        }
        Err(error) if is_outside_of_transaction(&error) => {
            let mut tx = connection.begin().await?;
            let inserted = publish::publish(&mut tx, storage, records).await?;
            tx.commit().await?;
            Ok(inserted)
        }
        Err(error) => Err(error.into()),
    }
}

fn is_stale(fault: &Fault) -> bool {
    fault.driver().is_some_and(PostgresServer::is_stale)
}

fn explain(fault: Fault, sql: &Sql) -> Fault {
    match fault {
        Fault::Sqlx(error) if is_missing(&error) => Fault::said(
            ErrorKind::Schema,
            format!(
                "this connection has no usable table {}: it is open on another database than the storage, or `prepare` \
                 has not run on this one",
                sql.names.published
            ),
        ),
        Fault::Sqlx(error) if is_aborted(&error) => Fault::said(
            ErrorKind::Rejected,
            "a statement before it failed, and PostgreSQL takes nothing more until the transaction is rolled back",
        ),
        other => other,
    }
}

impl<'c> Enlist<&'c mut PgConnection> for PostgresStorage {
    type Receipt = BoxFuture<'c, Result<Vec<Inserted>>>;

    fn enlist(&self, connection: &'c mut PgConnection, records: Vec<NewRecord>) -> Self::Receipt {
        enlist(self, connection, records)
    }
}

impl<'c> Enlist<&'c mut Transaction<'_, Postgres>> for PostgresStorage {
    type Receipt = BoxFuture<'c, Result<Vec<Inserted>>>;

    fn enlist(&self, tx: &'c mut Transaction<'_, Postgres>, records: Vec<NewRecord>) -> Self::Receipt {
        enlist(self, tx, records)
    }
}

impl<'c> Enlist<&'c mut PoolConnection<Postgres>> for PostgresStorage {
    type Receipt = BoxFuture<'c, Result<Vec<Inserted>>>;

    fn enlist(&self, connection: &'c mut PoolConnection<Postgres>, records: Vec<NewRecord>) -> Self::Receipt {
        enlist(self, connection, records)
    }
}
