//! Whether the user's runtime still runs: handlers that block its threads keep everything from running but the keeper of
//! the lease, which has a thread of its own and tells who does it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cap_core::{Error, ErrorKind};
use tokio::runtime::Handle;

use crate::engine::Engine;

/// How often the runtime is asked for a sign.
pub(crate) const EVERY: Duration = Duration::from_millis(500);
/// Without a sign for so long it is told of.
const BLOCKED: Duration = Duration::from_secs(2);

/// The names of the runtimes among the loops of [`crate::Health`].
const RUNTIME: &str = "runtime";
const HANDLERS: &str = "handlers";

/// What is known of the runtime's threads.
#[derive(Debug)]
pub(crate) struct Pulse {
    began: Instant,
    /// The last signs of the engine's runtime and of the handlers', in milliseconds since the beginning.
    signs: [Arc<AtomicU64>; 2],
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
            signs: Default::default(),
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

    /// Looks at the last signs, asks for the next, and tells what changed.
    pub(crate) fn look(&self, engine: &Engine) {
        let [sign, handlers_sign] = &self.signs;
        let rest = "nothing else runs meanwhile but this node's heartbeats";
        self.look_at(engine, RUNTIME, &engine.runtime, sign, rest);
        if let Some(runtime) = &engine.handlers_runtime {
            let was_well = engine.health.is_well(HANDLERS);
            let rest = "no other handler runs here meanwhile, and what waits for one goes back into the inbox";
            self.look_at(engine, HANDLERS, runtime, handlers_sign, rest);
            let is_well = engine.health.is_well(HANDLERS);
            if is_well != was_well {
                engine.groups.iter().for_each(|group| group.shut(engine, !is_well));
            }
        }
    }

    /// `rest`: what becomes of everything else while this runtime is blocked.
    fn look_at(&self, engine: &Engine, name: &'static str, runtime: &Handle, sign: &Arc<AtomicU64>, rest: &str) {
        let silent = Duration::from_millis(millis(self.began).saturating_sub(sign.load(Ordering::Relaxed)));
        if silent < BLOCKED {
            engine.health.well(name);
        } else if engine.health.is_well(name) {
            let handlers = self.polled_for(BLOCKED / 2);
            let by = if handlers.is_empty() {
                "by something that is no handler".to_owned()
            } else {
                format!("by the handlers of {}", handlers.join(", "))
            };
            let reason = format!(
                "all of its threads have been blocked for {silent:?} {by}: {rest}; use `tokio::task::spawn_blocking` for \
                 work that does not await"
            );
            let subject = if name == HANDLERS { "the handlers' runtime" } else { "the runtime" };
            engine.health.ill(name, Error::new(ErrorKind::Unavailable, "run on", subject, reason));
        }
        let (sign, began) = (Arc::clone(sign), self.began);
        drop(runtime.spawn(async move { sign.store(millis(began), Ordering::Relaxed) }));
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
