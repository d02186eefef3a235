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
        self.number() == Some(DUPLICATE) && names_key_of_message(error.message())
    }
}

/// In every language of a server the value comes first, which is anybody's, and then the key, both in quotes. MySQL names the
/// table before the key.
fn names_key_of_message(message: &str) -> bool {
    message.rsplit('\'').nth(1).is_some_and(|key| key.ends_with("_message"))
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
const SHUTDOWN: [u16; 4] = [1053, 1152, 1927, IDLE];
/// The session was idle for longer than `wait_timeout`. (MariaDB says nothing.)
const IDLE: u16 = 4031;
/// A table, a column, or an index that a statement wants to be used.
const MISSING: [u16; 3] = [1146, 1054, 1176];
/// Too many connections of all, or of this user.
const FULL: [u16; 3] = [1040, 1203, 1226];
/// No connection or no memory is left, the server or its cluster is not ready, the network failed, a statement was
/// interrupted or took too long, or another transaction has what it would not wait for.
const BUSY: [u16; 20] = [
    1037,
    1038,
    1040,
    1041,
    NO_CLUSTER,
    1135,
    1158,
    1159,
    1160,
    1161,
    1180,
    1203,
    1226,
    1317,
    1969,
    3024,
    3100,
    3101,
    LOCK_NOWAIT,
    2013,
];
/// The server takes no writes: it is a replica, or was made read-only.
const READ_ONLY: [u16; 4] = [1290, 1792, 1836, 3858];
/// A node of a Galera cluster that has lost its cluster: what leads to the cluster leads to another node.
const NO_CLUSTER: u16 = 1047;
/// A prepared statement is not there: a proxy gave the session away.
const POOLED_AWAY: [u16; 2] = [1243, 1615];
/// The packet is too large, a value that has no place in its column, JSON or a constraint that says no, a row that is too
/// long, and what a trigger raised.
const REFUSED: [u16; 22] = [
    1048, 1062, 1118, 1153, 1169, 1264, 1265, 1292, 1300, 1364, 1366, 1406, 1451, 1452, 1586, 1644, 3140, 3141, 3819,
    3988, 4025, 1301,
];
/// A wrong password, no such database, no right to it, or to connect from here.
const NO_ENTRY: [u16; 11] = [1044, 1045, 1046, 1049, 1129, 1130, 1142, 1143, 1227, 1370, 1698];

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
        number(error)
            .map_or(ErrorKind::Environment, |number| kind_of_number(number, sqlstate(error).unwrap_or_default()))
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

    fn is_undone(error: &sqlx::Error) -> bool {
        number(error) == Some(IDLE)
    }

    fn is_stale(error: &sqlx::Error) -> bool {
        let is_stale = |number| number == NO_CLUSTER || READ_ONLY.contains(&number) || POOLED_AWAY.contains(&number);
        number(error).is_some_and(is_stale)
    }

    fn is_full(error: &sqlx::Error) -> bool {
        number(error).is_some_and(|number| FULL.contains(&number))
    }

    fn is_no_entry(error: &sqlx::Error) -> bool {
        number(error).is_some_and(|number| NO_ENTRY.contains(&number))
    }
}

/// MySQL has few SQLSTATEs, so most is told by the number.
fn kind_of_number(number: u16, sqlstate: &str) -> ErrorKind {
    match number {
        number if [&VICTIM[..], &SHUTDOWN, &BUSY].iter().any(|known| known.contains(&number)) => ErrorKind::Unavailable,
        number if REFUSED.contains(&number) => ErrorKind::Rejected,
        _ => match sqlstate.get(..2).unwrap_or_default() {
            // Connection, victim of a conflict.
            "08" | "40" => ErrorKind::Unavailable,
            // Data and constraints.
            "21" | "22" | "23" => ErrorKind::Rejected,
            // Rights, a full disk, a server that takes no writes, missing and broken tables, and whatever else there is.
            _ => ErrorKind::Environment,
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
        number if FULL.contains(&number) => {
            "make the pools smaller, or greater what the server allows: its `max_connections`, or the user's \
             MAX_USER_CONNECTIONS"
        }
        1021 | 1114 => "make room on the server's disk; until then nothing can be stored",
        number if READ_ONLY.contains(&number) => "the server takes no writes: is it a replica?",
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
    fn a_duplicate_is_known_in_every_language() {
        for message in [
            "Duplicate entry 'a' for key 'published_message'",
            "Duplicate entry 'it's' for key 'cap.received.received_message'",
            "'a' は索引 'published_message' で重複しています。",
            "Duplikalt bejegyzes 'a' a 'published_message' kulcs szerint",
        ] {
            assert!(names_key_of_message(message), "{message}");
        }
        for message in
            ["Duplicate entry 'a_message' for key 'PRIMARY'", "'a_message' は索引 'mine' で重複しています。", ""]
        {
            assert!(!names_key_of_message(message), "{message}");
        }
    }

    #[test]
    fn each_error_of_the_server_says_what_the_caller_can_do() {
        for (numbers, kind) in [
            (
                &[(1213, "40001"), (1205, "HY000"), (1040, "08004"), (1053, "08S01"), (2013, "HY000")][..],
                ErrorKind::Unavailable,
            ),
            (
                &[(1366, "HY000"), (1406, "22001"), (1153, "08S01"), (1062, "23000"), (1048, "23000"), (3140, "22032")],
                ErrorKind::Rejected,
            ),
            (&[(1142, "42000"), (1143, "42000"), (1044, "42000"), (1045, "28000")], ErrorKind::Environment),
            (&[(1021, "HY000"), (1114, "HY000"), (1290, "HY000"), (1792, "25006")], ErrorKind::Environment),
            (&[(1146, "42S02"), (1054, "42S22"), (1176, "42000"), (1712, "HY000")], ErrorKind::Environment),
            (&[(1105, "HY000"), (0, ""), (65535, "?")], ErrorKind::Environment),
        ] {
            for (number, sqlstate) in numbers {
                assert_eq!(kind_of_number(*number, sqlstate), kind, "{number}");
            }
        }
    }
}
