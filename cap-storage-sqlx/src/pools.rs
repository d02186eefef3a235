//! Connections of the storage's own, and what it means to run something over one.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cap_core::backend::Attempt;
use cap_core::{BoxFuture, Error, ErrorKind, Result};
use sqlx::pool::PoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, Pool, SqlSafeStr, Transaction};

use crate::fault::{Fallible, Fault, When};
use crate::held::Held;
use crate::losses::Losses;
use crate::pulse::Pulse;
use crate::server::{Connection, Options, Server};

/// How often something is done that the database takes back as the victim of a deadlock.
const TRIES: u32 = 5;

/// How long to wait before the second try; before the third twice as long, and so on.
const PAUSE: Duration = Duration::from_millis(5);

/// How much longer than the statement timeout an answer may take, so that it is the server who gives up first.
const GRACE: Duration = Duration::from_secs(2);

/// Connections that only leases use, however busy the pool is.
const KEEPERS: u32 = 2;

/// What a storage's options say about its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The greatest number of connections of a pool of its own.
    pub pool_size: u32,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long one operation may take; not a migration.
    pub statement_timeout: Duration,
}

/// Which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Those of the pool, which may all be busy.
    Work,
    /// Those that only leases use: takeovers, leaving, and giving back.
    Keepers,
    /// The one that joining and heartbeats use, and nothing else. It belongs to the runtime that they are called in, which
    /// need not be that of the others.
    Pulse,
}

/// Something to do over a connection. It captures nothing: what it needs is its context, so that it can be done again.
pub type Work<S, C, T> = for<'c> fn(&'c mut Connection<S>, &'c C) -> BoxFuture<'c, Fallible<T>>;

/// The pools, and the rules by which they are used.
pub struct Pools<S: Server> {
    place: String,
    work: Pool<S::Db>,
    is_own: bool,
    keepers: Pool<S::Db>,
    pulse: Pulse<S::Db>,
    losses: Losses,
    /// Whether what runs over them has to say what it needs, as the sessions' defaults are others.
    has_terms: AtomicBool,
    asked_for_terms: AtomicBool,
    limits: Limits,
}

impl<S: Server> fmt::Debug for Pools<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, is_own, limits, .. } = self;
        f.debug_struct("Pools").field("place", place).field("is_own", is_own).field("limits", limits).finish()
    }
}

impl<S: Server> Pools<S> {
    /// Over a pool of the user's, whose sessions are left as they are. It does no I/O.
    pub fn over(work: Pool<S::Db>, limits: Limits) -> Self {
        Self::new(work, false, limits, Losses::default())
    }

    /// Over a pool of the storage's own. It connects when it is first used. Must be called within a Tokio runtime.
    pub fn own(connect: Options<S>, limits: Limits) -> Self {
        let losses = Losses::default();
        let work = pool::<S>(connect, limits.pool_size, limits, true, &losses);
        Self::new(work, true, limits, losses)
    }

    fn new(work: Pool<S::Db>, is_own: bool, limits: Limits, losses: Losses) -> Self {
        let connect = Options::<S>::clone(&work.connect_options());
        let place = S::place(&connect);
        let keepers = pool::<S>(connect, KEEPERS, limits, is_own || S::LIMITS_BESIDE_POOL, &losses);
        Self {
            place,
            work,
            is_own,
            keepers,
            pulse: Pulse::default(),
            losses,
            has_terms: AtomicBool::new(false),
            asked_for_terms: AtomicBool::new(false),
            limits,
        }
    }

    /// Kind and address, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The pool for work: the user's, or the storage's own.
    pub fn work(&self) -> &Pool<S::Db> {
        &self.work
    }

    /// Whether it is the storage's own, so that its sessions are limited.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// How long the server may take.
    pub fn statement_timeout(&self) -> Duration {
        self.limits.statement_timeout
    }

    /// How long to wait for an answer: a little longer, so that it is the server who gives up first.
    pub fn limit(&self) -> Duration {
        self.limits.statement_timeout.saturating_add(GRACE)
    }

