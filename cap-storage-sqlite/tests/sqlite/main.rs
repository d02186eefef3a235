//! What is special about SQLite. What every storage must promise is in the conformance suite.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cap_core::lifecycle;
use cap_core::storage::{
    Enlist, Inserted, Lane, Lease, NewRecord, Query, Settled, Storage, Table, Transact, Transacted, Wake, Work,
};
use cap_core::{Due, ErrorKind, HandlerError, NodeId, Status, Version};
use cap_storage_sqlite::rusqlite;
use cap_storage_sqlite::rusqlite::{Connection, TransactionBehavior};
use cap_storage_sqlite::{SqliteOptions, SqliteStorage, SqliteTx};
use cap_testkit::storage::scene::{
    LEASE, delivery, group, ids, in_flight, inbox_status, listed, message, node, request, waiting,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

mod environment;
mod lanes;
mod leases;

struct File {
    directory: TempDir,
}

impl File {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("orders.db")
    }

    async fn storage(&self) -> SqliteStorage {
        let storage = SqliteStorage::open(self.path()).unwrap();
        storage.prepare().await.unwrap();
        storage
    }

    /// A connection of the application's own, with a table of its own.
    fn business(&self) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        connection.execute_batch("CREATE TABLE IF NOT EXISTS orders (item TEXT NOT NULL)").unwrap();
        connection
    }

    fn orders(&self) -> i64 {
        self.business().query_row("SELECT count(*) FROM orders", [], |row| row.get(0)).unwrap()
    }
}

fn work<F>(work: F) -> Work<SqliteStorage>
where
    F: for<'t> FnOnce(&mut SqliteTx<'t>) -> Result<Vec<NewRecord>, HandlerError> + Send + 'static,
{
    Box::new(work)
}

// Opening

