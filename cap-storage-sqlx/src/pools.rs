//! Connections of the storage's own, and what it means to run something over one.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cap_core::backend::Attempt;
use cap_core::{BoxFuture, Error, ErrorKind, Result};
use sqlx::pool::MaybePoolConnection;
use sqlx::{AssertSqlSafe, Connection as _, Pool, SqlSafeStr, Transaction};
use tokio::runtime::Handle;

use crate::fault::{Fallible, Fault, When};
use crate::held::Held;
use crate::server::{Connection, Options, Server};
use crate::supply::Supply;

/// How often something is done that the database takes back as the victim of a deadlock.
const TRIES: u32 = 5;

/// How long to wait before the second try; before the third twice as long, and so on.
const PAUSE: Duration = Duration::from_millis(5);

/// How much longer than the statement timeout an answer may take, so that it is the server who gives up first.
const GRACE: Duration = Duration::from_secs(2);

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
    supply: Supply<S>,
    /// Whether what runs over them has to say what it needs, as the sessions' defaults are others.
    has_terms: AtomicBool,
    asked_for_terms: AtomicBool,
    limits: Limits,
}

impl<S: Server> fmt::Debug for Pools<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, limits, supply: Supply { is_own, .. }, .. } = self;
        f.debug_struct("Pools").field("place", place).field("is_own", is_own).field("limits", limits).finish()
    }
}

impl<S: Server> Pools<S> {
    /// Over a pool of the user's, whose sessions are left as they are. It does no I/O.
    pub fn over(work: Pool<S::Db>, limits: Limits) -> Self {
        Self::new(Supply::over(work, limits), limits)
    }

    /// Over a pool of the storage's own. It connects when it is first used. Must be called within a Tokio runtime.
    pub fn own(connect: Options<S>, limits: Limits) -> Self {
        Self::new(Supply::own(connect, limits), limits)
    }

    fn new(supply: Supply<S>, limits: Limits) -> Self {
        let place = S::place(&supply.connect_options());
        let no = || AtomicBool::new(false);
        Self { place, supply, has_terms: no(), asked_for_terms: no(), limits }
    }

    /// Kind and address, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The pool for work: the user's, or the storage's own.
    pub fn work(&self) -> &Pool<S::Db> {
        &self.supply.work
    }

    /// Whether it is the storage's own, so that its sessions are limited.
    pub fn is_own(&self) -> bool {
        self.supply.is_own
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
        let options = self.supply.connect_options();
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
    /// another transaction, unless that took too long already; and over another connection if this one had a session that
    /// is of no more use, or had been closed before anything was asked.
    ///
    /// # Errors
    /// What `work` answers at last; `Unavailable` if there was no connection or no answer in time.
    pub async fn run<C, T>(&self, via: Via, attempt: Attempt, context: C, work: Work<S, C, T>) -> Result<T> {
        let begun = Instant::now();
        let mut tries = 1;
        let mut others = 0;
        loop {
            let had_terms = self.on_terms();
            let fault = match self.once(via, &context, work).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if self.on_terms() && !had_terms || self.may_do_on_another(via, &fault, &mut others) {
                continue;
            }
            let is_victim = fault.driver().is_some_and(S::is_victim);
            if !is_victim || tries == TRIES || begun.elapsed() >= self.limits.statement_timeout {
                return Err(self.explain_when(When::AtWork, fault, attempt));
            }
            tracing::debug!(operation = attempt.operation(), cap.place = %self.place, ?fault, "done again after a conflict");
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
            let outcome = self.within(&mut held, self.limits.statement_timeout, context, work).await;
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
                self.supply.losses.note();
                return Err(Fault::no_answer(limit));
            }
        };
        if outcome.as_ref().is_err_and(Fault::is_stale::<S>) {
            tracing::debug!(cap.place = %self.place, "closed a session that is of no more use");
        } else if is_clean {
            held.give_back();
        }
        if outcome.as_ref().is_err_and(Fault::is_lost_connection::<S>) {
            self.supply.losses.note();
        }
        outcome
    }