    /// Connects once, to tell why not: a pool only says that it took too long.
    ///
    /// # Errors
    /// As the server or the driver say; `Unavailable` after the connect timeout.
    pub async fn try_connect(&self) -> Result<()> {
        let attempt = Attempt::on_database("connect to");
        let options = self.work.connect_options();
        let limit = self.limits.connect_timeout;
        let tried = async {
            let mut connection = Connection::<S>::connect_with(&options).await?;
            S::greet(&mut connection).await?;
            // The server notices in any case.
            drop(connection.close().await);
            Ok(())
        };
        match tokio::time::timeout(limit, tried).await {
            Ok(outcome) => outcome.map_err(|fault| self.explain_when(When::Connecting, fault, attempt)),
            Err(_) => {
                let reason =
                    format!("no answer within {limit:?}: is the host right, does a firewall swallow the packets?");
                Err(attempt.failed(ErrorKind::Unavailable, &self.place, reason))
            }
        }
    }

    /// Runs `work` over a connection, within the time limit, and again if the database took it back for the sake of
    /// another transaction, unless that took too long already.
    ///
    /// # Errors
    /// What `work` answers at last; `Unavailable` if there was no connection or no answer in time.
    pub async fn run<C, T>(&self, via: Via, attempt: Attempt, context: C, work: Work<S, C, T>) -> Result<T> {
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            let had_terms = self.on_terms();
            let fault = match self.once(via, &context, work).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if self.on_terms() && !had_terms {
                continue;
            }
            let is_victim = fault.driver().is_some_and(S::is_victim);
            if !is_victim || tries == TRIES || begun.elapsed() >= self.limits.statement_timeout {
                return Err(self.explain(fault, attempt));
            }
            tracing::debug!(operation = attempt.operation(), place = %self.place, ?fault, "done again after a conflict");
            tokio::time::sleep(PAUSE * tries).await;
            tries += 1;
        }
    }

    async fn once<C, T>(&self, via: Via, context: &C, work: Work<S, C, T>) -> Fallible<T> {
        let mut held = self.acquire(via).await?;
        let limit = self.limit();
        let tried = async {
            if !self.asked_for_terms.load(Ordering::Relaxed) {
                self.learn_terms(&mut held).await?;
            }
            let outcome = match S::terms(self.limits.statement_timeout).filter(|_| self.on_terms()) {
                Some(begin) => on_terms::<S, _, _>(&mut held, begin, context, work).await,
                None => work(&mut held, context).await,
            };
            if outcome.as_ref().err().and_then(Fault::driver).is_some_and(S::doubts_terms) {
                // Whatever this answers, the first error is the one to tell.
                drop(self.learn_terms(&mut held).await);
            }
            let is_clean = outcome.is_ok() || S::clear(&mut held).await.is_ok();
            Ok((outcome, is_clean))
        };
        let (outcome, is_clean) = match tokio::time::timeout(limit, tried).await {
            Ok(Ok(tried)) => tried,
            Ok(Err(fault)) => (Err(fault), false),
            Err(_) => {
                self.losses.note();
                return Err(Fault::no_answer(limit));
            }
        };
        if outcome.as_ref().is_err_and(Fault::is_stale::<S>) {
            tracing::debug!(place = %self.place, "closed a session that is of no more use");
        } else if is_clean {
            held.give_back();
        }
        if outcome.as_ref().is_err_and(Fault::is_lost_connection::<S>) {
            self.losses.note();
        }
        outcome
    }

    /// Whether sessions have defaults that are not what the storage's statements need: then [`run`](Self::run) begins
    /// transactions on [terms](Server::terms) of its own. A session is asked if none has been yet.
    ///
    /// # Errors
    /// The driver's.
    pub async fn has_terms(&self) -> Fallible<bool> {
        if !self.asked_for_terms.load(Ordering::Relaxed) {
            let mut held = self.acquire(Via::Work).await?;
            self.learn_terms(&mut held).await?;
            held.give_back();
        }
        Ok(self.on_terms())
    }

    fn on_terms(&self) -> bool {
        self.has_terms.load(Ordering::Relaxed)
    }

    /// Asks a session whether its defaults are what the storage's statements need. If not, these run in transactions from
    /// now on that say so: the sessions themselves stay as they are, since others may use them, too.
    async fn learn_terms(&self, connection: &mut Connection<S>) -> Fallible<()> {
        if !self.on_terms() && S::needs_terms(connection, self.limits.statement_timeout).await? {
            tracing::info!(
                place = %self.place,
                "the database's defaults for transactions are unusual: every call says what it needs, which costs it a round \
                 trip or two more"
            );
            self.has_terms.store(true, Ordering::Relaxed);
        }
        self.asked_for_terms.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Runs `work`, a migration, without a time limit. Its connection is closed afterwards: it may have settings of its
    /// own.
    ///
    /// # Errors
    /// As [`run`](Self::run), and why it cannot connect, if it cannot.
    pub async fn run_unlimited<C, T>(&self, attempt: Attempt, context: C, work: Work<S, C, T>) -> Result<T> {
        let outcome = async {
            let mut held = self.acquire(Via::Work).await?;
            let answer = work(&mut held, &context).await?;
            self.learn_terms(&mut held).await?;
            held.close().await;
            Ok(answer)
        };
        let fault = match outcome.await {
            Ok(answer) => return Ok(answer),
            Err(fault) => fault,
        };
        if matches!(fault, Fault::Sqlx(sqlx::Error::PoolTimedOut)) {
            // The pool does not say why: another connection may.
            self.try_connect().await?;
        }
        Err(self.explain_when(When::Connecting, fault, attempt))
    }

    async fn acquire(&self, via: Via) -> Fallible<Held<S::Db>> {
        let acquired = match via {
            Via::Work => self.work.acquire().await?,
            Via::Keepers => self.keepers.acquire().await?,
            Via::Pulse => self.pulse().acquire().await?,
        };
        Ok(Held::new(acquired))
    }

    fn pulse(&self) -> Pool<S::Db> {
        self.pulse.here(|| {
            let connect = Options::<S>::clone(&self.work.connect_options());
            pool::<S>(connect, 1, self.limits, self.is_own || S::LIMITS_BESIDE_POOL, &self.losses)
        })
    }

    /// Begins a handler's transaction with this statement, over the pool for work.
    ///
    /// # Errors
    /// The driver's.
    pub async fn begin(&self, statement: impl SqlSafeStr) -> Fallible<Transaction<'static, S::Db>> {
        Ok(self.work.begin_with(statement).await?)
    }

    /// The error of it, as the caller sees it.
    pub fn explain(&self, fault: Fault, attempt: Attempt) -> Error {
        self.explain_when(When::AtWork, fault, attempt)
    }

    fn explain_when(&self, when: When, fault: Fault, attempt: Attempt) -> Error {
        fault.into_error_when::<S>(when, attempt, &self.place)
    }
}

