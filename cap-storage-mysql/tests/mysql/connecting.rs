//! What is told when there is no connection, and what survives the loss of one.

use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{Enlist, Lane, NewRecord, Storage, Table};
use cap_core::{Error, ErrorKind};
use cap_storage_mysql::sqlx::{self, AssertSqlSafe, ConnectOptions, Connection, MySqlConnection, Row};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};

use crate::support::{Database, PASSWORD, run, server};
use cap_testkit::storage::scene::{LEASE, ids, message, node, request};

async fn refused(url: &str) -> Error {
    let options = MySqlOptions::new(url).connect_timeout(Duration::from_secs(5));
    let error = MySqlStorage::connect_with(options).await.unwrap_err();
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains(PASSWORD), "the password is shown: {shown}");
    }
    error
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_without_the_password() {
    let database = Database::create().await;
    let (host, port, name) = (server().get_host().to_owned(), server().get_port(), database.name.clone());

    let error = refused(&format!("mysql://{name}:wrong@{host}:{port}/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("user or the password"), "{error}");

    // Who may use any database is told that there is none of this name, who may not is told no more than that.
    let error = refused(&format!("mysql://{name}:{PASSWORD}@{host}:{port}/no_such_database")).await;
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("not there, or the user has no right"), "{error}");
    assert!(error.to_string().contains("no_such_database"), "{error}");
    let error = refused(server().database("no_such_database").to_url_lossy().as_ref()).await;
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("database is not there"), "{error}");

    let error = refused(&format!("mysql://{name}:{PASSWORD}@{host}:1/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(":1/") && error.to_string().contains("nothing listens"), "{error}");

    let error = refused(&format!("mysql://{name}:{PASSWORD}@no.such.host.invalid:{port}/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no.such.host.invalid"), "{error}");

    let error = refused(&format!("postgres://{name}:{PASSWORD}@{host}:{port}/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = refused(&format!("mysql://{name}:{PASSWORD}@{host}:{port}")).await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("names no database"), "{error}");
    database.drop().await;
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up_in_time() {
    // It accepts connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let options = MySqlOptions::new(format!("mysql://u:{PASSWORD}@127.0.0.1:{port}/d"))
        .connect_timeout(Duration::from_millis(200));
    let error = MySqlStorage::connect_with(options.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no answer within 200ms"), "{error}");
    let error = MySqlStorage::connect_lazy(options).unwrap().prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_storage_that_connects_itself_works_and_shows_no_secret() {
    let database = Database::create().await;
    let storage = MySqlStorage::connect(&database.url()).await.unwrap();
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    let shown = format!("{storage:?} {}", storage.describe());
    assert!(shown.contains(&database.name) && !shown.contains(PASSWORD), "{shown}");
    let limit =
        sqlx::query("SELECT CAST(@@innodb_lock_wait_timeout AS SIGNED)").fetch_one(storage.pool()).await.unwrap();
    assert_eq!(limit.get::<i64, _>(0), 3, "in seconds");
    database.drop().await;
}

#[tokio::test]
async fn a_lost_connection_is_unavailable_and_the_next_call_works() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    kill_all(&database).await;
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
    let storage = MySqlStorage::connect(&database.url()).await.unwrap();
    storage.prepare().await.unwrap();
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(storage.pool().acquire().await.unwrap());
    }
    for mut connection in all {
        connection.return_to_pool().await;
    }
    assert_eq!(storage.pool().num_idle(), CONNECTIONS);
    kill_all(&database).await;
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
    let storage = MySqlStorage::new(database.pool(1));
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
    let options = MySqlOptions::new(database.url()).statement_timeout(Duration::from_millis(100));
    let storage = MySqlStorage::connect_with(options).await.unwrap();
    storage.prepare().await.unwrap();

    // One waits for a row, the other one for a table.
    for lock in [
        "INSERT INTO `cap.published` (Name, Added, StatusName, MessageId) VALUES ('x', NOW(), 'x', 'a')",
        "LOCK TABLES `cap.published` WRITE",
    ] {
        let mut other = database.connection().await;
        run(&mut other, "BEGIN").await;
        run(&mut other, lock).await;
        let error = storage.insert(Table::Outbox, vec![message("b"), message("a")], None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("Lock wait timeout"), "{error}");
        run(&mut other, "ROLLBACK; UNLOCK TABLES").await;
        assert!(ids(&storage, Table::Outbox).await.is_empty());
    }
    database.drop().await;
}

#[tokio::test]
async fn a_content_that_the_server_would_not_take_is_refused_and_costs_no_connection() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let packet: i64 =
        sqlx::query_scalar("SELECT CAST(@@max_allowed_packet AS SIGNED)").fetch_one(storage.pool()).await.unwrap();
    let too_long = || NewRecord { content: "x".repeat(packet.unsigned_abs() as usize).into(), ..message("a") };
    let error = storage.insert(Table::Outbox, vec![message("b"), too_long()], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("max_allowed_packet"), "{error}");
    let mut connection = database.connection().await;
    storage.enlist(&mut connection, vec![too_long()]).await.unwrap_err();
    storage.enlist(&mut connection, vec![message("c")]).await.unwrap();

    // Just as much as it takes, and many that are too much together.
    let half: Arc<str> = "x".repeat(packet.unsigned_abs() as usize / 2).into();
    let records = ["d", "e", "f", "g"].map(|id| NewRecord { content: Arc::clone(&half), ..message(id) });
    storage.insert(Table::Outbox, records.to_vec(), None).await.unwrap();
    let claimed = storage.claim(request(node(&storage).await, Lane::Outbox, 10)).await.unwrap();
    assert_eq!(claimed.records.len(), 5);
    assert_eq!(claimed.records[4].content, half);
    database.drop().await;
}

/// Ends all sessions of a database, and waits until they are gone.
async fn kill_all(database: &Database) {
    let mut connection = MySqlConnection::connect_with(&server()).await.unwrap();
    loop {
        let sessions = "SELECT CAST(ID AS SIGNED) FROM information_schema.PROCESSLIST WHERE DB = ?";
        let ids: Vec<i64> = sqlx::query_scalar(sessions).bind(&database.name).fetch_all(&mut connection).await.unwrap();
        if ids.is_empty() {
            return;
        }
        for id in ids {
            // It may have ended meanwhile.
            let kill = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}")));
            drop(kill.execute(&mut connection).await);
        }
    }
}
