//! CAP's storage in a PostgreSQL database, which may be the database of your business data.
//!
//! ```no_run
//! use cap_core::storage::{Enlist, NewRecord, Storage};
//! use cap_core::{Due, MessageId, Topic, Version, lifecycle};
//! use cap_storage_postgres::{PostgresStorage, sqlx};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = sqlx::PgPool::connect("postgres://orders:secret@db.example.com/orders").await?;
//! let storage = PostgresStorage::new(pool.clone());
//! storage.prepare().await?;
//!
//! // Your own connection, and your own transaction.
//! let mut tx = pool.begin().await?;
//! sqlx::query("INSERT INTO orders (item) VALUES ($1)").bind("book").execute(&mut *tx).await?;
//! storage.enlist(&mut tx, vec![NewRecord { // what `cap.publish_in(&mut tx, …)` does
//!     message_id: MessageId::generate(),
//!     version: Version::default(),
//!     topic: Topic::try_from("order.placed")?,
//!     group: None,
//!     content: "{}".into(),
//!     state: lifecycle::scheduled(Due::Now),
//! }]).await?;
//! tx.commit().await?; // the order and the message, or neither
//! # Ok(())
//! # }
//! ```
//!
//! # What it guarantees
//! - **Any number of nodes.** A claim takes what others have not (`SKIP LOCKED`) and waits for nobody. A claim and a
//!   takeover from its node put each other in order by the node's row.
//! - **One statement.** A batch is inserted, claimed or settled in one statement and one round trip, whatever its size,
//!   and its text is always the same.
//! - **Nothing but the insert** is in your transaction. A message whose id is there already leaves it usable; a
//!   savepoint takes back what was published in it.
//! - **Plans that hold.** What runs often follows an index in its order, also with statistics of yesterday.
//! - **CAP's tables.** They have the names and columns of .NET CAP's, and tables that it has left are taken over.
//!
//! # The clock
//! "Now" is the server's, one value for each statement, whatever the time zone of the session. `Added` and
//! `ExpiresAt`, which have no zone, are in UTC; `DueAt` and leases are of type `TIMESTAMPTZ`.
//!
//! # Commits of others
//! A `NOTIFY` makes commits wait for each other, server-wide. So none is in a transaction that writes: after inserts of
//! its own the storage sends a separate one, at most five a second. Messages that a transaction of yours publishes are
//! relayed by your own process at once; other processes find them when they poll.
//!
//! # Files of this crate
//! In the order in which the data flows: `config` (options), `sql` (every statement) and `migrations/`, `schema`
//! (migrations applied), `session` (pools, time limits), `pooler`, `row` (records to and from rows), `insert`, `claim`, `floor`,
//! `settle`, `lease`, `inspect`, `storage`, `enlist`, `transact`, `watch`, `error`.

mod claim;
mod config;
mod enlist;
mod error;
mod floor;
mod insert;
mod inspect;
mod lease;
#[cfg(test)]
mod plans;
mod policy;
mod pooler;
mod publish;
mod row;
mod schema;
mod sequence;
mod session;
mod settle;
mod sql;
mod storage;
mod transact;
mod watch;

pub use config::PostgresOptions;
pub use storage::PostgresStorage;

/// The driver, in the version that this crate uses.
pub use sqlx;
