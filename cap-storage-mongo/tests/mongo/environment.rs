//! What somebody can put right is held against no message.

use cap_core::ErrorKind;
use cap_core::storage::{Inserted, Lane, Settled, Storage, Table};
use cap_storage_mongo::MongoStorage;
use cap_storage_mongo::mongodb::bson::{Document, doc};
use cap_storage_mongo::mongodb::{IndexModel, options::IndexOptions};
use cap_testkit::storage::scene::{group, ids, in_flight, message, node, request, waiting};

use crate::support::Database;

async fn prepared(database: &Database) -> MongoStorage {
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    storage
}

#[tokio::test]
async fn a_right_that_was_taken_away_is_no_fault_of_the_data_and_all_works_when_it_is_back() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let node = node(&storage).await;
    let settlement = in_flight(&storage, node, "a").await;
    let roles = |role: &str| doc! { "updateUser": &database.name, "roles": [{ "role": role, "db": &database.name }] };
    database.run(roles("read")).await;
    let fresh = database.client().await.database(&database.name).collection::<Document>("x").insert_one(doc! {}).await;
    if fresh.is_ok() {
        // SecantusDB asks for a password and grants everything.
        return database.drop().await;
    }
    let answers = [
        storage.insert(Table::Inbox, vec![waiting("b")], None).await.map(drop),
        storage.insert(Table::Inbox, vec![waiting("b"), waiting("c")], None).await.map(drop),
        storage.settle(Table::Inbox, vec![settlement.clone()]).await.map(drop),
    ];
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
        assert!(error.to_string().contains("lacks the right"), "{error}");
    }
    database.run(roles("dbOwner")).await;
    assert_eq!(storage.settle(Table::Inbox, vec![settlement]).await.unwrap(), [Settled::Written]);
    let inserted = storage.insert(Table::Inbox, vec![waiting("b"), waiting("c")], None).await.unwrap();
    assert!(inserted.iter().all(|inserted| matches!(inserted, Inserted::Stored(_))), "{inserted:?}");
    assert_eq!(storage.claim(request(node, Lane::Inbox(group()), 10)).await.unwrap().records.len(), 2);
    database.drop().await;
}

#[tokio::test]
async fn what_an_index_of_somebody_elses_refuses_is_rejected_and_no_duplicate() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let unique = IndexModel::builder()
        .keys(doc! { "Name": 1 })
        .options(IndexOptions::builder().unique(true).name("theirs".to_owned()).build())
        .build();
    database.collection("cap.published").create_index(unique).await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    for refused in [vec![message("b")], vec![message("b"), message("c")]] {
        let error = storage.insert(Table::Outbox, refused, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    }
    assert_eq!(storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap(), [Inserted::Duplicate]);
    assert_eq!(ids(&storage, Table::Outbox).await, ["a"]);
    database.drop().await;
}

#[tokio::test]
async fn the_longest_content_is_the_servers() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let hello: Document = database.run(doc! { "hello": 1 }).await;
    let limit = hello.get_i32("maxBsonObjectSize").unwrap();
    assert_eq!(storage.capabilities().max_content, Some(usize::try_from(limit).unwrap() - (1 << 20)));
    database.drop().await;
}
