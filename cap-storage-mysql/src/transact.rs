//! Handlers inside the transaction that settles their own record.

use std::future::Future;

use cap_core::backend::Attempt;
use cap_core::storage::{NewRecord, Settled, Settlement, Table, TransactAsync};
use cap_core::{BoxFuture, ErrorKind, Result};
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::{MySql, Transaction};

use crate::error::Numbered;
use crate::script::Script;
use crate::settle::Within;
use crate::storage::MySqlStorage;
use crate::{insert, settle};
use crate::{session, sql};

const BEGIN: Attempt = Attempt::on("begin a handler's transaction with", Table::Inbox);
const COMMIT: Attempt = Attempt::on("commit a handler's work with", Table::Inbox);

/// The transaction is the driver's own: everything on it is allowed, savepoints too, but do not end it with SQL of your
/// own: neither with `COMMIT` or `ROLLBACK`, nor with a statement that defines something (`CREATE TABLE`), as MySQL
/// commits with it. It has the isolation level of the session, one of the pool's connections, and its record's lock
/// until it ends.
impl TransactAsync for MySqlStorage {
    type Tx = Transaction<'static, MySql>;

    fn begin(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<Self::Tx>>> {
        let storage = self.clone();
        Box::pin(async move {
            let begun = self.to_its_end(async move { begin(&storage, &settlement).await }).await;
            begun.map_err(|fault| self.pools().explain(fault, BEGIN))
        })
    }

    fn commit(&self, tx: Self::Tx, records: Vec<NewRecord>) -> BoxFuture<'_, Result<()>> {
        let storage = self.clone();
        Box::pin(async move {
            let committed = self.to_its_end(async move { commit(&storage, tx, &records).await }).await;
            committed.map_err(|fault| self.pools().explain(fault, COMMIT))
        })
    }

    fn rollback(&self, tx: Self::Tx) -> BoxFuture<'_, Result<()>> {
        let storage = self.clone();
        Box::pin(async move {
            let attempt = Attempt::on("roll back a handler's work with", Table::Inbox);
            let rolled_back = self.to_its_end(async move { rollback(&storage, tx).await }).await;
            rolled_back.map_err(|fault| self.pools().explain(fault, attempt))
        })
    }
}

impl MySqlStorage {
    /// In a task of its own, which goes on after the time limit: a statement that is given up while the driver prepares
    /// it would leave the connection out of step, and the pool waiting for it.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Fallible<T>> + Send + 'static,
    ) -> Fallible<T> {
        let limit = self.pools().limit();
        match tokio::time::timeout(limit, tokio::spawn(work)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) if error.is_cancelled() => Err(Fault::said(ErrorKind::Stopped, "the runtime goes away")),
            Ok(Err(error)) => Err(Fault::said(ErrorKind::Internal, format!("it panicked: {error}"))),
            Err(_) => Err(Fault::no_answer(limit)),
        }
    }
}

/// The settlement comes first: from then on the record is locked, and nobody can take it before this transaction ends.
async fn begin(storage: &MySqlStorage, settlement: &Settlement) -> Fallible<Option<Transaction<'static, MySql>>> {
    let context = (&storage.sql().received, std::slice::from_ref(settlement));
    let begin = session::begin(storage.pools(), &context, |connection, (sql, settlement)| {
        Box::pin(settle::settle(connection, sql, settlement, Within::Handler))
    });
    let (tx, settled) = begin.await?;
    if settled != [Settled::Written] {
        rollback(storage, tx).await?;
        return Ok(None);
    }
    Ok(Some(tx))
}

async fn commit(storage: &MySqlStorage, mut tx: Transaction<'static, MySql>, records: &[NewRecord]) -> Fallible<()> {
    Script::default().plain(sql::STILL_OPEN).run(&mut tx).await.map_err(|fault| {
        if !fault.is_outside_of_transaction() {
            return fault;
        }
        let reason = "the transaction was over when the handler returned: the server rolled it back after a deadlock that \
                      the handler ignored, or it ran COMMIT, ROLLBACK or a statement that defines something, which it must \
                      not";
        Fault::said(ErrorKind::Rejected, reason)
    })?;
    insert::check(Table::Outbox, records, None, storage.packet())?;
    insert::publish(&mut tx, storage.sql(), records, storage.packet_or_least()).await?;
    session::end(storage.pools(), &mut tx).await?;
    storage.pools().end(tx.commit()).await
}

async fn rollback(storage: &MySqlStorage, mut tx: Transaction<'static, MySql>) -> Fallible<()> {
    session::end(storage.pools(), &mut tx).await?;
    storage.pools().end(tx.rollback()).await
}
