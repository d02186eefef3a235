//! Sessions of any kind: their time zone, charset, sql_mode, isolation level, and with `autocommit` off; and what is given up.

use std::time::Duration;

use cap_core::storage::{Chore, Claim, Enlist, Inserted, Lane, Lease, NewRecord, Settled, Settlement, Storage, Table};
use cap_core::{Due, ErrorKind, Group, NodeId, Timestamp, Topic, lifecycle};
use cap_storage_mysql::sqlx::mysql::MySqlPoolOptions;
use cap_storage_mysql::sqlx::{self, Connection};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};

use crate::support::{Database, run};
use cap_testkit::storage::scene::{LEASE, delivery, group, ids, listed, message, node, request, succeeded, waiting};

/// What a careful or careless user may have set.
const ODD: [&str; 7] = [
    "SET time_zone = '+09:00'",
    "SET NAMES latin1",
    "SET NAMES binary",
    "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,HIGH_NOT_PRECEDENCE,TRADITIONAL'",
    "SET sql_mode = '', sql_safe_updates = 1, collation_connection = 'utf8mb4_swedish_ci'",
    "SET autocommit = 0",
    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
];

/// A storage over a pool whose sessions are odd.
fn odd(database: &Database, odd: &'static str) -> MySqlStorage {
    let pool = MySqlPoolOptions::new().max_connections(3).after_connect(move |connection, _| {
        Box::pin(async move {
            sqlx::raw_sql(odd).execute(connection).await?;
            Ok(())
        })
    });
    MySqlStorage::new(pool.connect_lazy_with(database.options()))
}

fn names(record: NewRecord) -> NewRecord {
    let content = format!("{{\"Id\":\"{}\",\"Content\":\"ü漢🦀 'x' \\\\ \\\"\"}}", record.message_id);
    NewRecord { topic: Topic::try_from("ürder.漢🦀").unwrap(), content: content.into(), ..record }
}

#[tokio::test]
async fn a_pool_of_odd_sessions_does_everything_all_the_same() {
    for set in ODD {
        let database = Database::create().await;
        let (storage, plain) = (odd(&database, set), database.storage());
        storage.prepare().await.unwrap();
        let moment = Timestamp::from_micros(4_102_444_800_123_456);
        let later = NewRecord { state: lifecycle::scheduled(Due::At(moment)), ..message("later") };
        let records = vec![names(message("a")), later, names(message("ü"))];
        let inserted = storage.insert(Table::Outbox, records.clone(), None).await.unwrap();
        assert!(inserted.iter().all(|inserted| matches!(inserted, Inserted::Stored(_))), "{set}: {inserted:?}");
        let group = Group::try_from("grüppe.v1").unwrap();
        let incoming = NewRecord { group: Some(group.clone()), ..names(waiting("a")) };
        plain.insert(Table::Inbox, vec![incoming.clone()], None).await.unwrap();
        let again = storage.insert(Table::Inbox, vec![incoming], None).await.unwrap();
        assert_eq!(again, [Inserted::Duplicate], "{set}");

        let (ours, theirs) = (listed(&storage, Table::Outbox).await, listed(&plain, Table::Outbox).await);
        assert_eq!(ours, theirs, "{set}");
        for (record, found) in records.iter().zip(&theirs) {
            assert_eq!((&found.content, &found.topic), (&record.content, &record.topic), "{set}");
        }
        assert_eq!(theirs[1].due, Some(moment), "{set}");

        // A single delivery and several are fenced in different ways.
        for number in [1, 2] {
            let records = (0..number).map(|part| delivery(&format!("nobody's {part}"))).collect();
            let fenced = storage.insert(Table::Inbox, records, Some(Claim::by(NodeId::generate()))).await;
            assert_eq!(fenced.unwrap_err().kind(), ErrorKind::LeaseLost, "{set}");
        }
        assert_eq!(listed(&plain, Table::Inbox).await.len(), 1, "{set}: something of it is there");

        let node = node(&storage).await;
        for (lane, number) in [(Lane::Outbox, 2), (Lane::Inbox(group), 1)] {
            let claim = request(node, lane.clone(), 10);
            let claimed = storage.claim(claim.clone()).await.unwrap();
            assert_eq!(claimed.records.len(), number, "{set}");
            assert!(claimed.records.iter().all(|record| record.topic.as_str() == "ürder.漢🦀"), "{set}");
            let token = claim.claim.token;
            let settlements: Vec<_> = claimed
                .records
                .iter()
                .map(|record| Settlement { record: record.id, token, state: succeeded() })
                .collect();
            let settled = storage.settle(lane.table(), settlements).await.unwrap();
            assert!(settled.iter().all(|settled| *settled == Settled::Written), "{set}");
        }
        // Nothing stays open, and no answer is of yesterday.
        assert_eq!(plain.counts(Table::Outbox, Default::default()).await.unwrap().succeeded, 2, "{set}");
        assert_eq!(storage.counts(Table::Outbox, Default::default()).await.unwrap().succeeded, 2, "{set}");
        plain.insert(Table::Outbox, vec![message("z")], None).await.unwrap();
        assert_eq!(
            storage.next_due(Default::default(), vec![Lane::Outbox]).await.unwrap(),
            [Some(Duration::ZERO)],
            "{set}"
        );
        assert!(matches!(storage.heartbeat(node, LEASE).await.unwrap(), Lease::Held { .. }), "{set}");
        assert!(storage.take_chore(Chore::Collect, node, LEASE).await.unwrap(), "{set}");
        storage.leave(node).await.unwrap();
        assert_eq!(storage.take_over(Vec::new()).await.unwrap().nodes, [], "{set}");
        assert_eq!(storage.collect(Table::Outbox, 10).await.unwrap(), 0, "{set}");
        database.drop().await;
    }
}

