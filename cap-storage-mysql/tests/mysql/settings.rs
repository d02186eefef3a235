//! Sessions whose settings are not the default. What every storage must promise is checked under many of them, in
//! `tests/hostile.rs`.

use cap_core::Status;
use cap_core::storage::{Enlist, Inserted, Lane, Storage, Table, TransactAsync};
use cap_storage_mysql::MySqlStorage;
use cap_storage_mysql::sqlx::mysql::MySqlPoolOptions;
use cap_storage_mysql::sqlx::{self, AssertSqlSafe, Connection, MySqlConnection, Row};

use crate::support::{Database, run};
use cap_testkit::storage::scene::{ids, in_flight, inbox_status, message, node, request};

/// Over a pool of the user's with one session, of which this is set.
fn over(database: &Database, settings: &'static str) -> MySqlStorage {
    let pool = MySqlPoolOptions::new().max_connections(1).after_connect(move |connection, _| {
        Box::pin(async move {
            sqlx::raw_sql(settings).execute(connection).await?;
            Ok(())
        })
    });
    MySqlStorage::new(pool.connect_lazy_with(database.options()))
}

async fn session(connection: &mut MySqlConnection, what: &str) -> String {
    let ask = format!("SELECT CAST(CONCAT_WS(' ', {what}) AS CHAR)");
    sqlx::raw_sql(AssertSqlSafe(ask)).fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test]
async fn a_commit_of_the_storages_ends_neither_in_another_transaction_nor_with_the_session() {
    let database = Database::create().await;
    database.storage().prepare().await.unwrap();
    for settings in ["SET completion_type = 'CHAIN'", "SET completion_type = 'RELEASE'"] {
        let storage = over(&database, settings);
        let before = session(&mut storage.pool().acquire().await.unwrap(), "CONNECTION_ID()").await;
        let node = node(&storage).await;
        storage.insert(Table::Outbox, vec![message(settings), message(&settings[4..])], None).await.unwrap();
        assert_eq!(storage.claim(request(node, Lane::Outbox, 10)).await.unwrap().records.len(), 2, "{settings}");
        let settlement = in_flight(&storage, node, settings).await;
        storage.settle(Table::Inbox, vec![settlement]).await.unwrap();
        let after = session(&mut storage.pool().acquire().await.unwrap(), "CONNECTION_ID(), @@in_transaction").await;
        assert_eq!(after, format!("{before} 0"), "{settings}");
    }
    database.drop().await;
}

/// The driver commits it, as it does the user's own.
#[tokio::test]
async fn a_handler_on_a_session_that_chains_is_committed_and_what_comes_after_it_works() {
    let database = Database::create_hostile().await;
    for storage in [MySqlStorage::connect(&database.url()).await.unwrap(), over(&database, "DO 0")] {
        storage.prepare().await.unwrap();
        let node = node(&storage).await;
        for number in 0..3 {
            let id = format!("{number} {}", node);
            let tx = storage.begin(in_flight(&storage, node, &id).await).await.unwrap().unwrap();
            storage.commit(tx, vec![message(&id), message(&format!("another {id}"))]).await.unwrap();
        }
        storage.leave(node).await.unwrap();
    }
    let storage = database.storage();
    assert_eq!(inbox_status(&storage).await, [Status::Succeeded; 6]);
    assert_eq!(ids(&storage, Table::Outbox).await.len(), 12);
    database.drop().await;
}

#[tokio::test]
async fn publishing_is_no_matter_of_large_joins_and_short_answers() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let mut user = database.connection().await;
    run(&mut user, "SET max_join_size = 1, sql_big_selects = 0, sql_select_limit = 1, sql_safe_updates = 1").await;
    let mut tx = user.begin().await.unwrap();
    let several = ["a", "b", "c", "b", "d"].map(message).to_vec();
    let answers = storage.enlist(&mut tx, several).await.unwrap();
    let is_stored: Vec<bool> = answers.iter().map(|answer| *answer != Inserted::Duplicate).collect();
    assert_eq!(is_stored, [true, true, true, false, true]);
    tx.commit().await.unwrap();
    let settings = "@@max_join_size, @@sql_big_selects + 0, @@sql_select_limit, @@sql_safe_updates + 0";
    assert_eq!(session(&mut user, settings).await, "1 0 1 1", "the session is as it was");
    database.drop().await;
}
