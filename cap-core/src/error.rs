//! The one error type: what was tried, on what, why it failed, and whether it may work later.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use crate::shown::shown;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is: what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller gave something that can never work (empty topic, payload over the limit, duplicate subscription).
    Invalid,
    /// The backend does not offer this operation and says so in its capabilities.
    Unsupported,
    /// The backend cannot be reached or is overloaded now; the same call may work later.
    Unavailable,
    /// The backend answered and refuses just what it was given: a constraint, a text that its encoding does not have, a
    /// content that is too large for it. The same can never work; something else may.
    Rejected,
    /// The backend answered and refuses, and what it was given is not at fault: no rights, a full disk, a read-only
    /// server, a missing table, a full queue. The same call works once somebody has put that right; it spends no attempt
    /// of any message.
    Environment,
    /// The tables belong to another schema version.
    Schema,
    /// Stored or received bytes cannot be understood.
    Corrupt,
    /// The node's lease has lapsed: what it held belongs to others now.
    LeaseLost,
    /// The broker accepted the message but had no queue for it.
    Unroutable,
    /// The engine or the backend is stopped.
    Stopped,
    /// A bug in this library or a backend: a panic was caught, an invariant does not hold.
    Internal,
}

impl ErrorKind {
    /// Whether the same call may succeed later.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Environment | Self::Unroutable | Self::LeaseLost)
    }
}

/// An error that a person can act on: operation, subject, reason and advice. Cheap to clone.
///
/// Backends must keep secrets out of `subject` and `reason`: name a server by host and database, never by its whole URL.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: Cow<'static, str>,
    subject: String,
    reason: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`: `operation` is a verb phrase ("publish to the outbox"), `subject` what it was done to
    /// ("topic `order.placed`"), `reason` why it failed.
    pub fn new(
        kind: ErrorKind,
        operation: impl Into<Cow<'static, str>>,
        subject: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            operation: operation.into(),
            subject: subject.into(),
            reason: reason.into(),
            source: None,
        }))
    }

    /// As [`Error::new`], with the driver's error as source; its text is the reason.
    pub fn with_source(
        kind: ErrorKind,
        operation: impl Into<Cow<'static, str>>,
        subject: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            operation: operation.into(),
            subject: subject.into(),
            reason: source.to_string(),
            source: Some(Box::new(source)),
        }))
    }

    /// The same error with what caused it, where the reason is in words of our own.
    #[must_use]
    pub fn because(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let Inner { kind, operation, subject, reason, .. } = &*self.0;
        Self(Arc::new(Inner {
            kind: *kind,
            operation: operation.clone(),
            subject: subject.clone(),
            reason: reason.clone(),
            source: Some(Box::new(source)),
        }))
    }

    /// Bad input: `subject` names the thing, `reason` what is wrong with it.
    pub fn invalid(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, "use", subject, reason)
    }

    /// The answer of a backend that does not offer `operation`.
    pub fn unsupported(operation: impl Into<Cow<'static, str>>, backend: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, operation, backend, "this backend does not declare the capability")
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was tried.
    pub fn operation(&self) -> &str {
        &self.0.operation
    }

    /// What it was tried on.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// Why it failed.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { operation, subject, reason, .. } = &*self.0;
        write!(f, "cannot {operation} {}: {}", shown(subject), shown(reason))?;
        match self.0.kind {
            ErrorKind::Environment => f.write_str(" (works once that is put right)"),
            kind if kind.is_retryable() => f.write_str(" (may work later)"),
            ErrorKind::Internal => f.write_str(" (a bug: please report it)"),
            _ => Ok(()),
        }
    }
}

/// For logs and probes: `kind`, `operation`, `subject`, `reason`, `may_work_later`.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut error = serializer.serialize_struct("Error", 5)?;
        error.serialize_field("kind", &format!("{:?}", self.0.kind))?;
        error.serialize_field("operation", &self.0.operation)?;
        error.serialize_field("subject", &shown(&self.0.subject).to_string())?;
        error.serialize_field("reason", &shown(&self.0.reason).to_string())?;
        error.serialize_field("may_work_later", &self.is_retryable())?;
        error.end()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("operation", &self.0.operation)
            .field("subject", &self.0.subject)
            .field("reason", &self.0.reason)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_it_quotes() {
        let error = Error::new(ErrorKind::Rejected, "insert", "topic `a\u{202e}b`", "no\nsuch column");
        assert_eq!(error.to_string(), r"cannot insert topic `a\u{202e}b`: no\nsuch column");
        assert_eq!(error.reason(), "no\nsuch column");
    }

    #[test]
    fn an_error_says_what_was_tried_on_what_why_and_whether_to_try_again() {
        let error = Error::new(ErrorKind::Unavailable, "claim from", "the outbox in orders.db", "database is locked");
        assert_eq!(error.to_string(), "cannot claim from the outbox in orders.db: database is locked (may work later)");
        assert!(error.is_retryable());
        assert!(!Error::invalid("topic ``", "it is empty").is_retryable());
    }
}
