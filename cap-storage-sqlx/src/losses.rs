//! Which idle connections are used again, and which are tried before.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Connection;
use sqlx::pool::PoolConnectionMetadata;
use tokio::sync::watch;

/// One that was idle for longer is tried before it is used: the server, or what is between, may have closed it meanwhile.
/// Servers count that in seconds. Under load none is idle for so long, and otherwise a round trip more costs nothing.
const FRESH: Duration = Duration::from_millis(500);

/// How long one that is tried may take to answer. A firewall that has forgotten it lets it wait for ever.
const PATIENCE: Duration = Duration::from_secs(2);

/// What befell the connections of all pools.
#[derive(Debug, Clone, Default)]
pub(crate) struct Losses(Arc<Events>);

#[derive(Debug, Default)]
struct Events {
    /// When a connection was last found dead. After a restart of the server all are: those that have been idle since
    /// before then are tried before they are used.
    lost: Mutex<Option<Instant>>,
    /// When a session was last found to be of no more use. The others that were made before are not, either.
    left: watch::Sender<Option<Instant>>,
}

impl Losses {
    fn lost(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One is dead.
    pub(crate) fn note(&self) {
        *self.lost() = Some(Instant::now());
    }

    /// The server is another one now, or has another role.
    pub(crate) fn leave(&self) {
        self.0.left.send_replace(Some(Instant::now()));
    }

    /// Waits until the server is left.
    pub(crate) async fn left(&self) {
        let mut left = self.0.left.subscribe();
        left.mark_unchanged();
        if left.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether one that has been idle for so long may be dead, too.
    fn concern(&self, idle_for: Duration) -> bool {
        idle_for > FRESH || self.lost().is_some_and(|lost| lost.elapsed() <= idle_for)
    }

    /// Whether one that was made so long ago is with a server that was left.
    fn outdate(&self, age: Duration) -> bool {
        self.0.left.borrow().is_some_and(|left| left.elapsed() <= age)
    }

    /// Whether an idle connection is to be used; otherwise it is closed.
    ///
    /// # Errors
    /// When it does not answer: it is cut off.
    pub(crate) async fn allow<C: Connection>(
        &self,
        connection: &mut C,
        found: PoolConnectionMetadata,
    ) -> sqlx::Result<bool> {
        if self.outdate(found.age) {
            return Ok(false);
        }
        if !self.concern(found.idle_for) {
            return Ok(true);
        }
        let tried = tokio::time::timeout(PATIENCE, connection.ping()).await;
        if !matches!(tried, Ok(Ok(()))) {
            self.note();
        }
        match tried {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => {
                tracing::debug!(error.message = %error, idle_for = ?found.idle_for, "an idle connection was closed meanwhile");
                Ok(false)
            }
            Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_loss_those_that_were_idle_before_it_are_doubtful() {
        let losses = Losses::default();
        let (idle, long) = (Duration::from_millis(400), Duration::from_millis(600));
        assert!(!losses.concern(idle) && losses.concern(long));
        losses.note();
        assert!(losses.concern(idle), "it was idle when one was lost");
        assert!(!losses.concern(Duration::ZERO), "it was used since");
    }

    #[tokio::test]
    async fn those_that_were_made_before_the_server_was_left_are_not_used_again() {
        let losses = Losses::default();
        let old = Duration::from_secs(10);
        assert!(!losses.outdate(old));
        let told = losses.clone();
        let told = tokio::spawn(async move { told.left().await });
        while losses.0.left.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        losses.leave();
        assert!(losses.outdate(old), "it was there before");
        assert!(!losses.outdate(Duration::ZERO), "it was made since");
        told.await.unwrap();
    }
}
