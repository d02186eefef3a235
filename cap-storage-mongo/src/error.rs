//! What MongoDB's errors mean to the caller.

use std::error::Error as _;

use cap_core::backend::Attempt;
use cap_core::{Error, ErrorKind};
use mongodb::bson::Document;
use mongodb::error::{
    ErrorKind as DriverKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure,
};

use crate::commands;

/// Why an operation failed, before it is known where it ran.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The driver's own error.
    Mongo(mongodb::error::Error),
    /// What kind of failure it is, and why, in our words.
    Said(ErrorKind, String),
    /// Another process has a record of an address that was to be inserted.
    AddressTaken,
    /// Another transaction was quicker, and the server has taken this one back.
    Conflict,
}

impl Fault {
    pub(crate) fn said(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self::Said(kind, reason.into())
    }

    pub(crate) fn into_error(self, attempt: Attempt, place: &str) -> Error {
        match self {
            Self::Mongo(error) => failed(attempt, place, error),
            Self::Said(kind, reason) => attempt.failed(kind, place, reason),
            Self::AddressTaken => {
                let reason = "another process made the same address: the transaction is over and can be done again";
                attempt.failed(ErrorKind::Unavailable, place, reason)
            }
            Self::Conflict => {
                let reason = "another transaction was quicker: this one is over and can be done again";
                attempt.failed(ErrorKind::Unavailable, place, reason)
            }
        }
    }

    /// Whether the server took the whole transaction back, mostly for the sake of another one: doing it again is right. If it
    /// is no primary any more the driver has forgotten that it was, and asks the next one.
    pub(crate) fn is_victim(&self) -> bool {
        match self {
            Self::Mongo(_) if self.is_unknown_commit() => false,
            Self::Mongo(error) if code(error).is_some_and(|code| MOVED.contains(&code)) => true,
            Self::Mongo(error) => error.contains_label(TRANSIENT_TRANSACTION_ERROR) && !is_network(error),
            Self::Conflict => true,
            Self::Said(..) | Self::AddressTaken => false,
        }
    }

    /// Whether the connection was lost: another one may do.
    pub(crate) fn is_lost_connection(&self) -> bool {
        matches!(self, Self::Mongo(error) if matches!(*error.kind, DriverKind::Io(_) | DriverKind::ConnectionPoolCleared { .. }))
    }

    /// Whether it is unknown if a commit took place: committing again is right.
    pub(crate) fn is_unknown_commit(&self) -> bool {
        matches!(self, Self::Mongo(error) if error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT))
    }

    /// Whether another transaction has a document that this one needs, or was quicker with it.
    pub(crate) fn is_conflict(&self) -> bool {
        match self {
            Self::Mongo(error) => matches!(code(error), Some(WRITE_CONFLICT | LOCK_TIMEOUT)),
            Self::Conflict => true,
            Self::Said(..) | Self::AddressTaken => false,
        }
    }

    pub(crate) fn is_duplicate_key(&self) -> bool {
        matches!(self, Self::Mongo(error) if code(error) == Some(DUPLICATE_KEY))
    }

    /// Whether a message's key is there already; another key that is unique may be one of somebody else's index.
    pub(crate) fn is_message_taken(&self) -> bool {
        matches!(self, Self::Mongo(error)
            if code(error) == Some(DUPLICATE_KEY) && is_about(&text_of(error), commands::MESSAGE))
    }

    /// The same where nothing of the kind may be the fault of what was given: in a constructor it is an operator's.
    pub(crate) fn of_setup(self) -> Self {
        match self {
            Self::Mongo(error) if kind_of(&error) == ErrorKind::Environment => {
                let reason = match advice(&error) {
                    Some(advice) => format!("{}: {advice}", text_of(&error)),
                    None => text_of(&error),
                };
                Self::Said(ErrorKind::Rejected, reason)
            }
            other => other,
        }
    }
}

impl From<mongodb::error::Error> for Fault {
    fn from(error: mongodb::error::Error) -> Self {
        Self::Mongo(error)
    }
}

/// The outcome of an operation.
pub(crate) type Fallible<T> = std::result::Result<T, Fault>;

/// The error of the driver, as the caller sees it.
pub(crate) fn failed(attempt: Attempt, place: &str, error: mongodb::error::Error) -> Error {
    attempt.failed_with(kind_of(&error), place, text_of(&error), advice(&error), error)
}

