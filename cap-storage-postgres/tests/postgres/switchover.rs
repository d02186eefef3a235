//! Servers that change while sessions are open: what one session learns of it, and what becomes of the others.

use cap_core::ErrorKind;
use cap_core::storage::{Lane, Storage, Table, TransactAsync, Wake};
use cap_storage_postgres::sqlx::{self, PgPool};
use cap_storage_postgres::{PostgresOptions, PostgresStorage};
use tokio::sync::mpsc;

use crate::support::{Database, run};
use cap_testkit::storage::scene::{in_flight, message, node, request};

const SESSIONS: u32 = 5;

/// A server that is made a replica goes on with its sessions, and what leads to the primary leads to another one now.
const READ_ONLY: &str = "SET default_transaction_read_only = on";

/// Over a pool of its own, and over one of the user's.
async fn storages(database: &Database) -> [PostgresStorage; 2] {
    let options = PostgresOptions::new(database.url()).pool_size(SESSIONS);
    let own = PostgresStorage::connect_with(options).await.unwrap();
    own.prepare().await.unwrap();
    [own, PostgresStorage::new(database.pool(SESSIONS))]
}

/// Fills the pool with idle sessions, and says this in each of them.
async fn in_all_sessions(pool: &PgPool, sql: &str) {
    let mut all = Vec::new();
    for _ in 0..SESSIONS {
        all.push(pool.acquire().await.unwrap());
    }
    for connection in &mut all {
        run(connection, sql).await;
    }
    for mut connection in all {
        connection.return_to_pool().await;
    }
}

#[tokio::test]
async fn sessions_of_a_server_that_takes_no_writes_any_more_are_left_and_no_call_fails() {
    let database = Database::create().await;
    for (round, storage) in storages(&database).await.into_iter().enumerate() {
        let node = node(&storage).await;
        let settlement = in_flight(&storage, node, &format!("handled {round}")).await;

        in_all_sessions(storage.pool(), READ_ONLY).await;
        let tx = storage.begin(settlement).await.unwrap().expect("the lease is live");
        storage.commit(tx, vec![message(&format!("by the handler {round}"))]).await.unwrap();

        in_all_sessions(storage.pool(), READ_ONLY).await;
        for number in 0..2 * SESSIONS {
            storage.insert(Table::Outbox, vec![message(&format!("{round} {number}"))], None).await.unwrap();
        }
        let read_only = "SELECT count(*) FROM pg_settings WHERE name = 'transaction_read_only' AND setting = 'on'";
        for _ in 0..SESSIONS {
            let found: i64 = sqlx::query_scalar(read_only).fetch_one(storage.pool()).await.unwrap();
            assert_eq!(found, 0, "one of its sessions is still in the pool");
        }
    }
    database.drop().await;
}

#[tokio::test]
async fn whoever_listens_to_a_server_that_takes_no_writes_any_more_begins_again() {
    let database = Database::create().await;
    let [storage, _] = storages(&database).await;
    let (sender, mut woken) = mpsc::unbounded_channel();
    let watcher = storage.clone();
    let watch = tokio::spawn(async move {
        let wake = Wake::new(move |table| {
            let _ = sender.send(table);
        });
        watcher.watch(wake).await
    });
    assert_eq!(woken.recv().await, Some(Table::Outbox), "it listens");
    in_all_sessions(storage.pool(), READ_ONLY).await;
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    let error = watch.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("the same server"), "{error}");
    database.drop().await;
}

#[tokio::test]
async fn plans_that_an_altered_table_has_made_void_are_made_again_and_no_call_fails() {
    let database = Database::create().await;
    for storage in storages(&database).await {
        let node = node(&storage).await;
        let claim = async || storage.claim(request(node, Lane::Outbox, 10)).await;
        in_all_sessions(storage.pool(), "SELECT 1").await;
        // Idle connections take turns.
        for _ in 0..2 * SESSIONS {
            claim().await.unwrap();
        }
        let altered = r#"ALTER TABLE "cap"."published" ALTER COLUMN "Name" TYPE TEXT"#;
        run(&mut database.connection().await, altered).await;
        for _ in 0..2 * SESSIONS {
            claim().await.unwrap();
        }
        let back = r#"ALTER TABLE "cap"."published" ALTER COLUMN "Name" TYPE VARCHAR(200)"#;
        run(&mut database.connection().await, back).await;
    }
    database.drop().await;
}

#[tokio::test]
async fn sessions_that_the_server_has_closed_as_idle_cost_no_call() {
    let database = Database::create().await;
    for (round, storage) in storages(&database).await.into_iter().enumerate() {
        // Less than what makes a connection be tried before it is used.
        in_all_sessions(storage.pool(), "SET idle_session_timeout = '300ms'").await;
        let mut other = database.connection().await;
        let open =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                    AND query LIKE '%idle_session_timeout%'";
        while sqlx::query_scalar::<_, i64>(open).fetch_one(&mut other).await.unwrap() > 0 {
            run(&mut other, "SELECT pg_sleep(0.01)").await;
        }
        for number in 0..2 * SESSIONS {
            storage.insert(Table::Outbox, vec![message(&format!("{round} {number}"))], None).await.unwrap();
        }
    }
    database.drop().await;
}
