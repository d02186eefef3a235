//! A database of its own for each test, on the server that `CAP_TEST_POSTGRES_URL` names.

use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cap_storage_postgres::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use cap_storage_postgres::sqlx::{self, AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};
use cap_storage_postgres::{PostgresOptions, PostgresStorage};
use cap_testkit::server::Server;

const SERVER: Server = Server {
    variable: "CAP_TEST_POSTGRES_URL",
    name: "postgres",
    hint: "set it to a server of yours, for a role that may create databases and roles: \
           postgres://role:password@localhost:5432/postgres",
};

pub(crate) fn server() -> PgConnectOptions {
    PgConnectOptions::from_str(&SERVER.url()).unwrap().disable_statement_logging()
}

/// Runs SQL of a test's own.
pub(crate) async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sql.into();
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

pub(crate) async fn on_server(sql: String) {
    let mut connection = PgConnection::connect_with(&server())
        .await
        .unwrap_or_else(|error| panic!("the server of CAP_TEST_POSTGRES_URL cannot be reached ({error}): is it up?"));
    run(&mut connection, sql).await;
    connection.close().await.unwrap();
}

/// The password of the role that owns a test's database. It must show nowhere.
pub(crate) const PASSWORD: &str = "swordfish-and-mustard";

/// An empty database, and a role of the same name that owns it.
pub(crate) struct Database {
    pub(crate) name: String,
}

impl Database {
    pub(crate) async fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cap_test_{}_{started}_{number}", std::process::id());
        on_server(format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")).await;
        on_server(format!("CREATE DATABASE {name}")).await;
        on_server(format!("ALTER DATABASE {name} OWNER TO {name}")).await;
        Self { name }
    }

    /// What sessions have from now on, unless they say otherwise.
    #[allow(dead_code, reason = "each test crate uses some of it")]
    pub(crate) async fn set(&self, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            on_server(format!("ALTER DATABASE {} SET {name} TO {value:?}", self.name).replace('"', "'")).await;
        }
    }

    /// How its owner connects to it.
    pub(crate) fn options(&self) -> PgConnectOptions {
        server().database(&self.name).username(&self.name).password(PASSWORD)
    }

    /// The URL with which its owner connects to it.
    #[allow(dead_code, reason = "each test crate uses some of it")]
    pub(crate) fn url(&self) -> String {
        let server = server();
        format!("postgres://{}:{PASSWORD}@{}:{}/{}", self.name, server.get_host(), server.get_port(), self.name)
    }

    /// A handle with a small pool of its own.
    pub(crate) fn storage(&self) -> PostgresStorage {
        self.storage_with(PostgresOptions::default())
    }

    pub(crate) fn storage_with(&self, options: PostgresOptions) -> PostgresStorage {
        PostgresStorage::with_pool(self.pool(2), options).unwrap()
    }

    pub(crate) fn pool(&self, size: u32) -> PgPool {
        PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(Duration::from_secs(30))
            .test_before_acquire(false)
            .connect_lazy_with(self.options())
    }

    /// A connection of the user's own, for whom nothing is in the way.
    pub(crate) async fn connection(&self) -> PgConnection {
        let mut connection = PgConnection::connect_with(&self.options()).await.unwrap();
        let plain = "SET default_transaction_read_only = off; SET lock_timeout = 0; SET statement_timeout = 0;
                     SET search_path = public";
        run(&mut connection, plain).await;
        connection
    }

    /// Removes it, whoever still uses it.
    pub(crate) async fn drop(&self) {
        on_server(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)).await;
        on_server(format!("DROP ROLE IF EXISTS {}", self.name)).await;
    }
}
