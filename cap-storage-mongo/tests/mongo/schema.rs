//! The collections: how they come to be, and whose they are.

use std::time::Duration;

use cap_core::storage::{Chore, Inserted, Lane, Settled, Settlement, Storage, Table};
use cap_core::{ErrorKind, NodeId, Version};
use cap_storage_mongo::mongodb::bson::{Bson, DateTime, Document, doc};
use cap_storage_mongo::{MongoOptions, MongoStorage};

use crate::support::{Database, patient};
use cap_testkit::storage::scene::{LEASE, ids, message, node, request, succeeded};

/// Publishes, claims and settles a message.
async fn works(storage: &MongoStorage, id: &str) {
    let inserted = storage.insert(Table::Outbox, vec![message(id)], None).await.unwrap();
    assert!(matches!(inserted[..], [Inserted::Stored(_)]));
    let request = request(node(storage).await, Lane::Outbox, 10);
    let claimed = storage.claim(request.clone()).await.unwrap();
    assert_eq!(claimed.records.len(), 1);
    let settlement = Settlement { record: claimed.records[0].id, token: request.claim.token, state: succeeded() };
    assert_eq!(storage.settle(Table::Outbox, vec![settlement]).await.unwrap(), [Settled::Written]);
}

/// The commands of a printed schema, as `mongosh` would run them.
fn commands(script: &str) -> Vec<Document> {
    let quoted = |line: &str| {
        let json = line.strip_prefix("db.runCommand(EJSON.parse(")?.strip_suffix("))")?;
        let json: String = serde_json::from_str(json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        Some(Bson::try_from(json).unwrap().as_document().unwrap().clone())
    };
    script.lines().filter_map(quoted).collect()
}

#[tokio::test]
async fn without_leave_to_migrate_missing_collections_are_a_schema_error_and_printed_ones_will_do() {
    let database = Database::create().await;
    let options = patient(MongoOptions::default()).migrate(false).prefix("bus");
    let storage = database.storage_with(options.clone()).await;
    let error = storage.prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{error}");
    assert!(error.to_string().contains(&database.name), "{error}");

    let script = options.database(&database.name).print_schema().unwrap();
    assert!(script.contains(&format!("use {}", database.name)), "{script}");
    for command in commands(&script) {
        database.run(command).await;
    }
    storage.prepare().await.unwrap();
    works(&storage, "a").await;
    assert!(storage.take_chore(Chore::Collect, node(&storage).await, LEASE).await.unwrap());
    database.drop().await;
}

#[tokio::test]
async fn a_migration_that_was_interrupted_is_finished() {
    let script = MongoOptions::default().print_schema().unwrap();
    let all = commands(&script);
    for done in [1, all.len() / 2, all.len() - 1] {
        let database = Database::create().await;
        for command in &all[..done] {
            database.run(command.clone()).await;
        }
        // The node that did it died with the lock, which has run out.
        let lock = doc! { "_id": "lock", "Holder": "dead", "HeldUntil": DateTime::from_millis(0) };
        database.collection("cap.schema").insert_one(lock).await.unwrap();
        let storage = database.storage().await;
        storage.prepare().await.unwrap();
        works(&storage, "a").await;
        database.drop().await;
    }
}

#[tokio::test]
async fn while_another_node_migrates_it_is_waited_for() {
    let database = Database::create().await;
    let soon = DateTime::from_millis(DateTime::now().timestamp_millis() + 1_500);
    let schema = database.collection("cap.schema");
    schema.insert_one(doc! { "_id": "lock", "Holder": "other", "HeldUntil": soon }).await.unwrap();
    let storage = database.storage().await;
    let waited = tokio::time::timeout(Duration::from_millis(500), storage.prepare()).await;
    assert!(waited.is_err(), "it did not wait: {waited:?}");
    storage.prepare().await.unwrap();
    assert!(schema.find_one(doc! { "_id": "lock" }).await.unwrap().is_none(), "the lock is left behind");
    database.drop().await;
}

#[tokio::test]
async fn an_index_that_is_missing_is_noticed() {
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    database.collection("cap.received").drop_index("cap_message").await.unwrap();
    let error = storage.prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{error}");
    database.drop().await;
}

#[tokio::test]
async fn before_the_collections_are_made_every_call_says_so_and_makes_none() {
    let database = Database::create().await;
    let storage = database.storage().await;
    let errors = [
        storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap_err(),
        storage.counts(Table::Inbox, Version::default()).await.unwrap_err(),
        storage.join(NodeId::generate(), LEASE).await.unwrap_err(),
        storage.claim(request(NodeId::generate(), Lane::Outbox, 1)).await.unwrap_err(),
        storage.next_due(Version::default(), vec![Lane::Outbox]).await.unwrap_err(),
        storage.take_over(Vec::new()).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
        assert!(error.to_string().contains("prepare"), "{error}");
    }
    let made = database.client().await.database(&database.name).list_collection_names().await.unwrap();
    assert!(made.is_empty(), "{made:?}");
    database.drop().await;
}

#[tokio::test]
async fn collections_of_strangers_are_left_alone() {
    let database = Database::create().await;
    database.collection("cap.published").insert_one(doc! { "title": "a book" }).await.unwrap();
    let error = database.storage().await.prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{error}");
    assert!(error.to_string().contains("another prefix"), "{error}");
    let kept = database.collection("cap.published").find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(kept.len(), 2, "{kept}");
    database.drop().await;
}

#[tokio::test]
async fn prefixes_share_nothing() {
    let database = Database::create().await;
    let (one, other) =
        (database.storage().await, database.storage_with(patient(MongoOptions::default()).prefix("other")).await);
    one.prepare().await.unwrap();
    other.prepare().await.unwrap();
    works(&one, "a").await;
    assert!(ids(&other, Table::Outbox).await.is_empty());
    works(&other, "a").await;
    database.drop().await;
}

#[tokio::test]
async fn documents_of_others_hide_nothing() {
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    let published = database.collection("cap.published");
    // As a .NET node writes that goes on beside us; and two that nobody writes.
    for id in [7_777_777_i64, 7_777_778] {
        let foreign = doc! { "_id": id, "Version": "v1", "Name": "x", "Content": "{}", "Added": DateTime::now(),
        "ExpiresAt": Bson::Null, "Retries": 0, "StatusName": "Succeeded" };
        published.insert_one(foreign).await.unwrap();
    }
    published.insert_one(doc! { "_id": "text", "StatusName": "Succeeded" }).await.unwrap();
    published.insert_one(doc! { "_id": 5, "StatusName": "Odd" }).await.unwrap();
    works(&storage, "a").await;
    assert_eq!(ids(&storage, Table::Outbox).await, ["row-7777777", "row-7777778", "a"]);
    database.drop().await;
}
