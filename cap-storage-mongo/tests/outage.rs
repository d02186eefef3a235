//! The server is killed, restarted and frozen under a storage. In a test crate of its own: nobody else may need it then.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cap_core::storage::{Inserted, NewRecord, Query, Storage, Table, Wake};
use cap_core::{Due, MessageId, Topic, Version, lifecycle};
use cap_storage_mongo::{MongoOptions, MongoStorage};
use support::{Database, SERVER};
use tokio::sync::mpsc;

fn message(number: usize) -> NewRecord {
    NewRecord {
        message_id: MessageId::try_from(format!("m{number}").as_str()).unwrap(),
        version: Version::default(),
        topic: Topic::try_from("order.placed").unwrap(),
        group: None,
        content: "{}".into(),
        state: lifecycle::scheduled(Due::Now),
    }
}

/// Publishes in pairs until told to stop; answers how many were confirmed.
async fn publish(storage: MongoStorage, stop: Arc<AtomicBool>, confirmed: mpsc::UnboundedSender<usize>) -> usize {
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let pair = vec![message(number), message(number + 1)];
        match storage.insert(Table::Outbox, pair, None).await {
            Ok(inserted) => {
                // After a failure that had been carried out all the same, both are there already.
                let stored = inserted.iter().filter(|inserted| matches!(inserted, Inserted::Stored(_))).count();
                assert!(stored == 0 || stored == 2, "half of a pair was there: {inserted:?}");
                number += 2;
                let _ = confirmed.send(number);
            }
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_a_restart_and_a_pause_it_goes_on_and_has_lost_nothing() {
    let database = Database::create().await;
    let options = MongoOptions::new(database.url().await)
        .database(&database.name)
        .connect_timeout(Duration::from_secs(2))
        .statement_timeout(Duration::from_secs(5));
    let storage = MongoStorage::connect_with(options).await.unwrap();
    storage.prepare().await.unwrap();

    let (sender, mut woken) = mpsc::unbounded_channel();
    let watcher = storage.clone();
    let watch = tokio::spawn(async move {
        // As the engine does: any trouble ends a watch, and it is begun again.
        loop {
            let sender = sender.clone();
            let wake = Wake::new(move |table| {
                let _ = sender.send(table);
            });
            let _ = watcher.watch(wake).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let (confirm, mut confirmed) = mpsc::unbounded_channel();
    let publisher = tokio::spawn(publish(storage.clone(), Arc::clone(&stop), confirm));
    confirmed.recv().await.unwrap();

    for commands in [&["kill", "restart"][..], &["restart"], &["freeze", "thaw"]] {
        for command in commands {
            SERVER.run(&[command], None).await.unwrap();
        }
        // It goes on: what was confirmed from now on is news.
        while confirmed.try_recv().is_ok() {}
        confirmed.recv().await.unwrap();
        while woken.try_recv().is_ok() {}
        woken.recv().await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let published = publisher.await.unwrap();
    watch.abort();
    let stored = storage.list(Table::Outbox, Query { limit: 100_000, ..Query::default() }).await.unwrap();
    assert!(stored.len() >= published, "{published} were confirmed, and {} are there", stored.len());
    database.abandon().await;
}
