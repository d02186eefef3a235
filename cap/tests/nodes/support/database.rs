//! A database of its own for each test, on the server that `CAP_TEST_POSTGRES_URL` names.

use std::str::FromStr;
use std::time::Duration;

use cap::MessageId;
use cap::postgres::sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use cap::postgres::sqlx::{self, AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

fn server() -> PgConnectOptions {
    let url = std::env::var("CAP_TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!(
            "these tests need a PostgreSQL server and CAP_TEST_POSTGRES_URL is not set: \
             `scripts/backends up postgres rabbitmq`, then `eval \"$(scripts/backends env)\"`. \
             Or set it to a server of yours, for a role that may create databases"
        )
    });
    PgConnectOptions::from_str(&url).unwrap().disable_statement_logging()
}

async fn on_server(sql: String) {
    let mut connection = PgConnection::connect_with(&server()).await.expect("CAP_TEST_POSTGRES_URL: is it up?");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

pub(crate) struct Database {
    name: String,
    /// The test's own.
    pub(crate) pool: PgPool,
}

impl Database {
    pub(crate) async fn create(run: &MessageId) -> Self {
        let name = format!("cap_nodes_{run}");
        on_server(format!("CREATE DATABASE {name}")).await;
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(server().database(&name));
        Self { name, pool }
    }

    /// What sessions have from now on, unless they say otherwise.
    pub(crate) async fn set(&self, setting: &str, value: &str) {
        on_server(format!("ALTER DATABASE {} SET {setting} TO '{value}'", self.name)).await;
    }

    /// The server's `host:port`.
    pub(crate) fn place() -> String {
        format!("{}:{}", server().get_host(), server().get_port())
    }

    /// A pool of a node's own that connects through `place`, and tells the server the node's name.
    pub(crate) fn pool_through(&self, place: &str, node: &str) -> PgPool {
        let (host, port) = place.rsplit_once(':').unwrap();
        let options = server().host(host).port(port.parse().unwrap()).database(&self.name).application_name(node);
        PgPoolOptions::new().max_connections(6).acquire_timeout(Duration::from_secs(10)).connect_lazy_with(options)
    }

    pub(crate) async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }

    pub(crate) async fn rows<T>(&self, sql: &'static str, read: impl Fn(&PgRow) -> T) -> Vec<T> {
        sqlx::raw_sql(sql).fetch_all(&self.pool).await.unwrap().iter().map(read).collect()
    }

    /// Removes it, whoever still uses it.
    pub(crate) async fn drop(&self) {
        self.pool.close().await;
        on_server(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)).await;
    }
}