/// The driver's own error in one of a [`MongoStorage`](crate::MongoStorage), if it came from there: with its labels, for
/// those who do their transactions again as MongoDB recommends.
///
/// ```
/// use cap_storage_mongo::driver_error;
/// use cap_storage_mongo::mongodb::error::TRANSIENT_TRANSACTION_ERROR;
///
/// fn is_worth_another_try(error: &cap_core::Error) -> bool {
///     driver_error(error).is_some_and(|error| error.contains_label(TRANSIENT_TRANSACTION_ERROR))
/// }
/// # let error = cap_core::Error::invalid("a", "b");
/// # assert!(!is_worth_another_try(&error));
/// ```
pub fn driver_error(error: &Error) -> Option<&mongodb::error::Error> {
    error.source()?.downcast_ref()
}

pub(crate) const DUPLICATE_KEY: i32 = 11000;
const WRITE_CONFLICT: i32 = 112;
const LOCK_TIMEOUT: i32 = 24;
const NO_SUCH_TRANSACTION: i32 = 251;
const NO_RIGHTS: i32 = 13;
const WRONG_CREDENTIALS: i32 = 18;
/// Not primary, shutting down, recovering, stepping down, no primary, network, time limits, locks, snapshots.
const LATER: [i32; 26] = [
    6,
    7,
    LOCK_TIMEOUT,
    46,
    50,
    64,
    89,
    91,
    WRITE_CONFLICT,
    133,
    134,
    189,
    202,
    225,
    244,
    246,
    NO_SUCH_TRANSACTION,
    262,
    290,
    9001,
    10058,
    10107,
    11600,
    11602,
    13435,
    13436,
];
/// The server is no primary, or will not be one much longer. Upon these the driver takes it for unknown, as MongoDB's rules for
/// drivers say, and looks for the new primary before it sends anything else.
const MOVED: [i32; 8] = [91, 189, 10058, 10107, 11600, 11602, 13435, 13436];
/// No such namespace or index, or another index of the same name.
const MISSING: [i32; 5] = [26, 27, 85, 86, 291];

/// The server's number of the error, if the server itself refused.
pub(crate) fn code(error: &mongodb::error::Error) -> Option<i32> {
    match &*error.kind {
        DriverKind::Command(error) => Some(error.code),
        DriverKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        DriverKind::Write(WriteFailure::WriteConcernError(error)) => Some(error.code),
        _ => None,
    }
}

/// What lies in the data: a wrong value or type, a broken rule of validation, a key that is too long or there already in
/// an index of somebody else's, a document that is too large.
const DATA: [i32; 10] = [2, 14, 22, 52, 121, 10334, DUPLICATE_KEY, 17280, 17419, 17420];

/// What the errors of single statements in the answer to a command mean: the driver leaves that to us.
pub(crate) fn check_reply(reply: &Document) -> Fallible<()> {
    if let Ok(errors) = reply.get_array("writeErrors")
        && let Some(error) = errors.first().and_then(|error| error.as_document())
    {
        let code = error.get_i32("code").unwrap_or_default();
        return Err(match code {
            DUPLICATE_KEY if is_about_address(error) => Fault::AddressTaken,
            DUPLICATE_KEY if is_about_message(error) => Fault::Conflict,
            WRITE_CONFLICT => Fault::Conflict,
            code => Fault::said(kind_of_code(code), error.get_str("errmsg").unwrap_or("it says no reason")),
        });
    }
    if let Ok(error) = reply.get_document("writeConcernError") {
        let text = error.get_str("errmsg").unwrap_or("it says no reason");
        return Err(Fault::said(ErrorKind::Unavailable, format!("a majority did not confirm it: {text}")));
    }
    Ok(())
}

/// Whether a document was refused since its message's key is there already.
pub(crate) fn has_taken_key(reply: &Document) -> bool {
    let errors = reply.get_array("writeErrors").ok();
    let error = errors.and_then(|errors| errors.first()).and_then(|error| error.as_document());
    error.is_some_and(|error| error.get_i32("code") == Ok(DUPLICATE_KEY) && is_about_message(error))
}

/// Whether it is the index of `_id` in which a key was there already.
fn is_about_address(error: &Document) -> bool {
    match error.get_document("keyPattern") {
        Ok(pattern) => pattern.contains_key("_id"),
        Err(_) => error.get_str("errmsg").is_ok_and(|text| text.contains("index: _id_")),
    }
}

