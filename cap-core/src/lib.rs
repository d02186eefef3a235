//! The core of CAP for Rust: the message lifecycle, the two traits that backends implement, the engine, and the API for
//! publishing and subscribing. It names no database and no broker.
//!
//! Applications use the facade crate `cap`, which re-exports all of this beside the backends that its features pick.
//! Backends depend on this crate alone: see [`storage`] and [`transport`] for what they must promise, and [`backend`] for
//! what they have in common.

pub mod backend;
pub mod codec;
pub mod content;
mod engine;
pub mod error;
pub mod handler;
pub mod headers;
pub mod id;
pub mod lifecycle;
mod message;
mod name;
mod options;
pub mod pattern;
mod publish;
mod shown;
pub mod storage;
pub mod time;
pub mod transport;

pub use codec::{Codec, JsonCodec};
pub use content::StoredForm;
pub use engine::{Cap, CapBuilder, DeadLetter, Health, LoopHealth, NoStorage, PublishedIn, Step, Subscribe, Waiting};
pub use error::{Error, ErrorKind, Result};
pub use handler::{Context, HandlerError, Json, Outbox, State, Tx};
pub use headers::Headers;
pub use id::{ClaimToken, MessageId, NodeId, RecordId};
pub use lifecycle::{Backoff, Limit, RetryPolicy, Status, Unroutable};
pub use message::Message;
pub use name::{Group, MAX_NAME, MAX_VERSION, Topic, Version};
pub use options::Options;
pub use pattern::TopicPattern;
pub use publish::{Publish, Published};
pub use shown::{Shown, shown};
pub use storage::{BoxFuture, Storage, Table};
pub use time::{Due, Timestamp, micros};
pub use transport::Transport;
