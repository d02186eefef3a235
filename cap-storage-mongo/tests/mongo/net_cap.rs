//! Taking over the collections of .NET CAP.

use std::collections::BTreeMap;
use std::time::Duration;

use cap_core::storage::{Inserted, Lane, Record, Settled, Settlement, Storage, Table};
use cap_core::{Status, content};
use cap_storage_mongo::mongodb::IndexModel;
use cap_storage_mongo::mongodb::bson::{Bson, DateTime, Document, doc};

use tracing_subscriber::util::SubscriberInitExt as _;

use crate::support::Database;
use cap_testkit::log::Log;
use cap_testkit::storage::scene::{group, listed, node, request, succeeded, waiting};

fn at(time: &str) -> Bson {
    DateTime::parse_rfc3339_str(time).unwrap().into()
}

fn published(id: i64, status: &str, retries: i32, expires: Bson, content: &str) -> Document {
    doc! {
        "_id": id, "Version": "v1", "Name": "shop.paid", "Content": content, "Added": at("2026-07-01T16:02:20.100Z"),
        "ExpiresAt": expires, "Retries": retries, "StatusName": status,
    }
}

fn received(id: i64, group: &str, status: &str, retries: i32, second: i64, content: Bson) -> Document {
    doc! {
        "_id": id, "Version": "v1", "Group": group, "Name": "shop.paid", "Content": content,
        "Added": DateTime::from_millis(1_782_921_745_000 + second * 1_000), "ExpiresAt": Bson::Null,
        "Retries": retries, "StatusName": status,
    }
}

fn wrapped(id: i64, value: &str) -> String {
    format!(
        r#"{{"Headers":{{"cap-callback-name":null,"cap-msg-id":"{id}","cap-msg-name":"shop.paid"}},"Value":{value}}}"#
    )
}

