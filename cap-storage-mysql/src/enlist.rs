//! Publishing inside the caller's own transaction.

use std::sync::Arc;

use cap_core::backend::Attempt;
use cap_core::storage::{Enlist, Inserted, NewRecord, Table};
use cap_core::{BoxFuture, ErrorKind, Result};
use cap_storage_sqlx::Fault;
use sqlx::pool::PoolConnection;
use sqlx::{MySql, MySqlConnection, Transaction};

use crate::error::Numbered;
use crate::insert;
use crate::session::MySqlServer;
use crate::sql::Sql;
use crate::storage::MySqlStorage;

fn enlist<'c>(
    storage: &MySqlStorage,
    connection: &'c mut MySqlConnection,
    records: Vec<NewRecord>,
) -> BoxFuture<'c, Result<Vec<Inserted>>> {
    let (sql, packet, assumed) = (Arc::clone(storage.sql()), storage.packet(), storage.packet_or_least());
    Box::pin(async move {
        let inserted = async {
            insert::check(Table::Outbox, &records, None, packet)?;
            insert::publish(connection, &sql, &records, assumed).await
        };
        // Where it was written the caller knows best: the connection is theirs.
        let place = "the caller's mysql connection";
        let attempt = Attempt::on("publish to", Table::Outbox);
        inserted.await.map_err(|fault| explain(fault, &sql).into_error::<MySqlServer>(attempt, place))
    })
}

fn explain(fault: Fault, sql: &Sql) -> Fault {
    if !fault.is_missing() {
        return fault;
    }
    let reason = format!(
        "this connection has no usable table {}: it is open on another database than the storage, or `prepare` has not run \
         on this one",
        sql.names.published
    );
    Fault::said(ErrorKind::Schema, reason)
}

impl<'c> Enlist<&'c mut MySqlConnection> for MySqlStorage {
    type Receipt = BoxFuture<'c, Result<Vec<Inserted>>>;

    fn enlist(&self, connection: &'c mut MySqlConnection, records: Vec<NewRecord>) -> Self::Receipt {
        enlist(self, connection, records)
    }
}

impl<'c> Enlist<&'c mut Transaction<'_, MySql>> for MySqlStorage {
    type Receipt = BoxFuture<'c, Result<Vec<Inserted>>>;

    fn enlist(&self, tx: &'c mut Transaction<'_, MySql>, records: Vec<NewRecord>) -> Self::Receipt {
        enlist(self, tx, records)
    }
}

impl<'c> Enlist<&'c mut PoolConnection<MySql>> for MySqlStorage {
    type Receipt = BoxFuture<'c, Result<Vec<Inserted>>>;

    fn enlist(&self, connection: &'c mut PoolConnection<MySql>, records: Vec<NewRecord>) -> Self::Receipt {
        enlist(self, connection, records)
    }
}