/// Whether it is the index of the messages' keys.
fn is_about_message(error: &Document) -> bool {
    match error.get_document("keyPattern") {
        Ok(pattern) => pattern.contains_key("MessageId"),
        Err(_) => error.get_str("errmsg").is_ok_and(|text| is_about(text, commands::MESSAGE)),
    }
}

/// Whether an error names this index, or none.
fn is_about(text: &str, index: &str) -> bool {
    !text.contains("index: ") || text.contains(&format!("index: {index}"))
}

/// The same for the error of the driver's own commands.
pub(crate) fn is_address_taken(error: &mongodb::error::Error) -> bool {
    code(error) == Some(DUPLICATE_KEY) && text_of(error).contains("index: _id_")
}

fn is_network(error: &mongodb::error::Error) -> bool {
    matches!(
        *error.kind,
        DriverKind::Io(_) | DriverKind::ServerSelection { .. } | DriverKind::ConnectionPoolCleared { .. }
    )
}

/// The server's message without the driver's preamble.
pub(crate) fn text_of(error: &mongodb::error::Error) -> String {
    match &*error.kind {
        DriverKind::Command(error) => error.message.clone(),
        DriverKind::Write(WriteFailure::WriteError(error)) => error.message.clone(),
        DriverKind::Write(WriteFailure::WriteConcernError(error)) => {
            format!("a majority did not confirm it: {}", error.message)
        }
        DriverKind::Io(error) => error.to_string(),
        DriverKind::InvalidArgument { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn kind_of(error: &mongodb::error::Error) -> ErrorKind {
    match &*error.kind {
        DriverKind::Command(_) | DriverKind::Write(WriteFailure::WriteError(_)) => {
            code(error).map_or(ErrorKind::Internal, kind_of_code)
        }
        DriverKind::Write(_)
        | DriverKind::Io(_)
        | DriverKind::ServerSelection { .. }
        | DriverKind::ConnectionPoolCleared { .. }
        | DriverKind::DnsResolve { .. } => ErrorKind::Unavailable,
        DriverKind::InvalidArgument { .. } | DriverKind::Transaction { .. } => ErrorKind::Invalid,
        DriverKind::Authentication { .. }
        | DriverKind::InvalidTlsConfig { .. }
        | DriverKind::IncompatibleServer { .. }
        | DriverKind::SessionsNotSupported => ErrorKind::Environment,
        DriverKind::BsonDeserialization(_) | DriverKind::InvalidResponse { .. } => ErrorKind::Corrupt,
        DriverKind::BsonSerialization(_) => ErrorKind::Rejected,
        DriverKind::Shutdown => ErrorKind::Stopped,
        _ => ErrorKind::Internal,
    }
}

/// What somebody can put right without touching the data is `Environment`, which is what it is in doubt.
fn kind_of_code(code: i32) -> ErrorKind {
    match code {
        code if LATER.contains(&code) => ErrorKind::Unavailable,
        code if DATA.contains(&code) => ErrorKind::Rejected,
        _ => ErrorKind::Environment,
    }
}

fn advice(error: &mongodb::error::Error) -> Option<&'static str> {
    if let DriverKind::ServerSelection { message, .. } = &*error.kind {
        return Some(advice_on_selection(message));
    }
    let advice = match &*error.kind {
        DriverKind::Authentication { .. } => "user or password are wrong, or `authSource` names another database",
        DriverKind::InvalidTlsConfig { .. } => "see `tls` and `tlsCAFile` of the URL",
        DriverKind::Io(_) | DriverKind::ConnectionPoolCleared { .. } => "the connection was lost or could not be made",
        _ => return code(error).and_then(advice_on_code),
    };
    Some(advice)
}

/// The driver tells what it knows of each server.
fn advice_on_selection(message: &str) -> &'static str {
    if message.contains("refused") {
        "nothing listens there: is the server up, are host and port right?"
    } else if message.contains("lookup address") {
        "the host's name is unknown: is it spelt right?"
    } else if message.contains("Authentication") || message.contains("authentication") {
        "user or password are wrong, or `authSource` names another database"
    } else if message.contains("ertificate") || message.contains("TLS") {
        "is TLS set up as the server wants it? See `tls` and `tlsCAFile` of the URL"
    } else if message.contains("SetName") || message.contains("RsGhost") {
        "the replica set has another name than `replicaSet` of the URL, or is not initiated"
    } else if message.contains("ReplicaSetNoPrimary") {
        "the replica set has no primary now"
    } else {
        "is the host right, does a firewall swallow the packets, is there a primary?"
    }
}

fn advice_on_code(code: i32) -> Option<&'static str> {
    let advice = match code {
        WRONG_CREDENTIALS => "user or password are wrong, or `authSource` names another database",
        NO_RIGHTS => "the user lacks the right: have it granted, see the README on roles",
        NO_SUCH_TRANSACTION => {
            "a statement in it failed, or it took longer than the server's `transactionLifetimeLimitSeconds`"
        }
        20 => "transactions need a replica set, and this server runs alone: start it with --replSet",
        50 => "it took longer than the statement timeout",
        14031 => "make room on the server's disk; until then nothing can be stored",
        code if MISSING.contains(&code) => {
            "the collections are missing or of another schema: call `prepare`, or apply the printed schema"
        }
        _ => return None,
    };
    Some(advice)
}

