//! Connections of the storage's own, and what it means to run something over one.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cap_core::backend::Attempt;
use cap_core::{BoxFuture, Error, ErrorKind, Result};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Postgres, Transaction};

use crate::config::PostgresOptions;
use crate::error::{Fallible, Fault, failed};

/// How often something is done again that the database took back as the victim of a deadlock.
const TRIES: u32 = 5;

/// How much longer than the statement timeout an answer may take, so that it is the server who gives up first.
const GRACE: Duration = Duration::from_secs(2);

/// A connection of the storage's own that was idle for longer is tried before it is used.
const FRESH: Duration = Duration::from_secs(60);

/// When a connection was last found dead. After a restart of the server all are: those that have been idle since before
/// then are tried before they are used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Losses(Arc<Mutex<Option<Instant>>>);

impl Losses {
    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        *self.last() = Some(Instant::now());
    }

    /// Whether one that has been idle for so long may be dead, too.
    fn concern(&self, idle_for: Duration) -> bool {
        self.last().is_some_and(|lost| lost.elapsed() <= idle_for)
    }
}

/// Connections that only leases use, however busy the pool is.
const KEEPERS: u32 = 2;

/// Kind and place, for people.
pub(crate) fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    match options.get_socket().map(|socket| Path::display(socket)) {
        Some(socket) => format!("postgres {socket}/{database}"),
        None => format!("postgres {}:{}/{database}", options.get_host(), options.get_port()),
    }
}