#[test]
fn a_database_in_memory_is_refused() {
    let error = SqliteStorage::open(":memory:").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("cap-storage-memory"), "{error}");
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_named_and_opened_once_it_can_be() {
    let file = File::new();
    let directory = file.directory.path().join("later");
    let storage = SqliteStorage::open(directory.join("orders.db")).unwrap();
    for _ in 0..2 {
        let error = storage.prepare().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().contains("orders.db: the directory"), "{error}");
    }
    std::fs::create_dir(directory).unwrap();
    storage.prepare().await.unwrap();
    assert!(listed(&storage, Table::Outbox).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_handles_may_open_and_prepare_a_new_file_at_once() {
    let file = File::new();
    let start = Arc::new(std::sync::Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (path, start) = (file.path(), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                let storage = SqliteStorage::open(path)?;
                tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(storage.prepare())
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    assert!(listed(&file.storage().await, Table::Outbox).await.is_empty());
}

#[tokio::test]
async fn without_leave_to_migrate_missing_tables_are_a_schema_error_and_printed_ones_will_do() {
    let file = File::new();
    let options = SqliteOptions::new(file.path()).migrate(false).prefix("bus");
    let storage = SqliteStorage::with_options(options.clone()).unwrap();
    let error = storage.prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("orders.db"), "{error}");

    file.business().execute_batch(&options.print_schema().unwrap()).unwrap();
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_nothing_changes() {
    let file = File::new();
    let storage = file.storage().await;
    file.business().execute_batch("INSERT INTO \"cap.schema\" VALUES (99, 0)").unwrap();
    let error = storage.prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("99"), "{error}");
}

#[tokio::test]
async fn before_the_tables_are_made_every_call_says_so() {
    let file = File::new();
    let storage = SqliteStorage::open(file.path()).unwrap();
    let error = storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    let error = storage.counts(Table::Inbox, Version::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.to_string().contains("prepare"), "{error}");
}

#[tokio::test]
async fn two_prefixes_share_a_file_and_no_record() {
    let file = File::new();
    let one = file.storage().await;
    let two = SqliteStorage::with_options(SqliteOptions::new(file.path()).prefix("Zweiter Bus; x")).unwrap();
    two.prepare().await.unwrap();
    one.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    assert_eq!(ids(&one, Table::Outbox).await, ["a"]);
    assert!(ids(&two, Table::Outbox).await.is_empty());
}

// Writing

#[tokio::test]
async fn two_handles_on_one_file_never_claim_the_same_record() {
    let file = File::new();
    let (one, two) = (file.storage().await, file.storage().await);
    let records = (0..100).map(|n| message(&format!("m{n}"))).collect();
    one.insert(Table::Outbox, records, None).await.unwrap();
    let (a, b) = (node(&one).await, node(&two).await);
    let mut seen = Vec::new();
    for _ in 0..10 {
        let (a, b) = tokio::join!(one.claim(request(a, Lane::Outbox, 5)), two.claim(request(b, Lane::Outbox, 5)));
        seen.extend(a.unwrap().records.into_iter().chain(b.unwrap().records).map(|record| record.id));
    }
    let claimed = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((claimed, seen.len()), (100, 100));
}

#[tokio::test]
async fn a_claim_answers_what_it_wrote() {
    let file = File::new();
    let storage = file.storage().await;
    let later = NewRecord { state: lifecycle::scheduled(Due::In(LEASE)), ..message("later") };
    storage.insert(Table::Outbox, vec![message("a"), message("b"), later], None).await.unwrap();
    let node = node(&storage).await;
    let claimed = storage.claim(request(node, Lane::Outbox, 10)).await.unwrap();
    let listed = listed(&storage, Table::Outbox).await;
    assert_eq!(claimed.records, listed[..2]);
    let next_due = claimed.next_due.unwrap();
    assert!(next_due <= LEASE && next_due > LEASE - Duration::from_secs(60), "{next_due:?}");
    let asked = storage.next_due(Version::default(), vec![Lane::Inbox(group()), Lane::Outbox]).await.unwrap();
    assert!(asked[0].is_none() && asked[1].unwrap() <= next_due);
}

#[tokio::test]
async fn a_row_that_somebody_else_wrote_hinders_nobody() {
    let file = File::new();
    let storage = file.storage().await;
    file.business()
        .execute_batch(
            "INSERT INTO \"cap.published\" (Version, Name, Content, Retries, Added, StatusName, MessageId, DueAt)
             VALUES ('v1', x'ff', NULL, 'many', 'yesterday', 'Waiting', NULL, 1), ('v1', '', 7, -3, 0.5, 'Queued', '', 2)",
        )
        .unwrap();
    storage.insert(Table::Outbox, vec![message("mine")], None).await.unwrap();
    let node = node(&storage).await;
    let claimed = storage.claim(request(node, Lane::Outbox, 10)).await.unwrap().records;
    let ids: Vec<_> = claimed.iter().map(|record| record.message_id.to_string()).collect();
    assert_eq!(ids, ["row-1", "row-2", "mine"]);
}

#[tokio::test]
async fn a_dead_owner_that_is_no_node_id_is_taken_over() {
    let file = File::new();
    let storage = file.storage().await;
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    file.business()
        .execute_batch("UPDATE \"cap.published\" SET StatusName = 'Queued', DueAt = NULL, Owner = 'who?', Claim = 'x'")
        .unwrap();
    assert_eq!(listed(&storage, Table::Outbox).await[0].owner, None);
    assert_eq!(storage.take_over(Vec::new()).await.unwrap().outbox, 1);
    assert_eq!(listed(&storage, Table::Outbox).await[0].status, Status::Scheduled);
}

#[tokio::test]
async fn the_longest_durations_and_farthest_moments_do_not_overflow() {
    let file = File::new();
    let storage = file.storage().await;
    let far = [Due::In(Duration::MAX), Due::At(cap_core::Timestamp::from_micros(i64::MAX))];
    let past = Due::At(cap_core::Timestamp::from_micros(i64::MIN));
    for (due, id) in far.into_iter().chain([past]).zip(["a", "b", "c"]) {
        let record = NewRecord { state: lifecycle::scheduled(due), ..message(id) };
        storage.insert(Table::Outbox, vec![record], None).await.unwrap();
    }
    let node = NodeId::generate();
    storage.join(node, Duration::MAX).await.unwrap();
    let claimed = storage.claim(request(node, Lane::Outbox, 10)).await.unwrap();
    assert_eq!(claimed.records.len(), 1);
    assert!(claimed.next_due.unwrap() > Duration::from_secs(1 << 32));
    assert!(matches!(storage.heartbeat(node, Duration::MAX).await.unwrap(), Lease::Held { .. }));
}

#[tokio::test]
async fn a_record_in_flight_that_nobody_claims_and_a_delivery_without_a_group_are_invalid() {
    let file = File::new();
    let storage = file.storage().await;
    let orphan = storage.insert(Table::Inbox, vec![delivery("a")], None).await.unwrap_err();
    assert_eq!(orphan.kind(), ErrorKind::Invalid);
    let no_group = storage.insert(Table::Inbox, vec![message("a")], None).await.unwrap_err();
    assert_eq!(no_group.kind(), ErrorKind::Invalid);
    assert!(inbox_status(&storage).await.is_empty());
}

#[tokio::test]
async fn a_claim_of_nothing_is_answered_while_another_transaction_is_open() {
    let file = File::new();
    let storage = file.storage().await;
    let node = node(&storage).await;
    let open = file.business();
    open.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Under the same lock a claim would wait for the busy timeout, and fail.
    let claimed = storage.claim(request(node, Lane::Outbox, 10)).await.unwrap();
    assert!(claimed.records.is_empty());
    let stranger = storage.claim(request(NodeId::generate(), Lane::Outbox, 10)).await.unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::LeaseLost);
    open.execute_batch("COMMIT").unwrap();
}

#[tokio::test]
async fn a_failing_insert_fails_alone_among_those_that_wait() {
    let file = File::new();
    let storage = file.storage().await;
    let lock = file.business();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let insert = |records| {
        let storage = storage.clone();
        tokio::spawn(async move { storage.insert(Table::Outbox, records, None).await })
    };
    let good: Vec<_> = (0..20).map(|n| insert(vec![message(&format!("m{n}"))])).collect();
    let bad = insert(vec![message("x"), delivery("bad")]);
    tokio::task::yield_now().await;
    lock.execute_batch("COMMIT").unwrap();
    assert_eq!(bad.await.unwrap().unwrap_err().kind(), ErrorKind::Invalid);
    for answer in good {
        assert!(matches!(answer.await.unwrap().unwrap()[..], [Inserted::Stored(_)]));
    }
    assert_eq!(listed(&storage, Table::Outbox).await.len(), 20);
}

// The caller's own transaction

#[tokio::test]
async fn a_publish_in_the_business_transaction_shares_its_fate() {
    let file = File::new();
    let storage = file.storage().await;
    let mut business = file.business();

    let tx = business.transaction().unwrap();
    tx.execute("INSERT INTO orders VALUES ('book')", []).unwrap();
    storage.enlist(&tx, vec![message("rolled-back")]).unwrap();
    tx.rollback().unwrap();
    assert!(listed(&storage, Table::Outbox).await.is_empty());

    let mut tx = business.transaction().unwrap();
    tx.execute("INSERT INTO orders VALUES ('book')", []).unwrap();
    storage.enlist(&tx, vec![message("kept"), message("kept-too")]).unwrap();
    assert_eq!(storage.enlist(&tx, vec![message("kept"), message("third")]).unwrap()[0], Inserted::Duplicate);
    let savepoint = tx.savepoint().unwrap();
    storage.enlist(&savepoint, vec![message("taken-back")]).unwrap();
    savepoint.finish().unwrap();
    assert!(listed(&storage, Table::Outbox).await.is_empty(), "a message was seen before the commit");
    tx.commit().unwrap();

    assert_eq!(ids(&storage, Table::Outbox).await, ["kept", "kept-too", "third"]);
    assert_eq!(file.orders(), 1);
}

#[tokio::test]
async fn without_a_transaction_several_messages_are_published_all_or_none() {
    let file = File::new();
    let storage = file.storage().await;
    let mut business = file.business();
    let error = storage.enlist(&business, vec![message("a"), delivery("in-flight")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(business.is_autocommit());
    assert!(listed(&storage, Table::Outbox).await.is_empty());
    storage.enlist(&mut business, vec![message("a"), message("b")]).unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["a", "b"]);
}

#[tokio::test]
async fn a_refused_publish_leaves_the_business_transaction_as_it_was() {
    let file = File::new();
    let storage = file.storage().await;
    let mut business = file.business();
    let tx = business.transaction().unwrap();
    tx.execute("INSERT INTO orders VALUES ('book')", []).unwrap();
    storage.enlist(&tx, vec![message("a"), delivery("in-flight")]).unwrap_err();
    storage.enlist(&tx, vec![message("b")]).unwrap();
    tx.commit().unwrap();
    assert_eq!((ids(&storage, Table::Outbox).await, file.orders()), (vec!["b".to_owned()], 1));
}

#[tokio::test]
async fn a_connection_to_another_database_is_told_which_table_it_lacks() {
    let file = File::new();
    let storage = file.storage().await;
    let elsewhere = Connection::open_in_memory().unwrap();
    for records in [vec![message("a")], vec![message("a"), message("b")]] {
        let error = storage.enlist(&elsewhere, records).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().contains("\"cap.published\"") && error.to_string().contains("prepare"), "{error}");
        assert!(elsewhere.is_autocommit());
    }
}

#[tokio::test]
async fn a_business_transaction_that_waits_in_vain_is_unavailable() {
    let file = File::new();
    let storage = file.storage().await;
    let mut holder = file.business();
    let _held = holder.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let impatient = file_connection(&file.path());
    let error = storage.enlist(&impatient, vec![message("a")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

fn file_connection(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::ZERO).unwrap();
    connection
}

// Transactional handlers

#[tokio::test]
async fn a_handlers_writes_its_messages_and_its_success_are_one_commit() {
    let file = File::new();
    let storage = file.storage().await;
    file.business();
    let settlement = in_flight(&storage, node(&storage).await, "d1").await;
    let publisher = storage.clone();
    let transacted = storage.transact(
        settlement,
        work(move |tx| {
            tx.execute("INSERT INTO orders VALUES ('book')", [])?;
            publisher.enlist(&mut *tx, vec![message("enlisted")])?;
            Ok(vec![message("answered"), message("answered")])
        }),
    );
    assert!(matches!(transacted.await.unwrap(), Transacted::Committed));
    assert_eq!(inbox_status(&storage).await, [Status::Succeeded]);
    assert_eq!(ids(&storage, Table::Outbox).await, ["enlisted", "answered"]);
    assert_eq!(file.orders(), 1);
}

#[tokio::test]
async fn nothing_is_left_of_a_handler_that_fails_or_panics_and_its_record_is_held_as_before() {
    let file = File::new();
    let storage = file.storage().await;
    file.business();
    let settlement = in_flight(&storage, node(&storage).await, "d1").await;
    let fails = work(|tx| {
        tx.execute("INSERT INTO orders VALUES ('book')", [])?;
        Err(HandlerError::permanent("no such customer"))
    });
    let Transacted::RolledBack(error) = storage.transact(settlement.clone(), fails).await.unwrap() else { panic!() };
    assert!(error.is_permanent());
    let panics = work(|tx| {
        tx.execute("INSERT INTO orders VALUES ('book')", [])?;
        panic!("oh dear")
    });
    let Transacted::RolledBack(error) = storage.transact(settlement.clone(), panics).await.unwrap() else { panic!() };
    assert!(error.reason().contains("oh dear"), "{error}");
    assert_eq!((inbox_status(&storage).await, file.orders()), (vec![Status::Queued], 0));
    assert_eq!(storage.settle(Table::Inbox, vec![settlement]).await.unwrap(), [Settled::Written]);
}

#[tokio::test]
async fn a_handler_whose_record_was_taken_does_not_run() {
    let file = File::new();
    let storage = file.storage().await;
    file.business();
    let settlement = in_flight(&storage, node(&storage).await, "d1").await;
    let owner = storage.list(Table::Inbox, Query { limit: 1, ..Query::default() }).await.unwrap()[0].owner.unwrap();
    storage.leave(owner).await.unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let runs = Arc::clone(&ran);
    let work = work(move |_| {
        runs.store(true, Ordering::SeqCst);
        Ok(Vec::new())
    });
    assert!(matches!(storage.transact(settlement, work).await.unwrap(), Transacted::Lost));
    assert!(!ran.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_is_an_error_and_the_storage_goes_on() {
    let file = File::new();
    let storage = file.storage().await;
    for (id, end) in [("d1", "COMMIT"), ("d2", "ROLLBACK")] {
        let settlement = in_flight(&storage, node(&storage).await, id).await;
        let breaks_out = work(move |tx| {
            tx.execute_batch(end)?;
            Ok(vec![message("never")])
        });
        let error = storage.transact(settlement, breaks_out).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.to_string().contains("COMMIT or ROLLBACK"), "{error}");
    }
    assert!(listed(&storage, Table::Outbox).await.is_empty());
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
}

#[tokio::test]
async fn a_deferred_foreign_key_that_the_commit_refuses_is_the_handlers_failure() {
    let file = File::new();
    let storage = file.storage().await;
    file.business()
        .execute_batch(
            "CREATE TABLE customers (id INTEGER PRIMARY KEY);
             CREATE TABLE invoices (customer INTEGER REFERENCES customers DEFERRABLE INITIALLY DEFERRED)",
        )
        .unwrap();
    let settlement = in_flight(&storage, node(&storage).await, "d1").await;
    let violates = work(|tx| {
        tx.execute("INSERT INTO invoices VALUES (7)", [])?;
        Ok(vec![message("never")])
    });
    let transacted = storage.transact(settlement.clone(), violates);
    let beside = storage.insert(Table::Outbox, vec![message("beside")], None);
    let (transacted, beside) = tokio::join!(transacted, beside);
    beside.unwrap();
    let Transacted::RolledBack(error) = transacted.unwrap() else { panic!("it was committed") };
    assert!(error.reason().contains("FOREIGN KEY"), "{error}");
    assert_eq!(inbox_status(&storage).await, [Status::Queued]);
    assert_eq!(ids(&storage, Table::Outbox).await, ["beside"]);

    let mends = work(|tx| {
        tx.execute("INSERT INTO invoices VALUES (7)", [])?;
        tx.execute("INSERT INTO customers VALUES (7)", [])?;
        Ok(Vec::new())
    });
    assert!(matches!(storage.transact(settlement, mends).await.unwrap(), Transacted::Committed));
}

// Watching

#[tokio::test]
async fn a_commit_of_a_foreign_connection_wakes_and_a_dropped_watch_is_gone() {
    let file = File::new();
    let storage = file.storage().await;
    let business = file.business();
    let (woken, mut wakes) = mpsc::unbounded_channel();
    let watch = tokio::spawn({
        let storage = storage.clone();
        async move { storage.watch(Wake::new(move |table| woken.send(table).unwrap_or(()))).await }
    });
    // The first look wakes both: from here on the watch knows what was there.
    assert_eq!(wakes.recv().await, Some(Table::Outbox));
    assert_eq!(wakes.recv().await, Some(Table::Inbox));
    storage.enlist(&business, vec![message("a")]).unwrap();
    assert_eq!(wakes.recv().await, Some(Table::Outbox));
    assert_eq!(wakes.recv().await, Some(Table::Inbox));
    watch.abort();
    assert!(watch.await.unwrap_err().is_cancelled());
    while wakes.recv().await.is_some() {} // ends when the thread has dropped its `Wake`
}

#[tokio::test]
async fn a_watch_on_a_file_that_is_gone_says_so() {
    let file = File::new();
    let storage = file.storage().await;
    drop(file);
    let error = storage.watch(Wake::new(|_| {})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
}
