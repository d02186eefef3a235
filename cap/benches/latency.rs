//! Commit → handler on an idle engine: SQLite with `synchronous=FULL`, the in-process transport, one message at a time.
//!
//! ```text
//! cargo bench -p cap --bench latency
//! ```
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for the terminal")]

use std::time::{Duration, Instant};

use cap::memory::MemoryTransport;
use cap::sqlite::SqliteStorage;
use cap::{Cap, Json};
use hdrhistogram::Histogram;
use tokio::sync::mpsc;

const MESSAGES: u64 = 500;
const PAUSE: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("latency.db");
    let mut db = rusqlite::Connection::open(&file).unwrap();
    let (handled, mut arrivals) = mpsc::unbounded_channel();
    let cap = Cap::builder()
        .storage(SqliteStorage::open(&file).unwrap())
        .transport(MemoryTransport::new())
        .subscribe("tick", "latency", move |Json(number): Json<i64>| {
            let _ = handled.send((number, Instant::now()));
            std::future::ready(())
        })
        .start()
        .await
        .unwrap();
    db.execute_batch("PRAGMA synchronous = FULL; CREATE TABLE ticks (number INTEGER PRIMARY KEY)").unwrap();

    let mut histogram = Histogram::<u64>::new(3).unwrap();
    for number in 0..MESSAGES as i64 {
        let tx = db.transaction().unwrap();
        tx.execute("INSERT INTO ticks VALUES (?1)", [number]).unwrap();
        cap.publish_in(&tx, "tick", &number).unwrap();
        tx.commit().unwrap();
        let committed = Instant::now();
        let (arrived, at) = arrivals.recv().await.unwrap();
        assert_eq!(arrived, number);
        histogram.record(u64::try_from((at - committed).as_micros()).unwrap()).unwrap();
        tokio::time::sleep(PAUSE).await;
    }
    cap.stop().await;
    let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "commit to handler, {MESSAGES} messages on an idle engine: p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        ms(0.5),
        ms(0.95),
        ms(0.99),
        histogram.max() as f64 / 1000.0
    );
}
