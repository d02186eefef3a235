//! **CAP for Rust** moves a fact from a database transaction in one service to a handler in another, through any broker,
//! and loses it under no circumstances.
//!
//! A message is a row in the publisher's own database, written in the same transaction as the business data (the
//! outbox). A relay sends it. The receiver writes it into its own database (the inbox) before it tells the broker that
//! it has it. A handler runs, and the row records what happened.
//!
//! This crate is the facade: features pick the backends, everything else comes from [`cap_core`] (messages, and the traits
//! of backends) and [`cap_engine`] (what publishes, sends and handles), both re-exported here.
//!
//! | feature | adds | crates | build |
//! |---|---|---|---|
//! | `sqlite` (default) | [`sqlite::SqliteStorage`] | 12, and SQLite in C | 12 s |
//! | `memory` (default) | [`memory::MemoryTransport`], [`memory::MemoryStorage`] | 2 | 2 s |
//! | `mysql` | `mysql::MySqlStorage`, also for MariaDB | 92 | 51 s |
//! | `postgres` | `postgres::PostgresStorage` | 110 | 53 s |
//! | `mongo` | `mongo::MongoStorage` | 100 | 89 s |
//! | `mongo-srv` | URLs of the form `mongodb+srv://…` for it | | |
//! | `rabbitmq` | `rabbitmq::RabbitMq` | 130 | 75 s |
//! | `rabbitmq-management` | its option `management_url`, for telling which topics have no queue | 5 more | |
//! | `kafka` | `kafka::Kafka` | 26, and librdkafka and OpenSSL in C and C++ | 287 s |
//! | `full` | all of them | 267 | 451 s |
//!
//! The crates are those that a feature alone brings beyond the 42 of the core (as of November 2026, on Linux); most of what
//! the network drivers bring, such as TLS, they share. The build is what they add to the 24 s of the core: seconds of CPU
//! time for a first build without optimizations, which several cores share among them.
//!
//! # Example
#![cfg_attr(all(feature = "sqlite", feature = "memory"), doc = "```")]
#![cfg_attr(not(all(feature = "sqlite", feature = "memory")), doc = "```ignore")]
//! use cap::{Cap, Json, Result};
//! use cap::memory::MemoryTransport;
//! use cap::sqlite::{SqliteStorage, SqliteTx};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Order { id: String, amount: f64 }
//!
//! // Its insert, and the record that says that the message is handled, are one commit.
//! fn bill(tx: &mut SqliteTx<'_>, Json(order): Json<Order>) -> std::result::Result<(), rusqlite::Error> {
//!     tx.execute("INSERT INTO invoices VALUES (?1, ?2)", (&order.id, order.amount)).map(|_| ())
//! }
//!
//! # #[tokio::main(flavor = "multi_thread", worker_threads = 2)]
//! # async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("shop.db");
//! let mut db = rusqlite::Connection::open(&file)?;
//! db.execute_batch("CREATE TABLE orders (id, amount); CREATE TABLE invoices (order_id, amount)")?;
//!
//! let cap = Cap::builder()
//!     .storage(SqliteStorage::open(&file)?)
//!     .transport(MemoryTransport::new())
//!     .subscribe_in_tx("order.placed", "billing", bill)
//!     .start()
//!     .await?;
//!
//! let order = Order { id: "A-1".into(), amount: 12.5 };
//! let tx = db.transaction()?;
//! tx.execute("INSERT INTO orders VALUES (?1, ?2)", (&order.id, order.amount))?;
//! cap.publish_in(&tx, "order.placed", &order)?;
//! tx.commit()?; // sent from here on; a rollback would have taken the message back, too
//!
//! cap.wait_idle().await?;
//! let invoices: i64 = db.query_row("SELECT count(*) FROM invoices", (), |row| row.get(0))?;
//! assert_eq!(invoices, 1);
//! cap.stop().await;
//! # Ok(())
//! # }
//! ```

pub use cap_core::*;
pub use cap_engine::*;

/// What the README shows compiles.
#[cfg(all(doctest, feature = "sqlite", feature = "memory", feature = "postgres", feature = "rabbitmq"))]
#[doc = include_str!("../../README.md")]
struct Readme;

/// What the page for those who come from .NET CAP shows compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/from-cap.md")]
struct FromCap;

/// SQLite as storage.
#[cfg(feature = "sqlite")]
pub mod sqlite {
    pub use cap_storage_sqlite::*;
}

/// Storage and transport inside the process.
#[cfg(feature = "memory-transport")]
pub mod memory {
    #[cfg(feature = "memory")]
    pub use cap_storage_memory::*;
    pub use cap_transport_memory::*;
}

/// MySQL or MariaDB as storage.
#[cfg(feature = "mysql")]
pub mod mysql {
    pub use cap_storage_mysql::*;
}

/// PostgreSQL as storage.
#[cfg(feature = "postgres")]
pub mod postgres {
    pub use cap_storage_postgres::*;
}

/// MongoDB as storage.
#[cfg(feature = "mongo")]
pub mod mongo {
    pub use cap_storage_mongo::*;
}

/// RabbitMQ as transport.
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq {
    pub use cap_transport_rabbitmq::*;
}

/// Kafka as transport.
#[cfg(feature = "kafka")]
pub mod kafka {
    pub use cap_transport_kafka::*;
}
