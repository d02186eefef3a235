//! What is told when there is no connection, and what survives the loss of one.

use std::time::Duration;

use cap_core::storage::{Storage, Table};
use cap_core::{Error, ErrorKind};
use cap_storage_postgres::sqlx::{self, Row};
use cap_storage_postgres::{PostgresOptions, PostgresStorage};

use crate::support::{Database, PASSWORD, on_server, run, server};
use cap_testkit::storage::scene::{LEASE, ids, message, node};

async fn refused(url: &str) -> Error {
    let options = PostgresOptions::new(url).connect_timeout(Duration::from_secs(5));
    let error = PostgresStorage::connect_with(options).await.unwrap_err();
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains(PASSWORD), "the password is shown: {shown}");
    }
    error
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_without_the_password() {
    let database = Database::create().await;
    let (host, port, name) = (server().get_host().to_owned(), server().get_port(), database.name.clone());

    let error = refused(&format!("postgres://{name}:wrong@{host}:{port}/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("role or its password"), "{error}");

    let error = refused(&format!("postgres://{name}:{PASSWORD}@{host}:{port}/no_such_database")).await;
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("database is not there"), "{error}");
    assert!(error.to_string().contains("no_such_database"), "{error}");

    let error = refused(&format!("postgres://{name}:{PASSWORD}@{host}:1/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(":1/") && error.to_string().contains("nothing listens"), "{error}");

    let error = refused(&format!("postgres://{name}:{PASSWORD}@no.such.host.invalid:{port}/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no.such.host.invalid"), "{error}");

    let error = refused(&format!("mysql://{name}:{PASSWORD}@{host}:{port}/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Invalid);

    on_server(format!("REVOKE CONNECT ON DATABASE {name} FROM PUBLIC, {name}")).await;
    let error = refused(&database.url()).await;
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("lacks the right"), "{error}");
    database.drop().await;
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up_in_time() {
    // It accepts connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let options = PostgresOptions::new(format!("postgres://u:{PASSWORD}@127.0.0.1:{port}/d"))
        .connect_timeout(Duration::from_millis(200));
    let error = PostgresStorage::connect_with(options.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no answer within 200ms"), "{error}");
    let error = PostgresStorage::connect_lazy(options).unwrap().prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_storage_that_connects_itself_works_and_shows_no_secret() {
    let database = Database::create().await;
    let storage = PostgresStorage::connect(&database.url()).await.unwrap();
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    let shown = format!("{storage:?} {}", storage.describe());
    assert!(shown.contains(&database.name) && !shown.contains(PASSWORD), "{shown}");
    let limit = sqlx::query("SHOW statement_timeout").fetch_one(storage.pool()).await.unwrap();
    assert_eq!(limit.get::<&str, _>(0), "30s");
    database.drop().await;
}

#[tokio::test]
async fn a_lost_connection_is_unavailable_and_the_next_call_works() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND datname = current_database()";
    run(&mut database.connection().await, kill).await;
    let mut lost = 0;
    let inserted = loop {
        match storage.insert(Table::Outbox, vec![message("a")], None).await {
            Ok(inserted) => break inserted,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                lost += 1;
                assert!(lost < 5, "{error}");
            }
        }
    };
    assert_eq!(inserted.len(), 1);
    database.drop().await;
}

#[tokio::test]
async fn one_connection_that_is_found_dead_makes_the_others_be_tried_before_they_are_used() {
    const CONNECTIONS: usize = 5;
    let database = Database::create().await;
    let storage = PostgresStorage::connect(&database.url()).await.unwrap();
    storage.prepare().await.unwrap();
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(storage.pool().acquire().await.unwrap());
    }
    for mut connection in all {
        connection.return_to_pool().await;
    }
    assert_eq!(storage.pool().num_idle(), CONNECTIONS);
    let kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND datname = current_database()";
    run(&mut database.connection().await, kill).await;
    let mut lost = 0;
    for number in 0..2 * CONNECTIONS {
        let inserted = storage.insert(Table::Outbox, vec![message(&format!("m{number}"))], None).await;
        lost += usize::from(inserted.is_err());
    }
    assert!(lost <= 1, "only the first to be used: {lost}");
    database.drop().await;
}

#[tokio::test]
async fn a_busy_pool_costs_no_lease() {
    let database = Database::create().await;
    let storage = PostgresStorage::new(database.pool(1));
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let all = storage.pool().acquire().await.unwrap();
    storage.heartbeat(node, LEASE).await.unwrap();
    storage.take_over(Vec::new()).await.unwrap();
    drop(all);
    database.drop().await;
}

#[tokio::test]
async fn a_call_that_waits_too_long_is_given_up_and_leaves_nothing_behind() {
    let database = Database::create().await;
    let options = PostgresOptions::new(database.url()).statement_timeout(Duration::from_millis(100));
    let storage = PostgresStorage::connect_with(options).await.unwrap();
    storage.prepare().await.unwrap();

    let mut other = database.connection().await;
    run(&mut other, "BEGIN").await;
    run(&mut other, r#"LOCK TABLE "cap"."published" IN ACCESS EXCLUSIVE MODE"#).await;
    let error = storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("statement timeout"), "{error}");
    run(&mut other, "COMMIT").await;
    assert!(ids(&storage, Table::Outbox).await.is_empty());
    database.drop().await;
}
