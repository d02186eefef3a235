//! What one kind of server does differently from others.

use std::time::Duration;

use cap_core::{BoxFuture, ErrorKind};
use sqlx::{AssertSqlSafe, Database};

use crate::fault::Fallible;

/// A connection to such a server.
pub type Connection<S> = <<S as Server>::Db as Database>::Connection;

/// Where such a server is, and how to get in.
pub type Options<S> = <Connection<S> as sqlx::Connection>::Options;

/// What the errors of one kind of server mean.
pub trait Errors {
    /// What an error that the server itself answered means to the caller. Asked for no other.
    fn kind(error: &sqlx::Error) -> ErrorKind;

    /// What to do about an error, whether the server's or the driver's, as the end of a sentence. Lost connections and busy
    /// pools are advised on without it.
    fn advice(error: &sqlx::Error) -> Option<&'static str>;

    /// Whether the server took everything back for the sake of another transaction: doing it again is right.
    fn is_victim(error: &sqlx::Error) -> bool;

    /// Whether the server ends the session with it.
    fn is_farewell(error: &sqlx::Error) -> bool;

    /// Whether the server had ended the session before it read what was asked, so that nothing of that was done: it had
    /// waited too long for the next statement.
    fn is_undone(error: &sqlx::Error) -> bool;

    /// Whether the session is to be closed although the server goes on with it: it takes no writes any more, or has lost
    /// what was prepared in it. Another one may be with another server.
    fn is_stale(error: &sqlx::Error) -> bool;

    /// Whether the server gives no more connections, to anybody or to this user.
    fn is_full(error: &sqlx::Error) -> bool;

    /// Whether the server does not let anybody in who comes like this: a wrong password, a database that is not there.
    fn is_no_entry(error: &sqlx::Error) -> bool;
}

/// One kind of server. It is implemented for a type of the storage's own, which has no values.
pub trait Server: Errors + Send + Sync + 'static {
    /// The driver.
    type Db: Database;

    /// Whether the connections for leases beside a user's pool are limited, too. Not where a pooler may stand before the
    /// server and give their sessions to others.
    const LIMITS_BESIDE_POOL: bool;

    /// Kind, address and database, for people and without secrets: `postgres db.example.com:5432/shop`.
    fn place(options: &Options<Self>) -> String;

    /// Lets the server itself give up what takes longer. Called once for each new connection of the storage's own.
    fn limit(connection: &mut Connection<Self>, statement_timeout: Duration) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Begins a transaction in which a statement of the storage's own does what it should, whatever the session's defaults
    /// are. By default there is none: the storage's statements say what they need themselves.
    fn terms(_statement_timeout: Duration) -> Option<AssertSqlSafe<String>> {
        None
    }

    /// Whether the defaults of this session are others than a statement of the storage's own needs.
    fn needs_terms(_connection: &mut Connection<Self>, _statement_timeout: Duration) -> BoxFuture<'_, Fallible<bool>> {
        Box::pin(async { Ok(false) })
    }

    /// Whether the session's defaults may be the reason for an error.
    fn doubts_terms(_error: &sqlx::Error) -> bool {
        false
    }

    /// Options with a mark: a setting that only a session has which was begun for this very connection, and none that a
    /// pooler lends. By default there is none, and no pooler that lends sessions is expected.
    fn mark(options: Options<Self>) -> Options<Self> {
        options
    }

    /// Whether the session of a new connection has the mark.
    fn has_mark(_connection: &mut Connection<Self>) -> BoxFuture<'_, sqlx::Result<bool>> {
        Box::pin(async { Ok(true) })
    }

    /// Whether somebody refuses a connection because of the mark, which the server itself does not.
    fn refuses_mark(_error: &sqlx::Error) -> bool {
        false
    }

    /// Tells that a pooler at `place` lends sessions, and what that costs. Called once.
    fn tell_of_pooler(_place: &str) {}

    /// Refuses a server that cannot be used, when a storage connects for the first time. By default all can.
    fn greet(_connection: &mut Connection<Self>) -> BoxFuture<'_, Fallible<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Ends the session from within, after a statement of a transaction has failed: for connections that a pool of the
    /// user's would lend again.
    fn end_session(connection: &mut Connection<Self>) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Takes back what failed work may have left open, before its connection goes back to the pool. By default nothing is:
    /// a `sqlx::Transaction` takes itself back. If this fails, the connection is cut off.
    fn clear(_connection: &mut Connection<Self>) -> BoxFuture<'_, Fallible<()>> {
        Box::pin(async { Ok(()) })
    }
}
