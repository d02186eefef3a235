//! What PostgreSQL's errors mean to the caller.

use std::io;

use cap_core::backend::Attempt;
use cap_core::{Error, ErrorKind};
use sqlx::postgres::PgDatabaseError;

/// Why an operation failed, before it is known where it ran.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The driver's own error.
    Sqlx(sqlx::Error),
    /// What kind of failure it is, and why, in our words.
    Said(ErrorKind, String),
}

impl Fault {
    pub(crate) fn said(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self::Said(kind, reason.into())
    }

    pub(crate) fn into_error(self, attempt: Attempt, place: &str) -> Error {
        match self {
            Self::Sqlx(error) => failed(attempt, place, error),
            Self::Said(kind, reason) => attempt.failed(kind, place, reason),
        }
    }

    /// Whether the connection is gone, or of no more use.
    pub(crate) fn is_lost_connection(&self) -> bool {
        matches!(self, Self::Sqlx(error) if matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_))
            || code(error).is_some_and(|code| SHUTDOWN.contains(&code)))
    }

    /// Whether the database took the whole transaction back for the sake of another one: doing it again is right.
    pub(crate) fn is_victim(&self) -> bool {
        matches!(self, Self::Sqlx(error) if matches!(code(error), Some(DEADLOCK | SERIALIZATION_FAILURE)))
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlx(error)
    }
}

/// The outcome of an operation.
pub(crate) type Fallible<T> = std::result::Result<T, Fault>;

/// The error of the driver, as the caller sees it.
pub(crate) fn failed(attempt: Attempt, place: &str, error: sqlx::Error) -> Error {
    attempt.failed_with(kind_of(&error), place, text_of(&error), advice(&error), error)
}

const DEADLOCK: &str = "40P01";
const SERIALIZATION_FAILURE: &str = "40001";
/// The server ends the session: by an administrator's word, after a crash, or because it is about to start or stop.
const SHUTDOWN: [&str; 3] = ["57P01", "57P02", "57P03"];
const ABORTED_TRANSACTION: &str = "25P02";
const READ_ONLY: &str = "25006";
const LOCK_NOT_AVAILABLE: &str = "55P03";
const NO_RIGHTS: &str = "42501";
/// An undefined schema, table, column, function or sequence, or an index that `ON CONFLICT` needs.
const MISSING: [&str; 5] = ["3F000", "42P01", "42703", "42883", "42P10"];
/// A prepared statement that is not there, or is there already: a pooler gave the session away.
const POOLED_AWAY: [&str; 2] = ["26000", "42P05"];

/// The SQLSTATE, if the server itself refused.
pub(crate) fn code(error: &sqlx::Error) -> Option<&str> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    Some(error.code())
}

/// Whether the tables, or a column or index of theirs, are not there.
pub(crate) fn is_missing(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| MISSING.contains(&code))
}

/// Whether it was said inside a transaction that had failed before.
pub(crate) fn is_aborted(error: &sqlx::Error) -> bool {
    code(error) == Some(ABORTED_TRANSACTION)
}