/// What .NET CAP 8 leaves behind, as its documents and its sources tell: its ids, its fields, its indexes, its contents.
async fn leave_behind(database: &Database) {
    let later = at("2026-07-16T16:02:22Z");
    let outbox = [
        published(9214364837600034817, "Scheduled", 0, Bson::Null, &wrapped(9214364837600034817, r#"{"OrderId":5}"#)),
        published(9214364837600034818, "Succeeded", 0, at("2026-07-02T16:02:21Z"), &wrapped(9214364837600034818, "1")),
        published(9214364837600034819, "Failed", 3, later.clone(), &wrapped(9214364837600034819, "2")),
        published(9214364837600034820, "Failed", 50, later, &wrapped(9214364837600034820, "3")),
        published(9214364837600034821, "Delayed", 0, at("2099-01-01T12:00:00Z"), &wrapped(9214364837600034821, "4")),
        published(9214364837600034822, "Queued", 0, at("2020-01-01T12:00:00Z"), &wrapped(9214364837600034822, "5")),
    ];
    database.collection("cap.published").insert_many(outbox).await.unwrap();
    let same = wrapped(9214364837600034817, r#"{"note":"\u0022cap-msg-id\u0022:\u0022x\u0022"}"#);
    let inbox = [
        received(9214364837600099001, "billing.v1", "Succeeded", 0, 1, same.clone().into()),
        received(9214364837600099002, "billing.v1", "Scheduled", 1, 2, same.clone().into()),
        received(9214364837600099003, "shipping.v1", "Scheduled", 0, 3, same.into()),
        received(9214364837600099004, "billing.v1", "Failed", 2, 4, "no JSON at all".into()),
        received(9214364837600099005, "billing.v1", "Failed", 50, 5, Bson::Null),
    ];
    database.collection("cap.received").insert_many(inbox).await.unwrap();
    for name in ["cap.published", "cap.received"] {
        for field in ["Name", "Added", "ExpiresAt", "Retries", "Version"] {
            database
                .collection(name)
                .create_index(IndexModel::builder().keys(doc! { field: 1 }).build())
                .await
                .unwrap();
        }
    }
}

fn by_id(records: Vec<Record>) -> BTreeMap<String, Record> {
    let number = records.len();
    let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.message_id.to_string(), record)).collect();
    assert_eq!(records.len(), number, "two documents have one message id");
    records
}

#[tokio::test]
async fn the_log_says_how_many_documents_of_each_status_were_taken_over() {
    let database = Database::create().await;
    leave_behind(&database).await;
    let storage = database.storage().await;
    let log = Log::default();
    // With one alone, `tracing` would ask the thread in which an event happens first whether anybody listens to it.
    let other = tracing_subscriber::fmt().with_writer(std::io::sink).finish().set_default();
    let logging = tracing_subscriber::fmt().with_ansi(false).with_writer(log.writer()).finish().set_default();
    storage.prepare().await.unwrap();
    let first = log.text();
    for (table, rows) in [
        ("outbox", "1 Delayed, 2 Failed, 1 Queued, 1 Scheduled, 1 Succeeded"),
        ("inbox", "2 Failed, 2 Scheduled, 1 Succeeded"),
    ] {
        let line = format!("took over the documents of .NET CAP cap.table={table} cap.rows={rows}");
        assert!(first.contains(&line), "{line}: {first}");
    }
    storage.prepare().await.unwrap();
    assert_eq!(log.text(), first, "nothing was taken over the second time");
    drop((logging, other));
    database.drop().await;
}

#[tokio::test]
async fn the_collections_of_net_cap_are_taken_over_and_worked_on() {
    let database = Database::create().await;
    leave_behind(&database).await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    storage.prepare().await.unwrap();

    let outbox = by_id(listed(&storage, Table::Outbox).await);
    let state = |id: &str| {
        let record = &outbox[id];
        (record.status, record.due.is_some(), record.expires.is_some(), record.attempts)
    };
    assert_eq!(state("9214364837600034817"), (Status::Scheduled, true, false, 0), "waiting");
    assert_eq!(state("9214364837600034818"), (Status::Succeeded, false, true, 0), "done");
    assert_eq!(state("9214364837600034819"), (Status::Failed, true, false, 3), "to be tried again");
    assert_eq!(state("9214364837600034820"), (Status::Failed, false, true, 50), "given up");
    assert_eq!(state("9214364837600034821"), (Status::Delayed, true, false, 0), "delayed");
    assert_eq!(state("9214364837600034822"), (Status::Delayed, true, false, 0), "in CAP's memory");
    assert_eq!(outbox["9214364837600034821"].due.unwrap().to_string(), "2099-01-01T12:00:00.000000Z");
    assert!(outbox["9214364837600034820"].reason.is_some(), "a dead record says why");
    let unwrapped = &outbox["9214364837600034817"];
    let unwrapped = content::unwrap(&unwrapped.content, &unwrapped.topic, &unwrapped.message_id).unwrap();
    assert_eq!(&unwrapped.payload[..], br#"{"OrderId":5}"#);

    // What is due is claimed and settled; the delayed ones keep their time.
    let node = node(&storage).await;
    let claim = request(node, Lane::Outbox, 10);
    let claimed = storage.claim(claim.clone()).await.unwrap();
    let taken: Vec<&str> = claimed.records.iter().map(|record| record.message_id.as_str()).collect();
    assert_eq!(taken.len(), 3, "{taken:?}");
    assert!(taken.contains(&"9214364837600034822"), "due in 2020: {taken:?}");
    assert!(claimed.next_due.unwrap() > Duration::from_secs(86_400));
    let settle = |record: &Record| Settlement { record: record.id, token: claim.claim.token, state: succeeded() };
    let settled = storage.settle(Table::Outbox, claimed.records.iter().map(settle).collect()).await.unwrap();
    assert_eq!(settled, [Settled::Written; 3]);

    // Deliveries: the message's id comes from the content's headers.
    let inbox = listed(&storage, Table::Inbox).await;
    let inbox: BTreeMap<i64, &Record> = inbox.iter().map(|record| (record.id.0, record)).collect();
    let message_id = |id: i64| inbox[&id].message_id.as_str();
    assert_eq!(message_id(9214364837600099001), "9214364837600034817");
    assert_eq!(message_id(9214364837600099002), "row-9214364837600099002", "a second delivery of the same message");
    assert_eq!(message_id(9214364837600099003), "9214364837600034817", "the same message for another group");
    assert_eq!(message_id(9214364837600099004), "row-9214364837600099004", "no JSON");
    assert_eq!(message_id(9214364837600099005), "row-9214364837600099005", "no content");
    assert!(inbox[&9214364837600099005].expires.is_some(), "a dead record can be collected one day");
    let known = vec![waiting("9214364837600034817"), waiting("9214364837600034999")];
    let inserted = storage.insert(Table::Inbox, known, None).await.unwrap();
    assert!(matches!(inserted[..], [Inserted::Duplicate, Inserted::Stored(_)]), "{inserted:?}");
    let claimed = storage.claim(request(node, Lane::Inbox(group()), 10)).await.unwrap();
    assert_eq!(claimed.records.len(), 3, "{:?}", claimed.records);

    // Nothing of the migration's own is left in the documents.
    let left = database.collection("cap.received").find_one(doc! { "KnownId": { "$exists": true } }).await.unwrap();
    assert!(left.is_none(), "{left:?}");
    database.drop().await;
}
