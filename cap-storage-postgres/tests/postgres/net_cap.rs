//! Taking over the tables of .NET CAP.

use std::collections::BTreeMap;
use std::time::Duration;

use cap_core::storage::{Inserted, Lane, Record, Settled, Settlement, Storage, Table};
use cap_core::{Status, content};
use cap_storage_postgres::PostgresOptions;

use crate::support::{Database, run};
use cap_testkit::storage::scene::{group, listed, message, node, request, succeeded, waiting};

/// What .NET CAP 8 leaves behind, as its documents and its tables tell: its ids, its indexes, its contents.
const DUMP: &str = include_str!("net_cap.sql");

fn by_id(records: Vec<Record>) -> BTreeMap<String, Record> {
    let number = records.len();
    let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.message_id.to_string(), record)).collect();
    assert_eq!(records.len(), number, "two rows have one message id");
    records
}

#[tokio::test]
async fn the_tables_of_net_cap_are_taken_over_and_worked_on() {
    let database = Database::create().await;
    run(&mut database.connection().await, DUMP).await;
    let storage = database.storage();
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
    let known = vec![waiting("9214364837600034817"), waiting("9214364837600034999")];
    let inserted = storage.insert(Table::Inbox, known, None).await.unwrap();
    assert!(matches!(inserted[..], [Inserted::Duplicate, Inserted::Stored(_)]), "{inserted:?}");
    let claimed = storage.claim(request(node, Lane::Inbox(group()), 10)).await.unwrap();
    assert_eq!(claimed.records.len(), 3, "{:?}", claimed.records);
    database.drop().await;
}

#[tokio::test]
async fn new_ids_meet_neither_those_that_are_there_nor_those_that_cap_would_make() {
    let database = Database::create().await;
    run(&mut database.connection().await, DUMP).await;
    // Of CAP 2.0, which counted.
    let small = r#"INSERT INTO "cap"."published" VALUES (41, 'v1', 'old', NULL, 0, now(), now(), 'Succeeded')"#;
    run(&mut database.connection().await, small).await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let records = (0..100).map(|number| message(&format!("m{number}"))).collect();
    let inserted = storage.insert(Table::Outbox, records, None).await.unwrap();
    for (number, inserted) in (42..).zip(inserted) {
        let Inserted::Stored(id) = inserted else { panic!("{inserted:?}") };
        assert_eq!(id.0, number);
    }
    database.drop().await;
}

#[tokio::test]
async fn caps_local_times_are_read_in_the_zone_that_is_set() {
    let database = Database::create().await;
    let mut connection = database.connection().await;
    run(&mut connection, DUMP).await;
    run(&mut connection, "SET cap.time_zone = 'Europe/Berlin'").await;
    run(&mut connection, PostgresOptions::default().print_schema().unwrap()).await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let outbox = by_id(listed(&storage, Table::Outbox).await);
    assert_eq!(outbox["9214364837600034821"].due.unwrap().to_string(), "2099-01-01T11:00:00.000000Z");
    database.drop().await;
}
