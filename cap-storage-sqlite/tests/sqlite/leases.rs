//! One writer: what becomes of the leases while it is busy.

use std::sync::mpsc as std_mpsc;
use std::time::Instant;

use cap_core::storage::Settlement;
use tokio::task::JoinHandle;

use super::*;

/// Short enough to be outlived by a test.
const SHORT: Duration = Duration::from_millis(400);

/// A handler that works until it is told to end, and tells when it has begun.
struct Handler {
    end: std_mpsc::Sender<Result<(), HandlerError>>,
    handled: JoinHandle<cap_core::Result<Transacted>>,
}

impl Handler {
    async fn begin(storage: &SqliteStorage, settlement: Settlement) -> Self {
        let ((end, ended), (began, begun)) = (std_mpsc::channel(), tokio::sync::oneshot::channel());
        let works = work(move |tx| {
            began.send(()).unwrap();
            tx.execute("INSERT INTO orders VALUES ('book')", [])?;
            ended.recv().unwrap()?;
            Ok(Vec::new())
        });
        let storage = storage.clone();
        let handled = tokio::spawn(async move { storage.transact(settlement, works).await });
        begun.await.unwrap();
        Self { end, handled }
    }

    async fn end(self, how: Result<(), HandlerError>) -> Transacted {
        self.end.send(how).unwrap();
        self.handled.await.unwrap().unwrap()
    }
}

