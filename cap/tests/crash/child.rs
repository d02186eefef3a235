//! The process that is killed.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cap::memory::MemoryTransport;
use cap::sqlite::{SqliteStorage, SqliteTx};
use cap::{Cap, HandlerError, Json, Options, Publish, RetryPolicy, Step, Subscribe};
use serde::{Deserialize, Serialize};

/// The lease of the child's node: what a killed child held is taken over this much later.
pub(crate) const LEASE: Duration = Duration::from_millis(600);

/// What the child is told, through its environment.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) file: PathBuf,
    /// Orders are numbered from here on.
    pub(crate) first: i64,
    /// How many to place; every fifth is rolled back.
    pub(crate) count: i64,
    /// Stand still, to be killed, when this step is done for the so manieth time.
    pub(crate) halt: Option<(String, u64)>,
    /// Publish, before the orders, a message whose handler kills the process.
    pub(crate) deadly: bool,
}

const ORDER: &str = "CAP_CRASH_ORDER";

impl Order {
    pub(crate) fn from_environment() -> Option<Self> {
        std::env::var(ORDER).ok().map(|text| serde_json::from_str(&text).unwrap())
    }

    pub(crate) fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.env(ORDER, serde_json::to_string(self).unwrap());
        command
    }
}

#[derive(Serialize, Deserialize)]
struct Placed {
    number: i64,
}

/// One commit with the record's success; also publishes, in the same commit.
fn bill(tx: &mut SqliteTx<'_>, Json(placed): Json<Placed>, outbox: cap::Outbox) -> Result<(), HandlerError> {
    tx.execute("INSERT INTO invoices (number) VALUES (?1)", [placed.number])?;
    outbox.publish("order.billed", &placed)?;
    Ok(())
}

/// After so many crashes the deadly message is given up.
pub(crate) const DEADLY_LIMIT: u32 = 6;

/// Takes its process down, while its slow neighbours are at work.
async fn deadly() {
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::process::abort();
}

/// Takes longer than the deadly one lets it, unless that one is not beside it.
async fn slow() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
pub(crate) async fn run(order: Order) {
    let mut db = rusqlite::Connection::open(&order.file).unwrap();
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    let storage = SqliteStorage::open(&order.file).unwrap();
    let notices = Arc::new(Mutex::new(rusqlite::Connection::open(&order.file).unwrap()));
    notices.lock().unwrap().busy_timeout(Duration::from_secs(20)).unwrap();
    let notice = move |Json(placed): Json<Placed>| {
        let notices = Arc::clone(&notices);
        async move {
            tokio::task::spawn_blocking(move || {
                let db = notices.lock().unwrap();
                db.execute("INSERT INTO notices (number) VALUES (?1)", [placed.number])
            })
            .await
            .map_err(HandlerError::from)?
            .map_err(HandlerError::from)?;
            Ok::<_, HandlerError>(())
        }
    };
    let retry = RetryPolicy { crashes: DEADLY_LIMIT, ..RetryPolicy::fixed(1, Duration::ZERO) };
    let halt = order.halt.clone();
    let seen = AtomicU64::new(0);
    let cap = Cap::builder()
        .storage(storage.clone())
        .transport(MemoryTransport::new())
        .options(Options { lease: LEASE, heartbeat: LEASE / 4, ..Options::default() })
        .subscription(Subscribe::transactional("order.placed", &storage, bill).group("billing").concurrency(8))
        .subscription(Subscribe::to("order.billed", notice).group("notices").concurrency(4))
        .subscription(Subscribe::to("order.deadly", deadly).group("billing").retry(retry.clone()))
        .subscription(Subscribe::to("order.slow", slow).group("slow").concurrency(8).retry(retry))
        .subscribe("order.ignored", "ignored", async || {})
        .on_step(move |step, _| halt_at(step, halt.as_ref(), &seen))
        .start()
        .await
        .unwrap();

    if order.deadly {
        let neighbours = (0..5).map(|n| Publish::json("order.slow", &n));
        cap.publish_many(neighbours.chain([Publish::json("order.deadly", &())])).await.unwrap();
    }
    let publisher = cap.clone();
    let (first, count) = (order.first, order.count);
    let placing = tokio::task::spawn_blocking(move || {
        for number in first..first + count {
            let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
            tx.execute("INSERT INTO orders (number) VALUES (?1)", [number]).unwrap();
            let publish = Publish::json("order.placed", &Placed { number }).id(format!("order-{number}"));
            publisher.publish_many_in(&tx, [publish]).unwrap();
            if number % 5 == 4 {
                tx.rollback().unwrap();
            } else {
                tx.commit().unwrap();
            }
        }
    });
    // Publishing on its own, too, so that its step is passed.
    if order.halt.as_ref().is_some_and(|(step, _)| *step == format!("{:?}", Step::Published)) {
        cap.publish("order.ignored", &1).await.unwrap();
    }
    placing.await.unwrap();
    cap.wait_idle().await.unwrap();
    cap.stop().await;
}

/// Tells the parent, and stands still until it kills.
fn halt_at(step: Step, halt: Option<&(String, u64)>, seen: &AtomicU64) {
    let Some((name, at)) = halt else { return };
    if *name == format!("{step:?}") && seen.fetch_add(1, Ordering::Relaxed) + 1 == *at {
        println!("halted");
        std::io::stdout().flush().unwrap();
        loop {
            std::thread::park();
        }
    }
}
