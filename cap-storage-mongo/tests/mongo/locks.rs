//! Open transactions, which nobody waits for.

use std::time::{Duration, Instant};

use cap_core::storage::{Inserted, Lease, Settled, Settlement, Storage, Table};
use cap_core::{NodeId, Status};
use cap_storage_mongo::mongodb::ClientSession;
use cap_storage_mongo::mongodb::bson::{Document, doc};
use cap_storage_mongo::{MongoOptions, MongoStorage};
use cap_testkit::storage::scene::{LEASE, in_flight, inbox_status, node, waiting};

use crate::support::Database;

/// Far less than a transaction may last, and than the storage's time limit in these tests.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A transaction that has written a record of the inbox, and stays open.
async fn lock(storage: &MongoStorage, database: &Database, settlement: &Settlement) -> ClientSession {
    let mut session = storage.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let received = storage.client().database(&database.name).collection::<Document>("cap.received");
    let touch = doc! { "$set": { "Reason": "under way" } };
    received.update_one(doc! { "_id": settlement.record.0 }, touch).session(&mut session).await.unwrap();
    session
}

async fn prepared(database: &Database) -> MongoStorage {
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    storage
}

#[tokio::test]
async fn a_settlement_does_not_wait_for_a_locked_record_and_the_others_are_written() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let node = node(&storage).await;
    let mut settlements = Vec::new();
    for number in 0..7 {
        settlements.push(in_flight(&storage, node, &format!("m{number}")).await);
    }
    let lost = Settlement { token: cap_core::ClaimToken::generate(), ..settlements[5].clone() };
    settlements[5] = lost;
    let mut session = lock(&storage, &database, &settlements[2]).await;

    let settled = tokio::time::timeout(AT_ONCE, storage.settle(Table::Inbox, settlements.clone()));
    let settled = settled.await.expect("it waits").unwrap();
    let mut expected = [Settled::Written; 7];
    (expected[2], expected[5]) = (Settled::Locked, Settled::Lost);
    assert_eq!(settled, expected);
    let alone = tokio::time::timeout(AT_ONCE, storage.settle(Table::Inbox, vec![settlements[2].clone()]));
    assert_eq!(alone.await.expect("it waits").unwrap(), [Settled::Locked]);

    session.abort_transaction().await.unwrap();
    assert_eq!(storage.settle(Table::Inbox, vec![settlements[2].clone()]).await.unwrap(), [Settled::Written]);
    let statuses = inbox_status(&storage).await;
    assert_eq!(statuses.iter().filter(|status| **status == Status::Succeeded).count(), 6);
    database.drop().await;
}

#[tokio::test]
async fn an_insert_of_what_a_handler_is_at_work_on_is_a_duplicate_at_once() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    let mut session = lock(&storage, &database, &settlement).await;
    for ids in [vec!["a"], vec!["a", "b", "c"]] {
        let records = ids.iter().map(|id| waiting(id)).collect();
        let inserted = tokio::time::timeout(AT_ONCE, storage.insert(Table::Inbox, records, None));
        let inserted = inserted.await.expect("it waits").unwrap();
        assert_eq!(inserted[0], Inserted::Duplicate);
        assert!(inserted[1..].iter().all(|inserted| matches!(inserted, Inserted::Stored(_))), "{inserted:?}");
    }
    session.abort_transaction().await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn a_node_leaves_without_waiting_for_a_locked_record_and_a_takeover_finds_it_later() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let node = node(&storage).await;
    let busy = in_flight(&storage, node, "busy").await;
    in_flight(&storage, node, "idle").await;
    let mut session = lock(&storage, &database, &busy).await;
    tokio::time::timeout(AT_ONCE, storage.leave(node)).await.expect("it waits").unwrap();
    assert_eq!(inbox_status(&storage).await, [Status::Queued, Status::Scheduled]);
    session.abort_transaction().await.unwrap();
    assert_eq!(storage.take_over(Vec::new()).await.unwrap().inbox, 1);
    database.drop().await;
}

#[test]
fn heartbeats_of_another_runtime_go_on_while_every_thread_of_the_first_is_blocked() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (users, keepers) = (runtime(), runtime());
    let (database, storage) = users
        .block_on(users.spawn(async {
            let database = Database::create().await;
            let options = MongoOptions::new(database.url().await).database(&database.name);
            let storage = MongoStorage::connect_with(options).await.unwrap();
            storage.prepare().await.unwrap();
            (database, storage)
        }))
        .unwrap();
    let node = NodeId::generate();
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    let (began, begun) = std::sync::mpsc::channel();
    users.spawn(async move {
        began.send(()).unwrap();
        blocked.recv().unwrap_or(());
    });
    begun.recv().unwrap();
    let asked = Instant::now();
    keepers.block_on(async {
        storage.join(node, LEASE).await.unwrap();
        for _ in 0..3 {
            assert!(matches!(storage.heartbeat(node, LEASE).await.unwrap(), Lease::Held { .. }));
        }
    });
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    drop(unblock);
    users.block_on(database.drop());
}
