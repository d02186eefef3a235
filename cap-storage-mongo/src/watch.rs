//! Noticing the commits of others, by a change stream.
//!
//! It tells of what a majority has, whoever committed it: other processes, and transactions of the user's own. The
//! stream goes on where it was: its position is kept while the storage lives, so that a lost connection hides nothing.
//! A new storage needs none, since both tables are looked through at the start.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cap_core::backend::Attempt;
use cap_core::storage::{Table, Wake};
use cap_core::{ErrorKind, Result};
use mongodb::bson::Document;
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::ResumeToken;
use tokio::sync::mpsc;

use crate::commands;
use crate::error::{Fallible, Fault};
use crate::session::Db;
use crate::storage::MongoStorage;

const WATCH: Attempt = Attempt::on_database("watch for commits in");

/// How long the server holds back an answer when there is nothing to tell; the longest that a watch which was dropped
/// still has a connection.
const HELD_BACK: Duration = Duration::from_millis(1_000);

/// What the stream told, and where it was then.
type Told = (Change, Option<ResumeToken>);

enum Change {
    /// From here on the stream tells.
    Listens,
    Due(Table),
    None,
}

/// Where the stream of changes was last seen.
#[derive(Default)]
pub(crate) struct Position(Mutex<Option<ResumeToken>>);

impl Position {
    fn get(&self) -> Option<ResumeToken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, token: Option<ResumeToken>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

/// Runs until the stream is lost. Any trouble ends it: the engine begins again.
pub(crate) async fn watch(storage: MongoStorage, wake: Wake) -> Result<()> {
    let (sender, mut told) = mpsc::channel::<Told>(1);
    // A future of the driver must not be dropped under way, and this one may be: the stream has a task of its own, which
    // ends when nobody listens any more.
    let task = tokio::spawn({
        let storage = storage.clone();
        async move { follow(&storage, &sender).await }
    });
    while let Some((change, position)) = told.recv().await {
        match change {
            Change::Listens => wake.listens(),
            Change::Due(table) => wake.wake(table),
            Change::None => {}
        }
        // Only now: what nobody was woken for is told again.
        storage.position().set(position);
    }
    let ended = task.await.unwrap_or_else(|panic| Err(Fault::said(ErrorKind::Internal, panic.to_string())));
    ended.map_err(|fault| storage.clients().explain(fault, WATCH))
}

async fn follow(storage: &MongoStorage, told: &mpsc::Sender<Told>) -> Fallible<()> {
    let db = storage.clients().db();
    let mut stream = open(&db, storage).await?;
    // What was committed before we listened.
    for change in [Change::Listens, Change::Due(Table::Outbox), Change::Due(Table::Inbox)] {
        let _ = told.send((change, stream.resume_token())).await;
    }
    while stream.is_alive() {
        let event = match stream.next_if_any().await.map_err(Fault::from) {
            Ok(event) => event,
            Err(fault) => {
                // Whatever is wrong with the position is wrong with it for ever.
                if !fault.is_lost_connection() {
                    storage.position().set(None);
                }
                return Err(fault);
            }
        };
        let change = event.map_or(Change::None, |event| {
            let collection = event.get_document("ns").and_then(|name| name.get_str("coll")).unwrap_or_default();
            Change::Due(if collection == db.names.published { Table::Outbox } else { Table::Inbox })
        });
        if told.send((change, stream.resume_token())).await.is_err() {
            return Ok(());
        }
    }
    Err(Fault::said(ErrorKind::Unavailable, "the change stream ended"))
}

/// Goes on where the last one was, unless the server has forgotten that.
async fn open(db: &Db, storage: &MongoStorage) -> Fallible<ChangeStream<Document>> {
    let begin = |after: Option<ResumeToken>| {
        let stream = db.database.watch().pipeline(commands::made_due(&db.names)).max_await_time(HELD_BACK);
        match after {
            Some(token) => stream.resume_after(token),
            None => stream,
        }
    };
    if let Some(token) = storage.position().get() {
        match begin(Some(token)).await {
            Ok(stream) => return Ok(stream.with_type()),
            Err(error) => {
                tracing::debug!(error.message = %error, "the change stream cannot go on where it was, and begins anew");
                storage.position().set(None);
            }
        }
    }
    Ok(begin(None).await?.with_type())
}
