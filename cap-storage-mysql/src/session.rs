//! Connections of the storage's own: what MySQL does differently from other servers.

use std::path::Path;
use std::time::Duration;

use cap_core::BoxFuture;
use cap_storage_sqlx::{Fallible, Server, host_and_port};
use sqlx::mysql::MySqlConnectOptions;
use sqlx::{MySql, MySqlConnection, Transaction};

use crate::{server, sql};

pub(crate) enum MySqlServer {}

pub(crate) type Pools = cap_storage_sqlx::Pools<MySqlServer>;
pub(crate) type Work<C, T> = cap_storage_sqlx::Work<MySqlServer, C, T>;

impl Server for MySqlServer {
    type Db = MySql;

    const LIMITS_BESIDE_POOL: bool = true;

    fn place(options: &MySqlConnectOptions) -> String {
        let database = options.get_database().unwrap_or_default();
        match options.get_socket().map(|socket| Path::display(socket)) {
            Some(socket) => format!("mysql {socket}/{database}"),
            None => format!("mysql {}/{database}", host_and_port(options.get_host(), options.get_port())),
        }
    }

    fn limit(connection: &mut MySqlConnection, statement_timeout: Duration) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            sqlx::raw_sql(sql::session(lock_wait(statement_timeout))).execute(connection).await?;
            Ok(())
        })
    }

    fn greet(connection: &mut MySqlConnection) -> BoxFuture<'_, Fallible<()>> {
        Box::pin(async move {
            server::ask(connection).await?;
            Ok(())
        })
    }

    fn end_session(connection: &mut MySqlConnection) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            sqlx::raw_sql(sql::END_SESSION).execute(connection).await?;
            Ok(())
        })
    }

    /// The statements of a script begin and end their transaction themselves.
    fn clear(connection: &mut MySqlConnection) -> BoxFuture<'_, Fallible<()>> {
        Box::pin(async move {
            sqlx::raw_sql(sql::ROLLBACK).execute(connection).await?;
            Ok(())
        })
    }
}

/// Begins a handler's transaction, whose statements wait as long as is usual on the server, and does `work` in it.
pub(crate) async fn begin<C, T>(
    pools: &Pools,
    context: &C,
    work: Work<C, T>,
) -> Fallible<(Transaction<'static, MySql>, T)> {
    let statement = if pools.is_own() { sql::BEGIN_HANDLER_UNHURRIED } else { sql::BEGIN_HANDLER };
    pools.begin(statement, context, work).await
}

/// Makes the session of a handler's transaction what it was.
pub(crate) async fn end(pools: &Pools, connection: &mut MySqlConnection) -> Fallible<()> {
    if pools.is_own() {
        MySqlServer::limit(connection, pools.statement_timeout()).await?;
    }
    Ok(())
}

/// How long a statement waits for a lock, in seconds: a part of the time limit, so that there is time to try again, and
/// not long, since others may wait behind it. (For a handler nobody waits: this is for whatever else may have a lock.)
fn lock_wait(statement_timeout: Duration) -> u64 {
    (statement_timeout.as_secs() / 3).clamp(1, 3)
}
