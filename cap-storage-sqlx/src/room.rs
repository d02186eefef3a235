//! How many connections the server gives, as far as it is known.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, Pool};
use tokio::sync::Mutex as Turn;

use crate::fault::{Fault, explained};
use crate::server::{Connection, Server};

/// How long a pool may take until somebody looks why.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long one look takes at most.
const LOOK: Duration = Duration::from_secs(10);

/// The least time between two looks.
const PAUSE: Duration = Duration::from_secs(5);

/// How long a server that gives no more is not asked for more.
const FULL_FOR: Duration = Duration::from_secs(30);

/// How often it is told that a server gives no more, at most.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// What is known of the server, for all pools together.
#[derive(Debug, Default)]
pub(crate) struct Room {
    known: Mutex<Known>,
    /// One at a time looks.
    looking: Turn<()>,
    /// Where the server gives no more, of all who wait for a connection that comes back only the first waits at the pool.
    pub(crate) turn: Turn<()>,
}

#[derive(Debug, Default)]
struct Known {
    looked: Option<Instant>,
    full: Option<Instant>,
    told: Option<Instant>,
    /// Why no connection could be opened when somebody looked.
    reason: Option<String>,
}

impl Room {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server gives no more connections: it is no use to ask for one.
    pub(crate) fn is_full(&self) -> bool {
        is_within(self.known().full, FULL_FOR)
    }

    /// The server has answered that it gives no more.
    pub(crate) fn fill<S: Server>(&self, error: &sqlx::Error, pool: &Pool<S::Db>) {
        let reason = explained::<S>(error);
        let mut known = self.known();
        if !is_within(known.told, TELL_EVERY) {
            let place = S::place(&pool.connect_options());
            tracing::warn!(%place, error.message = %reason, "the server gives no more connections: those that are there are shared");
            known.told = Some(Instant::now());
        }
        known.full = Some(Instant::now());
        known.reason = Some(reason);
    }

    /// Once a pool has taken long: looks why. Answers whether the server gives no more.
    pub(crate) async fn look_later<S: Server>(&self, pool: &Pool<S::Db>) -> bool {
        tokio::time::sleep(PATIENCE).await;
        self.look::<S>(pool).await
    }

    /// Looks why there is no connection, with one beside the pool, unless somebody has looked a moment ago. Answers whether
    /// the server gives no more.
    pub(crate) async fn look<S: Server>(&self, pool: &Pool<S::Db>) -> bool {
        let _looking = self.looking.lock().await;
        if is_within(self.known().looked, PAUSE) {
            return self.is_full();
        }
        let options = pool.connect_options();
        let tried = tokio::time::timeout(LOOK, Connection::<S>::connect_with(&options)).await;
        self.known().looked = Some(Instant::now());
        match tried {
            Ok(Ok(connection)) => {
                self.known().reason = None;
                // The server notices in any case.
                drop(connection.close().await);
            }
            Ok(Err(error)) if S::is_full(&error) => self.fill::<S>(&error, pool),
            Ok(Err(error)) => self.known().reason = Some(explained::<S>(&error)),
            Err(_) => self.known().reason = Some("the server does not answer".to_owned()),
        }
        self.is_full()
    }

    /// Why there was no connection within the limit.
    pub(crate) fn no_connection(&self, limit: Duration) -> Fault {
        let known = self.known();
        let is_known = is_within(known.looked, limit + PAUSE) || is_within(known.full, limit + FULL_FOR);
        let reason = match &known.reason {
            Some(reason) if is_known => reason,
            None if is_known => "all stayed busy: make the pool greater, or handlers shorter",
            _ => "all stayed busy, or none could be opened in time",
        };
        Fault::said(cap_core::ErrorKind::Unavailable, format!("no connection within {limit:?}: {reason}"))
    }
}

fn is_within(moment: Option<Instant>, limit: Duration) -> bool {
    moment.is_some_and(|moment| moment.elapsed() < limit)
}
