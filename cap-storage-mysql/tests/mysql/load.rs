//! Everything at once: no deadlock reaches a caller, and nothing is lost or done twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cap_core::lifecycle::{self, Outcome, Rules};
use cap_core::storage::{Enlist, Inserted, Lane, Settled, Settlement, Storage, Table};
use cap_core::{RetryPolicy, Status};
use cap_storage_mysql::MySqlStorage;
use cap_storage_mysql::sqlx;
use tokio::task::JoinSet;

use crate::support::{Database, run};
use cap_testkit::storage::scene::{LEASE, listed, message, node, request};

const PUBLISHERS: usize = 16;
const CLAIMERS: usize = 4;
const EACH: usize = 60;

/// A settlement whose record may be collected at once.
fn briefly(attempts: u32, outcome: Outcome) -> lifecycle::State {
    let rules = Rules {
        retry: RetryPolicy::fixed(10, Duration::ZERO),
        keep_succeeded: Duration::ZERO,
        keep_dead: Duration::ZERO,
    };
    lifecycle::settle(&lifecycle::Begun::number(attempts), outcome, &rules, 0.0)
}

/// Half of them publish in transactions with their data, alone and in batches, and sometimes roll back or publish what is
/// there already; the others insert.
async fn publish(database: Arc<Database>, storage: MySqlStorage, number: usize) {
    let mut connection = database.connection().await;
    for part in 0..EACH {
        let id = format!("{number} {part}");
        let records = match part % 3 {
            0 => vec![message(&id), message(&format!("{id} b")), message(&id)],
            _ => vec![message(&id)],
        };
        if number.is_multiple_of(2) {
            let inserted = storage.insert(Table::Outbox, records, None).await.unwrap();
            assert!(matches!(inserted[0], Inserted::Stored(_)));
            continue;
        }
        for end in ["ROLLBACK", "COMMIT"] {
            if end == "ROLLBACK" && part % 5 != 0 {
                continue;
            }
            run(&mut connection, "BEGIN").await;
            let order = sqlx::query("INSERT INTO orders VALUES (?)").bind(&id);
            order.execute(&mut connection).await.unwrap();
            let inserted = storage.enlist(&mut connection, records.clone()).await.unwrap();
            assert!(matches!(inserted[0], Inserted::Stored(_)));
            run(&mut connection, end).await;
        }
    }
}

/// Claims, and settles each batch as a mixture: some succeed, some are tried again.
async fn work(storage: MySqlStorage, publishing: Arc<AtomicUsize>) -> Vec<String> {
    let node = node(&storage).await;
    let mut done = Vec::new();
    loop {
        let is_published = publishing.load(Ordering::SeqCst) == 0;
        let claim = request(node, Lane::Outbox, 25);
        let claimed = storage.claim(claim.clone()).await.unwrap();
        let settle = |(place, record): (usize, &cap_core::storage::Record)| {
            let fails = record.attempts == 1 && place % 4 == 0;
            let outcome = if fails { Outcome::Failed(format!("no {place}")) } else { Outcome::Succeeded };
            Settlement { record: record.id, token: claim.claim.token, state: briefly(record.attempts, outcome) }
        };
        let settlements: Vec<_> = claimed.records.iter().enumerate().map(settle).collect();
        let settled = storage.settle(Table::Outbox, settlements.clone()).await.unwrap();
        for ((record, settlement), settled) in claimed.records.iter().zip(&settlements).zip(settled) {
            assert_eq!(settled, Settled::Written);
            if settlement.state.status() == Status::Succeeded {
                done.push(record.message_id.to_string());
            }
        }
        storage.heartbeat(node, LEASE).await.unwrap();
        let is_idle = claimed.records.is_empty() && is_published;
        if is_idle && storage.counts(Table::Outbox, Default::default()).await.unwrap().pending() == 0 {
            storage.leave(node).await.unwrap();
            return done;
        }
    }
}

/// Collects, takes over, and lives short lives that end with records in hand.
async fn tidy(storage: MySqlStorage, working: Arc<AtomicUsize>) -> (u64, u64) {
    let (mut collected, mut died_with, mut taken) = (0, 0, 0);
    while working.load(Ordering::SeqCst) > 0 {
        collected += storage.collect(Table::Outbox, 50).await.unwrap();
        let dying = cap_core::NodeId::generate();
        storage.join(dying, LEASE).await.unwrap();
        let held = storage.claim(request(dying, Lane::Outbox, 3)).await.unwrap().records.len() as u64;
        let found = cap_testkit::take_over_from(&storage, &[dying]).await.unwrap();
        assert_eq!(found.nodes, [dying]);
        died_with += held;
        taken += found.outbox;
        storage.next_due(Default::default(), vec![Lane::Outbox]).await.unwrap();
    }
    // What was locked in passing when its turn came was taken the next time.
    assert_eq!(taken, died_with);
    (collected, taken)
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_claiming_settling_collecting_and_taking_over_at_once_never_deadlock_and_lose_nothing() {
    let database = Arc::new(Database::create().await);
    let storage = MySqlStorage::new(database.pool(12));
    storage.prepare().await.unwrap();
    run(&mut database.connection().await, "CREATE TABLE orders (item VARCHAR(100) PRIMARY KEY)").await;
    let (publishing, working) = (Arc::new(AtomicUsize::new(PUBLISHERS)), Arc::new(AtomicUsize::new(CLAIMERS)));

    let mut publishers = JoinSet::new();
    for number in 0..PUBLISHERS {
        let (database, storage, publishing) = (Arc::clone(&database), storage.clone(), Arc::clone(&publishing));
        publishers.spawn(async move {
            publish(database, storage, number).await;
            publishing.fetch_sub(1, Ordering::SeqCst);
        });
    }
    let mut workers = JoinSet::new();
    for _ in 0..CLAIMERS {
        let (storage, publishing, working) = (storage.clone(), Arc::clone(&publishing), Arc::clone(&working));
        workers.spawn(async move {
            let done = work(storage, publishing).await;
            working.fetch_sub(1, Ordering::SeqCst);
            done
        });
    }
    let tidy = tokio::spawn(tidy(storage.clone(), working));

    publishers.join_all().await;
    let done: Vec<String> = workers.join_all().await.into_iter().flatten().collect();
    let (collected, taken) = tidy.await.unwrap();
    let distinct: BTreeSet<&str> = done.iter().map(String::as_str).collect();
    let total = PUBLISHERS * (EACH + EACH / 3);
    assert_eq!((done.len(), distinct.len()), (total, total), "messages that were done, and different ones");
    let left = listed(&storage, Table::Outbox).await;
    assert!(left.iter().all(|record| record.status == Status::Succeeded), "{left:?}");
    let rest = storage.collect(Table::Outbox, 10_000).await.unwrap();
    assert_eq!(collected + rest, total as u64, "collected, each once");
    assert!(taken > 0, "nobody died with a record in hand");
    let orders: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM orders").fetch_one(storage.pool()).await.unwrap();
    assert_eq!(orders, (PUBLISHERS / 2 * EACH) as i64);
    database.as_ref().drop().await;
}
