//! A database whose settings are not the default. What every storage must promise is checked under many of them, in
//! `tests/hostile.rs`.

use std::sync::Arc;
use std::time::Duration;

use cap_core::Status;
use cap_core::storage::{Lane, Storage, Table, TransactAsync};
use cap_storage_postgres::PostgresStorage;
use cap_storage_postgres::sqlx::{self, Connection};

use crate::support::{Database, run};
use cap_testkit::storage::scene::{ids, in_flight, inbox_status, message, node, request};

const SERIALIZABLE: (&str, &str) = ("default_transaction_isolation", "serializable");

#[tokio::test]
async fn nodes_that_start_at_once_on_a_serializable_database_find_each_others_tables() {
    let database = Database::create().await;
    database.set(&[SERIALIZABLE]).await;
    let starting = (0..4).map(|_| {
        let url = database.url();
        tokio::spawn(async move { PostgresStorage::connect(&url).await?.prepare().await })
    });
    for started in starting.collect::<Vec<_>>() {
        started.await.unwrap().unwrap();
    }
    database.drop().await;
}

/// Two sessions that are serializable would end as each other's victims, again and again.
#[tokio::test]
async fn claims_beside_each_other_on_a_serializable_database_are_no_victims_of_each_other() {
    const EACH: usize = 150;
    let database = Database::create().await;
    database.set(&[SERIALIZABLE]).await;
    let storage = Arc::new(PostgresStorage::connect(&database.url()).await.unwrap());
    storage.prepare().await.unwrap();
    let records = (0..4 * EACH).map(|number| message(&format!("m{number}"))).collect();
    storage.insert(Table::Outbox, records, None).await.unwrap();
    let claiming = (0..4).map(|_| {
        let storage = Arc::clone(&storage);
        tokio::spawn(async move {
            let node = node(&*storage).await;
            for _ in 0..EACH {
                assert_eq!(storage.claim(request(node, Lane::Outbox, 1)).await.unwrap().records.len(), 1);
            }
        })
    });
    for claimed in claiming.collect::<Vec<_>>() {
        claimed.await.unwrap();
    }
    database.drop().await;
}

/// What they note as read is their own record, and no page of an index.
#[tokio::test]
async fn handlers_beside_each_other_on_a_serializable_database_are_no_victims_of_each_other() {
    const HANDLERS: u32 = 8;
    let database = Database::create().await;
    database.set(&[SERIALIZABLE]).await;
    let storage = PostgresStorage::new(database.pool(HANDLERS));
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let mut begun = Vec::new();
    for number in 0..HANDLERS {
        let settlement = in_flight(&storage, node, &format!("m{number}")).await;
        begun.push(TransactAsync::begin(&storage, settlement).await.unwrap().unwrap());
    }
    for (number, tx) in begun.into_iter().enumerate() {
        storage.commit(tx, vec![message(&format!("reply {number}"))]).await.unwrap();
    }
    assert_eq!(inbox_status(&storage).await, [Status::Succeeded; HANDLERS as usize]);
    database.drop().await;
}

/// Somebody changes the settings after the start, and new sessions have them.
#[tokio::test]
async fn settings_that_change_while_a_node_works_are_noticed() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    database.set(&[("default_transaction_read_only", "on")]).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND datname = current_database()";
    let elsewhere = database.storage();
    run(&mut database.connection().await, kill).await;
    elsewhere.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["a"]);
    database.drop().await;
}

#[tokio::test]
async fn a_handlers_transaction_is_as_isolated_as_the_database_says_and_may_write() {
    let database = Database::create().await;
    let settings = [SERIALIZABLE, ("default_transaction_read_only", "on"), ("lock_timeout", "70ms")];
    database.set(&settings).await;
    let storage = PostgresStorage::connect(&database.url()).await.unwrap();
    storage.prepare().await.unwrap();
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    let mut tx = TransactAsync::begin(&storage, settlement).await.unwrap().unwrap();
    for (name, value) in [("transaction_isolation", "serializable"), ("lock_timeout", "70ms")] {
        let is: String = sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut *tx).await.unwrap();
        assert_eq!(is, value, "{name}");
    }
    storage.commit(tx, vec![message("reply")]).await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["reply"]);
    database.drop().await;
}

/// Others use it, too.
#[tokio::test]
async fn a_session_of_the_users_pool_is_left_as_it_is() {
    let database = Database::create().await;
    database.set(&[SERIALIZABLE, ("synchronous_commit", "off"), ("lock_timeout", "70ms")]).await;
    let storage = PostgresStorage::new(database.pool(1));
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    let mut session = storage.pool().acquire().await.unwrap();
    for (name, value) in [
        ("transaction_isolation", "serializable"),
        ("default_transaction_isolation", "serializable"),
        ("synchronous_commit", "off"),
        ("lock_timeout", "70ms"),
    ] {
        let is: String =
            sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut *session).await.unwrap();
        assert_eq!(is, value, "{name}");
    }
    session.ping().await.unwrap();
    drop(session);
    tokio::time::timeout(Duration::from_secs(5), storage.prepare()).await.unwrap().unwrap();
    database.drop().await;
}
