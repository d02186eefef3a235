//! Whether the user's runtime still runs: handlers that block its threads keep everything from running but the keeper of
//! the lease, which has a thread of its own and tells who does it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::error::{Error, ErrorKind};

/// How often the runtime is asked for a sign.
pub(crate) const EVERY: Duration = Duration::from_millis(500);
/// Without a sign for so long it is told of.
const BLOCKED: Duration = Duration::from_secs(2);

/// The name of the runtime among the loops of [`crate::Health`].
const NAME: &str = "runtime";

/// What is known of the runtime's threads.
#[derive(Debug)]
pub(crate) struct Pulse {
    began: Instant,
    /// The last sign, in milliseconds since the beginning.
    sign: Arc<AtomicU64>,
    polled: Mutex<Vec<Weak<Polled>>>,
    keeper_ended: AtomicBool,
}

/// A runner, and the handler that it is polling.
#[derive(Debug)]
pub(crate) struct Polled {
    handler: String,
    began: Instant,
    /// Since when it is polled, in milliseconds since the beginning; 0 while it is not.
    since: AtomicU64,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            sign: Arc::default(),
            polled: Mutex::default(),
            keeper_ended: AtomicBool::new(false),
        }
    }

    fn polled(&self) -> MutexGuard<'_, Vec<Weak<Polled>>> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that keeps the lease has ended.
    pub(crate) fn keeper_ended(&self) {
        self.keeper_ended.store(true, Ordering::Release);
    }

    /// Whether somebody keeps the lease.
    pub(crate) fn is_kept(&self) -> bool {
        !self.keeper_ended.load(Ordering::Acquire)
    }

    /// Of a runner that begins.
    pub(crate) fn runner(&self, handler: String) -> Arc<Polled> {
        let polled = Arc::new(Polled { handler, began: self.began, since: AtomicU64::new(0) });
        let mut all = self.polled();
        if all.len() == all.capacity() {
            all.retain(|polled| polled.strong_count() > 0);
        }
        all.push(Arc::downgrade(&polled));
        polled
    }

    /// The handlers that have been polled without a pause for at least so long.
    pub(crate) fn polled_for(&self, least: Duration) -> Vec<String> {
        let now = millis(self.began);
        let longest = u64::try_from(least.as_millis()).unwrap_or(u64::MAX);
        let polled = self.polled();
        let blocks = |polled: &Arc<Polled>| {
            let since = polled.since.load(Ordering::Relaxed);
            since > 0 && now.saturating_sub(since) >= longest
        };
        let mut names: Vec<String> =
            polled.iter().filter_map(Weak::upgrade).filter(blocks).map(|polled| polled.handler.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Looks at the last sign, asks for the next, and tells what changed.
    pub(crate) fn look(&self, engine: &Engine) {
        let silent = Duration::from_millis(millis(self.began).saturating_sub(self.sign.load(Ordering::Relaxed)));
        if silent < BLOCKED {
            engine.health.well(NAME);
        } else if engine.health.is_well(NAME) {
            let handlers = self.polled_for(BLOCKED / 2);
            let by = if handlers.is_empty() {
                "by something that is no handler".to_owned()
            } else {
                format!("by the handlers of {}", handlers.join(", "))
            };
            let reason = format!(
                "all of its threads have been blocked for {silent:?} {by}: nothing else runs meanwhile but this node's \
                 heartbeats; use `tokio::task::spawn_blocking` for work that does not await"
            );
            engine.health.ill(NAME, Error::new(ErrorKind::Unavailable, "run on", "the runtime", reason));
        }
        let (sign, began) = (Arc::clone(&self.sign), self.began);
        drop(engine.runtime.spawn(async move { sign.store(millis(began), Ordering::Relaxed) }));
    }
}

impl Polled {
    /// Around one poll of the handler.
    pub(crate) fn while_polling<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.since.store(millis(self.began).max(1), Ordering::Relaxed);
        let polled = poll();
        self.since.store(0, Ordering::Relaxed);
        polled
    }
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
