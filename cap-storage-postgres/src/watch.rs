//! Noticing the commits of others, and telling them of ours.
//!
//! A `NOTIFY` takes a lock of the whole server when its transaction commits. So no transaction that writes carries one:
//! after inserts of the storage's own a separate one is sent, at most a few times a second. What the caller's own
//! transactions publish, the engine wakes its own process for, and polling covers the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::backend::Attempt;
use cap_core::storage::{Table, Wake};
use cap_core::{Error, ErrorKind, Result};
use cap_storage_sqlx::{Fallible, Via};
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{PgConnection, Row};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::session::Pools;
use crate::storage::PostgresStorage;
use crate::{pooler, sql};

const WATCH: Attempt = Attempt::on_database("watch for commits in");
const TELL: Attempt = Attempt::on_database("tell others of commits in");

/// The least time between two notifications about one table.
const INTERVAL: Duration = Duration::from_millis(200);

/// How long a notification that we send ourselves may be under way.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// How long the connection that listens may take to be made; one of the pool is held meanwhile.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// How often a server that gave no connection to listen on is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The longest name of a channel, in bytes.
const MAX_CHANNEL: usize = 63;

/// Where notifications about a schema are sent. Schemas with very long names may share one: that wakes once too often.
fn channel(schema: &str) -> String {
    let mut channel = format!("cap:{schema}");
    while channel.len() > MAX_CHANNEL {
        channel.pop();
    }
    channel
}

/// Tells other processes of our commits, at most once in [`INTERVAL`] for each table. Never waits and never fails.
pub(crate) struct Notifier {
    pools: Arc<Pools>,
    channel: Arc<str>,
    outbox: Arc<Bell>,
    inbox: Arc<Bell>,
}

#[derive(Default)]
struct Bell {
    /// A task is about to ring: what is committed now is covered by it.
    is_pulled: AtomicBool,
    rung: Mutex<Option<Instant>>,
}

impl Notifier {
    pub(crate) fn new(pools: Arc<Pools>, schema: &str) -> Self {
        Self { pools, channel: channel(schema).into(), outbox: Arc::default(), inbox: Arc::default() }
    }

    /// Something may be due in `table`. What it is about is committed.
    pub(crate) fn tell(&self, table: Table) {
        let bell = match table {
            Table::Outbox => &self.outbox,
            Table::Inbox => &self.inbox,
        };
        if !bell.is_pulled.swap(true, Ordering::SeqCst) {
            let (pools, channel, bell) = (Arc::clone(&self.pools), Arc::clone(&self.channel), Arc::clone(bell));
            tokio::spawn(async move { bell.ring(&pools, &channel, table).await });
        }
    }
}

async fn notify(pools: &Pools, attempt: Attempt, channel: &str, payload: &str) -> Result<()> {
    let context = (channel, payload, pools);
    let notify = pools.run(Via::Work, attempt, context, |connection, (channel, payload, pools)| {
        Box::pin(async move {
            // Only now is it known who lent the connection.
            let notify = sqlx::query(sql::NOTIFY).persistent(!pools.is_lent());
            notify.bind(channel).bind(payload).execute(connection).await?;
            Ok(())
        })
    });
    notify.await
}

impl Bell {
    async fn ring(&self, pools: &Pools, channel: &str, table: Table) {
        let rung = *self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rung) = rung {
            tokio::time::sleep_until(rung + INTERVAL).await;
        }
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        // From here on a commit may be too late for this one, and pulls again.
        self.is_pulled.store(false, Ordering::SeqCst);
        if let Err(error) = notify(pools, TELL, channel, table.as_str()).await {
            tracing::debug!(%table, error.message = %error, "could not notify others of a commit: they will find it when they poll");
        }
    }
}

