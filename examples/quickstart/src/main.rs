//! Reads orders, one JSON object a line, and writes each with an `order.placed` message in one SQLite transaction. A
//! handler in the group `billing` writes an invoice for each into the same file. Interrupt it at any moment, run it again
//! on the same `--db`, and it finishes what was left: there is exactly one invoice for each order.
//!
//! ```text
//! cargo run -p quickstart -- [--input FILE] [--db FILE]
//! ```
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program for the terminal")]

mod arguments;
mod progress;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cap::memory::MemoryTransport;
use cap::sqlite::{SqliteStorage, SqliteTx};
use cap::{Cap, Json, Options, Subscribe};
use serde::{Deserialize, Serialize};

use crate::arguments::Arguments;
use crate::progress::Progress;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Serialize, Deserialize)]
struct Order {
    id: String,
    customer: String,
    amount: f64,
}

/// In bytes.
const LONGEST_LINE: u64 = 1 << 20;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, customer TEXT NOT NULL, amount REAL NOT NULL);
    CREATE TABLE IF NOT EXISTS invoices (order_id TEXT NOT NULL, amount REAL NOT NULL);";

/// Writes the invoice. This insert and the record that says that the message is handled are one commit.
fn bill(tx: &mut SqliteTx<'_>, Json(order): Json<Order>) -> Result<(), rusqlite::Error> {
    tx.execute("INSERT INTO invoices (order_id, amount) VALUES (?1, ?2)", (&order.id, order.amount))?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(Some(arguments)) => run(arguments).await,
        Ok(None) => {
            println!("{}", arguments::HELP);
            Ok(())
        }
        Err(wrong) => Err(wrong.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Error> {
    let temporary = Temporary::new()?;
    let file = arguments.db.clone().unwrap_or_else(|| temporary.0.join("quickstart.db"));
    let mut lines = open(&arguments.input)?;
    let mut db =
        rusqlite::Connection::open(&file).map_err(|error| format!("cannot open {}: {error}", file.display()))?;
    db.busy_timeout(Duration::from_secs(30))?;

    let handled = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&handled);
    let storage = SqliteStorage::open(&file)?;
    let cap = Cap::builder()
        .storage(storage.clone())
        .transport(MemoryTransport::new())
        // What a killed run still held is taken over this much later.
        .options(Options { lease: Duration::from_secs(3), heartbeat: Duration::from_secs(1), ..Options::default() })
        .subscription(Subscribe::transactional("order.placed", &storage, bill).group("billing").concurrency(64))
        .on_step(move |step, _| {
            if step == cap::Step::InboxSettled {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        })
        .start()
        .await?;
    db.execute_batch(TABLES)?;

    let stop = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(Progress::begin());

    let reading = {
        let (cap, stop, handled) = (cap.clone(), Arc::clone(&stop), Arc::clone(&handled));
        let (progress, file) = (Arc::clone(&progress), file.clone());
        tokio::task::spawn_blocking(move || -> Result<(u64, u64), Error> {
            let (mut committed, mut rejected) = (0, 0);
            let mut line = Vec::new();
            for number in 1.. {
                if stop.load(Ordering::Relaxed) || !next_line(&mut lines, &mut line)? {
                    break;
                }
                if line.trim_ascii().is_empty() {
                    continue;
                }
                match place(&mut db, &cap, &line)
                    .map_err(|error| format!("line {number}: cannot write to {}: {error}", file.display()))?
                {
                    None => committed += 1,
                    Some(reason) => {
                        rejected += 1;
                        progress.tell(&format!("line {number}: {reason}; nothing of it was written"));
                    }
                }
                progress.say(&format!("{committed} orders committed, {} handled", handled.load(Ordering::Relaxed)));
            }
            Ok((committed, rejected))
        })
    };
    let finished = async {
        let counts = reading.await??;
        progress.say(&format!("{} orders committed, handling the rest", counts.0));
        Ok::<_, Error>(counts)
    };
    tokio::pin!(finished);
    let (committed, rejected) = tokio::select! {
        counts = &mut finished => {
            let counts = counts?;
            tokio::select! {
                idle = cap.wait_idle() => idle?,
                _ = tokio::signal::ctrl_c() => interrupted(&progress),
            }
            counts
        }
        _ = tokio::signal::ctrl_c() => {
            interrupted(&progress);
            stop.store(true, Ordering::Relaxed);
            finished.await?
        }
    };
    cap.stop().await;
    progress.end();
    let (invoices, in_flight) = totals(&file)?;
    println!(
        "orders committed: {committed}, lines rejected: {rejected}, messages handled: {}, invoices: {invoices}, in flight: {in_flight}",
        handled.load(Ordering::Relaxed)
    );
    Ok(())
}

/// Writes one order and its message in one transaction. Answers why the line was rejected, if it was: dropping the
/// transaction then takes everything back. An error is the database's, and ends the run.
fn place(db: &mut rusqlite::Connection, cap: &Cap<SqliteStorage>, line: &[u8]) -> Result<Option<String>, Error> {
    let order: Order = match serde_json::from_slice(line) {
        Ok(order) => order,
        Err(error) => return Ok(Some(format!("it is no order: {error}"))),
    };
    if order.id.is_empty() {
        return Ok(Some("its id is empty".into()));
    }
    if order.amount < 0.0 {
        return Ok(Some(format!("order {:?} has the negative amount {}", order.id, order.amount)));
    }
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let insert = "INSERT INTO orders (id, customer, amount) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    if tx.prepare(insert)?.execute((&order.id, &order.customer, order.amount))? == 0 {
        return Ok(Some(format!("the order id {:?} was seen before", order.id)));
    }
    match cap.publish_in(&tx, "order.placed", &order) {
        Ok(_) => tx.commit()?,
        Err(error) if error.kind() == cap::ErrorKind::Invalid => return Ok(Some(error.to_string())),
        Err(error) => return Err(error.into()),
    }
    Ok(None)
}

/// Reads the next line into `line`; `false` at the end. Of an over-long line only the head is kept, which is no order.
fn next_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    if input.take(LONGEST_LINE).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    let mut rest = Vec::new();
    while line.len() as u64 >= LONGEST_LINE && !rest.ends_with(b"\n") {
        rest.clear();
        if input.take(LONGEST_LINE).read_until(b'\n', &mut rest)? == 0 {
            break;
        }
    }
    Ok(true)
}

fn open(input: &Path) -> Result<Box<dyn BufRead + Send>, Error> {
    if input == Path::new("-") {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let file = File::open(input).map_err(|error| format!("cannot read {}: {error}", input.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

fn interrupted(progress: &Progress) {
    progress.tell("interrupted: run it again with the same --db and it finishes what is left");
}

/// A folder that goes with this.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> std::io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("cap-quickstart-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is the system's to clean up.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Invoices in the file, and messages that are not yet handled.
fn totals(file: &Path) -> Result<(i64, i64), Error> {
    let db = rusqlite::Connection::open(file)?;
    let count = |sql: &str| db.query_row(sql, (), |row| row.get::<_, i64>(0));
    let open = "(StatusName NOT IN ('Succeeded', 'Failed') OR DueAt IS NOT NULL)";
    let published = count(&format!(r#"SELECT count(*) FROM "cap.published" WHERE {open}"#))?;
    let received = count(&format!(r#"SELECT count(*) FROM "cap.received" WHERE {open}"#))?;
    Ok((count("SELECT count(*) FROM invoices")?, published + received))
}
