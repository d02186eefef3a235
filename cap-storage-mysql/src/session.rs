//! Connections of the storage's own, and what it means to run something over one.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cap_core::backend::Attempt;
use cap_core::{BoxFuture, Error, ErrorKind, Result};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::pool::PoolConnection;
use sqlx::{Connection, MySql, MySqlConnection, MySqlPool, Transaction};

use crate::config::MySqlOptions;
use crate::error::{Fallible, Fault};
use crate::{server, sql};

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
pub(crate) fn place(options: &MySqlConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    match options.get_socket().map(|socket| Path::display(socket)) {
        Some(socket) => format!("mysql {socket}/{database}"),
        None => format!("mysql {}:{}/{database}", options.get_host(), options.get_port()),
    }
}

/// A pool of the storage's own. It connects when it is first used. With a limit the server gives up what waits longer.
pub(crate) fn pool(
    connect: MySqlConnectOptions,
    size: u32,
    connect_timeout: Duration,
    wait_at_most: Option<u64>,
    losses: &Losses,
) -> MySqlPool {
    let losses = losses.clone();
    MySqlPoolOptions::new()
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
                if let Some(seconds) = wait_at_most {
                    sqlx::raw_sql(sql::wait_at_most(seconds)).execute(connection).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(connect)
}

/// Connects once, to tell why not: a pool only says that it took too long.
pub(crate) async fn try_connect(options: &MySqlConnectOptions, limit: Duration) -> Result<()> {
    let attempt = Attempt::on_database("connect to");
    let place = place(options);
    let tried = async {
        let mut connection = MySqlConnection::connect_with(options).await?;
        server::ask(&mut connection).await?;
        // The server notices in any case.
        drop(connection.close().await);
        Ok(())
    };
    match tokio::time::timeout(limit, tried).await {
        Ok(outcome) => outcome.map_err(|fault: Fault| fault.into_error(attempt, &place)),
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
    pub(crate) work: MySqlPool,
    /// For leases.
    keepers: MySqlPool,
    losses: Losses,
    statement_timeout: Duration,
    connect_timeout: Duration,
    /// How long a statement waits for a lock in a session of the work pool, in seconds, if that is the storage's own.
    wait_at_most: Option<u64>,
}

/// Which pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Work,
    Keepers,
}

/// Something to do over a connection. It captures nothing: what it needs is its context, so that it can be done again.
pub(crate) type Work<C, T> = for<'c> fn(&'c mut MySqlConnection, &'c C) -> BoxFuture<'c, Fallible<T>>;

impl Pools {
    /// Over a pool of the user's, whose sessions are left as they are.
    pub(crate) fn over(work: MySqlPool, options: &MySqlOptions) -> Self {
        Self::new(work, options, None, Losses::default())
    }

    /// Over a pool of the storage's own.
    pub(crate) fn own(connect: MySqlConnectOptions, options: &MySqlOptions) -> Self {
        let (seconds, losses) = (Some(lock_wait(options.statement_timeout)), Losses::default());
        let work = pool(connect, options.pool_size, options.connect_timeout, seconds, &losses);
        Self::new(work, options, seconds, losses)
    }

    fn new(work: MySqlPool, options: &MySqlOptions, wait_at_most: Option<u64>, losses: Losses) -> Self {
        let connect = MySqlConnectOptions::clone(&work.connect_options());
        let seconds = Some(lock_wait(options.statement_timeout));
        Self {
            place: place(&connect),
            keepers: pool(connect, KEEPERS, options.connect_timeout, seconds, &losses),
            losses,
            work,
            statement_timeout: options.statement_timeout,
            connect_timeout: options.connect_timeout,
            wait_at_most,
        }
    }

    /// Runs `work` over a connection, within the time limit, and again if the database took it back for the sake of
    /// another transaction, or it waited too long for one.
    pub(crate) async fn run<C, T>(&self, via: Via, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            let fault = match self.once(via, &context, work).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if !fault.is_victim() || tries == TRIES || begun.elapsed() >= self.statement_timeout {
                return Err(self.explain(fault, attempt));
            }
            tracing::debug!(operation = attempt.operation(), number = fault.number(), "done again after a conflict");
            tokio::time::sleep(Duration::from_millis(5) * tries).await;
            tries += 1;
        }
    }

    async fn once<C, T>(&self, via: Via, context: &C, work: Work<C, T>) -> Fallible<T> {
        let mut held = self.acquire(via).await?;
        let limit = self.limit();
        let tried = async {
            let outcome = work(&mut held, context).await;
            let is_clean = outcome.is_ok() || roll_back(&mut held).await.is_ok();
            (outcome, is_clean)
        };
        let Ok((outcome, is_clean)) = tokio::time::timeout(limit, tried).await else {
            self.losses.note();
            return Err(no_answer(limit));
        };
        held.is_clean = is_clean;
        if outcome.as_ref().is_err_and(Fault::is_lost_connection) {
            self.losses.note();
        }
        outcome
    }

    /// Runs `work`, a migration, without a time limit. Its connection is closed afterwards: it may have settings of its
    /// own.
    pub(crate) async fn run_unlimited<C, T>(&self, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        let outcome = async {
            let mut held = self.acquire(Via::Work).await?;
            work(&mut held, &context).await
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
        Ok(Held { connection: Some(pool.acquire().await?), is_clean: false })
    }

    /// For a handler, whose statements wait as long as is usual on the server.
    pub(crate) async fn begin(&self) -> Fallible<Transaction<'static, MySql>> {
        let statement = if self.wait_at_most.is_some() { sql::BEGIN_HANDLER_UNHURRIED } else { sql::BEGIN_HANDLER };
        Ok(self.work.begin_with(statement).await?)
    }

    /// Makes the session of a handler's transaction what it was.
    pub(crate) async fn end(&self, connection: &mut MySqlConnection) -> Fallible<()> {
        if let Some(seconds) = self.wait_at_most {
            sqlx::raw_sql(sql::wait_at_most(seconds)).execute(connection).await?;
        }
        Ok(())
    }

    pub(crate) fn explain(&self, fault: Fault, attempt: Attempt) -> Error {
        fault.into_error(attempt, &self.place)
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

/// How long a statement waits for a lock, in seconds: a part of the time limit, so that there is time to try again.
fn lock_wait(statement_timeout: Duration) -> u64 {
    (statement_timeout.as_secs() / 3).max(1)
}

async fn roll_back(connection: &mut MySqlConnection) -> Fallible<()> {
    sqlx::raw_sql(sql::ROLLBACK).execute(connection).await?;
    Ok(())
}

/// A connection that goes back to its pool only if the work on it came to its end. Of one that was given up nobody knows
/// what it will still answer: it is cut off, as a farewell might wait for that, too.
struct Held {
    connection: Option<PoolConnection<MySql>>,
    is_clean: bool,
}

const GONE: &str = "the connection is there until it is dropped";

impl Deref for Held {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        self.connection.as_ref().expect(GONE)
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        self.connection.as_mut().expect(GONE)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_clean {
            drop(self.connection.take().map(PoolConnection::detach));
        }
    }
}