/// The server's message without the driver's preamble.
fn text_of(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

pub(crate) fn kind_of(error: &sqlx::Error) -> ErrorKind {
    use sqlx::Error;
    match error {
        Error::Database(_) => code(error).map_or(ErrorKind::Internal, kind_of_code),
        Error::Io(_) | Error::PoolTimedOut | Error::WorkerCrashed | Error::BeginFailed => ErrorKind::Unavailable,
        // The connection is out of step; another one will do.
        Error::Protocol(_) => ErrorKind::Unavailable,
        Error::PoolClosed => ErrorKind::Stopped,
        Error::Configuration(_) | Error::InvalidArgument(_) => ErrorKind::Invalid,
        Error::Tls(_) | Error::Encode(_) => ErrorKind::Rejected,
        Error::Decode(_) | Error::ColumnDecode { .. } => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    }
}

fn kind_of_code(code: &str) -> ErrorKind {
    match code {
        // The server was switched to standby, or waits for a lock that somebody else holds.
        READ_ONLY | LOCK_NOT_AVAILABLE => ErrorKind::Unavailable,
        code if MISSING.contains(&code) => ErrorKind::Schema,
        code if POOLED_AWAY.contains(&code) => ErrorKind::Rejected,
        "XX001" | "XX002" => ErrorKind::Corrupt,
        code => match code.get(..2).unwrap_or_default() {
            // Connection, resources, operator intervention, system, victim of a conflict.
            "08" | "53" | "57" | "58" | "40" => ErrorKind::Unavailable,
            // Data, constraint, transaction state, authorization, catalog, access rule, not supported, limits.
            "22" | "23" | "25" | "28" | "3D" | "42" | "0A" | "54" => ErrorKind::Rejected,
            _ => ErrorKind::Internal,
        },
    }
}

fn advice(error: &sqlx::Error) -> Option<&'static str> {
    let advice = match error {
        sqlx::Error::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => "nothing listens there: is the server up, are host and port right?",
            io::ErrorKind::NotFound => "there is no such host or socket: is the host right?",
            _ if error.to_string().contains("lookup address") => "the host's name is unknown: is it spelt right?",
            _ => "the connection was lost or could not be made",
        },
        sqlx::Error::Tls(_) => "is TLS set up on the server? See `sslmode` and `sslrootcert` of the URL",
        sqlx::Error::PoolTimedOut => "all connections stayed busy, or none could be opened",
        _ => return code(error).and_then(advice_on_code),
    };
    Some(advice)
}

fn advice_on_code(code: &str) -> Option<&'static str> {
    let advice = match code {
        "28P01" => "the role or its password is wrong",
        "28000" => "the server's rules (pg_hba.conf) do not let this role in from here, or there is no such role",
        "3D000" => "the database is not there: create it, or name another",
        NO_RIGHTS => "the role lacks the right: have it granted, see the README on roles",
        "53300" => "too many connections: make the pools smaller or the server's `max_connections` greater",
        "53100" => "make room on the server's disk; until then nothing can be stored",
        READ_ONLY => "the server takes no writes: is it a standby?",
        "57014" => "it took longer than the statement timeout",
        ABORTED_TRANSACTION => "a statement before it failed, and the transaction went on all the same",
        code if MISSING.contains(&code) => {
            "the tables are missing or of another schema: call `prepare`, or apply the printed schema"
        }
        code if POOLED_AWAY.contains(&code) => {
            "a pooler in transaction mode lost a prepared statement: let it keep them (PgBouncer from 1.21, \
             `max_prepared_statements`), or use its session mode"
        }
        _ => return None,
    };
    Some(advice)
}

#[cfg(test)]
mod tests {
    use cap_core::Table;

    use super::*;

    #[test]
    fn each_class_of_sqlstate_says_what_the_caller_can_do() {
        for (codes, kind) in [
            (&["08006", "57P01", "57014", "53300", "40P01", "25006", "55P03"][..], ErrorKind::Unavailable),
            (&["28P01", "3D000", "42501", "23505", "22021", "25P02"], ErrorKind::Rejected),
            (&["42P01", "3F000", "42703", "42P10"], ErrorKind::Schema),
            (&["XX001"], ErrorKind::Corrupt),
            (&["XX000", "", "?"], ErrorKind::Internal),
        ] {
            for code in codes {
                assert_eq!(kind_of_code(code), kind, "{code}");
            }
        }
    }

    #[test]
    fn a_lost_connection_may_work_later_and_a_closed_pool_may_not() {
        let reset = sqlx::Error::Io(io::Error::from(io::ErrorKind::ConnectionReset));
        let error = failed(Attempt::on("claim from", Table::Outbox), "postgres db:5432/shop", reset);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().starts_with("cannot claim from the outbox of postgres db:5432/shop: "), "{error}");
        assert_eq!(kind_of(&sqlx::Error::PoolClosed), ErrorKind::Stopped);
        assert_eq!(kind_of(&sqlx::Error::PoolTimedOut), ErrorKind::Unavailable);
    }
}
