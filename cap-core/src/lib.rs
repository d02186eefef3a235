//! Core of CAP for Rust.
pub mod codec;
pub mod content;
pub mod error;
pub mod handler;
pub mod headers;
pub mod id;
pub mod lifecycle;
pub mod message;
pub mod name;
pub mod pattern;
pub mod publish;
pub mod storage;
pub mod time;
pub mod transport;

pub use codec::{Codec, JsonCodec};
pub use error::{Error, ErrorKind, Result};
pub use handler::HandlerError;
pub use headers::Headers;
pub use id::{ClaimToken, MessageId, NodeId, RecordId};
pub use lifecycle::{Backoff, Limit, RetryPolicy, State, Status};
pub use message::Message;
pub use name::{Group, Topic, Version};
pub use pattern::TopicPattern;
pub use publish::{Publish, Published};
pub use storage::{BoxFuture, Storage};
pub use time::{Due, Timestamp};
pub use transport::Transport;