/// The DNS records of a `mongodb+srv` URL could not be had, or say what cannot be.
pub(crate) fn no_hosts(error: mongodb::error::Error) -> Error {
    let kind = kind_of(&error);
    Error::new(kind, "find the hosts of", "the mongodb URL", text_of(&error)).because(error)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use cap_core::Table;

    use super::*;

    #[test]
    fn each_class_of_codes_says_what_the_caller_can_do() {
        for (codes, kind) in [
            (&[112, 251, 50, 64][..], ErrorKind::Unavailable),
            (&MOVED, ErrorKind::Unavailable),
            (&[2, 14, 121, 10334, 11000, 17280], ErrorKind::Rejected),
            (&[1, 8, 13, 18, 20, 26, 27, 85, 86, 14031, 987_654], ErrorKind::Environment),
        ] {
            for code in codes {
                assert_eq!(kind_of_code(*code), kind, "{code}");
            }
        }
    }

    fn refused(code: i32) -> Fault {
        let command = mongodb::bson::from_document(doc! { "code": code, "errmsg": "no" }).unwrap();
        Fault::from(mongodb::error::Error::from(DriverKind::Command(command)))
    }

    #[test]
    fn what_a_server_refuses_that_is_no_primary_any_more_is_done_again_elsewhere() {
        for code in MOVED {
            let fault = refused(code);
            assert!(fault.is_victim(), "{code}");
            assert!(!fault.is_conflict(), "{code}: it is not waited for as another transaction is");
            let error = fault.into_error(Attempt::on("claim from", Table::Outbox), "mongodb db:27017/cap");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{code}");
        }
        for code in [DUPLICATE_KEY, NO_RIGHTS, 121, 50] {
            assert!(!refused(code).is_victim(), "{code}");
        }
    }

    #[test]
    fn a_lost_connection_may_work_later_and_says_where() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = failed(Attempt::on("claim from", Table::Outbox), "mongodb db:27017/cap", reset.into());
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().starts_with("cannot claim from the outbox of mongodb db:27017/cap: "), "{error}");
        assert!(driver_error(&error).is_some());
    }

    #[test]
    fn the_errors_of_statements_are_not_overlooked() {
        let duplicate = |pattern: Document| doc! { "writeErrors": [{ "code": 11000, "keyPattern": pattern }] };
        assert!(matches!(check_reply(&duplicate(doc! { "_id": 1 })), Err(Fault::AddressTaken)));
        assert!(matches!(check_reply(&duplicate(doc! { "MessageId": 1 })), Err(Fault::Conflict)));
        let foreign = check_reply(&duplicate(doc! { "Name": 1 }));
        assert!(matches!(foreign, Err(Fault::Said(ErrorKind::Rejected, _))), "{foreign:?}");
        assert!(!has_taken_key(&duplicate(doc! { "Name": 1 })));
        assert!(has_taken_key(&duplicate(doc! { "MessageId": 1 })));
        assert!(!has_taken_key(&duplicate(doc! { "_id": 1 })) && !has_taken_key(&doc! { "n": 1 }));
        let refused = doc! { "writeErrors": [{ "code": 10334, "errmsg": "too large" }] };
        assert!(matches!(check_reply(&refused), Err(Fault::Said(ErrorKind::Rejected, text)) if text == "too large"));
        let unconfirmed = doc! { "writeConcernError": { "code": 64, "errmsg": "waiting" } };
        assert!(matches!(check_reply(&unconfirmed), Err(Fault::Said(ErrorKind::Unavailable, _))));
        assert!(check_reply(&doc! { "n": 1 }).is_ok());
    }
}
