//! What PostgreSQL's errors mean to the caller.

use cap_core::ErrorKind;
use cap_storage_sqlx::Errors;
use sqlx::postgres::PgDatabaseError;

use crate::session::PostgresServer;

const DEADLOCK: &str = "40P01";
const SERIALIZATION_FAILURE: &str = "40001";
/// The server ends the session: by an administrator's word, after a crash, or because it is about to start or stop.
const SHUTDOWN: [&str; 3] = ["57P01", "57P02", "57P03"];
/// The session was idle for longer than `idle_session_timeout`.
const IDLE: &str = "57P05";
const QUERY_CANCELED: &str = "57014";
const UNIQUE_VIOLATION: &str = "23505";
/// What a session may answer whose defaults are not what a statement of ours needs: it is as isolated as to fail beside others,
/// reads only, or does not wait for long.
pub(crate) const OF_TERMS: [&str; 4] = [SERIALIZATION_FAILURE, READ_ONLY, LOCK_NOT_AVAILABLE, QUERY_CANCELED];
const ABORTED_TRANSACTION: &str = "25P02";
const NO_TRANSACTION: &str = "25P01";
const READ_ONLY: &str = "25006";
/// Of the server, of a database or of a role.
const TOO_MANY_CONNECTIONS: &str = "53300";
/// Among others, parameters that do not fit the statement: a pooler gave the session away, and the statement is another one.
const PROTOCOL_VIOLATION: &str = "08P01";
const LOCK_NOT_AVAILABLE: &str = "55P03";
const NO_RIGHTS: &str = "42501";
/// An undefined schema, table, column, function or sequence, or an index that `ON CONFLICT` needs.
const MISSING: [&str; 5] = ["3F000", "42P01", "42703", "42883", "42P10"];
const UNKNOWN_SETTING: &str = "42704";
/// A table was altered under a prepared statement.
const CHANGED_PLAN: &str = "0A000";
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

/// Whether somebody else kept a lock for longer than the statement would wait.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    code(error) == Some(LOCK_NOT_AVAILABLE)
}

/// Whether the address that a row was to have is taken: what else is unique is never an error of ours.
pub(crate) fn is_taken_address(error: &sqlx::Error) -> bool {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    code(error) == Some(UNIQUE_VIOLATION) && constraint.is_some_and(|constraint| constraint.ends_with("_pkey"))
}

/// Whether the role lacks a right.
pub(crate) fn is_no_right(error: &sqlx::Error) -> bool {
    code(error) == Some(NO_RIGHTS)
}

/// Whether a session has no such setting.
pub(crate) fn is_unknown_setting(error: &sqlx::Error) -> bool {
    code(error) == Some(UNKNOWN_SETTING)
}

/// Whether a pooler refuses a setting that a connection begins with.
pub(crate) fn is_startup_refused(error: &sqlx::Error) -> bool {
    code(error) == Some(PROTOCOL_VIOLATION) && error.to_string().contains("startup parameter")
}

/// Whether it was said inside a transaction that had failed before.
pub(crate) fn is_aborted(error: &sqlx::Error) -> bool {
    code(error) == Some(ABORTED_TRANSACTION)
}

/// Whether a savepoint was to be made where no transaction is open.
pub(crate) fn is_outside_of_transaction(error: &sqlx::Error) -> bool {
    code(error) == Some(NO_TRANSACTION)
}

impl Errors for PostgresServer {
    fn kind(error: &sqlx::Error) -> ErrorKind {
        code(error).map_or(ErrorKind::Environment, kind_of_code)
    }

    fn advice(error: &sqlx::Error) -> Option<&'static str> {
        match error {
            sqlx::Error::Tls(_) => Some("is TLS set up on the server? See `sslmode` and `sslrootcert` of the URL"),
            _ => code(error).and_then(advice_on_code),
        }
    }

    fn is_victim(error: &sqlx::Error) -> bool {
        matches!(code(error), Some(DEADLOCK | SERIALIZATION_FAILURE))
    }

    fn is_farewell(error: &sqlx::Error) -> bool {
        code(error).is_some_and(|code| code == IDLE || SHUTDOWN.contains(&code))
    }

    fn is_undone(error: &sqlx::Error) -> bool {
        code(error) == Some(IDLE)
    }

    fn is_stale(error: &sqlx::Error) -> bool {
        let is_stale =
            |code| [READ_ONLY, CHANGED_PLAN, PROTOCOL_VIOLATION].contains(&code) || POOLED_AWAY.contains(&code);
        code(error).is_some_and(is_stale)
    }

    fn is_full(error: &sqlx::Error) -> bool {
        match code(error) {
            Some(TOO_MANY_CONNECTIONS) => true,
            // PgBouncer.
            Some(PROTOCOL_VIOLATION) => error.to_string().contains("no more connections allowed"),
            _ => false,
        }
    }

    fn is_no_entry(error: &sqlx::Error) -> bool {
        code(error).is_some_and(|code| code.starts_with("28") || code.starts_with("3D") || code == NO_RIGHTS)
    }
}

fn kind_of_code(code: &str) -> ErrorKind {
    match code {
        // Too little memory, too many connections, or a lock that somebody else has.
        "53200" | TOO_MANY_CONNECTIONS | LOCK_NOT_AVAILABLE => ErrorKind::Unavailable,
        READ_ONLY => ErrorKind::Environment,
        code => match code.get(..2).unwrap_or_default() {
            // Connection, operator intervention, victim of a conflict.
            "08" | "57" | "40" => ErrorKind::Unavailable,
            // Data, constraint, limits, what a trigger raised, and a transaction that had failed or ended before: what was
            // given, or done, is at fault.
            "22" | "23" | "25" | "44" | "54" | "P0" => ErrorKind::Rejected,
            // Rights, a full disk, a server that takes no writes, missing tables, and whatever else there is.
            _ => ErrorKind::Environment,
        },
    }
}

fn advice_on_code(code: &str) -> Option<&'static str> {
    let advice = match code {
        "28P01" => "the role or its password is wrong",
        "28000" => "the server's rules (pg_hba.conf) do not let this role in from here, or there is no such role",
        "3D000" => "the database is not there: create it, or name another",
        NO_RIGHTS => "the role lacks the right: have it granted, see the README on roles",
        TOO_MANY_CONNECTIONS => {
            "make the pools smaller, or greater what the server allows: its `max_connections`, or the CONNECTION LIMIT of \
             the role or the database"
        }
        "53100" => "make room on the server's disk; until then nothing can be stored",
        READ_ONLY => "the server takes no writes: is it a standby?",
        QUERY_CANCELED => "it took longer than the statement timeout",
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
    use super::*;

    #[test]
    fn each_class_of_sqlstate_says_what_the_caller_can_do() {
        for (codes, kind) in [
            (&["08006", "57P01", "57014", "53300", "40P01", "55P03"][..], ErrorKind::Unavailable),
            (&["22021", "22P05", "22001", "23505", "23514", "25P02", "54000", "P0001"], ErrorKind::Rejected),
            (&["42501", "53100", "58030", "25006", "55000", "28P01", "3D000", "26000"], ErrorKind::Environment),
            (&["42P01", "3F000", "42703", "42P10", "XX001", "XX000", "", "?"], ErrorKind::Environment),
        ] {
            for code in codes {
                assert_eq!(kind_of_code(code), kind, "{code}");
            }
        }
    }
}
