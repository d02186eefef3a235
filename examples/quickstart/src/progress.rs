//! A line on the terminal that tells how far it is, written over again and again.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The least time between two of them.
const PAUSE: Duration = Duration::from_millis(100);

/// Says nothing where nobody looks on.
pub(crate) struct Progress {
    is_seen: bool,
    began: Instant,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    pub(crate) fn begin() -> Self {
        Self { is_seen: stderr().is_terminal(), began: Instant::now(), last: Mutex::default() }
    }

    /// How far it is.
    pub(crate) fn say(&self, far: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_seen || last.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        *last = Some(Instant::now());
        // Nothing is lost with it.
        let _ = write!(stderr(), "\r{far}, {} s\x1b[K", self.began.elapsed().as_secs());
    }

    /// Something to keep, on a line of its own.
    pub(crate) fn tell(&self, text: &str) {
        self.end();
        eprintln!("{text}");
    }

    /// Takes the line away.
    pub(crate) fn end(&self) {
        if self.is_seen {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
