//! Nothing waits for a poll: with an hour between two of them, all of this happens at once.

use std::time::Duration;

use cap::memory::{MemoryStorage, MemoryTransport};
use cap::sqlite::SqliteStorage;
use cap::{Cap, Context, HandlerError, Json, Publish, RetryPolicy, Subscribe};

use crate::doubles::Faulty;
use crate::support::{Seen, idle, never_polling, record};

#[tokio::test]
async fn a_commit_that_only_the_caller_sees_is_found_however_long_its_transaction_was_open() {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    let seen = Seen::<u32>::new();
    let cap = Cap::builder()
        .storage(storage.clone())
        .transport(MemoryTransport::new())
        .options(never_polling())
        .subscribe("t", "g", record(&seen))
        .start()
        .await
        .unwrap();
    // Past the wake-ups that the engine's own start gives.
    cap.publish("t", &0).await.unwrap();
    assert_eq!(seen.next().await, 0);
    idle(&cap).await;
    let mut long = storage.inner.begin();
    cap.publish_in(&mut long, "t", &1).unwrap();
    let mut short = storage.inner.begin();
    cap.publish_in(&mut short, "t", &2).unwrap();
    short.commit();
    assert_eq!(seen.next().await, 2);
    // Meanwhile the engine has looked for the other one again and again.
    long.commit();
    assert_eq!(seen.next().await, 1);
    cap.stop().await;
}

#[tokio::test]
async fn publishes_replies_retries_and_delays_need_no_poll() {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    let seen = Seen::<u32>::new();
    let flaky = |context: Context, Json(n): Json<u32>| async move {
        if context.attempt() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(Json(n + 1)) }
    };
    let retry = RetryPolicy::fixed(2, Duration::from_millis(50));
    let cap = Cap::builder()
        .storage(storage)
        .transport(MemoryTransport::new())
        .options(never_polling())
        .subscription(Subscribe::to("ask", flaky).group("g").retry(retry))
        .subscribe("answer", "g", record(&seen))
        .start()
        .await
        .unwrap();
    cap.publish_one(Publish::json("ask", &1).callback("answer").delay(Duration::from_millis(50))).await.unwrap();
    assert_eq!(seen.next().await, 2);
    cap.stop().await;
}

#[tokio::test]
async fn a_commit_of_another_handle_on_the_same_file_wakes_the_relay() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    let seen = Seen::<u32>::new();
    let start = |options| {
        Cap::builder().storage(SqliteStorage::open(&file).unwrap()).transport(MemoryTransport::new()).options(options)
    };
    let relaying = start(never_polling()).subscribe("t", "g", record(&seen)).start().await.unwrap();
    // As another process would: its own transport knows no group, and it is stopped before anything is relayed by it.
    let storage = SqliteStorage::open(&file).unwrap();
    let other = Cap::builder()
        .storage(storage)
        .transport(MemoryTransport::new())
        .options(never_polling())
        .start()
        .await
        .unwrap();
    other.stop().await;
    relaying.publish("t", &0).await.unwrap();
    assert_eq!(seen.next().await, 0);
    idle(&relaying).await;
    let db = rusqlite::Connection::open(&file).unwrap();
    other.publish_in(&db, "t", &7).unwrap();
    assert_eq!(seen.next().await, 7);
    relaying.stop().await;
}
