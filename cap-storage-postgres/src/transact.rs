//! Handlers inside the transaction that settles their own record.

use cap_core::backend::Attempt;
use cap_core::storage::{NewRecord, Settled, Settlement, Table, TransactAsync};
use cap_core::{BoxFuture, ErrorKind, Result};
use cap_storage_sqlx::{Fallible, Fault, Via};
use sqlx::{Postgres, Row, Transaction};

use crate::storage::PostgresStorage;
use crate::{insert, publish, settle, sql};

const BEGIN: Attempt = Attempt::on("begin a handler's transaction with", Table::Inbox);
const COMMIT: Attempt = Attempt::on("commit a handler's work with", Table::Inbox);

/// The transaction is the driver's own: everything on it is allowed, savepoints too, but do not end it with SQL of your
/// own (`COMMIT`, `ROLLBACK`). It is `READ COMMITTED` unless the database says otherwise, and has one of the pool's
/// connections and its record's lock until it ends.
impl TransactAsync for PostgresStorage {
    type Tx = Transaction<'static, Postgres>;

    fn begin(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<Self::Tx>>> {
        Box::pin(async move {
            let limit = self.pools().limit();
            let begun = tokio::time::timeout(limit, begin(self, &settlement)).await;
            begun.unwrap_or_else(|_| Err(Fault::no_answer(limit))).map_err(|fault| self.pools().explain(fault, BEGIN))
        })
    }

    fn commit(&self, tx: Self::Tx, records: Vec<NewRecord>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let limit = self.pools().limit();
            let committed = tokio::time::timeout(limit, commit(self, tx, &records)).await;
            committed
                .unwrap_or_else(|_| Err(Fault::no_answer(limit)))
                .map_err(|fault| self.pools().explain(fault, COMMIT))?;
            if !records.is_empty() {
                self.notifier().tell(Table::Outbox);
            }
            Ok(())
        })
    }

    fn rollback(&self, tx: Self::Tx) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let attempt = Attempt::on("roll back a handler's work with", Table::Inbox);
            self.pools().end(tx.rollback()).await.map_err(|fault| self.pools().explain(fault, attempt))
        })
    }
}

/// The settlement comes first: from then on the record is locked, and nobody can take it before this transaction ends.
async fn begin(storage: &PostgresStorage, settlement: &Settlement) -> Fallible<Option<Transaction<'static, Postgres>>> {
    let place = if storage.pools().has_terms().await? { find(storage, settlement).await? } else { None };
    let context = (&storage.sql().received, settlement, place);
    let begin = storage.pools().begin(sql::BEGIN_HANDLER, &context, |connection, (sql, settlement, place)| {
        Box::pin(async move {
            if let Some(place) = place
                && settle::settle_at(connection, sql, settlement, place).await?
            {
                return Ok(true);
            }
            let settled = settle::settle_within(connection, sql, std::slice::from_ref(*settlement), None).await?;
            Ok(settled == [Settled::Written])
        })
    });
    let (tx, is_settled) = begin.await?;
    if !is_settled {
        storage.pools().end(tx.rollback()).await?;
        return Ok(None);
    }
    Ok(Some(tx))
}

/// Where the record is, as seen from outside of the transaction.
async fn find(storage: &PostgresStorage, settlement: &Settlement) -> Fallible<Option<String>> {
    let attempt = Attempt::on("look for a record of", Table::Inbox);
    let context = (&storage.sql().received.place, settlement.record.0);
    let find = storage.pools().run(Via::Work, attempt, context, |connection, (statement, record)| {
        Box::pin(async move {
            let place = statement.query().bind(*record).fetch_optional(connection).await?;
            Ok(place.map(|place| place.try_get(0)).transpose()?)
        })
    });
    find.await.map_err(|error| Fault::said(error.kind(), error.reason()))
}

async fn commit(
    storage: &PostgresStorage,
    mut tx: Transaction<'static, Postgres>,
    records: &[NewRecord],
) -> Fallible<()> {
    // PostgreSQL answers the COMMIT of a transaction that has failed by rolling back, without an error.
    let limit = storage.pools().statement_timeout().as_millis().to_string();
    let still_open = sqlx::query(sql::STILL_OPEN).persistent(!storage.pools().is_lent()).bind(limit);
    let row = still_open.fetch_one(&mut *tx).await?;
    if !row.try_get::<bool, _>(0)? {
        let reason = "the transaction was over when the handler returned: it ran COMMIT or ROLLBACK, which it must not";
        return Err(Fault::said(ErrorKind::Rejected, reason));
    }
    insert::check(Table::Outbox, records, None)?;
    publish::publish(&mut tx, storage, records).await?;
    storage.pools().end(tx.commit()).await
}
