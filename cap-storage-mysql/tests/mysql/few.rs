//! A server that gives fewer connections than the pools may have.

use std::time::Duration;

use cap_core::ErrorKind;
use cap_core::storage::{Lane, Lease, Storage, Table, TransactAsync};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};

use crate::support::{Database, on_server};
use cap_testkit::storage::scene::{LEASE, ids, in_flight, message, node, request};

const TASKS: usize = 6;
const EACH: usize = 4;

async fn give(database: &Database, connections: i32) {
    on_server(format!("ALTER USER {} WITH MAX_USER_CONNECTIONS {connections}", database.name)).await;
}

/// A heartbeat of an engine's, which comes from a runtime of its own.
async fn beat(storage: &MySqlStorage, node: cap_core::NodeId) -> cap_core::Result<Lease> {
    let storage = storage.clone();
    let beat = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(storage.heartbeat(node, LEASE))
    };
    tokio::task::spawn_blocking(beat).await.unwrap()
}

/// All that an engine does, with the pool of ten that is the default.
async fn works(connections: i32) {
    let database = Database::create().await;
    give(&database, connections).await;
    let options = MySqlOptions::new(database.url()).connect_timeout(Duration::from_secs(60));
    let storage = MySqlStorage::connect_with(options).await.unwrap();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let publishers: Vec<_> = (0..TASKS)
        .map(|task| {
            let storage = storage.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    storage.insert(Table::Outbox, vec![message(&format!("{task} {number}"))], None).await?;
                }
                Ok::<_, cap_core::Error>(())
            })
        })
        .collect();
    assert!(matches!(beat(&storage, node).await.unwrap(), Lease::Held { .. }));
    let settlement = in_flight(&storage, node, "handled").await;
    let tx = storage.begin(settlement).await.unwrap().expect("the lease is live");
    storage.commit(tx, Vec::new()).await.unwrap();
    for publisher in publishers {
        publisher.await.unwrap().unwrap();
    }
    assert!(matches!(beat(&storage, node).await.unwrap(), Lease::Held { .. }));
    storage.take_over(Vec::new()).await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await.len(), TASKS * EACH);
    let claimed = storage.claim(request(node, Lane::Outbox, 100)).await.unwrap();
    assert_eq!(claimed.records.len(), TASKS * EACH);
    storage.leave(node).await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn one_connection_is_enough_for_everything() {
    works(1).await;
}

#[tokio::test]
async fn a_user_who_may_have_three_connections_works_with_a_pool_of_ten() {
    works(3).await;
}

#[tokio::test]
async fn a_server_that_gives_no_connection_is_told_with_its_own_reason() {
    let database = Database::create().await;
    give(&database, 1).await;
    let other = database.connection().await;
    let options = MySqlOptions::new(database.url()).connect_timeout(Duration::from_secs(8));
    let storage = MySqlStorage::connect_lazy(options).unwrap();
    let lazily = storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap_err();
    let prepared = storage.prepare().await.unwrap_err();
    for error in [lazily, prepared] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let reason = error.to_string();
        assert!(reason.contains("max_user_connections") && reason.contains("make the pools smaller"), "{reason}");
    }
    drop(other);
    storage.prepare().await.unwrap();
    database.drop().await;
}
