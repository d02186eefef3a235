//! Which idle connections are tried before they are used.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One that was idle for longer is tried before it is used.
const FRESH: Duration = Duration::from_secs(60);

/// When a connection was last found dead. After a restart of the server all are: those that have been idle since before
/// then are tried before they are used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Losses(Arc<Mutex<Option<Instant>>>);

impl Losses {
    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One is dead.
    pub(crate) fn note(&self) {
        *self.last() = Some(Instant::now());
    }

    /// Whether one that has been idle for so long may be dead, too.
    pub(crate) fn concern(&self, idle_for: Duration) -> bool {
        idle_for > FRESH || self.last().is_some_and(|lost| lost.elapsed() <= idle_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_loss_those_that_were_idle_before_it_are_doubtful() {
        let losses = Losses::default();
        let (idle, long) = (Duration::from_secs(10), Duration::from_secs(61));
        assert!(!losses.concern(idle) && losses.concern(long));
        losses.note();
        assert!(losses.concern(idle), "it was idle when one was lost");
        assert!(!losses.concern(Duration::ZERO), "it was used since");
    }
}
