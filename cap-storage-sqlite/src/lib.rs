//! CAP's storage in a SQLite file, which may be the file of your business data.
//!
//! ```
//! use cap_core::storage::{Enlist, NewRecord, Storage};
//! use cap_core::{Due, MessageId, Topic, Version, lifecycle};
//! use cap_storage_sqlite::{SqliteStorage, rusqlite};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("orders.db");
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! let storage = SqliteStorage::open(&path)?;
//! # runtime.block_on(async {
//! storage.prepare().await?;
//! # cap_core::Result::<()>::Ok(()) })?;
//!
//! // Your own connection to the same file, and your own transaction.
//! let mut connection = rusqlite::Connection::open(&path)?;
//! let tx = connection.transaction()?;
//! tx.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT)", [])?;
//! tx.execute("INSERT INTO orders (item) VALUES ('book')", [])?;
//! storage.enlist(&tx, vec![NewRecord { // what `cap.publish_in(&tx, …)` does
//!     message_id: MessageId::generate(),
//!     version: Version::default(),
//!     topic: Topic::try_from("order.placed")?,
//!     group: None,
//!     content: "{}".into(),
//!     state: lifecycle::scheduled(Due::Now),
//! }])?;
//! tx.commit()?; // the order and the message, or neither
//! # Ok(())
//! # }
//! ```
//!
//! # What it guarantees
//! - **One file, many writers.** Several engines, threads and processes on one host may use the file at once; SQLite's
//!   write lock puts them in order. It is not for network file systems.
//! - **Write-ahead log.** It is turned on (the file keeps the setting), so that readers and
//!   the writer do not wait for each other.
//! - **Durability.** With [`Synchronous::Full`] what was answered survives a loss of power; with
//!   [`Synchronous::Normal`] it survives any crash of the process, and a loss of power may take the last commits.
//! - **Group commit.** Everything that waits is written in one transaction with one `fsync`, each piece in its own
//!   savepoint, so that one that fails takes no other with it.
//! - **Leases outlast handlers.** While a transactional handler has the one writer, heartbeats are answered on a promise
//!   that its transaction keeps; claims and settlements wait. See [`SqliteTx`].
//! - **Your tables are yours.** It touches none but its own five; see [`SqliteOptions::prefix`].
//!
//! # The clock
//! "Now" is SQLite's, which is the host's, in UTC; it ticks in milliseconds. Times are stored as integers, in
//! microseconds since 1970. See them in the `sqlite3` shell with `datetime(DueAt / 1000000, 'unixepoch')`.
//!
//! # Your own connections
//! Set a busy timeout on them, and begin a transaction that will write with `BEGIN IMMEDIATE`
//! ([`TransactionBehavior::Immediate`](rusqlite::TransactionBehavior::Immediate)): one that reads first and then
//! writes is told `database is locked` at once if another has written in between.
//!
//! # Files of this crate
//! In the order in which the data flows: `config` (options), `sql` (every statement), `schema` (migrations), `identity`
//! (which file is open), `session` (a connection and its statements), `job` (work for a thread), `writer`, `reader`,
//! `row` (records to and from rows), `insert`, `claim`, `settle`, `lease`,
//! `promises` (leases while a handler works), `inspect`, `storage`, `enlist`, `transact`, `watch`, `error`.

mod claim;
mod config;
mod enlist;
mod error;
mod identity;
mod insert;
mod inspect;
mod job;
mod lease;
mod promises;
mod reader;
mod row;
mod schema;
mod session;
mod settle;
mod sql;
mod storage;
mod transact;
mod watch;
mod writer;

pub use config::{SqliteOptions, Synchronous};
pub use storage::SqliteStorage;
pub use transact::SqliteTx;

/// The driver, in the version that this crate uses.
pub use rusqlite;
