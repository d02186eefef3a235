//! Taking over the tables of .NET CAP.

use std::collections::BTreeMap;
use std::time::Duration;

use cap_core::storage::{Inserted, Lane, Record, Settled, Settlement, Storage, Table};
use cap_core::{Status, Timestamp, content};
use cap_storage_mysql::MySqlOptions;

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
    assert_eq!(outbox["9214364837600034821"].due.unwrap().to_string(), "2036-01-01T12:00:00.000000Z");
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
async fn new_ids_come_after_those_that_are_there() {
    let database = Database::create().await;
    run(&mut database.connection().await, DUMP).await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let records = (0..100).map(|number| message(&format!("m{number}"))).collect();
    for inserted in storage.insert(Table::Outbox, records, None).await.unwrap() {
        let Inserted::Stored(id) = inserted else { panic!("{inserted:?}") };
        assert!(id.0 > 9_214_364_837_600_034_822, "{id}");
    }
    database.drop().await;
}

#[tokio::test]
async fn caps_local_times_are_read_in_the_zone_that_is_set() {
    let database = Database::create().await;
    let mut connection = database.connection().await;
    run(&mut connection, DUMP).await;
    run(&mut connection, "SET @cap_time_zone = '+02:00'").await;
    run(&mut connection, MySqlOptions::default().print_schema().unwrap()).await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let outbox = by_id(listed(&storage, Table::Outbox).await);
    assert_eq!(outbox["9214364837600034821"].due.unwrap().to_string(), "2036-01-01T10:00:00.000000Z");
    database.drop().await;
}

#[tokio::test]
async fn a_takeover_that_was_cut_off_anywhere_is_finished_by_the_next_start() {
    let script = MySqlOptions::default().print_schema().unwrap();
    let statements: Vec<&str> = script.split_inclusive(";\n").collect();
    let whole = taken_over_after(&[]).await;
    assert_eq!(whole.0.len() + whole.1.len(), 11);
    // `PREPARE` alone changes nothing.
    for cut in (1..statements.len()).filter(|cut| !statements[cut - 1].contains("PREPARE cap_statement")) {
        assert_eq!(taken_over_after(&statements[..cut]).await, whole, "cut off after statement {cut}");
    }
}

/// What `prepare` makes of CAP's tables after a part of the script was carried out: the rows without their times, which
/// depend on the clock, and whether they have them.
async fn taken_over_after(statements: &[&str]) -> (Vec<Record>, Vec<Record>) {
    let database = Database::create().await;
    let mut connection = database.connection().await;
    run(&mut connection, DUMP).await;
    for statement in statements {
        run(&mut connection, *statement).await;
    }
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let mut tables = Vec::new();
    for table in [Table::Outbox, Table::Inbox] {
        let mut records = listed(&storage, table).await;
        for record in &mut records {
            record.due = record.due.map(|due| if due.as_micros() > 2_000_000_000_000_000 { due } else { MOMENT });
            record.expires = record.expires.map(|_| MOMENT);
        }
        tables.push(records);
    }
    database.drop().await;
    let inbox = tables.remove(1);
    (tables.remove(0), inbox)
}

const MOMENT: Timestamp = Timestamp::from_micros(0);
