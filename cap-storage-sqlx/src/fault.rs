//! Why an operation failed, and what the driver's errors mean to the caller.

use std::io;
use std::time::Duration;

use cap_core::backend::{Attempt, unregistered};
use cap_core::{Error, ErrorKind, NodeId};

use crate::server::Errors;

/// Why an operation failed, before it is known where it ran.
#[derive(Debug)]
pub enum Fault {
    /// The driver's own error.
    Sqlx(sqlx::Error),
    /// What kind of failure it is, and why, in the storage's words.
    Said(ErrorKind, String),
}

/// The outcome of an operation.
pub type Fallible<T> = std::result::Result<T, Fault>;

impl Fault {
    /// In the storage's words.
    pub fn said(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self::Said(kind, reason.into())
    }

    /// The node is not registered.
    pub fn lease_lost(node: NodeId) -> Self {
        Self::said(ErrorKind::LeaseLost, unregistered(node))
    }

    /// None came within the time limit.
    pub fn no_answer(limit: Duration) -> Self {
        Self::said(ErrorKind::Unavailable, format!("no answer within {limit:?}: it may have been carried out or not"))
    }

    /// The error as the caller sees it, of the database at `place`.
    pub fn into_error<S: Errors>(self, attempt: Attempt, place: &str) -> Error {
        self.into_error_when::<S>(When::AtWork, attempt, place)
    }

    pub(crate) fn into_error_when<S: Errors>(self, when: When, attempt: Attempt, place: &str) -> Error {
        match self {
            Self::Sqlx(error) => {
                let kind = match when {
                    When::Connecting if S::is_no_entry(&error) => ErrorKind::Rejected,
                    _ => kind_of_driver(&error, when).unwrap_or_else(|| S::kind(&error)),
                };
                let advice = S::advice(&error).or_else(|| advice(&error));
                attempt.failed_with(kind, place, text_of(&error), advice, error)
            }
            Self::Said(kind, reason) => attempt.failed(kind, place, reason),
        }
    }

    /// The driver's own error, if it is one.
    pub fn driver(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Sqlx(error) => Some(error),
            Self::Said(..) => None,
        }
    }

    /// Whether the session is of no more use: whoever connects anew may find a server that is.
    pub(crate) fn is_stale<S: Errors>(&self) -> bool {
        self.driver().is_some_and(S::is_stale)
    }

    /// Whether the session had ended before anything was asked in it.
    pub(crate) fn is_undone<S: Errors>(&self) -> bool {
        self.driver().is_some_and(S::is_undone)
    }

    /// Whether the connection is gone, or of no more use.
    pub(crate) fn is_lost_connection<S: Errors>(&self) -> bool {
        self.driver().is_some_and(|error| {
            matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) || S::is_farewell(error)
        })
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlx(error)
    }
}

/// When it failed. What an operator set wrong is refused where a storage connects for the first time, as waiting is no
/// help there; at work it worked before, and will again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Connecting,
    AtWork,
}

/// What an error means to the caller, unless the server itself answered it.
fn kind_of_driver(error: &sqlx::Error, when: When) -> Option<ErrorKind> {
    use sqlx::Error;
    let kind = match error {
        Error::Database(_) => return None,
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => match when {
            When::Connecting => ErrorKind::Rejected,
            When::AtWork => ErrorKind::Environment,
        },
        Error::Io(_) | Error::PoolTimedOut | Error::WorkerCrashed | Error::BeginFailed => ErrorKind::Unavailable,
        // The connection is out of step; another one will do.
        Error::Protocol(_) => ErrorKind::Unavailable,
        Error::PoolClosed => ErrorKind::Stopped,
        Error::Configuration(_) | Error::InvalidArgument(_) if when == When::Connecting => ErrorKind::Invalid,
        Error::Tls(_) if when == When::Connecting => ErrorKind::Rejected,
        Error::Configuration(_) | Error::InvalidArgument(_) | Error::Tls(_) => ErrorKind::Environment,
        Error::Encode(_) => ErrorKind::Rejected,
        Error::Decode(_) | Error::ColumnDecode { .. } => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    };
    Some(kind)
}

/// The server's message without the driver's preamble.
fn text_of(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The error with what to do about it, as a part of a sentence.
pub(crate) fn explained<S: Errors>(error: &sqlx::Error) -> String {
    let text = text_of(error);
    match S::advice(error).or_else(|| advice(error)) {
        Some(advice) => format!("{text}: {advice}"),
        None => text,
    }
}

fn advice(error: &sqlx::Error) -> Option<&'static str> {
    let advice = match error {
        sqlx::Error::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => "nothing listens there: is the server up, are host and port right?",
            io::ErrorKind::NotFound => {
                "there is no such host, socket, or file of a certificate or key: is its name right?"
            }
            io::ErrorKind::InvalidData => {
                "the two sides do not trust each other: see the options `ca_file`, `certificate_file` and `key_file`"
            }
            _ if error.to_string().contains("lookup address") => "the host's name is unknown: is it spelt right?",
            _ => "the connection was lost or could not be made",
        },
        sqlx::Error::PoolTimedOut => "all connections stayed busy, or none could be opened",
        _ => return None,
    };
    Some(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_may_work_later_and_a_closed_pool_may_not() {
        for (error, kind) in [
            (sqlx::Error::Io(io::Error::from(io::ErrorKind::ConnectionReset)), ErrorKind::Unavailable),
            (sqlx::Error::PoolTimedOut, ErrorKind::Unavailable),
            (sqlx::Error::Protocol("out of step".into()), ErrorKind::Unavailable),
            (sqlx::Error::PoolClosed, ErrorKind::Stopped),
            (sqlx::Error::Decode("not a number".into()), ErrorKind::Corrupt),
            (sqlx::Error::RowNotFound, ErrorKind::Internal),
        ] {
            assert_eq!(kind_of_driver(&error, When::AtWork), Some(kind), "{error}");
        }
        let wrong = sqlx::Error::Configuration("no such file".into());
        assert_eq!(kind_of_driver(&wrong, When::Connecting), Some(ErrorKind::Invalid));
        assert_eq!(kind_of_driver(&wrong, When::AtWork), Some(ErrorKind::Environment), "it worked before");
    }

    #[test]
    fn a_refused_connection_is_advised_on() {
        let refused = sqlx::Error::Io(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert!(advice(&refused).is_some_and(|advice| advice.contains("is the server up")));
    }
}
