//! What the errors of MySQL and MariaDB mean to the caller.

use cap_core::ErrorKind;
use cap_storage_sqlx::{Errors, Fault};
use sqlx::mysql::MySqlDatabaseError;

use crate::session::MySqlServer;

/// What the server's number for a fault says.
pub(crate) trait Numbered {
    /// The number, if the server itself refused.
    fn number(&self) -> Option<u16>;

    /// Whether another transaction has locked what a statement would not wait for.
    fn is_locked(&self) -> bool {
        self.number().is_some_and(|number| [LOCK_WAIT_TIMEOUT, LOCK_NOWAIT].contains(&number))
    }

    /// Whether a record of this message is there already.
    fn is_duplicate_message(&self) -> bool;

    /// Whether what had to have a value would have had none.
    fn is_without_value(&self) -> bool {
        self.number() == Some(NULL)
    }

    /// Whether a savepoint was not there: nothing was open that could have one, or its transaction has ended.
    fn is_outside_of_transaction(&self) -> bool {
        self.number() == Some(NO_SAVEPOINT)
    }

    /// Whether the tables, or a column or index of theirs, are not there.
    fn is_missing(&self) -> bool {
        self.number().is_some_and(|number| MISSING.contains(&number))
    }
}

impl Numbered for Fault {
    fn number(&self) -> Option<u16> {
        self.driver().and_then(number)
    }

    fn is_duplicate_message(&self) -> bool {
        let Some(error) = self.driver().and_then(sqlx::Error::as_database_error) else { return false };
        // MySQL names the table before the key. The value that comes before both is anybody's.
        self.number() == Some(DUPLICATE) && error.message().ends_with("_message'")
    }
}

const DUPLICATE: u16 = 1062;
const NULL: u16 = 1048;
const DEADLOCK: u16 = 1213;
/// Also what MariaDB answers to `NOWAIT`.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// What MySQL answers to `NOWAIT`.
const LOCK_NOWAIT: u16 = 3572;
/// MariaDB, where `innodb_snapshot_isolation` is on.
const CHANGED_SINCE_READ: u16 = 1020;
/// A session left a transaction open when it came back to the pool: it is rolled back, and all is well.
const STILL_IN_TRANSACTION: u16 = 1568;
const NO_SAVEPOINT: u16 = 1305;
const VICTIM: [u16; 4] = [DEADLOCK, LOCK_WAIT_TIMEOUT, CHANGED_SINCE_READ, STILL_IN_TRANSACTION];
/// The server ends the session: it stops, was told to kill it, or has waited too long for it.
const SHUTDOWN: [u16; 4] = [1053, 1152, 1927, 4031];
/// A table, a column, or an index that a statement wants to be used.
const MISSING: [u16; 3] = [1146, 1054, 1176];
/// No connection or no memory is left, the disk or the table is full, the server or its cluster takes no writes now,
/// the network failed, or a statement was interrupted or took too long.
const BUSY: [u16; 22] = [
    1021, 1037, 1038, 1040, 1041, 1047, 1114, 1135, 1158, 1159, 1160, 1161, 1180, 1203, 1226, 1290, 1317, 1836, 1969,
    3024, 3100, 3101,
];
/// A broken table or index.
const BROKEN: [u16; 4] = [1034, 1194, 1195, 1712];
/// The host may not connect, no database was named, the packet is too large, or the binary log is of statements.
const REFUSED: [u16; 5] = [1046, 1129, 1130, 1153, 1665];

/// The number of the error, if the server itself refused.
fn number(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(error.number())
}

fn sqlstate(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?.code()
}

impl Errors for MySqlServer {
    fn kind(error: &sqlx::Error) -> ErrorKind {
        number(error).map_or(ErrorKind::Internal, |number| kind_of_number(number, sqlstate(error).unwrap_or_default()))
    }

