//! What SQLite's errors mean to the caller.

use cap_core::backend::Attempt;
use cap_core::{Error, ErrorKind};
use rusqlite::ErrorCode;

/// Why a job failed, before it is known where it ran.
#[derive(Debug)]
pub(crate) enum Fault {
    /// SQLite's own error.
    Sqlite(rusqlite::Error),
    /// What kind of failure it is, and why, in our words.
    Said(ErrorKind, String),
}

impl Fault {
    pub(crate) fn said(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self::Said(kind, reason.into())
    }

    pub(crate) fn into_error(self, attempt: Attempt, place: &str) -> Error {
        match self {
            Self::Sqlite(error) => failed(attempt, place, error),
            Self::Said(kind, reason) => attempt.failed(kind, place, reason),
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// The outcome of a job.
pub(crate) type Fallible<T> = std::result::Result<T, Fault>;

/// The error of the driver, as the caller sees it.
pub(crate) fn failed(attempt: Attempt, place: &str, error: rusqlite::Error) -> Error {
    let kind = kind_of(&error);
    match advice(&error) {
        Some(advice) => attempt.failed(kind, place, format!("{}: {advice}", text_of(&error))),
        None => Error::with_source(kind, attempt.operation(), attempt.subject(place), error),
    }
}

/// Whether another connection holds a lock that this one needs.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether a constraint refused it.
pub(crate) fn is_constraint(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

/// Whether the tables, or a column or index of theirs, are not there.
pub(crate) fn is_missing(error: &rusqlite::Error) -> bool {
    let text = text_of(error);
    ["no such table", "no such column", "no such index", "has no column named"].iter().any(|part| text.contains(part))
}

/// The text of an error, without the whole statement.
fn text_of(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}

/// What somebody can put right without touching the data is `Environment`, which is what it is in doubt.
pub(crate) fn kind_of(error: &rusqlite::Error) -> ErrorKind {
    let Some(code) = error.sqlite_error_code() else {
        return kind_without_code(error);
    };
    match code {
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::OutOfMemory
        | ErrorCode::OperationInterrupted
        | ErrorCode::OperationAborted
        | ErrorCode::SchemaChanged => ErrorKind::Unavailable,
        ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch => ErrorKind::Rejected,
        ErrorCode::ApiMisuse | ErrorCode::ParameterOutOfRange => ErrorKind::Internal,
        // All that has no code of its own: a missing table or column, or a bug of ours.
        ErrorCode::Unknown if !is_missing(error) => ErrorKind::Internal,
        _ => ErrorKind::Environment,
    }
}

/// As [`failed`], for a COMMIT: if the disk failed then, it is unknown what is on it.
pub(crate) fn commit_failed(attempt: Attempt, place: &str, error: rusqlite::Error) -> Error {
    if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
        return Error::with_source(ErrorKind::Unavailable, attempt.operation(), attempt.subject(place), error);
    }
    failed(attempt, place, error)
}

fn kind_without_code(error: &rusqlite::Error) -> ErrorKind {
    match error {
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..) => ErrorKind::Corrupt,
        _ if is_missing(error) => ErrorKind::Environment,
        _ => ErrorKind::Internal,
    }
}

fn advice(error: &rusqlite::Error) -> Option<&'static str> {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another connection held the write lock for longer than the busy timeout"
        }
        Some(ErrorCode::DiskFull) => "make room on the disk; until then nothing can be stored",
        Some(ErrorCode::ReadOnly) => "the file or its directory is read-only for this process",
        Some(ErrorCode::CannotOpen) => "it is not there, or this process may not open it and write in its directory",
        Some(ErrorCode::NotADatabase) => "the file is something else, or encrypted",
        Some(ErrorCode::DatabaseCorrupt) => "put a copy of it back that is whole",
        Some(ErrorCode::TooBig) => "it is larger than SQLite can hold in one value",
        _ if is_missing(error) => {
            "the tables are missing or of another schema: call `prepare`, or apply the printed schema"
        }
        _ => return None,
    };
    Some(advice)
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    fn kind(code: i32, text: &str) -> ErrorKind {
        kind_of(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(text.to_owned())))
    }

    #[test]
    fn only_what_lies_in_the_data_is_held_against_it() {
        for code in [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_CONSTRAINT, ffi::SQLITE_TOOBIG, ffi::SQLITE_MISMATCH] {
            assert_eq!(kind(code, "no"), ErrorKind::Rejected, "{code}");
        }
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_LOCKED, ffi::SQLITE_BUSY_SNAPSHOT, ffi::SQLITE_INTERRUPT] {
            assert_eq!(kind(code, "later"), ErrorKind::Unavailable, "{code}");
        }
        for code in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_READONLY_DBMOVED,
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_PERM,
            ffi::SQLITE_AUTH,
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_NOLFS,
        ] {
            assert_eq!(kind(code, "put it right"), ErrorKind::Environment, "{code}");
        }
        assert_eq!(kind(ffi::SQLITE_ERROR, "no such table: cap.received"), ErrorKind::Environment);
        assert_eq!(kind(ffi::SQLITE_ERROR, "near \"SELEKT\": syntax error"), ErrorKind::Internal);
    }

    #[test]
    fn a_commit_that_the_disk_failed_may_have_taken_place() {
        let broken = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let attempt = Attempt::on_database("commit to");
        assert_eq!(commit_failed(attempt, "here", broken(ffi::SQLITE_IOERR_FSYNC)).kind(), ErrorKind::Unavailable);
        assert_eq!(commit_failed(attempt, "here", broken(ffi::SQLITE_FULL)).kind(), ErrorKind::Environment);
    }
}
