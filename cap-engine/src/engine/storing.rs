//! Whether a consumer gets stored what it takes. A node that cannot store must not take: others of its group may be able to.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::{Error, ErrorKind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Without a success for so long a consumer gives back what it holds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for one that only tries whether the storage takes anything again.
const TRIAL: Duration = Duration::from_secs(1);

/// How storing goes, for one consumer.
#[derive(Debug)]
pub(crate) struct Storing {
    patience: Duration,
    state: Mutex<State>,
    /// What could not be stored goes back: nobody tries any longer.
    pub(crate) given_back: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// The last success, or the beginning.
    since: Instant,
    has_succeeded: bool,
    error: Option<Error>,
}

impl Storing {
    /// Of a consumer that begins; `is_trial` if the last one gave back what it had.
    pub(crate) fn new(is_trial: bool) -> Self {
        let patience = if is_trial { TRIAL } else { PATIENCE };
        let state = State { since: Instant::now(), has_succeeded: false, error: None };
        Self { patience, state: Mutex::new(state), given_back: CancellationToken::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_trial(&self) -> bool {
        self.patience == TRIAL
    }

    /// After so long without a delivery it is taken for well: a trial that tried nothing proves nothing.
    pub(crate) fn quiet(&self) -> Duration {
        if self.is_trial() { TRIAL } else { Duration::ZERO }
    }

    /// After a time with nothing to store there is something.
    pub(crate) fn begins(&self) {
        self.state().since = Instant::now();
    }

    pub(crate) fn succeeds(&self) {
        let mut state = self.state();
        (state.since, state.has_succeeded) = (Instant::now(), true);
    }

    /// Whether anything was stored.
    pub(crate) fn has_succeeded(&self) -> bool {
        self.state().has_succeeded
    }

    /// Everything is refused. A trial has its answer.
    pub(crate) fn fails(&self, error: Error) {
        let mut state = self.state();
        state.error = Some(error);
        if self.is_trial() && !state.has_succeeded {
            self.given_back.cancel();
        }
    }

    /// Waits until there was no success for too long, or a trial has failed; answers why.
    pub(crate) async fn is_over(&self) -> Error {
        loop {
            let limit = self.state().since + self.patience;
            if limit <= Instant::now() {
                break;
            }
            tokio::select! {
                () = self.given_back.cancelled() => break,
                () = tokio::time::sleep_until(limit) => {}
            }
        }
        self.given_back.cancel();
        let error = self.state().error.take();
        error.unwrap_or_else(|| {
            let reason = format!("the storage has not answered for {:?}: they go back to the broker", self.patience);
            Error::new(ErrorKind::Unavailable, "store", "deliveries", reason)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Error {
        Error::new(ErrorKind::Environment, "insert into", "the inbox", "it is read-only")
    }

    #[tokio::test(start_paused = true)]
    async fn patience_counts_from_the_last_success() {
        let storing = Storing::new(false);
        let began = Instant::now();
        let over = async { (storing.is_over().await, began.elapsed()) };
        let work = async {
            tokio::time::sleep(PATIENCE / 2).await;
            storing.fails(refusal());
            storing.succeeds();
            tokio::time::sleep(PATIENCE / 2).await;
            storing.fails(refusal());
        };
        let ((error, took), ()) = tokio::join!(over, work);
        assert!(took >= PATIENCE * 3 / 2, "{took:?}");
        assert_eq!(error.reason(), "it is read-only");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_is_over_with_its_first_failure_and_when_nothing_answers() {
        let began = Instant::now();
        let refused = Storing::new(true);
        refused.fails(refusal());
        refused.is_over().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(Storing::new(true).is_over().await.kind(), ErrorKind::Unavailable);
        assert!(began.elapsed() >= TRIAL && began.elapsed() < PATIENCE);
    }
}
