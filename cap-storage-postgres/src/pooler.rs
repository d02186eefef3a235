//! Whether a pooler stands before the server that lends its sessions but does not keep what is prepared in them.
//!
//! Such a pooler (PgBouncer in transaction mode, before version 1.21 or without `max_prepared_statements`) sends a statement's
//! parameters to whatever statement has that name in the session that happens to be free: in the worst case one that writes
//! something else. So it is found out with statements that only read, before any that writes. The storage's statements have no
//! names then, and each is prepared and carried out within one transaction. One that is put before the server later is found out
//! by each new connection (`Server::mark`).

use std::time::Duration;

use cap_core::ErrorKind;
use cap_storage_sqlx::{Errors, Fallible, Fault, Server};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::time::timeout;
use uuid::Uuid;

use crate::session::PostgresServer;
use crate::sql;

/// How often it is looked whether two connections have one session, or one connection several. Where many start at once
/// behind a pooler, a connection may be lent the same session a few times.
const LOOKS: usize = 30;

/// How long finding out may take, whether it is one and what it keeps.
const LIMIT: Duration = Duration::from_secs(10);

/// How long one step may take: a pooler with a single session lets the second transaction wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who is at the other end of a connection.
pub(crate) enum Peer {
    /// The server itself.
    Server,
    /// A pooler that can be taken for it, or nobody knows.
    Like,
    /// A pooler that lends sessions and keeps nothing in them.
    Lender,
}

/// Who answers now. Later it may be another one: see [`Server::mark`].
pub(crate) async fn peer(options: &PgConnectOptions) -> Peer {
    let is_pooler = match timeout(LIMIT, is_direct(options)).await {
        Ok(Ok(true)) => return Peer::Server,
        Ok(Ok(false)) => true,
        Ok(Err(fault)) => fault.driver().is_some_and(PostgresServer::refuses_mark),
        Err(_) => false,
    };
    match timeout(LIMIT, lends(options)).await {
        Ok(Ok(true)) => Peer::Lender,
        Ok(Ok(false)) => Peer::Like,
        // Whoever cannot connect is told so by what comes next.
        Ok(Err(fault)) if fault.driver().is_some_and(PostgresServer::is_no_entry) => Peer::Like,
        // A pooler, and what it keeps could not be found out: unnamed statements are right in any case.
        Ok(Err(_)) | Err(_) if is_pooler => Peer::Lender,
        Ok(Err(_)) | Err(_) => Peer::Like,
    }
}

/// Whether sessions are lent and nothing is kept in them.
async fn lends(options: &PgConnectOptions) -> Fallible<bool> {
    let mut one = PgConnection::connect_with(options).await?;
    let mut other = match PgConnection::connect_with(options).await {
        Ok(other) => other,
        // Whoever is given a single connection has a session of their own: a pooler would let them wait.
        Err(error) if PostgresServer::is_full(&error) => {
            one.close().await?;
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let lends = lends_sessions(&mut one, &mut other).await? && !keeps_statements(&mut one, &mut other).await;
    // The server notices in any case.
    drop((one.close().await, other.close().await));
    Ok(lends)
}

/// Whether sessions are lent to connections in turn.
async fn lends_sessions(one: &mut PgConnection, other: &mut PgConnection) -> Fallible<bool> {
    let (first, second) = (session_between(one).await?, session_between(other).await?);
    for _ in 1..LOOKS {
        if first == second || session_between(one).await? != first || session_between(other).await? != second {
            return Ok(true);
        }
    }
    Ok(first == second)
}

/// Whether a setting that a connection begins with reaches its session. Poolers refuse it, or pass over it: their sessions
/// were there before.
async fn is_direct(options: &PgConnectOptions) -> Fallible<bool> {
    let mut connection = PgConnection::connect_with(&PostgresServer::mark(options.clone())).await?;
    let is_direct = PostgresServer::has_mark(&mut connection).await?;
    connection.close().await?;
    Ok(is_direct)
}

/// The session that the connection has between two transactions.
pub(crate) async fn session_between(connection: &mut PgConnection) -> Fallible<i32> {
    Ok(sqlx::raw_sql(sql::SESSION_BETWEEN).fetch_one(connection).await?.try_get(0)?)
}

/// The session that the connection has now.
pub(crate) async fn session(connection: &mut PgConnection) -> Fallible<i32> {
    Ok(sqlx::raw_sql(sql::SESSION).fetch_one(connection).await?.try_get(0)?)
}

/// Whether a statement that was prepared in one session is also there in another one. In doubt it is not.
async fn keeps_statements(one: &mut PgConnection, other: &mut PgConnection) -> bool {
    // Others who start at the same time give theirs the same name.
    let nonce = Uuid::new_v4();
    let Ok(Ok(prepared_in)) = timeout(PATIENCE, echo(one, nonce, 1)).await else { return false };
    // The session stays with the other connection until its transaction ends, so that the first has to be lent another one.
    let Ok(Ok(())) = timeout(PATIENCE, hold(other, prepared_in)).await else { return false };
    let keeps = matches!(timeout(PATIENCE, echo(one, nonce, 2)).await, Ok(Ok(session)) if session != prepared_in);
    if !keeps {
        // What was prepared there is nobody's, and its name may be wanted.
        drop(timeout(PATIENCE, sqlx::raw_sql(sql::FORGET_ECHO).execute(&mut *other)).await);
    }
    keeps
}

/// Runs a prepared statement with a parameter, and answers the session that it ran in. If it is another one's statement that
/// runs, it can write nothing.
async fn echo(connection: &mut PgConnection, nonce: Uuid, given: i32) -> Fallible<i32> {
    sqlx::raw_sql(sql::HOLD).execute(&mut *connection).await?;
    let row = sqlx::query(AssertSqlSafe(sql::echo(nonce))).bind(given).fetch_one(&mut *connection).await?;
    sqlx::raw_sql(sql::ROLLBACK).execute(connection).await?;
    if row.try_get::<i32, _>(0)? != given || row.try_get::<&str, _>(2)? != nonce.to_string() {
        return Err(Fault::said(ErrorKind::Corrupt, "the answer belongs to another statement"));
    }
    Ok(row.try_get(1)?)
}

/// Begins a transaction in this session.
async fn hold(connection: &mut PgConnection, wanted: i32) -> Fallible<()> {
    loop {
        sqlx::raw_sql(sql::HOLD).execute(&mut *connection).await?;
        if session(connection).await? == wanted {
            return Ok(());
        }
        sqlx::raw_sql(sql::ROLLBACK).execute(&mut *connection).await?;
    }
}
