//! What open transactions have locked, and threads that are blocked: neither holds anybody else up.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use cap_core::storage::{Claim, Inserted, Lane, Lease, Settled, Storage, Table, TransactAsync};
use cap_core::{NodeId, Status, Version};
use cap_storage_postgres::PostgresStorage;

use crate::support::Database;
use cap_testkit::storage::scene::{LEASE, delivery, group, in_flight, inbox_status, node, request};

/// Much less than any time limit, and more than a busy machine needs.
const SOON: Duration = Duration::from_secs(4);

async fn prepared(database: &Database) -> PostgresStorage {
    let storage = PostgresStorage::new(database.pool(4));
    storage.prepare().await.unwrap();
    storage
}

#[tokio::test]
async fn a_settlement_beside_a_handler_that_hangs_is_written_at_once() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let node = node(&storage).await;
    let mut batch = Vec::new();
    for id in ["hangs", "done", "lost"] {
        batch.push(in_flight(&storage, node, id).await);
    }
    let tx = storage.begin(batch[0].clone()).await.unwrap().unwrap();
    batch[2].token = Claim::by(node).token;
    let begun = Instant::now();
    let settled = storage.settle(Table::Inbox, batch.clone()).await.unwrap();
    assert_eq!(settled, [Settled::Locked, Settled::Written, Settled::Lost]);
    // Of one kind, and alone.
    assert_eq!(storage.settle(Table::Inbox, vec![batch[0].clone()]).await.unwrap(), [Settled::Locked]);
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    storage.rollback(tx).await.unwrap();
    assert_eq!(storage.settle(Table::Inbox, vec![batch[0].clone()]).await.unwrap(), [Settled::Written]);
    assert_eq!(inbox_status(&storage).await, [Status::Succeeded, Status::Succeeded, Status::Queued]);
    database.drop().await;
}

#[tokio::test]
async fn what_is_delivered_again_while_its_handler_works_is_a_duplicate_at_once() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let node = node(&storage).await;
    let settlement = in_flight(&storage, node, "again").await;
    let tx = storage.begin(settlement).await.unwrap().unwrap();
    let begun = Instant::now();
    let other = cap_core::storage::NewRecord { topic: "other".try_into().unwrap(), ..delivery("third") };
    let mut batch = vec![delivery("first"), delivery("again"), delivery("second"), delivery("first")];
    for more in [None, Some(other)] {
        batch.extend(more);
        let inserted = storage.insert(Table::Inbox, batch.clone(), Some(Claim::by(node))).await.unwrap();
        let stored: Vec<bool> = inserted.iter().map(|inserted| matches!(inserted, Inserted::Stored(_))).collect();
        match stored[..] {
            [one, two, three, four] => assert_eq!([one, two, three, four], [true, false, true, false]),
            _ => assert_eq!(stored, [false, false, false, false, true]),
        }
    }
    let inserted = storage.insert(Table::Inbox, vec![delivery("again")], Some(Claim::by(node))).await.unwrap();
    assert_eq!(inserted, [Inserted::Duplicate]);
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    storage.rollback(tx).await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn leaving_and_taking_over_wait_for_no_handler_and_the_next_takeover_gets_what_it_had() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let leaving = node(&storage).await;
    let hangs = in_flight(&storage, leaving, "hangs").await;
    in_flight(&storage, leaving, "idle").await;
    let tx = storage.begin(hangs).await.unwrap().unwrap();
    let begun = Instant::now();
    storage.leave(leaving).await.unwrap();
    assert_eq!(storage.take_over(Vec::new()).await.unwrap().inbox, 0);
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());

    let other = node(&storage).await;
    let given_back = storage.claim(request(other, Lane::Inbox(group()), 10)).await.unwrap().records;
    assert_eq!(given_back.iter().map(|record| record.message_id.as_str()).collect::<Vec<_>>(), ["idle"]);
    assert_eq!((given_back[0].attempts, given_back[0].crashes), (1, 0));
    storage.rollback(tx).await.unwrap();
    assert_eq!(storage.take_over(Vec::new()).await.unwrap().inbox, 1);
    let taken = storage.claim(request(other, Lane::Suspects(group()), 10)).await.unwrap().records;
    assert_eq!(taken.iter().map(|record| record.message_id.as_str()).collect::<Vec<_>>(), ["hangs"]);
    assert_eq!((taken[0].attempts, taken[0].crashes), (2, 1));
    database.drop().await;
}

#[test]
fn heartbeats_go_on_while_the_only_thread_of_the_runtime_is_blocked() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (work, pulse) = (runtime(), runtime());
    let (database, storage, lively) = work.block_on(async {
        let database = Database::create().await;
        let storage = prepared(&database).await;
        // All connections there are belong to the runtime that is going to be blocked, and are back in their pools.
        let lively = node(&storage).await;
        let (one, other) = tokio::join!(storage.take_over(Vec::new()), storage.take_over(Vec::new()));
        one.and(other).unwrap();
        for _ in 0..20 {
            storage.counts(Table::Inbox, Version::default()).await.unwrap();
        }
        (database, storage, lively)
    });
    let (is_blocked, blocked) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    work.spawn(async move {
        is_blocked.send(()).unwrap();
        released.recv().unwrap();
    });
    blocked.recv().unwrap();

    let begun = Instant::now();
    let lease = Duration::from_secs(3);
    pulse.block_on(async {
        let beats = async {
            let fresh = NodeId::generate();
            storage.join(fresh, LEASE).await.unwrap();
            while begun.elapsed() < lease {
                let held = storage.heartbeat(lively, lease).await.unwrap();
                assert!(matches!(held, Lease::Held { ref others, .. } if !others.is_empty()), "{held:?}");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), beats).await.expect("a heartbeat waits for the blocked runtime");
    });
    release.send(()).unwrap();
    work.block_on(async {
        assert!(matches!(storage.heartbeat(lively, LEASE).await.unwrap(), Lease::Held { .. }));
        database.drop().await;
    });
}
