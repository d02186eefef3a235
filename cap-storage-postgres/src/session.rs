//! Connections of the storage's own: what PostgreSQL does differently from other servers.

use std::path::Path;
use std::time::Duration;

use cap_core::BoxFuture;
use cap_storage_sqlx::{Fallible, Server, host_and_port};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row, Transaction};

use crate::{error, sql};

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
            None => format!("postgres {}/{database}", host_and_port(options.get_host(), options.get_port())),
        }
    }

    fn limit(connection: &mut PgConnection, statement_timeout: Duration) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            sqlx::raw_sql(sql::limits(statement_timeout)).execute(connection).await?;
            Ok(())
        })
    }

    fn end_session(connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            sqlx::raw_sql(sql::END_SESSION).execute(connection).await?;
            Ok(())
        })
    }

    fn terms(statement_timeout: Duration) -> Option<AssertSqlSafe<String>> {
        Some(sql::begin_on_terms(statement_timeout))
    }

    fn mark(options: PgConnectOptions) -> PgConnectOptions {
        options.options([(sql::MARK, "yes")])
    }

    fn has_mark(connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<bool>> {
        Box::pin(async move {
            match sqlx::raw_sql(sql::SHOW_MARK).fetch_one(connection).await {
                Ok(row) => Ok(row.try_get::<&str, _>(0)? == "yes"),
                Err(error) if error::is_unknown_setting(&error) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn refuses_mark(error: &sqlx::Error) -> bool {
        error::is_startup_refused(error)
    }

    fn tell_of_pooler(place: &str) {
        tracing::warn!(
            cap.place = %place,
            "a pooler in transaction mode stands before the server and keeps no prepared statements, as far as can be told: \
             each statement is prepared again in a transaction of its own, which is slower; let the pooler keep them \
             (PgBouncer from 1.21, `max_prepared_statements`), use its session mode, or connect to the server itself, and \
             start again"
        );
    }

    fn needs_terms(connection: &mut PgConnection, statement_timeout: Duration) -> BoxFuture<'_, Fallible<bool>> {
        Box::pin(async move {
            let ask = sqlx::raw_sql(sql::needs_terms(statement_timeout));
            Ok(ask.fetch_one(connection).await?.try_get(0)?)
        })
    }

    fn doubts_terms(error: &sqlx::Error) -> bool {
        error::code(error).is_some_and(|code| error::OF_TERMS.contains(&code))
    }
}

/// Begins a transaction whose statements see each what is committed by then, whatever the session's defaults are. It may be
/// part of one that is on terms of its own (see [`Server::terms`]).
pub(crate) async fn begin(connection: &mut PgConnection) -> Fallible<Transaction<'_, Postgres>> {
    if connection.is_in_transaction() {
        return Ok(connection.begin().await?);
    }
    Ok(connection.begin_with(sql::BEGIN).await?)
}

/// After a statement that failed, and before one that is to make it good: in a transaction of ours it is taken back.
pub(crate) async fn take_back(connection: &mut PgConnection) -> Fallible<()> {
    if connection.is_in_transaction() {
        sqlx::raw_sql(sql::TAKE_BACK).execute(connection).await?;
    }
    Ok(())
}
