//! Handlers inside the transaction that settles their own record.

use std::fmt;
use std::ops::{Deref, DerefMut};

use cap_core::backend::Attempt;
use cap_core::storage::{NewRecord, Settlement, Table, TransactAsync};
use cap_core::{BoxFuture, ErrorKind, Result};
use mongodb::ClientSession;
use mongodb::bson::doc;

use crate::commands::{self, binary};
use crate::error::{Fallible, Fault};
use crate::insert;
use crate::session::{Db, Via, is_in_transaction, matched};
use crate::storage::MongoStorage;

const BEGIN: Attempt = Attempt::on("begin a handler's transaction with", Table::Inbox);
const COMMIT: Attempt = Attempt::on("commit a handler's work with", Table::Inbox);
const ROLL_BACK: Attempt = Attempt::on("roll back a handler's work with", Table::Inbox);

/// A session of the driver with a transaction, by `Deref`: `.session(&mut **tx)` makes an operation part of it. Do not
/// end it yourself.
///
/// It has a snapshot of the time when it began. The server ends it after a minute (`transactionLifetimeLimitSeconds`),
/// when another node takes over because this one's lease has run out, and when it meets a document that another
/// transaction has written: then the attempt has failed and is made again.
pub struct MongoTransaction {
    session: ClientSession,
    settlement: Settlement,
}

impl Deref for MongoTransaction {
    type Target = ClientSession;

    fn deref(&self) -> &ClientSession {
        &self.session
    }
}

impl DerefMut for MongoTransaction {
    fn deref_mut(&mut self) -> &mut ClientSession {
        &mut self.session
    }
}

impl fmt::Debug for MongoTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoTransaction").field("record", &self.settlement.record).finish_non_exhaustive()
    }
}

/// The settlement is written last. So a handler that takes its time keeps nothing from anybody: the server holds what an
/// open transaction has written for a minute, also when its client has died, and a takeover would have to wait for that.
impl TransactAsync for MongoStorage {
    type Tx = MongoTransaction;

    fn begin(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<Self::Tx>>> {
        Box::pin(self.clients().run(Via::Work, BEGIN, |db| async move { begin(&db, settlement).await }))
    }

    fn commit(&self, tx: Self::Tx, records: Vec<NewRecord>) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.clients().run(Via::Work, COMMIT, |db| async move { commit(&db, tx, &records).await }))
    }

    fn rollback(&self, mut tx: Self::Tx) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.clients().run(Via::Work, ROLL_BACK, |_| async move { Ok(tx.abort_transaction().await?) }))
    }
}

async fn begin(db: &Db, settlement: Settlement) -> Fallible<Option<MongoTransaction>> {
    let mut session = db.start_session().await?;
    db.begin(&mut session).await?;
    let filter = commands::still_held(settlement.record.0, &binary(settlement.token.0));
    let found = db.table(Table::Inbox).find_one(filter).projection(doc! { "_id": 1 }).session(&mut session).await?;
    if found.is_none() {
        db.abort(&mut session).await;
        return Ok(None);
    }
    Ok(Some(MongoTransaction { session, settlement }))
}

async fn commit(db: &Db, tx: MongoTransaction, records: &[NewRecord]) -> Fallible<()> {
    let MongoTransaction { mut session, settlement } = tx;
    if !is_in_transaction(&mut session).await? {
        let reason =
            "the transaction was over when the handler returned: it committed or aborted it, which it must not";
        return Err(Fault::said(ErrorKind::Rejected, reason));
    }
    let written = write(db, &mut session, &settlement, records).await;
    let Err(fault) = written else { return db.commit(&mut session).await };
    db.abort(&mut session).await;
    // A conflict about the record itself means, mostly, that it was taken over.
    if fault.is_victim() && !is_held(db, &settlement).await? {
        return Err(lost(&settlement));
    }
    Err(fault)
}

async fn write(db: &Db, session: &mut ClientSession, settlement: &Settlement, records: &[NewRecord]) -> Fallible<()> {
    insert::check(Table::Outbox, records, None, db.longest())?;
    insert::publish(db, session, records).await?;
    let Settlement { record, token, state } = settlement;
    let statements = commands::settle(&[record.0], &binary(token.0), state);
    let reply = db.update_in(session, Table::Inbox, statements).await?;
    if matched(&reply) == 0 {
        return Err(lost(settlement));
    }
    Ok(())
}

async fn is_held(db: &Db, settlement: &Settlement) -> Fallible<bool> {
    let filter = commands::still_held(settlement.record.0, &binary(settlement.token.0));
    Ok(db.table(Table::Inbox).find_one(filter).projection(doc! { "_id": 1 }).await?.is_some())
}

fn lost(settlement: &Settlement) -> Fault {
    let reason = format!("record {} was taken over while the handler worked: nothing is committed", settlement.record);
    Fault::said(ErrorKind::LeaseLost, reason)
}