/// Runs until the connection is lost. Any trouble ends it: the engine begins again.
pub(crate) async fn watch(storage: PostgresStorage, wake: Wake) -> Result<()> {
    let notifier = storage.notifier();
    let failed = |error: sqlx::Error| storage.pools().explain(error.into(), WATCH);
    let mut listener = match listen(&storage).await? {
        Start::Listens(listener) => *listener,
        Start::Shared => return without_listening(&storage).await,
        Start::Full => return without_a_connection(&storage).await,
    };

    // Whatever is between us and the server: only what arrives is proof.
    let nonce = Uuid::new_v4().to_string();
    notify(storage.pools(), WATCH, &notifier.channel, &nonce).await?;
    let deadline = Instant::now() + PING_LIMIT;
    loop {
        match timeout_at(deadline, listener.try_recv()).await {
            Ok(Ok(Some(notification))) if notification.payload() == nonce => break,
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(lost(&storage)),
            Ok(Err(error)) => return Err(failed(error)),
            Err(_) => {
                drop(listener);
                return without_listening(&storage).await;
            }
        }
    }

    wake.listens();
    // What was committed before we listened.
    wake.wake(Table::Outbox);
    wake.wake(Table::Inbox);
    loop {
        let received = tokio::select! {
            received = listener.try_recv() => received.map_err(failed)?,
            () = storage.pools().left() => return Err(left(&storage)),
        };
        let Some(notification) = received else { return Err(lost(&storage)) };
        let tables = [Table::Outbox, Table::Inbox];
        if let Some(table) = tables.into_iter().find(|table| table.as_str() == notification.payload()) {
            wake.wake(table);
        }
    }
}

/// What came of an attempt to listen.
enum Start {
    Listens(Box<PgListener>),
    /// A pooler lends each session in turn: a `LISTEN` would belong to whoever has it next.
    Shared,
    /// The server gives no connection.
    Full,
}

/// On a connection beside the pool, which has it for as long as it listens. One for work is held until it has, so that it
/// is never the last one.
async fn listen(storage: &PostgresStorage) -> Result<Start> {
    if storage.pools().is_lent() {
        return Ok(Start::Shared);
    }
    let listen = storage.pools().run(Via::Work, WATCH, storage, |connection, storage| {
        Box::pin(async move {
            if storage.pools().gives_no_more().await {
                return Ok(Start::Full);
            }
            listen_beside(connection, storage).await
        })
    });
    listen.await
}

async fn listen_beside(connection: &mut PgConnection, storage: &PostgresStorage) -> Fallible<Start> {
    let options = storage.pools().connect_options();
    let own = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_LIMIT).connect_lazy_with(options);
    let mut listener = match PgListener::connect_with(&own).await {
        // Somebody else was quicker.
        Err(sqlx::Error::PoolTimedOut) if storage.pools().gives_no_more().await => return Ok(Start::Full),
        listener => listener?,
    };
    for _ in 0..3 {
        let session: i32 = sqlx::raw_sql(sql::SESSION_BETWEEN).fetch_one(&mut listener).await?.try_get(0)?;
        if session == pooler::session(connection).await? {
            return Ok(Start::Shared);
        }
    }
    // Whoever listens is idle for as long as nothing happens.
    sqlx::raw_sql(sql::MAY_BE_IDLE).execute(&mut listener).await?;
    listener.eager_reconnect(false);
    listener.listen(&storage.notifier().channel).await?;
    Ok(Start::Listens(Box::new(listener)))
}

fn lost(storage: &PostgresStorage) -> Error {
    WATCH.failed(ErrorKind::Unavailable, storage.pools().place(), "the connection that listens was lost")
}

fn left(storage: &PostgresStorage) -> Error {
    let reason = "another session was found to be of no more use: this one listens to the same server";
    WATCH.failed(ErrorKind::Unavailable, storage.pools().place(), reason)
}

/// As long as the server gives no more connections polling covers what is not told.
async fn without_a_connection(storage: &PostgresStorage) -> Result<()> {
    tracing::warn!(
        cap.place = %storage.pools().place(),
        "the server gives no connection to listen on: commits of other processes are found by polling only"
    );
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if !storage.pools().gives_no_more().await {
            return Err(WATCH.failed(ErrorKind::Unavailable, storage.pools().place(), "there may be a connection now"));
        }
    }
}

/// Polling covers what is not told.
async fn without_listening(storage: &PostgresStorage) -> Result<()> {
    tracing::warn!(
        cap.place = %storage.pools().place(),
        "LISTEN does not work here, probably because of a pooler in transaction mode: commits of other processes are \
         found by polling only"
    );
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_fits_whatever_the_schema_is_called() {
        assert_eq!(channel("cap"), "cap:cap");
        let long = channel(&"ä".repeat(31));
        assert!(long.len() <= MAX_CHANNEL && long.starts_with("cap:ää"), "{long}");
    }
}
