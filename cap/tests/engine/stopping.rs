//! Stops, the ends of nodes, and what the next one finds.

use std::future::ready;
use std::time::Duration;

use cap::{Context, Json, Options, Publish, Status, Step, Subscribe, Table};

use crate::support::{Seen, Shop, eventually, idle, options};

#[tokio::test]
async fn a_stop_waits_for_what_runs() {
    let shop = Shop::new();
    let (begun, go) = (Seen::new(), std::sync::Arc::new(tokio::sync::Notify::new()));
    let (handler, gate) = (begun.clone(), std::sync::Arc::clone(&go));
    let cap = shop
        .builder()
        .subscribe("t", "g", move || {
            let (handler, gate) = (handler.clone(), std::sync::Arc::clone(&gate));
            async move {
                handler.push(());
                gate.notified().await;
            }
        })
        .start()
        .await
        .unwrap();
    cap.publish("t", &1).await.unwrap();
    begun.next().await;
    let stopping = tokio::spawn({
        let cap = cap.clone();
        async move { cap.stop().await }
    });
    go.notify_one();
    stopping.await.unwrap();
    assert_eq!(shop.records(Table::Inbox).await[0].status, Status::Succeeded);
}

#[tokio::test]
async fn a_stop_gives_back_at_once_what_waits_behind_a_handler_that_runs() {
    let shop = Shop::new();
    let (begun, steps, go) = (Seen::new(), Seen::new(), std::sync::Arc::new(tokio::sync::Notify::new()));
    let (handler, gate, told) = (begun.clone(), std::sync::Arc::clone(&go), steps.clone());
    let cap = shop
        .builder()
        .subscribe("t", "g", move |Json(n): Json<u32>| {
            let (handler, gate) = (handler.clone(), std::sync::Arc::clone(&gate));
            async move {
                handler.push(n);
                gate.notified().await;
            }
        })
        .on_step(move |step, _| {
            if matches!(step, Step::Acknowledged | Step::InboxSettled) {
                told.push(step);
            }
        })
        .start()
        .await
        .unwrap();
    cap.publish_many((1..=3).map(|n| Publish::json("t", &n))).await.unwrap();
    assert_eq!(begun.next().await, 1);
    for _ in 1..=3 {
        assert_eq!(steps.next().await, Step::Acknowledged);
    }
    let stopping = tokio::spawn({
        let cap = cap.clone();
        async move { cap.stop().await }
    });
    for _ in 2..=3 {
        assert_eq!(steps.next().await, Step::InboxSettled);
    }
    go.notify_one();
    stopping.await.unwrap();
    assert!(begun.rest().await.is_empty(), "nothing new begins");
    let ended: Vec<_> =
        shop.records(Table::Inbox).await.iter().map(|record| (record.status, record.attempts)).collect();
    assert_eq!(ended, [(Status::Succeeded, 1), (Status::Scheduled, 0), (Status::Scheduled, 0)]);
}

#[tokio::test]
async fn work_that_a_stop_cuts_off_is_no_success_and_the_next_node_does_it() {
    let shop = Shop::new();
    let begun = Seen::new();
    let handler = begun.clone();
    let hanging = Options { drain: Duration::from_millis(50), ..options() };
    let cap = shop
        .builder()
        .options(hanging)
        .subscribe("t", "g", move |context: Context| {
            let handler = handler.clone();
            async move {
                handler.push(());
                context.cancelled().await;
                std::future::pending::<()>().await;
            }
        })
        .start()
        .await
        .unwrap();
    cap.publish("t", &1).await.unwrap();
    cap.publish("t", &2).await.unwrap();
    begun.next().await;
    cap.stop().await;
    for record in shop.records(Table::Inbox).await {
        assert_eq!((record.status, record.attempts, record.owner), (Status::Scheduled, 0, None));
    }

    let next = Shop { storage: shop.storage, transport: cap::memory::MemoryTransport::new() };
    let seen = Seen::new();
    let handler = seen.clone();
    let cap = next
        .builder()
        .subscribe("t", "g", move |Json(n): Json<u32>, context: Context| {
            handler.push((n, context.attempt()));
            ready(())
        })
        .start()
        .await
        .unwrap();
    idle(&cap).await;
    let mut handled = seen.rest().await;
    handled.sort();
    assert_eq!(handled, [(1, 1), (2, 1)]);
    cap.stop().await;
}

#[test]
fn what_a_dead_node_held_is_taken_over_and_its_attempt_counts() {
    let shop = Shop::new();
    let begun = Seen::new();
    let handler = begun.clone();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    let cap = first.block_on(async {
        let cap = shop
            .builder()
            .subscription(
                Subscribe::to("t", move || {
                    let handler = handler.clone();
                    async move {
                        handler.push(());
                        std::future::pending::<()>().await;
                    }
                })
                .group("g"),
            )
            .start()
            .await
            .unwrap();
        cap.publish("t", &1).await.unwrap();
        begun.next().await;
        cap
    });
    // As good as a crash: nothing is given back, nobody signs off.
    first.shutdown_background();

    let second = runtime();
    second.block_on(async {
        assert!(shop.records(Table::Inbox).await[0].owner.is_some());
        let seen = Seen::new();
        let handler = seen.clone();
        let next = Shop { storage: shop.storage, transport: cap::memory::MemoryTransport::new() };
        let cap = next
            .builder()
            .subscribe("t", "g", move |context: Context| {
                handler.push(context.attempt());
                ready(())
            })
            .start()
            .await
            .unwrap();
        assert_eq!(seen.next().await, 2);
        cap.stop().await;
    });
    drop(cap);
}

#[tokio::test]
async fn dropping_the_last_handle_stops() {
    struct Told(Seen<&'static str>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.push("gone");
        }
    }
    let shop = Shop::new();
    let seen = Seen::new();
    let told = std::sync::Arc::new(Told(seen.clone()));
    let cap = shop
        .builder()
        .subscribe("t", "g", move || {
            let _ = &told;
            ready(())
        })
        .start()
        .await
        .unwrap();
    drop(cap.clone());
    cap.publish("t", &1).await.unwrap();
    idle(&cap).await;
    assert!(seen.rest().await.is_empty());
    drop(cap);
    assert_eq!(seen.next().await, "gone");
}

#[test]
fn a_runtime_may_end_while_a_handler_hangs_and_many_jobs_wait_behind_it() {
    let ended = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (shop, begun) = (Shop::new(), Seen::new());
            let handler = begun.clone();
            let hangs = move |_: Json<u32>| {
                handler.push(());
                std::future::pending::<()>()
            };
            let cap = shop.builder().subscribe("t", "g", hangs).start().await.unwrap();
            cap.publish_many((0..100).map(|n| Publish::json("t", &n))).await.unwrap();
            begun.next().await;
            let fills = async || (cap.in_flight() > 1).then_some(());
            eventually(fills).await;
            std::mem::forget(cap);
        });
        // Without a stop, as at the end of `main`.
        drop(runtime);
    });
    ended.join().unwrap();
}