    /// Whether sessions have defaults that are not what the storage's statements need, or are lent and so the same ones only
    /// within a transaction: then [`run`](Self::run) begins transactions on [terms](Server::terms) of its own. A session is
    /// asked if none has been yet.
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
        self.is_lent() || self.has_terms.load(Ordering::Relaxed)
    }

    /// Asks a session whether its defaults are what the storage's statements need. If not, these run in transactions from
    /// now on that say so: the sessions themselves stay as they are, since others may use them, too.
    async fn learn_terms(&self, connection: &mut Connection<S>) -> Fallible<()> {
        if !self.on_terms() && S::needs_terms(connection, self.limits.statement_timeout).await? {
            tracing::info!(
                cap.place = %self.place,
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
        let failed = |fault| self.explain_when(When::Connecting, fault, attempt);
        let mut held = match self.acquire(Via::Work).await {
            Ok(held) => held,
            Err(fault) => {
                // Another one may say more plainly why not.
                self.try_connect().await?;
                return Err(failed(fault));
            }
        };
        if !self.asked_for_terms.load(Ordering::Relaxed) {
            self.learn_terms(&mut held).await.map_err(failed)?;
        }
        let answer = self.within(&mut held, Duration::ZERO, &context, work).await.map_err(failed)?;
        self.learn_terms(&mut held).await.map_err(failed)?;
        held.close().await;
        Ok(answer)
    }

    /// Runs `work`, in a transaction that says what it needs if it has to; each of its statements then within the time
    /// limit, of which zero is none.
    async fn within<C, T>(
        &self,
        connection: &mut Connection<S>,
        limit: Duration,
        context: &C,
        work: Work<S, C, T>,
    ) -> Fallible<T> {
        match S::terms(limit).filter(|_| self.on_terms()) {
            Some(begin) => on_terms::<S, C, T>(connection, begin, context, work).await,
            None => work(connection, context).await,
        }
    }

    /// From now on sessions are taken to be lent by a pooler, for one transaction at a time: whatever is done is done in a
    /// transaction, and no session gets a setting.
    pub fn lend(&self) {
        self.supply.lend();
    }

    /// Whether sessions are lent by a pooler.
    pub fn is_lent(&self) -> bool {
        self.supply.way.is_lent()
    }

    /// The same, for whoever has to know at any time. It may be so from one connection to the next.
    pub fn lent(&self) -> Arc<AtomicBool> {
        self.supply.way.lent()
    }

    /// Nobody stands before the server now: each connection that the storage makes from now on is looked at, whether a pooler
    /// [lends](Self::lend) its session (see [`Server::mark`]).
    pub fn mark(&self) {
        self.supply.mark();
    }

    /// What connections are made with, as it was given.
    pub fn connect_options(&self) -> Options<S> {
        self.supply.connect_options()
    }

    async fn acquire(&self, via: Via) -> Fallible<Held<S::Db>> {
        let home = self.supply.home.clone().filter(|_| via != Via::Pulse);
        Ok(Held::new(self.supply.acquire(via).await?, home))
    }

    /// Ends a transaction of a handler, whose connection goes back to its pool although the handler's runtime may be blocked
    /// a moment later.
    ///
    /// # Errors
    /// The driver's.
    pub async fn end<E: Future<Output = sqlx::Result<()>>>(&self, ending: E) -> Fallible<()> {
        let mut ending = pin!(ending);
        let ended = poll_fn(|context| {
            let _home = self.supply.home.as_ref().map(Handle::enter);
            ending.as_mut().poll(context)
        });
        Ok(ended.await?)
    }

    /// Whether what has failed is to be done on another connection: nothing of it was done on this one. Where the server
    /// was left, the connections that are with it are used no more. `others` counts the connections after the first one.
    fn may_do_on_another(&self, via: Via, fault: &Fault, others: &mut u32) -> bool {
        let is_stale = fault.is_stale::<S>();
        if !is_stale && !fault.is_undone::<S>() {
            return false;
        }
        if !is_stale {
            self.supply.losses.note();
        } else if *others == 0 {
            self.supply.losses.leave();
        }
        // In a pool of our own the next one is new. Of a user's pool each idle connection may have to be closed first.
        let is_users = via == Via::Work && !self.supply.is_own;
        let most = if is_users { self.supply.work.options().get_max_connections() } else { 1 };
        let may = *others < most;
        *others += 1;
        if may {
            tracing::debug!(cap.place = %self.place, ?fault, "done again on another connection");
        }
        may
    }

    /// Begins a handler's transaction with this statement, over the pool for work, and does `work` in it. On another
    /// connection if the first one had a session that is of no more use, or had been closed before anything was asked.
    ///
    /// # Errors
    /// The driver's, and what `work` answers at last; the transaction is taken back.
    pub async fn begin<C, T>(
        &self,
        statement: &'static str,
        context: &C,
        work: Work<S, C, T>,
    ) -> Fallible<(Transaction<'static, S::Db>, T)> {
        let mut others = 0;
        loop {
            let fault = match self.begin_once(statement, context, work).await {
                Ok(begun) => return Ok(begun),
                Err(fault) => fault,
            };
            if !self.may_do_on_another(Via::Work, &fault, &mut others) {
                return Err(fault);
            }
        }
    }

    async fn begin_once<C, T>(
        &self,
        statement: &'static str,
        context: &C,
        work: Work<S, C, T>,
    ) -> Fallible<(Transaction<'static, S::Db>, T)> {
        let connection = MaybePoolConnection::PoolConnection(self.supply.acquire(Via::Work).await?);
        // As the pool's own `begin_with` does once it has a connection.
        let mut tx = Transaction::begin(connection, Some(statement.into_sql_str())).await?;
        let outcome = work(&mut tx, context).await;
        if !self.supply.is_own && outcome.as_ref().is_err_and(Fault::is_stale::<S>) {
            // A transaction does not part from its connection, and nobody else keeps a user's pool from lending it again.
            drop(tokio::time::timeout(self.limit(), S::end_session(&mut tx)).await);
        }
        Ok((tx, outcome?))
    }

    /// Looks whether the server gives no more connections, for whoever wants one beside the pools.
    pub async fn gives_no_more(&self) -> bool {
        self.supply.room.look::<S>(&self.supply.work).await
    }

    /// Waits until a session was found to be of no more use. Whoever keeps a connection beside the pools closes it then: it
    /// is probably with the same server.
    pub async fn left(&self) {
        self.supply.losses.left().await;
    }

    /// The error of it, as the caller sees it. If a session was of no more use, neither are the others that are as old.
    pub fn explain(&self, fault: Fault, attempt: Attempt) -> Error {
        if fault.is_stale::<S>() {
            self.supply.losses.leave();
        }
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
            // The first error is the one to tell. If this fails, too, the connection is cut off with what failed before.
            drop(tx.rollback().await);
            Err(fault)
        }
    }
}