/// A pool of the storage's own. It connects when it is first used. With a limit the server gives up what takes longer.
pub(crate) fn pool(
    connect: PgConnectOptions,
    size: u32,
    connect_timeout: Duration,
    statement_timeout: Option<Duration>,
    losses: &Losses,
) -> PgPool {
    let losses = losses.clone();
    PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(connect_timeout)
        // A round trip for each statement would be too much: what was used a moment ago still lives, mostly.
        .test_before_acquire(false)
        .before_acquire(move |connection, found| {
            let is_doubtful = found.idle_for > FRESH || losses.concern(found.idle_for);
            Box::pin(async move {
                if is_doubtful {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _| {
            Box::pin(async move {
                if let Some(limit) = statement_timeout {
                    let limit = AssertSqlSafe(format!("SET statement_timeout = {}", limit.as_millis()));
                    sqlx::raw_sql(limit).execute(connection).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(connect)
}

/// Connects once, to tell why not: a pool only says that it took too long.
pub(crate) async fn try_connect(options: &PgConnectOptions, limit: Duration) -> Result<()> {
    let attempt = Attempt::on_database("connect to");
    let place = place(options);
    match tokio::time::timeout(limit, PgConnection::connect_with(options)).await {
        Ok(Ok(connection)) => {
            // The server notices in any case.
            drop(connection.close().await);
            Ok(())
        }
        Ok(Err(error)) => Err(failed(attempt, &place, error)),
        Err(_) => {
            let reason = format!("no answer within {limit:?}: is the host right, does a firewall swallow the packets?");
            Err(attempt.failed(ErrorKind::Unavailable, &place, reason))
        }
    }
}

/// The pools, and the rules by which they are used.
pub(crate) struct Pools {
    pub(crate) place: String,
    /// The user's, or the storage's own.
    pub(crate) work: PgPool,
    /// For leases.
    keepers: PgPool,
    losses: Losses,
    statement_timeout: Duration,
    connect_timeout: Duration,
}

/// Which pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Work,
    Keepers,
}

/// Something to do over a connection. It captures nothing: what it needs is its context, so that it can be done again.
pub(crate) type Work<C, T> = for<'c> fn(&'c mut PgConnection, &'c C) -> BoxFuture<'c, Fallible<T>>;

impl Pools {
    /// Over a pool of the user's, whose sessions are left as they are: a pooler may give them to others.
    pub(crate) fn over(work: PgPool, options: &PostgresOptions) -> Self {
        Self::new(work, options, None, Losses::default())
    }

    /// Over a pool of the storage's own.
    pub(crate) fn own(connect: PgConnectOptions, options: &PostgresOptions) -> Self {
        let (limit, losses) = (Some(options.statement_timeout), Losses::default());
        let work = pool(connect, options.pool_size, options.connect_timeout, limit, &losses);
        Self::new(work, options, limit, losses)
    }

    fn new(work: PgPool, options: &PostgresOptions, limit: Option<Duration>, losses: Losses) -> Self {
        let connect = PgConnectOptions::clone(&work.connect_options());
        Self {
            place: place(&connect),
            keepers: pool(connect, KEEPERS, options.connect_timeout, limit, &losses),
            losses,
            work,
            statement_timeout: options.statement_timeout,
            connect_timeout: options.connect_timeout,
        }
    }

    /// Runs `work` over a connection, within the time limit, and again if the database took it back for the sake of
    /// another transaction.
    pub(crate) async fn run<C, T>(&self, via: Via, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        let mut tries = 1;
        loop {
            let fault = match self.once(via, &context, work).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if !fault.is_victim() || tries == TRIES {
                return Err(self.explain(fault, attempt));
            }
            tokio::time::sleep(Duration::from_millis(5) * tries).await;
            tries += 1;
        }
    }

    async fn once<C, T>(&self, via: Via, context: &C, work: Work<C, T>) -> Fallible<T> {
        let mut held = self.acquire(via).await?;
        let limit = self.limit();
        let Ok(outcome) = tokio::time::timeout(limit, work(&mut held, context)).await else {
            self.losses.note();
            return Err(no_answer(limit));
        };
        held.is_clean = true;
        if outcome.as_ref().is_err_and(Fault::is_lost_connection) {
            self.losses.note();
        }
        outcome
    }

    /// Runs `work`, a migration, without a time limit.
    pub(crate) async fn run_unlimited<C, T>(&self, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        let outcome = async {
            let mut held = self.acquire(Via::Work).await?;
            let outcome = work(&mut held, &context).await;
            held.is_clean = true;
            outcome
        };
        match outcome.await {
            Ok(answer) => Ok(answer),
            Err(Fault::Sqlx(sqlx::Error::PoolTimedOut)) => {
                // The pool does not say why: another connection may.
                try_connect(&self.work.connect_options(), self.connect_timeout).await?;
                Err(self.explain(Fault::Sqlx(sqlx::Error::PoolTimedOut), attempt))
            }
            Err(fault) => Err(self.explain(fault, attempt)),
        }
    }

    async fn acquire(&self, via: Via) -> Fallible<Held> {
        let pool = match via {
            Via::Work => &self.work,
            Via::Keepers => &self.keepers,
        };
        Ok(Held { connection: pool.acquire().await?, is_clean: false })
    }

    pub(crate) async fn begin(&self, statement: &'static str) -> Fallible<Transaction<'static, Postgres>> {
        Ok(self.work.begin_with(statement).await?)
    }

    pub(crate) fn explain(&self, fault: Fault, attempt: Attempt) -> Error {
        fault.into_error(attempt, &self.place)
    }

    /// The statement timeout as the server's setting.
    pub(crate) fn server_limit(&self) -> String {
        self.statement_timeout.as_millis().to_string()
    }

    /// How long to wait for an answer.
    pub(crate) fn limit(&self) -> Duration {
        self.statement_timeout.saturating_add(GRACE)
    }
}

pub(crate) fn no_answer(limit: Duration) -> Fault {
    let reason = format!("no answer within {limit:?}: it may have been carried out or not");
    Fault::said(ErrorKind::Unavailable, reason)
}

/// A connection that goes back to its pool only if the work on it came to its end: of one that was given up nobody knows
/// what it will still answer.
struct Held {
    connection: PoolConnection<Postgres>,
    is_clean: bool,
}

impl Deref for Held {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_clean {
            self.connection.close_on_drop();
        }
    }
}
