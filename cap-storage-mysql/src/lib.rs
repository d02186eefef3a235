//! CAP's storage in a MySQL or MariaDB database, which may be the database of your business data.
//!
//! ```no_run
//! use cap_core::storage::{Enlist, NewRecord, Storage};
//! use cap_core::{Due, MessageId, Topic, Version, lifecycle};
//! use cap_storage_mysql::{MySqlStorage, sqlx};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = sqlx::MySqlPool::connect("mysql://orders:secret@db.example.com/orders").await?;
//! let storage = MySqlStorage::new(pool.clone());
//! storage.prepare().await?;
//!
//! // Your own connection, and your own transaction.
//! let mut tx = pool.begin().await?;
//! sqlx::query("INSERT INTO orders (item) VALUES (?)").bind("book").execute(&mut *tx).await?;
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
//! - **Few round trips.** A call is one or two scripts, whatever the size of its batch; an insert has one more for each
//!   256 records.
//! - **No deadlock of its own making.** All transactions lock in one order, under `READ COMMITTED`, whatever the session
//!   has. If one is the victim of a conflict all the same, it is done again; in your own transaction you are told.
//! - **Nothing but the insert** is in your transaction. A message whose id is there already leaves it usable; a
//!   savepoint takes back what was published in it.
//! - **Sessions as they are.** It works the same in any sql_mode, time zone, charset and isolation level, and with
//!   `autocommit` off.
//! - **CAP's tables.** They have the names and columns of .NET CAP's, and tables that it has left are taken over.
//!
//! # The clock
//! "Now" is the server's, one value for each statement, in UTC, to the microsecond, whatever the time zone of the session.
//!
//! # Commits of others
//! MySQL has nothing that would tell of them. Messages that this process publishes, also in transactions of yours, are
//! relayed by it at once; other processes find them when they poll.
//!
//! # Files of this crate
//! In the order in which the data flows: `config` (options), `sql` (every statement) and `migrations/`, `script`
//! (statements sent together), `schema` (migrations applied), `server` (which one it is), `session` (pools, time
//! limits), `row` (records to and from rows), `insert`, `claim`, `settle`, `lease`, `inspect`, `storage`, `enlist`,
//! `transact`, `error`.

mod claim;
mod config;
mod enlist;
mod error;
mod insert;
mod inspect;
mod lease;
#[cfg(test)]
mod plans;
mod row;
mod schema;
mod script;
mod server;
mod session;
mod settle;
mod sql;
mod storage;
mod transact;

pub use config::MySqlOptions;
pub use storage::MySqlStorage;

/// The driver, in the version that this crate uses.
pub use sqlx;