    fn advice(error: &sqlx::Error) -> Option<&'static str> {
        let advice = match error {
            sqlx::Error::Tls(_) => "is TLS set up on the server? See `ssl-mode` and `ssl-ca` of the URL",
            sqlx::Error::Configuration(error) if error.to_string().contains("RSA") => {
                "this account's password goes over TLS only: remove `ssl-mode=disabled` from the URL, or set TLS up on the \
                 server"
            }
            _ => return number(error).and_then(advice_on_number),
        };
        Some(advice)
    }

    fn is_victim(error: &sqlx::Error) -> bool {
        number(error).is_some_and(|number| VICTIM.contains(&number))
    }

    fn is_farewell(error: &sqlx::Error) -> bool {
        number(error).is_some_and(|number| SHUTDOWN.contains(&number))
    }
}

/// MySQL has few SQLSTATEs, so most is told by the number.
fn kind_of_number(number: u16, sqlstate: &str) -> ErrorKind {
    match number {
        number if MISSING.contains(&number) => ErrorKind::Schema,
        number if [&VICTIM[..], &SHUTDOWN, &BUSY].iter().any(|known| known.contains(&number)) => ErrorKind::Unavailable,
        number if BROKEN.contains(&number) => ErrorKind::Corrupt,
        number if REFUSED.contains(&number) => ErrorKind::Rejected,
        _ => match sqlstate.get(..2).unwrap_or_default() {
            // Connection, victim of a conflict.
            "08" | "40" => ErrorKind::Unavailable,
            // Data, constraint, transaction state, authorization, catalog, access rule, not supported.
            "21" | "22" | "23" | "25" | "28" | "3D" | "42" | "0A" => ErrorKind::Rejected,
            _ => ErrorKind::Internal,
        },
    }
}

fn advice_on_number(number: u16) -> Option<&'static str> {
    let advice = match number {
        1045 => "the user or the password is wrong, or the user may not connect from here",
        1130 | 1129 => "the server does not let this host in",
        1049 => "the database is not there: create it, or name another",
        1044 => {
            "the database is not there, or the user has no right to it: is its name right? See the README on rights"
        }
        1046 => "name a database in the URL",
        1142 | 1143 | 1227 | 1370 => "the user lacks the right: have it granted, see the README on rights",
        1040 | 1203 | 1226 => "too many connections: make the pools smaller or the server's `max_connections` greater",
        1021 | 1114 => "make room on the server's disk; until then nothing can be stored",
        1290 | 1836 => "the server takes no writes: is it a replica?",
        1153 => "the message is larger than the server takes: make its `max_allowed_packet` greater",
        1665 => "set the server's `binlog_format` to ROW or MIXED",
        DEADLOCK | CHANGED_SINCE_READ => {
            "the server has rolled the whole transaction back for the sake of another one: begin it again"
        }
        LOCK_WAIT_TIMEOUT => {
            "another transaction keeps a lock for too long; what the statement did is taken back, and the transaction \
             is still open, unless the server runs with `innodb_rollback_on_timeout`: roll it back and begin it again"
        }
        number if MISSING.contains(&number) => {
            "the tables are missing or of another schema: call `prepare`, or apply the printed schema"
        }
        _ => return None,
    };
    Some(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_server_says_what_the_caller_can_do() {
        for (numbers, kind) in [
            (
                &[(1213, "40001"), (1205, "HY000"), (1040, "08004"), (1053, "08S01"), (1290, "HY000")][..],
                ErrorKind::Unavailable,
            ),
            (
                &[(1045, "28000"), (1049, "42000"), (1044, "42000"), (1062, "23000"), (1406, "22001")],
                ErrorKind::Rejected,
            ),
            (&[(1142, "42000"), (1153, "08S01"), (1665, "HY000"), (1130, "HY000")], ErrorKind::Rejected),
            (&[(1146, "42S02"), (1054, "42S22"), (1176, "42000")], ErrorKind::Schema),
            (&[(1712, "HY000")], ErrorKind::Corrupt),
            (&[(1105, "HY000"), (0, ""), (65535, "?")], ErrorKind::Internal),
        ] {
            for (number, sqlstate) in numbers {
                assert_eq!(kind_of_number(*number, sqlstate), kind, "{number}");
            }
        }
    }
}
