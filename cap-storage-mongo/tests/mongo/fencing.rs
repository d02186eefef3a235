//! What is written in the name of a node that is forgotten at the same moment. The server is told to hold a command of
//! one client back (`configureFailPoint`, which needs `enableTestCommands`); the takeover comes in between.

use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{Chore, Claim, Lane, Storage, Table};
use cap_core::{ErrorKind, NodeId, Status};
use cap_storage_mongo::mongodb::Client;
use cap_storage_mongo::mongodb::bson::doc;
use cap_storage_mongo::mongodb::event::EventHandler;
use cap_storage_mongo::mongodb::event::command::CommandEvent;
use cap_storage_mongo::{MongoOptions, MongoStorage};
use tokio::sync::{Mutex, MutexGuard, Notify};

use crate::support::{Database, admin, patient};
use cap_testkit::storage::scene::{LEASE, delivery, group, listed, message, node, request};

/// The server has one fail point of this kind: who sets it again changes it for all.
static FAIL_POINT: Mutex<()> = Mutex::const_new(());

/// A storage whose next command of a kind is held back by the server for a while, and a signal that it was sent.
struct Held {
    storage: MongoStorage,
    sent: Arc<Notify>,
    _alone: MutexGuard<'static, ()>,
}

impl Held {
    async fn new(database: &Database, command: &'static str) -> Self {
        let alone = FAIL_POINT.lock().await;
        let sent = Arc::new(Notify::new());
        let tell = Arc::clone(&sent);
        let mut options = database.options().await;
        options.app_name = Some(database.name.clone());
        options.command_event_handler = Some(EventHandler::callback(move |event| {
            if matches!(event, CommandEvent::Started(started) if started.command_name == command) {
                tell.notify_one();
            }
        }));
        let client = Client::with_options(options).unwrap();
        let storage =
            MongoStorage::with_client(client, patient(MongoOptions::default()).database(&database.name)).unwrap();
        let data = doc! { "failCommands": [command], "blockConnection": true, "blockTimeMS": 1_000, "appName": &database.name };
        let hold = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data };
        admin().await.database("admin").run_command(hold).await.expect("the server takes no test commands");
        Self { storage, sent, _alone: alone }
    }
}

/// Takes over from every node.
async fn take_over(storage: &MongoStorage) -> Vec<NodeId> {
    let all: Vec<_> = cap_testkit::signs(storage).await.unwrap().iter().map(|sign| sign.node).collect();
    cap_testkit::take_over_from(storage, &all).await.unwrap().nodes
}

#[tokio::test]
async fn a_claim_that_is_written_after_its_node_was_forgotten_is_given_back() {
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    let dying = node(&storage).await;
    let Held { storage: slow, sent, _alone } = Held::new(&database, "update").await;
    let claim = tokio::spawn(async move { slow.claim(request(dying, Lane::Outbox, 10)).await });
    sent.notified().await;
    assert_eq!(take_over(&storage).await, [dying]);
    let error = claim.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
    let record = &listed(&storage, Table::Outbox).await[0];
    assert_eq!((record.status, record.attempts, record.owner), (Status::Scheduled, 0, None));
    let next = storage.next_due(cap_core::Version::default(), vec![Lane::Outbox]).await.unwrap();
    assert_eq!(next, [Some(Duration::ZERO)]);
    database.drop().await;
}

#[tokio::test]
async fn a_delivery_that_is_stored_after_its_node_was_forgotten_is_due_for_others() {
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    let dying = node(&storage).await;
    let Held { storage: slow, sent, _alone } = Held::new(&database, "commitTransaction").await;
    let records = vec![delivery("a"), delivery("b")];
    let insert = tokio::spawn(async move { slow.insert(Table::Inbox, records, Some(Claim::by(dying))).await });
    sent.notified().await;
    assert_eq!(take_over(&storage).await, [dying]);
    let error = insert.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "all or nothing is stored: {error}");
    for record in listed(&storage, Table::Inbox).await {
        assert_eq!((record.status, record.owner), (Status::Scheduled, None));
    }
    let heir = node(&storage).await;
    let claimed = storage.claim(request(heir, Lane::Inbox(group()), 10)).await.unwrap();
    assert_eq!(claimed.records.len(), 2);
    database.drop().await;
}

#[tokio::test]
async fn a_chore_that_is_taken_after_its_node_was_forgotten_is_free() {
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    let dying = node(&storage).await;
    let Held { storage: slow, sent, _alone } = Held::new(&database, "update").await;
    let take = tokio::spawn(async move { slow.take_chore(Chore::Collect, dying, LEASE).await });
    sent.notified().await;
    assert_eq!(take_over(&storage).await, [dying]);
    let error = take.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
    assert!(storage.take_chore(Chore::Collect, node(&storage).await, LEASE).await.unwrap());
    database.drop().await;
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_asked_for_again() {
    let _alone = FAIL_POINT.lock().await;
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    let mut options = database.options().await;
    options.app_name = Some(database.name.clone());
    let client = Client::with_options(options).unwrap();
    let shaky = MongoStorage::with_client(client, patient(MongoOptions::default()).database(&database.name)).unwrap();
    // Carried out, but not confirmed by a majority (64); and twice the connection is lost.
    let unconfirmed = doc! { "code": 64, "errmsg": "waiting for replication timed out" };
    for data in [
        doc! { "failCommands": ["commitTransaction"], "writeConcernError": unconfirmed, "appName": &database.name },
        doc! { "failCommands": ["commitTransaction"], "closeConnection": true, "appName": &database.name },
    ] {
        let fail = doc! { "configureFailPoint": "failCommand", "mode": { "times": 3 }, "data": data };
        admin().await.database("admin").run_command(fail).await.expect("the server takes no test commands");
        let before = listed(&storage, Table::Outbox).await.len();
        let records = vec![message(&format!("{before} a")), message(&format!("{before} b"))];
        shaky.insert(Table::Outbox, records, None).await.unwrap();
        assert_eq!(listed(&storage, Table::Outbox).await.len(), before + 2);
    }
    database.drop().await;
}
