//! The user's own transactions, and those of handlers.

use std::time::Duration;

use cap_core::storage::{Enlist, Inserted, Lane, Lease, Settled, Storage, Table, TransactAsync};
use cap_core::{ErrorKind, Status};
use cap_storage_mongo::mongodb::bson::{Document, doc};
use cap_storage_mongo::mongodb::error::TRANSIENT_TRANSACTION_ERROR;
use cap_storage_mongo::mongodb::{Collection, options::IndexOptions};
use cap_storage_mongo::{MongoStorage, driver_error, mongodb};

use crate::support::Database;
use cap_testkit::storage::scene::{LEASE, ids, in_flight, inbox_status, listed, message, node, request};

async fn prepared(database: &Database) -> MongoStorage {
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    let unique = mongodb::IndexModel::builder()
        .keys(doc! { "item": 1 })
        .options(IndexOptions::builder().unique(true).build())
        .build();
    database.collection("orders").create_index(unique).await.unwrap();
    storage
}

fn orders(storage: &MongoStorage, database: &Database) -> Collection<Document> {
    storage.client().database(&database.name).collection("orders")
}

async fn number_of_orders(database: &Database) -> u64 {
    database.collection("orders").count_documents(doc! {}).await.unwrap()
}

#[tokio::test]
async fn a_session_without_a_transaction_is_refused_and_usable_afterwards() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let mut session = storage.client().start_session().await.unwrap();
    for _ in 0..2 {
        let error = storage.enlist(&mut session, vec![message("a")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("start_transaction"), "{error}");
    }
    assert!(ids(&storage, Table::Outbox).await.is_empty());
    session.start_transaction().await.unwrap();
    orders(&storage, &database).insert_one(doc! { "item": "book" }).session(&mut session).await.unwrap();
    storage.enlist(&mut session, vec![message("a")]).await.unwrap();
    session.commit_transaction().await.unwrap();
    // A committed session has none, either.
    let error = storage.enlist(&mut session, vec![message("b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(ids(&storage, Table::Outbox).await, ["a"]);
    database.drop().await;
}

#[tokio::test]
async fn a_session_of_another_client_will_do_and_collections_that_are_missing_are_named() {
    let (database, elsewhere) = (Database::create().await, Database::create().await);
    let storage = prepared(&database).await;
    let mut session = database.client().await.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    storage.enlist(&mut session, vec![message("a")]).await.unwrap();
    session.commit_transaction().await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["a"]);

    let unprepared = elsewhere.storage().await;
    session.start_transaction().await.unwrap();
    let error = unprepared.enlist(&mut session, vec![message("b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    assert!(error.to_string().contains("another cluster"), "{error}");
    session.abort_transaction().await.unwrap();
    elsewhere.drop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_conflict_passes_through_with_its_label() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let client = database.client().await;
    let (mut quick, mut slow) = (client.start_session().await.unwrap(), client.start_session().await.unwrap());
    quick.start_transaction().await.unwrap();
    slow.start_transaction().await.unwrap();
    storage.enlist(&mut quick, vec![message("a")]).await.unwrap();
    let error = storage.enlist(&mut slow, vec![message("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(driver_error(&error).unwrap().contains_label(TRANSIENT_TRANSACTION_ERROR), "{error}");
    quick.commit_transaction().await.unwrap();
    let _ = slow.abort_transaction().await;
    // Done again, as the label says.
    slow.start_transaction().await.unwrap();
    let inserted = storage.enlist(&mut slow, vec![message("a"), message("b")]).await.unwrap();
    assert!(matches!(inserted[..], [Inserted::Duplicate, Inserted::Stored(_)]), "{inserted:?}");
    slow.commit_transaction().await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn a_handlers_work_its_messages_and_its_record_are_one_commit() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    let mut tx = storage.begin(settlement).await.unwrap().unwrap();
    orders(&storage, &database).insert_one(doc! { "item": "book" }).session(&mut *tx).await.unwrap();
    assert_eq!((number_of_orders(&database).await, inbox_status(&storage).await), (0, vec![Status::Queued]));
    storage.commit(tx, vec![message("reply")]).await.unwrap();
    assert_eq!((number_of_orders(&database).await, inbox_status(&storage).await), (1, vec![Status::Succeeded]));
    assert_eq!(ids(&storage, Table::Outbox).await, ["reply"]);
    database.drop().await;
}

#[tokio::test]
async fn a_handler_that_ignored_a_failed_operation_is_not_taken_for_committed() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    for records in [vec![], vec![message("reply")]] {
        let mut tx = storage.begin(settlement.clone()).await.unwrap().unwrap();
        let orders = orders(&storage, &database);
        orders.insert_one(doc! { "item": "book" }).session(&mut *tx).await.unwrap();
        orders.insert_one(doc! { "item": "book" }).session(&mut *tx).await.unwrap_err();
        let error = storage.commit(tx, records).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("a statement in it failed"), "{error}");
    }
    assert_eq!(number_of_orders(&database).await, 0);
    assert!(ids(&storage, Table::Outbox).await.is_empty());
    assert_eq!(inbox_status(&storage).await, [Status::Queued]);
    assert_eq!(storage.settle(Table::Inbox, vec![settlement]).await.unwrap(), [Settled::Written]);
    database.drop().await;
}

#[tokio::test]
async fn a_handler_that_ended_the_transaction_itself_is_told() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    let mut tx = storage.begin(settlement).await.unwrap().unwrap();
    tx.abort_transaction().await.unwrap();
    let error = storage.commit(tx, vec![message("reply")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert!(error.to_string().contains("must not"), "{error}");
    assert!(ids(&storage, Table::Outbox).await.is_empty());
    database.drop().await;
}

#[tokio::test]
async fn a_takeover_does_not_wait_for_the_handler_of_a_dead_node_which_then_commits_nothing() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let dead = node(&storage).await;
    let busy = in_flight(&storage, dead, "busy").await;
    in_flight(&storage, dead, "idle").await;
    let mut tx = storage.begin(busy).await.unwrap().unwrap();
    orders(&storage, &database).insert_one(doc! { "item": "book" }).session(&mut *tx).await.unwrap();
    let taken = cap_testkit::take_over_from(&storage, &[dead]).await.unwrap();
    assert_eq!(storage.heartbeat(dead, LEASE).await.unwrap(), Lease::Lost);
    assert_eq!((taken.nodes, taken.inbox), (vec![dead], 2));
    let error = storage.commit(tx, vec![message("reply")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
    assert_eq!(number_of_orders(&database).await, 0);
    assert!(ids(&storage, Table::Outbox).await.is_empty());
    assert_eq!(inbox_status(&storage).await, [Status::Scheduled; 2]);
    database.drop().await;
}

#[tokio::test]
async fn what_an_open_transaction_has_written_is_left_to_the_next_takeover() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let dead = node(&storage).await;
    let busy = in_flight(&storage, dead, "busy").await;
    in_flight(&storage, dead, "idle").await;
    let mut session = storage.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let received = storage.client().database(&database.name).collection::<Document>("cap.received");
    let touch = doc! { "$set": { "Reason": "under way" } };
    received.update_one(doc! { "_id": busy.record.0 }, touch).session(&mut session).await.unwrap();
    database.collection("cap.nodes").delete_many(doc! {}).await.unwrap();
    assert_eq!(storage.take_over(Vec::new()).await.unwrap().inbox, 1, "it waited, or took what it must not");
    session.abort_transaction().await.unwrap();
    assert_eq!(storage.take_over(Vec::new()).await.unwrap().inbox, 1);
    database.drop().await;
}

#[tokio::test]
async fn an_insert_that_meets_an_open_transaction_is_done_again() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    for commits in [true, false] {
        let [one, other] = ["one", "other"].map(|id| format!("{id} {commits}"));
        let mut session = database.client().await.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        storage.enlist(&mut session, vec![message(&one)]).await.unwrap();
        let insert = tokio::spawn({
            let (storage, records) = (storage.clone(), vec![message(&one), message(&other)]);
            async move { storage.insert(Table::Outbox, records, None).await }
        });
        tokio::task::yield_now().await;
        if commits {
            session.commit_transaction().await.unwrap();
        } else {
            session.abort_transaction().await.unwrap();
        }
        let inserted = insert.await.unwrap().unwrap();
        assert_eq!(inserted[0] == Inserted::Duplicate, commits, "{inserted:?}");
        assert!(matches!(inserted[1], Inserted::Stored(_)), "{inserted:?}");
    }
    let claimed = storage.claim(request(node(&storage).await, Lane::Outbox, 10)).await.unwrap();
    assert_eq!(claimed.records.len(), 4);
    database.drop().await;
}

/// The handle that dies is never dropped: what is dropped rolls back, and what is killed says nothing.
#[tokio::test]
async fn a_takeover_ends_the_transactions_of_the_dead() {
    let database = Database::create().await;
    let (dying, heir) = (prepared(&database).await, database.storage().await);
    let dead = node(&dying).await;
    let settlement = in_flight(&dying, dead, "a").await;
    let mut tx = dying.begin(settlement).await.unwrap().unwrap();
    orders(&dying, &database).insert_one(doc! { "item": "book" }).session(&mut *tx).await.unwrap();
    let received = dying.client().database(&database.name).collection::<Document>("cap.received");
    received
        .update_one(doc! { "MessageId": "a" }, doc! { "$set": { "Touched": true } })
        .session(&mut *tx)
        .await
        .unwrap();
    assert!(matches!(dying.heartbeat(dead, Duration::from_millis(1)).await.unwrap(), Lease::Held { .. }));
    std::mem::forget(tx);

    let taken = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let taken = cap_testkit::take_over_from(&heir, &[dead]).await.unwrap();
            if !taken.nodes.is_empty() {
                return taken;
            }
        }
    });
    let taken = taken.await.expect("the lease does not run out");
    assert_eq!((taken.nodes, taken.inbox), (vec![dead], 1), "its transaction has the record locked");
    // Nor does it keep anything else.
    let orders = database.collection("orders");
    let written = orders.insert_one(doc! { "item": "book" });
    tokio::time::timeout(Duration::from_secs(20), written).await.expect("the order is locked").unwrap();
    assert_eq!(number_of_orders(&database).await, 1);
    assert_eq!(inbox_status(&heir).await, [Status::Scheduled]);
    database.abandon().await;
}

#[tokio::test]
async fn records_of_which_some_are_there_already_are_stored_together() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let insert = |ids: &[&str]| storage.insert(Table::Outbox, ids.iter().map(|id| message(id)).collect(), None);
    let inserted = insert(&["a", "b"]).await.unwrap();
    assert!(inserted.iter().all(|inserted| matches!(inserted, Inserted::Stored(_))), "{inserted:?}");
    let inserted = insert(&["c", "a", "d", "d"]).await.unwrap();
    assert!(
        matches!(inserted[..], [Inserted::Stored(_), Inserted::Duplicate, Inserted::Stored(_), Inserted::Duplicate]),
        "{inserted:?}"
    );
    let stored: Vec<_> = listed(&storage, Table::Outbox).await.iter().map(|record| record.id).collect();
    assert_eq!(stored.len(), 4);
    for inserted in inserted {
        assert!(matches!(inserted, Inserted::Stored(id) if stored.contains(&id)) || inserted == Inserted::Duplicate);
    }
    database.drop().await;
}
