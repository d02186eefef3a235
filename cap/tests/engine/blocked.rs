//! Handlers that block every thread of the runtime: heartbeats go on, and the log says who it is.

use std::time::Duration;

use cap::memory::{MemoryStorage, MemoryTransport};
use cap::{Cap, Context, Json, LoopHealth};

use crate::support::{Seen, options};

/// Longer than the lease, and than the time after which a blocked runtime is told of.
const BLOCKED: Duration = Duration::from_millis(3500);

#[test]
fn a_node_whose_threads_are_all_blocked_keeps_its_lease_and_tells_by_whom() {
    let storage = MemoryStorage::new();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (blocked, other) = (runtime(), runtime());
    let seen = Seen::new();
    let start = |name: &'static str| {
        let (seen, storage, transport) = (seen.clone(), storage.clone(), MemoryTransport::new());
        async move {
            let handler = move |Json(n): Json<u32>, context: Context| {
                // On purpose the wrong way.
                std::thread::sleep(BLOCKED);
                seen.push((name, n, context.attempt()));
                std::future::ready(())
            };
            let builder = Cap::builder().storage(storage).transport(transport).options(options());
            builder.subscribe("slow.topic", "g", handler).start().await.unwrap()
        }
    };
    let cap = blocked.block_on(start("blocked"));
    let witness = other.block_on(async {
        // Of another group: it only takes over from the dead.
        let builder = Cap::builder().storage(storage.clone()).transport(MemoryTransport::new()).options(options());
        builder.start().await.unwrap()
    });
    let publishing = cap.clone();
    blocked.block_on(async move { publishing.publish("slow.topic", &1).await.unwrap() });
    // Asked from outside: the runtime does not answer.
    let began = std::time::Instant::now();
    let told = loop {
        assert!(began.elapsed() < BLOCKED * 4, "health never told of the blocked runtime");
        if let Some(LoopHealth::Ill { error, .. }) = cap.health().loops.get("runtime") {
            break error.to_string();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(told.contains("`slow.topic`"), "{told}");
    let node = cap.health().node.expect("the lease was lost");
    assert_eq!(other.block_on(seen.next()), ("blocked", 1, 1));
    assert_eq!(cap.health().node, Some(node), "it has another life");
    blocked.block_on(async { cap.wait_idle().await.unwrap() });
    assert!(other.block_on(seen.rest()).is_empty(), "it ran twice");
    other.block_on(witness.stop());
    blocked.block_on(cap.stop());
}

/// What arrives while a node's handlers block a runtime of their own is stored by that node, and handled by another.
#[test]
fn handlers_that_block_a_runtime_of_their_own_hold_nothing_else_up() {
    let (storage, transport) = (MemoryStorage::new(), MemoryTransport::new());
    let runtime =
        |threads| tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    let (engines, blocked) = (runtime(2), runtime(1));
    let seen = Seen::new();
    let quick = {
        let seen = seen.clone();
        move |Json(n): Json<u32>| {
            seen.push(n);
            std::future::ready(())
        }
    };
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    let slow = {
        let seen = seen.clone();
        move |Json(n): Json<u32>| {
            seen.push(n);
            // On purpose the wrong way, until it is let go.
            let _ = held.lock().unwrap().recv();
            std::future::ready(())
        }
    };
    let builder = || Cap::builder().storage(storage.clone()).options(options());
    let consuming = || builder().transport(transport.clone()).handlers_on(blocked.handle());
    let blocking = engines.block_on(async {
        consuming()
            .subscribe("slow.topic", "g", slow.clone())
            .subscribe("quick.topic", "g", quick.clone())
            .start()
            .await
            .unwrap()
    });
    engines.block_on(async {
        blocking.publish("slow.topic", &1).await.unwrap();
        assert_eq!(seen.next().await, 1);
    });
    // It has no deliveries of its own: it takes what the other has stored.
    let other = engines.block_on(async {
        builder().transport(MemoryTransport::new()).subscribe("quick.topic", "g", quick).start().await.unwrap()
    });
    engines.block_on(async {
        blocking.publish("quick.topic", &2).await.unwrap();
        assert_eq!(seen.next().await, 2, "it waits for the handlers' runtime");
        loop {
            if let Some(LoopHealth::Ill { error, .. }) = blocking.health().loops.get("handlers") {
                assert!(error.to_string().contains("`slow.topic`"), "{error}");
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!matches!(blocking.health().loops.get("runtime"), Some(LoopHealth::Ill { .. })));
        drop(release);
        other.stop().await;
        blocking.stop().await;
    });
}
