//! How a handler fails.

use std::fmt;

/// A handler's failure: a reason for the record, and whether trying again can help.
///
/// Any error converts into one that is tried again; [`HandlerError::permanent`] makes one that is not. It does not
/// implement [`std::error::Error`] itself, so that `?` works on every error.
///
/// ```
/// use cap_core::HandlerError;
///
/// fn charge(amount: &str) -> Result<f64, HandlerError> {
///     let amount: f64 = amount.parse().map_err(HandlerError::permanent)?; // no retry makes it a number
///     std::fs::read("/nowhere/rates").map(|_| amount).map_err(HandlerError::from) // may work later
/// }
/// assert!(charge("ten").unwrap_err().is_permanent());
/// assert!(!charge("10").unwrap_err().is_permanent());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerError {
    reason: String,
    permanent: bool,
    /// It is the storage that failed, not the handler: the attempt does not count.
    storages: bool,
}

impl HandlerError {
    /// A failure that may go away: the subscription's retry policy decides when to try again.
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), permanent: false, storages: false }
    }

    /// A failure that no further attempt can mend: the record is dead at once.
    pub fn permanent(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), permanent: true, storages: false }
    }

    /// The storage's failure to begin or to commit a handler's transaction. The engine's alone: what a storage or a handler
    /// made so would be tried again without end.
    #[doc(hidden)]
    pub fn of_storage(error: &crate::Error) -> Self {
        Self { storages: error.is_retryable(), ..Self::retry(error) }
    }

    /// Whether it is one of those.
    #[doc(hidden)]
    pub fn is_the_storages(&self) -> bool {
        self.storages
    }

    /// Why it failed.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether no further attempt can help.
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !reason.contains(&cause_text) {
                reason.push_str(": ");
                reason.push_str(&cause_text);
            }
            source = cause.source();
        }
        Self { reason, permanent: false, storages: false }
    }
}
