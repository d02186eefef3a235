//! Pauses between attempts of the engine's own work: exponential with equal jitter. (Those of messages are the
//! lifecycle's.)

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Growing pauses of one loop.
#[derive(Debug)]
pub(crate) struct Pause {
    bound: Duration,
    first: Duration,
    max: Duration,
}

impl Pause {
    /// From 20 ms to 1 s: for what is expected to work again very soon.
    pub(crate) fn quick() -> Self {
        Self::new(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// From 100 ms to 4 s: for a server that may be away for long. Once it is back everything is well within 5 s.
    pub(crate) fn patient() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(4))
    }

    /// From 100 ms to 4 s: for what is tried with a few messages, a topic or the broker.
    pub(crate) fn of_probes() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(4))
    }

    fn new(first: Duration, max: Duration) -> Self {
        Self { bound: first, first, max }
    }

    /// The next pause: half of the bound, and a random part of the other half.
    pub(crate) fn next(&mut self) -> Duration {
        self.next_within(self.max)
    }

    /// The same, with a bound of at most `longest` this time.
    pub(crate) fn next_within(&mut self, longest: Duration) -> Duration {
        let pause = self.bound.min(longest).mul_f64(0.5 + fastrand::f64() / 2.0);
        self.bound = (self.bound * 2).min(self.max);
        pause
    }

    pub(crate) fn reset(&mut self) {
        self.bound = self.first;
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }
}

/// Stops the relay from claiming while the broker is away, so that no attempt is wasted on it.
#[derive(Debug)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug)]
struct State {
    pause: Pause,
    open_until: Option<Instant>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self(Mutex::new(State { pause: Pause::of_probes(), open_until: None }))
    }
}

impl Breaker {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when it is open, if it is.
    pub(crate) fn open_until(&self) -> Option<Instant> {
        self.state().open_until
    }

    /// A batch brought nothing through: opens for a growing pause, unless it is open already.
    pub(crate) fn open(&self) {
        let mut state = self.state();
        if state.open_until.is_none_or(|until| until <= Instant::now()) {
            let pause = state.pause.next();
            state.open_until = Some(Instant::now() + pause);
        }
    }

    /// Something came through; answers whether it was open.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.state();
        let was_open = state.open_until.take().is_some();
        if was_open {
            state.pause.reset();
        }
        was_open
    }
}
