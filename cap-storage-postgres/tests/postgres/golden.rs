//! Rows that .NET CAP 10 has really written: each is taken over with the right outcome, and may be left for it again.

use std::collections::BTreeMap;

use cap_core::Group;
use cap_core::storage::{Lane, Storage, Table};
use cap_storage_postgres::sqlx::{self, Row as _};
use cap_testkit::log::Log;
use cap_testkit::storage::scene::{listed, node, request};

use tracing_subscriber::util::SubscriberInitExt as _;

use crate::support::{Database, run};

#[path = "../../../test-data/rows.rs"]
mod rows;

const ROWS: &str = include_str!("../../../test-data/dotnet-cap-10.0.2/postgres-rows.jsonl");

/// .NET CAP's tables with its rows.
async fn left_behind() -> (Database, Vec<rows::Row>) {
    let database = Database::create().await;
    let mut connection = database.connection().await;
    let (tables, _) = include_str!("net_cap.sql").split_once("INSERT INTO").unwrap();
    run(&mut connection, tables).await;
    let rows = rows::rows(ROWS);
    for row in &rows {
        let (table, columns) = (&row.table, &row.columns);
        let insert = format!(
            r#"INSERT INTO "cap"."{table}" SELECT * FROM json_populate_record(NULL::"cap"."{table}", $row${columns}$row$)"#
        );
        run(&mut connection, insert).await;
    }
    (database, rows)
}

#[tokio::test]
async fn each_row_of_cap_10_is_taken_over_with_the_right_outcome() {
    let (database, rows) = left_behind().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let mut statuses = BTreeMap::new();
    for (table, name) in [(Table::Outbox, "published"), (Table::Inbox, "received")] {
        let records: BTreeMap<i64, _> =
            listed(&storage, table).await.into_iter().map(|record| (record.id.0, record)).collect();
        let rows = rows.iter().filter(|row| row.table == name);
        assert_eq!(rows.clone().count(), records.len());
        for row in rows {
            let record = &records[&row.id()];
            row.check(record);
            *statuses.entry((name, row.text("StatusName").unwrap())).or_insert(0) += 1;
        }
    }
    // What the data is made of: every status that CAP leaves behind.
    let seen: Vec<_> = statuses.keys().copied().collect();
    let outbox = ["Delayed", "Failed", "Scheduled", "Succeeded"].map(|status| ("published", status));
    let inbox = ["Failed", "Scheduled", "Succeeded"].map(|status| ("received", status));
    assert_eq!(seen, [&outbox[..], &inbox[..]].concat());

    // And all that waits is claimed: the delayed ones are due by now, too.
    let node = node(&storage).await;
    let open = |name| rows.iter().filter(move |row| row.table == name && row.is_open());
    let claimed = storage.claim(request(node, Lane::Outbox, 100)).await.unwrap().records;
    assert_eq!(claimed.len(), open("published").count());
    for row in open("received") {
        let group = Group::try_from(row.text("Group").unwrap()).unwrap();
        let claimed = storage.claim(request(node, Lane::Inbox(group), 1)).await.unwrap().records;
        assert_eq!(claimed.len(), 1, "{:?}", row.columns);
    }
    database.drop().await;
}

#[tokio::test]
async fn the_id_of_a_delivery_is_found_in_a_wrapper_in_camel_case_too() {
    let database = Database::create().await;
    let (tables, _) = include_str!("net_cap.sql").split_once("INSERT INTO").unwrap();
    let mut connection = database.connection().await;
    run(&mut connection, tables).await;
    let row = r#"INSERT INTO "cap"."received" VALUES (1, 'v1', 't', 'billing.v1', '{"headers":{"cap-msg-id":"77"},"value":1}', 0, '2026-11-27 16:00:00', NULL, 'Scheduled')"#;
    run(&mut connection, row).await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    assert_eq!(listed(&storage, Table::Inbox).await[0].message_id.as_str(), "77");
    database.drop().await;
}

#[tokio::test]
async fn the_log_says_what_was_taken_over_and_warns_of_delayed_messages_whose_zone_nobody_named() {
    let (database, _) = left_behind().await;
    let log = Log::default();
    // With one alone, `tracing` would ask the thread in which an event happens first whether anybody listens to it.
    let other = tracing_subscriber::fmt().with_writer(std::io::sink).finish().set_default();
    let logging = tracing_subscriber::fmt().with_ansi(false).with_writer(log.writer()).finish().set_default();
    database.storage().prepare().await.unwrap();
    drop((logging, other));
    let told = log.text();
    let line = |part: &str| told.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part}: {told}"));
    for part in ["2 Delayed, 2 Failed, 2 Scheduled, 19 Succeeded", "zone=\"UTC\""] {
        assert!(line("took over the rows of .NET CAP cap.table=outbox").contains(part), "{told}");
    }
    assert!(line("CAP cap.table=inbox cap.rows").contains("1 Failed, 1 Scheduled, 4 Succeeded"), "{told}");
    let warning = line("were read as UTC");
    for part in ["WARN", "delayed=2", "cap.time_zone"] {
        assert!(warning.contains(part), "{warning}");
    }
    database.drop().await;
}

#[tokio::test]
async fn what_the_page_says_gives_delayed_messages_back_to_cap() {
    let (database, rows) = left_behind().await;
    database.storage().prepare().await.unwrap();
    let page = include_str!("../../../docs/from-cap.md");
    let statement =
        page.lines().find(|line| line.contains(r#"UPDATE "cap"."#) && line.contains("ExpiresAt")).unwrap().trim();
    let mut connection = database.connection().await;
    run(&mut connection, statement).await;
    let delayed = r#"SELECT "Id", to_char("ExpiresAt", 'YYYY-MM-DD"T"HH24:MI:SS.US') FROM "cap"."published" WHERE "StatusName" = 'Delayed'"#;
    let found = sqlx::query(delayed).fetch_all(&mut connection).await.unwrap();
    assert_eq!(found.len(), 2);
    for found in found {
        let (id, expires): (i64, String) = (found.get(0), found.get(1));
        let row = rows.iter().find(|row| row.id() == id).unwrap();
        assert_eq!(Some(expires.as_str()), row.text("ExpiresAt"));
    }
    database.drop().await;
}
