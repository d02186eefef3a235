//! CAP's storage in MongoDB, which may be the cluster of your business data.
//!
//! ```no_run
//! use cap_core::storage::{Enlist, NewRecord, Storage};
//! use cap_core::{Due, MessageId, Topic, Version, lifecycle};
//! use cap_storage_mongo::mongodb::{Client, bson::{Document, doc}};
//! use cap_storage_mongo::MongoStorage;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::with_uri_str("mongodb://orders:secret@db.example.com/?replicaSet=rs0").await?;
//! let storage = MongoStorage::new(client.clone());
//! storage.prepare().await?;
//!
//! // Your own session, and your own transaction.
//! let orders = client.database("shop").collection::<Document>("orders");
//! let mut session = client.start_session().await?;
//! session.start_transaction().await?;
//! orders.insert_one(doc! { "item": "book" }).session(&mut session).await?;
//! storage.enlist(&mut session, vec![NewRecord { // what `cap.publish_in(&mut session, …)` does
//!     message_id: MessageId::generate(),
//!     version: Version::default(),
//!     topic: Topic::try_from("order.placed")?,
//!     group: None,
//!     content: "{}".into(),
//!     state: lifecycle::scheduled(Due::Now),
//! }]).await?;
//! session.commit_transaction().await?; // the order and the message, or neither
//! # Ok(())
//! # }
//! ```
//!
//! # What it guarantees
//! - **Any number of nodes.** Claims are updates of single documents: a record is in one of them, and none waits for an
//!   open transaction. A claim looks at its node's lease again after it has written, so that a takeover, which forgets
//!   the node first, either sees what was claimed or makes the claim be given back.
//! - **Nobody waits for an open transaction.** A record that one has written is settled later, those beside it at once;
//!   an insert of what is there is a duplicate; a takeover comes again.
//! - **Batches.** A batch is inserted, claimed or settled in a few commands, whatever its size, and in one transaction
//!   where it must be all or nothing.
//! - **Nothing but the insert** is in your transaction. A message whose id is there already leaves it usable: it is an
//!   upsert, as an error would end the transaction.
//! - **Writes that last.** Write concern `majority`, journaled, and reads of the primary of what a majority has, whatever
//!   the URL says.
//! - **CAP's collections.** They have the names and fields of .NET CAP's, and those that it has left are taken over.
//!
//! # The clock
//! "Now" is the server's, in milliseconds, which is what BSON's dates have. A session that publishes looks at it every ten
//! seconds at most; in between, the process's monotonic clock counts on from there. Times that are given finer are rounded
//! up, so that nothing is due too early. Of records that are due in the same millisecond the smaller address is first.
//!
//! # Addresses
//! MongoDB has no sequence, and a counter in a document would put all publishers in a row. So addresses (`_id`, as in
//! CAP a 64-bit integer) are made by the process: the hour in the upper 20 bits, below it a number that each process
//! counts up from a random start of that hour. `_id` is unique; should two processes ever meet, the insert is done again
//! with others.
//!
//! # Transactions
//! A transaction of MongoDB that meets a document which another one has written, fails at once with the label
//! `TransientTransactionError`, and is done again: the storage does so with its own. In yours the error passes through
//! as `Unavailable`; [`driver_error`] finds the driver's own error in it, with its labels.
//!
//! # Files of this crate
//! In the order in which the data flows: `config` (options), `commands` (every filter, update, pipeline and index),
//! `schema` (migrations applied), `session` (clients, transactions, time limits), `clock`, `address`, `row` (records to and from
//! documents), `insert`, `claim`, `settle`, `lease`, `inspect`, `storage`, `enlist`, `transact`, `watch`, `error`.

mod address;
mod claim;
mod clock;
mod commands;
mod config;
mod enlist;
mod error;
mod insert;
mod inspect;
mod lease;
mod lsid;
mod row;
mod schema;
mod session;
mod settle;
mod storage;
mod transact;
mod watch;

pub use config::MongoOptions;
pub use error::driver_error;
pub use storage::MongoStorage;
pub use transact::MongoTransaction;

/// The driver, in the version that this crate uses.
pub use mongodb;
