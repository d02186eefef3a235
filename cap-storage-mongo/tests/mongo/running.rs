//! The change stream, many claimers, addresses.

use std::collections::BTreeSet;

use cap_core::storage::{Inserted, Lane, Storage, Table, Wake};
use cap_core::{Due, RecordId, Timestamp, lifecycle};
use cap_storage_mongo::MongoStorage;
use cap_storage_mongo::mongodb::bson::doc;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::Database;
use cap_testkit::storage::scene::{listed, message, node, request, waiting};

fn watching(storage: &MongoStorage) -> (mpsc::UnboundedReceiver<Table>, JoinHandle<cap_core::Result<()>>) {
    let (sender, woken) = mpsc::unbounded_channel();
    let storage = storage.clone();
    let watch = tokio::spawn(async move {
        let wake = Wake::new(move |table| {
            let _ = sender.send(table);
        });
        storage.watch(wake).await
    });
    (woken, watch)
}

#[tokio::test]
async fn a_watch_tells_of_what_becomes_due_and_of_nothing_else() {
    let database = Database::create().await;
    let (watcher, writer) = (database.storage().await, database.storage().await);
    writer.prepare().await.unwrap();
    let (mut woken, watch) = watching(&watcher);
    // Both tables are woken once it listens.
    assert_eq!(woken.recv().await, Some(Table::Outbox));
    assert_eq!(woken.recv().await, Some(Table::Inbox));
    writer.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    assert_eq!(woken.recv().await, Some(Table::Outbox));
    // A claim makes nothing due; its release does.
    let node = node(&writer).await;
    let claim = request(node, Lane::Outbox, 10);
    assert_eq!(writer.claim(claim.clone()).await.unwrap().records.len(), 1);
    writer.insert(Table::Inbox, vec![waiting("witness")], None).await.unwrap();
    assert_eq!(woken.recv().await, Some(Table::Inbox), "the claim woke somebody");
    writer.release(Table::Outbox, claim.claim).await.unwrap();
    assert_eq!(woken.recv().await, Some(Table::Outbox));
    watch.abort();
    database.drop().await;
}

#[tokio::test]
async fn a_watch_that_begins_again_goes_on_where_it_was() {
    let database = Database::create().await;
    let (watcher, writer) = (database.storage().await, database.storage().await);
    writer.prepare().await.unwrap();
    let (mut woken, watch) = watching(&watcher);
    for _ in 0..2 {
        woken.recv().await.unwrap();
    }
    writer.insert(Table::Outbox, vec![message("seen")], None).await.unwrap();
    assert_eq!(woken.recv().await, Some(Table::Outbox));
    watch.abort();
    let _ = watch.await;
    // While nobody listens.
    writer.insert(Table::Inbox, vec![waiting("missed")], None).await.unwrap();
    let (mut woken, watch) = watching(&watcher);
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(woken.recv().await.unwrap());
    }
    assert_eq!(told, [Table::Outbox, Table::Inbox, Table::Inbox], "both at the start, and what was missed");
    watch.abort();
    database.drop().await;
}

#[tokio::test]
async fn claimers_that_meet_share_what_is_there() {
    const CLAIMERS: usize = 4;
    const RECORDS: usize = 40;
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    let records = (0..RECORDS).map(|number| message(&format!("m{number}"))).collect();
    storage.insert(Table::Outbox, records, None).await.unwrap();
    let mut claims = JoinSet::new();
    for _ in 0..CLAIMERS {
        let storage = storage.clone();
        let node = node(&storage).await;
        claims.spawn(async move { storage.claim(request(node, Lane::Outbox, RECORDS / CLAIMERS)).await });
    }
    let mut taken = BTreeSet::new();
    while let Some(claimed) = claims.join_next().await {
        let claimed = claimed.unwrap().unwrap();
        assert_eq!(claimed.records.len(), RECORDS / CLAIMERS, "a claim went short although there was enough for all");
        taken.extend(claimed.records.into_iter().map(|record| record.id));
    }
    assert_eq!(taken.len(), RECORDS);
    database.drop().await;
}

#[tokio::test]
async fn an_address_that_another_process_made_is_not_used_twice() {
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    let one = storage.insert(Table::Outbox, vec![message("one")], None).await.unwrap();
    let [Inserted::Stored(RecordId(last))] = one[..] else { panic!("{one:?}") };
    let foreign = (1..2000).map(|step| doc! { "_id": last + step, "MessageId": format!("foreign {step}") });
    database.collection("cap.published").insert_many(foreign).await.unwrap();
    for records in [vec![message("two")], vec![message("three"), message("four")]] {
        let number = records.len();
        let inserted = storage.insert(Table::Outbox, records, None).await.unwrap();
        let stored = inserted.iter().filter(|inserted| matches!(inserted, Inserted::Stored(_))).count();
        assert_eq!(stored, number, "{inserted:?}");
    }
    database.drop().await;
}

#[tokio::test]
async fn a_time_between_two_milliseconds_is_rounded_up() {
    let database = Database::create().await;
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    let at = |micros| lifecycle::scheduled(Due::At(Timestamp::from_micros(micros)));
    let record = cap_core::storage::NewRecord { state: at(4_102_444_800_123_456), ..message("a") };
    storage.insert(Table::Outbox, vec![record], None).await.unwrap();
    let due = listed(&storage, Table::Outbox).await[0].due;
    assert_eq!(due, Some(Timestamp::from_micros(4_102_444_800_124_000)));
    database.drop().await;
}
