//! A database of its own for each test, on the server that `CAP_TEST_MYSQL_URL` names.

use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cap_storage_mysql::sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use cap_storage_mysql::sqlx::{self, AssertSqlSafe, ConnectOptions, Connection, MySqlConnection, MySqlPool};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};
use cap_testkit::server::Server;

const SERVER: Server = Server {
    variable: "CAP_TEST_MYSQL_URL",
    name: "mariadb",
    hint: "set it to a server of yours, for a user who may create databases and users: \
           mysql://user:password@localhost:3306/mysql",
};

pub(crate) fn server() -> MySqlConnectOptions {
    MySqlConnectOptions::from_str(&SERVER.url()).unwrap().disable_statement_logging()
}

/// Runs SQL of a test's own.
pub(crate) async fn run(connection: &mut MySqlConnection, sql: impl Into<String>) {
    let sql = sql.into();
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

pub(crate) async fn on_server(sql: String) {
    let mut connection = MySqlConnection::connect_with(&server())
        .await
        .unwrap_or_else(|error| panic!("the server of CAP_TEST_MYSQL_URL cannot be reached ({error}): is it up?"));
    run(&mut connection, sql).await;
    connection.close().await.unwrap();
}

/// The password of the user who owns a test's database. It must show nowhere.
pub(crate) const PASSWORD: &str = "swordfish-and-mustard";

/// What an administrator may set for all sessions, as far as a session can have them.
const SETTINGS: &[(&str, &str)] = &[
    ("completion_type", "'CHAIN'"),
    ("autocommit", "0"),
    ("tx_isolation", "'SERIALIZABLE'"),
    ("tx_read_only", "1"),
    ("max_join_size", "1"),
    ("sql_big_selects", "0"),
    ("sql_select_limit", "1"),
    ("sql_safe_updates", "1"),
    ("unique_checks", "0"),
    ("innodb_lock_wait_timeout", "1"),
    ("lock_wait_timeout", "2"),
    ("auto_increment_increment", "11"),
    ("auto_increment_offset", "3"),
    ("group_concat_max_len", "64"),
    ("time_zone", "'+10:30'"),
    ("lc_messages", "'ja_JP'"),
    ("sql_mode", "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,IGNORE_SPACE,HIGH_NOT_PRECEDENCE,SIMULTANEOUS_ASSIGNMENT'"),
    ("collation_connection", "'latin1_german2_ci'"),
    ("default_storage_engine", "'MyISAM'"),
    ("optimizer_switch", "'derived_merge=off,materialization=off'"),
];

/// An empty database, and a user of the same name who owns it.
pub(crate) struct Database {
    pub(crate) name: String,
}

impl Database {
    #[allow(dead_code, reason = "each test crate uses some of it")]
    pub(crate) async fn create() -> Self {
        Self::create_for("cap").await
    }

    /// One whose sessions begin with odd settings: the server gives them to users of such a name, and to no others.
    #[allow(dead_code, reason = "each test crate uses some of it")]
    pub(crate) async fn create_hostile() -> Self {
        let is_meant = "SUBSTRING_INDEX(USER(), '_', 1) = 'hostile'";
        let settings = SETTINGS.iter().map(|(name, value)| format!("{name} = IF({is_meant}, {value}, @@{name})"));
        let settings = settings.collect::<Vec<_>>().join(", ").replace('\'', "''");
        on_server(format!("SET GLOBAL init_connect = 'SET {settings}'")).await;
        Self::create_for("hostile").await
    }

    async fn create_for(first: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // MySQL's users have names of at most 32 characters.
        let name = format!("{first}_{}_{started}_{number}", std::process::id());
        on_server(format!(
            "CREATE USER {name} IDENTIFIED BY '{PASSWORD}'; CREATE DATABASE {name}; GRANT ALL ON {name}.* TO {name}"
        ))
        .await;
        Self { name }
    }

    /// How its owner connects to it.
    pub(crate) fn options(&self) -> MySqlConnectOptions {
        server().database(&self.name).username(&self.name).password(PASSWORD)
    }

    /// The URL with which its owner connects to it.
    #[allow(dead_code, reason = "each test crate uses some of it")]
    pub(crate) fn url(&self) -> String {
        let server = server();
        format!("mysql://{}:{PASSWORD}@{}:{}/{}", self.name, server.get_host(), server.get_port(), self.name)
    }

    /// A handle with a small pool of its own.
    pub(crate) fn storage(&self) -> MySqlStorage {
        self.storage_with(MySqlOptions::default())
    }

    pub(crate) fn storage_with(&self, options: MySqlOptions) -> MySqlStorage {
        MySqlStorage::with_pool(self.pool(2), options).unwrap()
    }

    pub(crate) fn pool(&self, size: u32) -> MySqlPool {
        MySqlPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(Duration::from_secs(30))
            .test_before_acquire(false)
            .connect_lazy_with(self.options())
    }

    /// A connection of the user's own, who can write.
    pub(crate) async fn connection(&self) -> MySqlConnection {
        let mut connection = MySqlConnection::connect_with(&self.options()).await.unwrap();
        run(&mut connection, "SET SESSION TRANSACTION READ WRITE; SET SESSION autocommit = 1").await;
        connection
    }

    /// Removes it, whoever still uses it.
    pub(crate) async fn drop(&self) {
        on_server(format!("DROP DATABASE IF EXISTS {0}; DROP USER IF EXISTS {0}", self.name)).await;
    }
}