#[tokio::test]
async fn an_odd_session_of_the_users_publishes_the_same() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    run(&mut database.connection().await, "CREATE TABLE orders (item VARCHAR(100))").await;
    for (number, set) in ODD.iter().enumerate() {
        let mut connection = database.connection().await;
        run(&mut connection, *set).await;
        let single = vec![names(message(&format!("single {number}")))];
        let batch: Vec<_> = (0..5).map(|part| names(message(&format!("batch {number} {part}")))).collect();
        let mut tx = connection.begin().await.unwrap();
        sqlx::raw_sql("INSERT INTO orders VALUES ('book')").execute(&mut *tx).await.unwrap();
        for records in [&single, &batch] {
            let inserted = storage.enlist(&mut tx, records.clone()).await.unwrap();
            assert!(inserted.iter().all(|inserted| matches!(inserted, Inserted::Stored(_))), "{set}: {inserted:?}");
            let again = storage.enlist(&mut tx, records.clone()).await.unwrap();
            assert!(again.iter().all(|inserted| *inserted == Inserted::Duplicate), "{set}: {again:?}");
        }
        let before = listed(&storage, Table::Outbox).await.len();
        assert_eq!(before, number * 6, "{set}: it committed something");
        tx.commit().await.unwrap();
        let found = listed(&storage, Table::Outbox).await;
        for (record, found) in single.iter().chain(&batch).zip(&found[before..]) {
            assert_eq!((&found.content, &found.topic), (&record.content, &record.topic), "{set}");
            let apart = found.added.as_micros().abs_diff(Timestamp::from(std::time::SystemTime::now()).as_micros());
            assert!(apart < 60_000_000, "{set}: `Added` is {apart} µs apart");
        }
    }
    database.drop().await;
}

#[tokio::test]
async fn times_are_finer_than_a_millisecond() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let claim = cap_core::storage::Claim::by(node);
    for number in 0..5 {
        storage.insert(Table::Inbox, vec![delivery(&format!("m{number}"))], Some(claim)).await.unwrap();
    }
    let found = listed(&storage, Table::Inbox).await;
    assert!(found.iter().any(|record| record.added.as_micros() % 1000 != 0), "{found:?}");
    assert!(found.iter().all(|record| record.group == Some(group()) && record.owner == Some(node)));
    database.drop().await;
}

#[tokio::test]
async fn a_session_that_came_back_with_an_open_transaction_is_put_in_order() {
    let database = Database::create().await;
    let storage = MySqlStorage::new(database.pool(1));
    storage.prepare().await.unwrap();
    let mut connection = storage.pool().acquire().await.unwrap();
    run(&mut connection, "START TRANSACTION; INSERT INTO `cap.chores` VALUES ('left behind', 'x', NOW())").await;
    connection.return_to_pool().await;
    drop(connection);
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["a"]);
    let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM `cap.chores`")
        .fetch_one(&mut database.connection().await)
        .await
        .unwrap();
    assert_eq!(left, 0, "what nobody committed was committed");
    database.drop().await;
}

#[tokio::test]
async fn what_is_given_up_keeps_no_connection_of_the_pool() {
    let database = Database::create().await;
    // The sessions of a user's pool have no limit of ours: the server goes on waiting for the lock.
    let options = MySqlOptions::default().statement_timeout(Duration::from_secs(1));
    let storage = MySqlStorage::with_pool(database.pool(1), options).unwrap();
    storage.prepare().await.unwrap();
    let mut other = database.connection().await;
    run(&mut other, "LOCK TABLES `cap.published` WRITE").await;
    let error = storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("it may have been carried out or not"), "{error}");
    assert_eq!(listed(&storage, Table::Inbox).await, [], "the pool's only connection is free");
    other.close().await.unwrap();
    database.drop().await;
}