/// Gives signs of life for three leases, and shows that each is answered at once.
async fn outlive_three_leases(storage: &SqliteStorage, node: NodeId) {
    let begun = Instant::now();
    while begun.elapsed() < 3 * SHORT {
        let asked = Instant::now();
        let lease = storage.heartbeat(node, SHORT).await.unwrap();
        assert!(matches!(lease, Lease::Held { .. }), "after {:?}: {lease:?}", begun.elapsed());
        assert!(asked.elapsed() < SHORT / 2, "a heartbeat waited for {:?}", asked.elapsed());
        tokio::time::sleep(SHORT / 10).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_of_three_leases_keeps_its_lease_and_its_record_is_handled_once() {
    for how in [Ok(()), Err(HandlerError::retry("no"))] {
        let file = File::new();
        let (storage, other) = (file.storage().await, file.storage().await);
        file.business();
        let node = NodeId::generate();
        storage.join(node, SHORT).await.unwrap();
        let settlement = in_flight(&storage, node, "d1").await;
        let handler = Handler::begin(&storage, settlement).await;
        // Another one waits for the file to take over, and gets its turn as soon as the handler's transaction ends; one
        // of its own waits in the same queue.
        let takes_over = |storage: &SqliteStorage| {
            let storage = storage.clone();
            tokio::spawn(async move { storage.take_over(Vec::new()).await })
        };
        let takeovers = [takes_over(&other), takes_over(&storage)];
        outlive_three_leases(&storage, node).await;
        let fails = how.is_err();
        let transacted = handler.end(how).await;
        for takeover in takeovers {
            let taken = takeover.await.unwrap().unwrap();
            assert_eq!((taken.nodes.len(), taken.inbox), (0, 0));
        }
        let status = inbox_status(&file.storage().await).await;
        if fails {
            assert!(matches!(transacted, Transacted::RolledBack(_)));
            assert_eq!((status, file.orders()), (vec![Status::Queued], 0));
        } else {
            assert!(matches!(transacted, Transacted::Committed));
            assert_eq!((status, file.orders()), (vec![Status::Succeeded], 1));
        }
        let lease = storage.heartbeat(node, SHORT).await.unwrap();
        assert!(matches!(lease, Lease::Held { .. }), "{lease:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_that_waits_is_answered_when_a_handler_begins() {
    let file = File::new();
    let storage = file.storage().await;
    let lock = file.business();
    let node = node(&storage).await;
    let settlement = in_flight(&storage, node, "d1").await;
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let handler = tokio::spawn({
        let storage = storage.clone();
        async move { Handler::begin(&storage, settlement).await }
    });
    let heartbeat = tokio::spawn({
        let storage = storage.clone();
        async move { storage.heartbeat(node, LEASE).await }
    });
    lock.execute_batch("COMMIT").unwrap();
    let handler = handler.await.unwrap();
    assert!(matches!(heartbeat.await.unwrap().unwrap(), Lease::Held { .. }));
    assert!(matches!(handler.end(Ok(())).await, Transacted::Committed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ran_out_is_not_promised_and_the_database_decides() {
    let file = File::new();
    let storage = file.storage().await;
    file.business();
    let (worker, late, dead) = (node(&storage).await, NodeId::generate(), NodeId::generate());
    for node in [late, dead] {
        storage.join(node, Duration::from_millis(1)).await.unwrap();
    }
    cap_testkit::take_over_from(&file.storage().await, &[dead]).await.unwrap();
    let settlement = in_flight(&storage, worker, "d1").await;
    let handler = Handler::begin(&storage, settlement).await;
    let heartbeat = |node| {
        let storage = storage.clone();
        tokio::spawn(async move { storage.heartbeat(node, LEASE).await })
    };
    let [late, dead] = [late, dead].map(heartbeat);
    assert!(matches!(storage.heartbeat(worker, LEASE).await.unwrap(), Lease::Held { .. }));
    assert!(!late.is_finished() && !dead.is_finished(), "they wait for the database");
    handler.end(Ok(())).await;
    assert!(matches!(late.await.unwrap().unwrap(), Lease::Held { .. }), "nobody has taken over from it");
    assert_eq!(dead.await.unwrap().unwrap(), Lease::Lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_although_the_transaction_that_kept_it_is_lost() {
    let file = File::new();
    let storage = file.storage().await;
    file.business();
    let node = NodeId::generate();
    storage.join(node, SHORT).await.unwrap();
    let settlement = in_flight(&storage, node, "d1").await;
    let ((end, ended), (began, begun)) = (std_mpsc::channel(), tokio::sync::oneshot::channel());
    let breaks_out = work(move |tx| {
        began.send(()).unwrap();
        ended.recv().unwrap();
        tx.execute_batch("ROLLBACK")?;
        Ok(Vec::new())
    });
    let handled = tokio::spawn({
        let storage = storage.clone();
        async move { storage.transact(settlement, breaks_out).await }
    });
    begun.await.unwrap();
    outlive_three_leases(&storage, node).await;
    end.send(()).unwrap();
    handled.await.unwrap().unwrap_err();
    assert!(matches!(storage.heartbeat(node, SHORT).await.unwrap(), Lease::Held { .. }));
    assert_eq!(file.storage().await.take_over(Vec::new()).await.unwrap().inbox, 0);
}

#[tokio::test]
async fn while_a_foreign_connection_keeps_the_writer_heartbeats_are_unavailable_and_nobody_can_take_over() {
    let file = File::new();
    let options = SqliteOptions::new(file.path()).busy_timeout(SHORT / 4);
    let storage = SqliteStorage::with_options(options).unwrap();
    storage.prepare().await.unwrap();
    let node = NodeId::generate();
    storage.join(node, SHORT).await.unwrap();
    let lock = file.business();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begun = Instant::now();
    while begun.elapsed() < 2 * SHORT {
        let error = storage.heartbeat(node, SHORT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    lock.execute_batch("ROLLBACK").unwrap();
    let lease = storage.heartbeat(node, SHORT).await.unwrap();
    assert!(matches!(lease, Lease::Held { .. }), "nobody has taken over from it: {lease:?}");
}

#[test]
fn heartbeats_of_another_runtime_go_on_while_every_thread_of_the_first_is_blocked() {
    let file = File::new();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let (users, keepers) = (runtime(), runtime());
    let storage = users.block_on(file.storage());
    let node = NodeId::generate();
    keepers.block_on(storage.join(node, SHORT)).unwrap();
    let (unblock, blocked) = std_mpsc::channel::<()>();
    let (began, begun) = std_mpsc::channel();
    users.spawn(async move {
        began.send(()).unwrap();
        blocked.recv().unwrap_or(());
    });
    begun.recv().unwrap();
    keepers.block_on(outlive_three_leases(&storage, node));
    drop(unblock);
}
