//! Transactions of the user's own that were open for a while: what was published in one is delivered as soon as it commits,
//! although nobody tells of the commit.
//!
//! The servers are those of `CAP_TEST_POSTGRES_URL`, `CAP_TEST_MYSQL_URL` and `CAP_TEST_MONGO_URL`; without them the tests fail.
#![allow(clippy::unwrap_used, reason = "tests")]

mod scene;

use std::time::Duration;

use cap::Cap;
use cap::mongo::mongodb::options::ClientOptions;
use cap::mongo::mongodb::{self, Client};
use cap::mongo::{MongoOptions, MongoStorage};
use cap::mysql::MySqlStorage;
use cap::mysql::sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use cap::postgres::PostgresStorage;
use cap::postgres::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use cap::postgres::sqlx::{self, AssertSqlSafe, Connection, MySqlConnection, PgConnection};
use cap::sqlite::SqliteStorage;

use crate::scene::{Arrivals, Delays, OPEN, SOON, TOPIC, TRANSACTIONS, name, url};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_a_commit_is_delivered_at_once_however_long_its_transaction_was_open() {
    let (server, name) = (url("CAP_TEST_POSTGRES_URL", "postgres"), name());
    let server: PgConnectOptions = server.parse().unwrap();
    let mut admin = PgConnection::connect_with(&server).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(TRANSACTIONS as u32).connect_lazy_with(server.database(&name));
    let arrivals = Arrivals::new();
    let storage = PostgresStorage::new(PgPoolOptions::new().connect_lazy_with((*pool.connect_options()).clone()));
    let cap = arrivals.start(Cap::builder().storage(storage)).await;
    let mut open = Vec::new();
    for number in 0..TRANSACTIONS {
        let mut tx = pool.begin().await.unwrap();
        cap.publish_in(&mut tx, TOPIC, &number).await.unwrap();
        open.push(tx);
    }
    arrivals.check(open.into_iter().map(async |tx| tx.commit().await.unwrap()), SOON).await;
    cap.stop().await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut admin).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_a_commit_is_delivered_at_once_however_long_its_transaction_was_open() {
    let (server, name) = (url("CAP_TEST_MYSQL_URL", "mariadb"), name());
    let server: MySqlConnectOptions = server.parse().unwrap();
    let mut admin = MySqlConnection::connect_with(&server).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await.unwrap();
    let pool = MySqlPoolOptions::new().max_connections(TRANSACTIONS as u32).connect_lazy_with(server.database(&name));
    let arrivals = Arrivals::new();
    let storage = MySqlStorage::new(MySqlPoolOptions::new().connect_lazy_with((*pool.connect_options()).clone()));
    let cap = arrivals.start(Cap::builder().storage(storage)).await;
    let mut open = Vec::new();
    for number in 0..TRANSACTIONS {
        let mut tx = pool.begin().await.unwrap();
        cap.publish_in(&mut tx, TOPIC, &number).await.unwrap();
        open.push(tx);
    }
    arrivals.check(open.into_iter().map(async |tx| tx.commit().await.unwrap()), SOON).await;
    cap.stop().await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name}"))).execute(&mut admin).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_a_commit_is_delivered_at_once_however_long_its_transaction_was_open() {
    let (server, name) = (url("CAP_TEST_MONGO_URL", "mongo"), name());
    let client = Client::with_options(ClientOptions::parse(server).await.unwrap()).unwrap();
    let arrivals = Arrivals::new();
    let storage = MongoStorage::with_client(
        client.clone(),
        MongoOptions::default().connect_timeout(Duration::from_secs(60)).database(&name),
    )
    .unwrap();
    let cap = arrivals.start(Cap::builder().storage(storage)).await;
    let mut open: Vec<mongodb::ClientSession> = Vec::new();
    for number in 0..TRANSACTIONS {
        let mut session = client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        cap.publish_in(&mut session, TOPIC, &number).await.unwrap();
        open.push(session);
    }
    let commits = open.into_iter().map(async |mut session| session.commit_transaction().await.unwrap());
    // The server of the tests is slow itself, and carries out one thing at a time.
    arrivals.check(commits, 4 * SOON).await;
    cap.stop().await;
    client.database(&name).drop().await.unwrap();
}

/// SQLite has one writer: its transactions are open one after the other, and fewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_a_commit_is_delivered_at_once_however_long_its_transaction_was_open() {
    const FEW: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    let arrivals = Arrivals::new();
    let cap = arrivals.start(Cap::builder().storage(SqliteStorage::open(&file).unwrap())).await;
    let mut db = rusqlite::Connection::open(&file).unwrap();
    let mut delays = Delays::default();
    for number in 0..FEW {
        let tx = db.transaction().unwrap();
        cap.publish_in(&tx, TOPIC, &number).unwrap();
        tokio::time::sleep(OPEN).await;
        tx.commit().unwrap();
        delays.push(arrivals.delay_of(number).await);
    }
    // So few have no median worth the name.
    delays.check(2 * SOON);
    cap.stop().await;
}
