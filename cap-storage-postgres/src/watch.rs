//! Noticing the commits of others, and telling them of ours.
//!
//! A `NOTIFY` takes a lock of the whole server when its transaction commits. So no transaction that writes carries one:
//! after inserts of the storage's own a separate one is sent, at most a few times a second. What the caller's own
//! transactions publish, core wakes its own process for, and polling covers the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::backend::Attempt;
use cap_core::storage::{Table, Wake};
use cap_core::{Error, ErrorKind, Result};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{PgConnection, PgPool, Row};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::sql;
use crate::storage::PostgresStorage;

const WATCH: Attempt = Attempt::on_database("watch for commits in");

/// The least time between two notifications about one table.
const INTERVAL: Duration = Duration::from_millis(200);

/// How long a notification that we send ourselves may be under way.
const PING_LIMIT: Duration = Duration::from_secs(5);

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
    pool: PgPool,
    channel: String,
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
    pub(crate) fn new(pool: PgPool, schema: &str) -> Self {
        Self { pool, channel: channel(schema), outbox: Arc::default(), inbox: Arc::default() }
    }

    /// Something may be due in `table`. What it is about is committed.
    pub(crate) fn tell(&self, table: Table) {
        let bell = match table {
            Table::Outbox => &self.outbox,
            Table::Inbox => &self.inbox,
        };
        if !bell.is_pulled.swap(true, Ordering::SeqCst) {
            let (pool, channel, bell) = (self.pool.clone(), self.channel.clone(), Arc::clone(bell));
            tokio::spawn(async move { bell.ring(&pool, &channel, table).await });
        }
    }

    async fn ping(&self, nonce: &str) -> sqlx::Result<()> {
        sqlx::query(sql::NOTIFY).bind(&self.channel).bind(nonce).execute(&self.pool).await?;
        Ok(())
    }
}

impl Bell {
    async fn ring(&self, pool: &PgPool, channel: &str, table: Table) {
        let rung = *self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rung) = rung {
            tokio::time::sleep_until(rung + INTERVAL).await;
        }
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        // From here on a commit may be too late for this one, and pulls again.
        self.is_pulled.store(false, Ordering::SeqCst);
        let notify = sqlx::query(sql::NOTIFY).bind(channel).bind(table.as_str()).execute(pool);
        if let Err(error) = notify.await {
            tracing::debug!(%table, %error, "could not notify others of a commit: they will find it when they poll");
        }
    }
}

/// Runs until the connection is lost. Any trouble ends it: core begins again.
pub(crate) async fn watch(storage: PostgresStorage, wake: Wake) -> Result<()> {
    let notifier = storage.notifier();
    let failed = |error: sqlx::Error| storage.pools().explain(error.into(), WATCH);
    let Some(mut listener) = listen(&notifier.pool, &notifier.channel).await.map_err(failed)? else {
        return without_listening(&storage).await;
    };

    // Whatever is between us and the server: only what arrives is proof.
    let nonce = Uuid::new_v4().to_string();
    notifier.ping(&nonce).await.map_err(failed)?;
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
        let Some(notification) = listener.try_recv().await.map_err(failed)? else { return Err(lost(&storage)) };
        let tables = [Table::Outbox, Table::Inbox];
        if let Some(table) = tables.into_iter().find(|table| table.as_str() == notification.payload()) {
            wake.wake(table);
        }
    }
}

/// On a connection beside the pool, which has it for as long as it listens. `None` where listening does not work.
async fn listen(pool: &PgPool, channel: &str) -> sqlx::Result<Option<PgListener>> {
    let options = PgConnectOptions::clone(&pool.connect_options());
    let own = PgPoolOptions::new().max_connections(2).acquire_timeout(PING_LIMIT).connect_lazy_with(options);
    if shares_sessions(&own).await? {
        return Ok(None);
    }
    let mut listener = PgListener::connect_with(&own).await?;
    listener.eager_reconnect(false);
    listener.listen(channel).await?;
    Ok(Some(listener))
}

/// Whether two open connections have one session: a pooler lends it to each in turn. A `LISTEN` would then belong to
/// whoever has it next.
async fn shares_sessions(pool: &PgPool) -> sqlx::Result<bool> {
    let (mut one, mut other) = (pool.acquire().await?, pool.acquire().await?);
    let mut is_shared = false;
    for _ in 0..3 {
        is_shared |= session(&mut one).await? == session(&mut other).await?;
    }
    other.close().await?;
    Ok(is_shared)
}

async fn session(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::raw_sql(sql::SESSION).fetch_one(connection).await?.try_get(0)
}

fn lost(storage: &PostgresStorage) -> Error {
    WATCH.failed(ErrorKind::Unavailable, storage.pools().place(), "the connection that listens was lost")
}

/// Polling covers what is not told.
async fn without_listening(storage: &PostgresStorage) -> Result<()> {
    tracing::warn!(
        place = %storage.pools().place(),
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
