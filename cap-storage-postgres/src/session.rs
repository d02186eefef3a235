//! Connections of the storage's own: what PostgreSQL does differently from other servers.

use std::path::Path;
use std::time::Duration;

use cap_core::BoxFuture;
use cap_storage_sqlx::Server;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};

use crate::sql;

pub(crate) enum PostgresServer {}

pub(crate) type Pools = cap_storage_sqlx::Pools<PostgresServer>;
pub(crate) type Work<C, T> = cap_storage_sqlx::Work<PostgresServer, C, T>;

impl Server for PostgresServer {
    type Db = Postgres;

    const LIMITS_BESIDE_POOL: bool = false;

    fn place(options: &PgConnectOptions) -> String {
        let database = options.get_database().unwrap_or(options.get_username());
        match options.get_socket().map(|socket| Path::display(socket)) {
            Some(socket) => format!("postgres {socket}/{database}"),
            None => format!("postgres {}:{}/{database}", options.get_host(), options.get_port()),
        }
    }

    fn limit(connection: &mut PgConnection, statement_timeout: Duration) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            let limit = format!("SET statement_timeout = {}", statement_timeout.as_millis());
            sqlx::raw_sql(AssertSqlSafe(limit)).execute(connection).await?;
            Ok(())
        })
    }

    fn begin_limited(statement_timeout: Duration) -> String {
        format!("BEGIN; SET LOCAL statement_timeout = {}", statement_timeout.as_millis())
    }

    fn end_session(connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            sqlx::raw_sql(sql::END_SESSION).execute(connection).await?;
            Ok(())
        })
    }
}
