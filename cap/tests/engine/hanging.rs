//! Stops while something hangs: they end within their limit, and what could not be given back is left to the takeover.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use cap::memory::{MemoryStorage, MemoryTransport};
use cap::{Cap, ErrorKind, Json, Options, Status, Subscribe, Table};

use crate::doubles::{Call, Faulty, Troubled};
use crate::support::{PATIENCE, Seen, Shop, eventually, options, record};

const DRAIN: Duration = Duration::from_secs(1);
/// For a machine that is busy.
const LATE: Duration = Duration::from_millis(700);

fn draining() -> Options {
    Options { drain: DRAIN, ..options() }
}

async fn stops_in_time<S: ?Sized>(cap: &Cap<S>) {
    let began = Instant::now();
    let stopped = tokio::time::timeout(PATIENCE, cap.stop()).await;
    let took = began.elapsed();
    assert!(stopped.is_ok() && took <= DRAIN + LATE, "it took {took:?}");
}

/// An engine whose one handler leaves what it gets and ends.
async fn engine(storage: &Faulty, transport: &Troubled, seen: &Seen<u32>) -> Cap<Faulty> {
    let builder = Cap::builder().storage(storage.clone()).transport(transport.clone()).options(draining());
    builder.subscribe("t", "g", record(seen)).start().await.unwrap()
}

fn doubles() -> (Faulty, Troubled, Seen<u32>) {
    (Faulty::new(MemoryStorage::new(), &[]), Troubled::new([]), Seen::new())
}

#[tokio::test]
async fn a_stop_ends_in_time_while_a_settlement_hangs() {
    let (storage, transport, seen) = doubles();
    let cap = engine(&storage, &transport, &seen).await;
    storage.hang(Call::Settle);
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, 1);
    stops_in_time(&cap).await;
}

#[tokio::test]
async fn a_stop_ends_in_time_while_the_signing_off_hangs() {
    let (storage, transport, seen) = doubles();
    let cap = engine(&storage, &transport, &seen).await;
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, 1);
    storage.hang(Call::Leave);
    stops_in_time(&cap).await;
}

#[tokio::test]
async fn a_stop_ends_in_time_while_the_database_is_frozen_and_so_does_a_publish() {
    let (storage, transport, seen) = doubles();
    let cap = engine(&storage, &transport, &seen).await;
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, 1);
    storage.hang(Call::Any);
    let publishing = tokio::spawn({
        let cap = cap.clone();
        async move { cap.publish("t", &2).await }
    });
    // One that is under way when the stop begins.
    tokio::task::yield_now().await;
    stops_in_time(&cap).await;
    let published = tokio::time::timeout(PATIENCE, publishing).await.expect("the publish hangs").unwrap();
    assert_eq!(published.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_stop_ends_in_time_while_the_broker_is_frozen_and_nothing_stays_with_the_node() {
    let (storage, transport, seen) = doubles();
    let cap = engine(&storage, &transport, &seen).await;
    transport.freeze();
    cap.publish("t", &1).await.unwrap();
    eventually(async || (cap.in_flight() == 1).then_some(())).await;
    stops_in_time(&cap).await;
    let shop = Shop { storage: storage.inner.clone(), transport: MemoryTransport::new() };
    let outbox = &shop.records(Table::Outbox).await[0];
    assert_eq!((outbox.status, outbox.attempts, outbox.owner), (Status::Scheduled, 0, None));
}

#[tokio::test]
async fn a_stop_ends_in_time_while_everything_is_frozen() {
    let (storage, transport, seen) = doubles();
    let cap = engine(&storage, &transport, &seen).await;
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, 1);
    transport.freeze();
    cap.publish("t", &2).await.unwrap();
    storage.hang(Call::Any);
    stops_in_time(&cap).await;
}

#[tokio::test]
async fn a_stop_ends_in_time_while_a_handler_ignores_that_it_is_to_give_up() {
    let (shop, begun) = (Shop::new(), Seen::new());
    let handler = begun.clone();
    let hangs = move |_: Json<u32>| {
        handler.push(());
        std::future::pending::<()>()
    };
    let cap = shop.builder().options(draining()).subscribe("t", "g", hangs).start().await.unwrap();
    cap.publish("t", &1).await.unwrap();
    begun.next().await;
    stops_in_time(&cap).await;
    let inbox = &shop.records(Table::Inbox).await[0];
    assert_eq!((inbox.status, inbox.attempts, inbox.owner), (Status::Scheduled, 0, None));
}

/// As many handlers as block `threads` threads, on a runtime with two.
fn stops_beside_blocked_threads(threads: u32) {
    let (shop, begun) = (Shop::new(), Seen::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Gone before the runtime, which waits for its threads.
    let (end, ended) = mpsc::channel::<()>();
    let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
    runtime.block_on(async {
        let handler = begun.clone();
        let blocks = move |_: Json<u32>| {
            let (handler, ended) = (handler.clone(), std::sync::Arc::clone(&ended));
            async move {
                handler.push(());
                // Until the sender is gone.
                let _ = ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
            }
        };
        let subscription = Subscribe::to("t", blocks).group("g").concurrency(threads as usize);
        let cap = shop.builder().options(draining()).subscription(subscription).start().await.unwrap();
        for n in 0..threads {
            cap.publish("t", &n).await.unwrap();
            begun.next().await;
        }
        stops_in_time(&cap).await;
        // It runs on: its record is nobody else's before the lease is over.
        let inbox = shop.records(Table::Inbox).await;
        assert!(inbox.iter().all(|record| record.status == Status::Queued && record.owner.is_some()), "{inbox:?}");
    });
    drop(end);
}

#[test]
fn a_handler_that_blocks_its_thread_delays_no_stop_and_keeps_its_record() {
    stops_beside_blocked_threads(1);
}

#[test]
fn handlers_that_block_every_thread_delay_no_stop() {
    stops_beside_blocked_threads(2);
}