/// Runs `work` in a transaction that says what it needs.
async fn on_terms<S: Server, C, T>(
    connection: &mut Connection<S>,
    begin: AssertSqlSafe<String>,
    context: &C,
    work: Work<S, C, T>,
) -> Fallible<T> {
    let mut tx = connection.begin_with(begin).await?;
    match work(&mut tx, context).await {
        Ok(answer) => {
            tx.commit().await?;
            Ok(answer)
        }
        Err(fault) => {
            // The first error is the one to tell.
            drop(tx.rollback().await);
            Err(fault)
        }
    }
}

/// A pool of the storage's own. It connects when it is first used.
fn pool<S: Server>(connect: Options<S>, size: u32, limits: Limits, is_limited: bool, losses: &Losses) -> Pool<S::Db> {
    let losses = losses.clone();
    PoolOptions::<S::Db>::new()
        .max_connections(size)
        .acquire_timeout(limits.connect_timeout)
        // A round trip for each statement would be too much: what was used a moment ago still lives, mostly.
        .test_before_acquire(false)
        .before_acquire(move |connection, found| {
            let is_doubtful = losses.concern(found.idle_for);
            Box::pin(async move {
                if is_doubtful {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _| {
            Box::pin(async move {
                if is_limited {
                    S::limit(connection, limits.statement_timeout).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(connect)
}
