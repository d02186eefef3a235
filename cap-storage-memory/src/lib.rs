//! The storage of CAP for Rust in process memory.
//!
//! It keeps every promise of [`Storage`](cap_core::Storage) but one: nothing outlives the process. Use it in tests, in
//! development, and where messages may die with the process that published them.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), cap_core::Error> {
//! use cap_core::Storage as _;
//! use cap_storage_memory::MemoryStorage;
//!
//! let storage = MemoryStorage::new();
//! storage.prepare().await?;
//!
//! let mut tx = storage.begin();
//! tx.put("order/1", "placed"); // a business row; messages are published with `publish_in(&mut tx, …)`
//! tx.commit();
//! assert_eq!(storage.get("order/1").as_deref(), Some("placed"));
//! # Ok(())
//! # }
//! ```

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod config;
mod enlist;
mod state;
mod storage;
mod transact;

pub use config::MemoryStorageOptions;
pub use enlist::{MemoryTransaction, Savepoint};
pub use storage::MemoryStorage;
