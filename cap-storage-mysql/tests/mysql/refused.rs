//! What the server refuses: whose fault it is, and what is known of it beforehand.

use std::sync::Arc;
use std::time::Duration;

use cap_core::lifecycle::{self, Begun, Outcome, Rules, State};
use cap_core::storage::{
    Claim, ClaimRequest, Inserted, Lane, NewRecord, Settled, Settlement, Storage, Table, TransactAsync,
};
use cap_core::{ErrorKind, RetryPolicy, Topic};
use cap_storage_mysql::sqlx::{self, Connection, MySqlConnection};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};

use crate::outage::Server;
use crate::support::{Database, run};
use cap_testkit::storage::scene::{delivery, group, in_flight, listed, message, node, request, waiting};

fn dead(reason: &str) -> State {
    let keep = Duration::from_secs(60);
    let rules = Rules { retry: RetryPolicy::default(), keep_succeeded: keep, keep_dead: keep };
    lifecycle::settle(&Begun::first(), Outcome::Hopeless(reason.to_owned()), &rules, 0.0)
}

#[tokio::test]
async fn what_a_small_server_takes_is_learnt_and_batches_fit_into_it() {
    const PACKET: usize = 1 << 20;
    let server = Server::start("small");
    let mut admin = MySqlConnection::connect(&server.url()).await.unwrap();
    run(&mut admin, format!("SET GLOBAL max_allowed_packet = {PACKET}")).await;
    let storage = MySqlStorage::connect_with(MySqlOptions::new(server.url())).await.unwrap();
    assert_eq!(storage.capabilities().max_content, None, "the server was not asked yet");
    storage.prepare().await.unwrap();
    let most = storage.capabilities().max_content.unwrap();
    assert!((PACKET / 2..PACKET).contains(&most), "{most}");

    let sized = |id: String, bytes: usize| NewRecord { content: "x".repeat(bytes).into(), ..waiting(&id) };
    let batch =
        |number: usize, bytes: usize| (0..number).map(|place| sized(format!("{bytes} {place}"), bytes)).collect();
    let mut refused: Vec<NewRecord> = batch(7, 10);
    refused.push(sized("large".into(), 900_000));
    let error = storage.insert(Table::Inbox, refused, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert!(error.to_string().contains("900000 bytes") && error.to_string().contains(&most.to_string()), "{error}");
    let stored = |inserted: Vec<Inserted>| inserted.iter().all(|inserted| matches!(inserted, Inserted::Stored(_)));
    assert!(stored(storage.insert(Table::Inbox, batch(3, most), None).await.unwrap()));
    assert!(stored(storage.insert(Table::Inbox, batch(300, 9_000), None).await.unwrap()));

    // Reasons of four kibibytes each, all different.
    let reason = |place: usize| format!("{place:04}{}", "y".repeat(lifecycle::MAX_REASON - 4));
    let parked = (0..300).map(|place| NewRecord { state: dead(&reason(place)), ..message(&place.to_string()) });
    assert!(stored(storage.insert(Table::Outbox, parked.collect(), None).await.unwrap()));
    let node = node(&storage).await;
    let deliveries = (0..300).map(|place| delivery(&format!("delivery {place}"))).collect();
    let claim = Claim::by(node);
    let mut settlements = Vec::new();
    for (place, inserted) in storage.insert(Table::Inbox, deliveries, Some(claim)).await.unwrap().iter().enumerate() {
        let Inserted::Stored(record) = *inserted else { panic!("{inserted:?}") };
        settlements.push(Settlement { record, token: claim.token, state: dead(&reason(place)) });
    }
    let settled = storage.settle(Table::Inbox, settlements.clone()).await.unwrap();
    assert_eq!(settled, vec![Settled::Written; settlements.len()]);

    // A server that takes no writes for a while, as a replica: whoever has special rights still may.
    run(&mut admin, "CREATE USER app IDENTIFIED BY 'app'; GRANT SELECT, INSERT, UPDATE, DELETE ON cap.* TO app").await;
    let app = MySqlStorage::new(sqlx::MySqlPool::connect_lazy(&server.url().replace("cap:cap@", "app:app@")).unwrap());
    app.prepare().await.unwrap();
    run(&mut admin, "SET GLOBAL read_only = 1").await;
    let error = app.insert(Table::Outbox, vec![message("waits")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    run(&mut admin, "SET GLOBAL read_only = 0").await;
    assert!(stored(app.insert(Table::Outbox, vec![message("waits")], None).await.unwrap()));
}

#[tokio::test]
async fn columns_that_are_not_unicode_say_so_and_take_ascii() {
    let database = Database::create().await;
    let unicode = database.storage();
    unicode.prepare().await.unwrap();
    assert!(!unicode.capabilities().ascii_only);
    let alter = "ALTER TABLE `cap.received` MODIFY COLUMN `Content` MEDIUMTEXT CHARACTER SET latin1,
                                               MODIFY COLUMN `Reason` TEXT CHARACTER SET latin1";
    run(&mut database.connection().await, alter).await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    assert!(storage.capabilities().ascii_only);
    let most = storage.capabilities().max_content.unwrap();
    assert!(most < 1 << 24, "a column that is smaller than the packets is what counts: {most}");
    let node = node(&storage).await;
    let refused = Settlement { state: dead("日本"), ..in_flight(&storage, node, "a").await };
    let fine = in_flight(&storage, node, "b").await;
    let error = storage.settle(Table::Inbox, vec![fine.clone(), refused.clone()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    let plain = Settlement { state: refused.state.in_plain_words().unwrap(), ..refused };
    assert_eq!(storage.settle(Table::Inbox, vec![fine, plain]).await.unwrap(), [Settled::Written; 2]);
    assert!(listed(&storage, Table::Inbox).await[0].reason.as_ref().is_some_and(|reason| reason.is_ascii()));
    database.drop().await;
}

#[tokio::test]
async fn a_claim_takes_so_many_bytes_and_leaves_topics_alone() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let sized = |id: &str, bytes: usize| NewRecord { content: id.repeat(bytes).into(), ..waiting(id) };
    let other: Topic = "other".try_into().unwrap();
    let mut records = vec![sized("a", 3000), sized("b", 400), sized("c", 500), sized("d", 600), sized("e", 10)];
    records[1].topic = other.clone();
    storage.insert(Table::Inbox, records, None).await.unwrap();
    let claim = |limit, bytes, except: Vec<Topic>| {
        let request = ClaimRequest { bytes, except, ..request(node, Lane::Inbox(group()), limit) };
        let storage = &storage;
        async move {
            let claimed = storage.claim(request).await.unwrap();
            for record in &claimed.records {
                let id = record.message_id.as_str();
                assert!(!record.content.is_empty() && record.content.trim_matches(|c| id.contains(c)).is_empty());
            }
            let ids: Vec<_> = claimed.records.iter().map(|record| record.message_id.to_string()).collect();
            (ids.concat(), claimed.next_due)
        }
    };
    let except = vec![other, "third".try_into().unwrap()];
    assert_eq!(claim(10, 1000, except.clone()).await, ("a".to_owned(), Some(Duration::ZERO)));
    assert_eq!(claim(10, 1000, except.clone()).await, ("c".to_owned(), Some(Duration::ZERO)));
    assert_eq!(claim(2, 1000, except.clone()).await, ("de".to_owned(), None));
    assert_eq!(claim(10, 0, except).await, (String::new(), None));
    assert_eq!(claim(10, 0, vec![]).await, ("b".to_owned(), None));
    database.drop().await;
}

#[tokio::test]
async fn a_heartbeat_is_not_held_up_by_an_insert_beside_a_handler() {
    let database = Database::create().await;
    let storage = Arc::new(MySqlStorage::new(database.pool(4)));
    storage.prepare().await.unwrap();
    let node = node(&*storage).await;
    let settlement = in_flight(&*storage, node, "again").await;
    let tx = storage.begin(settlement).await.unwrap().unwrap();
    let again = Arc::clone(&storage);
    let inserting = tokio::spawn(async move {
        let batch = ["again", "b", "c"].map(delivery).to_vec();
        again.insert(Table::Inbox, batch, Some(Claim::by(node))).await
    });
    let lease = Duration::from_secs(2);
    while !inserting.is_finished() {
        let beat = tokio::time::timeout(lease, storage.heartbeat(node, lease)).await;
        beat.expect("the heartbeat waits for the insert, which waits for the handler").unwrap();
    }
    let inserted = inserting.await.unwrap().unwrap();
    assert!(matches!(inserted[..], [Inserted::Duplicate, Inserted::Stored(_), Inserted::Stored(_)]), "{inserted:?}");
    storage.rollback(tx).await.unwrap();
    database.drop().await;
}
