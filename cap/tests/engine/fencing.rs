//! A node that has lost its lease ends its handlers: one node at a time works on a message.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cap::memory::{MemoryStorage, MemoryTransport};
use cap::{Cap, Table};

use crate::doubles::{Fault, Faulty};
use crate::support::{Seen, options};

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Began(u32),
    Gone(u32),
}

/// Tells when the handler is no more.
struct Running(Seen<Told>, u32);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.push(Told::Gone(self.1));
    }
}

/// The first run never ends by itself. When the lease is lost because of `fault` it is gone before the second begins.
async fn ended_by(fault: Fault) {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    let seen = Seen::new();
    let (told, runs) = (seen.clone(), Arc::new(AtomicU32::new(0)));
    let handler = move || {
        let (told, run) = (told.clone(), runs.fetch_add(1, Ordering::Relaxed) + 1);
        async move {
            told.push(Told::Began(run));
            let _running = Running(told, run);
            if run == 1 {
                pending::<()>().await;
            }
        }
    };
    let builder = Cap::builder().storage(storage.clone()).transport(MemoryTransport::new()).options(options());
    let builder = builder.subscribe("t", "g", handler).subscribe("other", "g", || std::future::ready(()));
    let cap = builder.start().await.unwrap();
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, Told::Began(1), "{fault:?}");

    storage.add(fault);
    cap.publish("other", &1).await.unwrap();
    for expected in [Told::Gone(1), Told::Began(2), Told::Gone(2)] {
        assert_eq!(seen.next().await, expected, "{fault:?}");
    }
    assert_eq!(storage.left(), 0);
    cap.stop().await;
}

#[tokio::test]
async fn a_handler_is_ended_when_the_storage_says_that_the_lease_is_lost() {
    ended_by(Fault::LeaseLost).await;
}

#[tokio::test]
async fn a_handler_is_ended_when_heartbeats_have_no_answer_until_the_lease_is_over() {
    ended_by(Fault::HeartbeatHangs).await;
}

#[tokio::test]
async fn a_handler_is_ended_when_its_node_goes_on_under_a_new_id_after_a_panic() {
    ended_by(Fault::ClaimPanics(Table::Outbox)).await;
}
