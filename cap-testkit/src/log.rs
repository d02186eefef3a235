//! What is logged, for tests that read it.
//!
//! ```
//! use std::io::Write as _;
//!
//! use cap_testkit::log::Log;
//!
//! let log = Log::default();
//! // As a subscriber does that is given `log.writer()`.
//! writeln!(log.writer()(), "WARN nobody listens to `orders`")?;
//! writeln!(log.writer()(), "INFO starting")?;
//! assert_eq!(log.lines_with("WARN"), ["WARN nobody listens to `orders`"]);
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A log that is kept in memory. Cheap to clone: a clone is the same log.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For `tracing_subscriber::fmt().with_writer(…)`.
    pub fn writer(&self) -> impl Fn() -> Self + Send + Sync + 'static + use<> {
        let log = self.clone();
        move || log.clone()
    }

    /// All of it. What is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }

    /// The lines that hold a text, in their order.
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
