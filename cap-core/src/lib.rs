//! The core of CAP for Rust: messages, their lifecycle, and the two traits that backends implement. It names no database,
//! no broker and nothing of the engine that drives them (the crate `cap-engine`): a change there is no change here.
//!
//! Applications use the facade crate `cap`, which re-exports all of this beside the engine and the backends that its
//! features pick. Backends depend on this crate alone: see [`storage`] and [`transport`] for what they must promise, and
//! [`backend`] for what they have in common.

pub mod backend;
pub mod codec;
pub mod content;
pub mod error;
mod handler_error;
pub mod headers;
pub mod id;
pub mod lifecycle;
mod message;
mod name;
pub mod pattern;
mod published;
mod shown;
pub mod storage;
pub mod time;
pub mod transport;

pub use codec::{Codec, JsonCodec};
pub use content::StoredForm;
pub use error::{Error, ErrorKind, Result};
pub use handler_error::HandlerError;
pub use headers::Headers;
pub use id::{ClaimToken, MessageId, NodeId, RecordId};
pub use lifecycle::{Backoff, Limit, RetryPolicy, Status, Unroutable};
pub use message::Message;
pub use name::{Group, MAX_NAME, MAX_VERSION, Topic, Version};
pub use pattern::TopicPattern;
pub use published::Published;
pub use shown::{Shown, shown};
pub use storage::{BoxFuture, Storage, Table};
pub use time::{Due, Timestamp, micros};
pub use transport::Transport;
