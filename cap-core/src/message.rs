//! A message as it is published, sent and handled.

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::codec::{self, Codec};
use crate::error::{Error, ErrorKind, Result};
use crate::headers::{self, Headers};
use crate::id::MessageId;
use crate::name::Topic;

/// What is published: id, topic, headers and payload. Cheap to clone but for its headers.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Identifies it everywhere.
    pub id: MessageId,
    /// What it is about.
    pub topic: Topic,
    /// Its metadata, CAP's own headers included.
    pub headers: Headers,
    /// Its bytes: JSON unless [`Message::content_type`] says otherwise.
    pub payload: Bytes,
}

impl Message {
    /// The payload's media type: JSON where nothing else is said.
    pub fn content_type(&self) -> &str {
        self.headers.get(headers::CONTENT_TYPE).unwrap_or(codec::JSON)
    }

    /// The topic that a reply is wanted on.
    pub fn callback(&self) -> Option<&str> {
        self.headers.get(headers::CALLBACK_NAME).filter(|topic| !topic.is_empty())
    }

    /// The payload as a value of type `T`.
    ///
    /// # Errors
    /// `Corrupt` when the payload is declared to be other than JSON, or is no JSON value of that type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        if !self.content_type().starts_with(codec::JSON) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "decode from JSON",
                format!("message {}", self.id),
                format!("its content type is {:?}", self.content_type()),
            ));
        }
        codec::decode_json(&self.payload)
    }

    /// The payload by `codec`.
    ///
    /// # Errors
    /// Those of the codec.
    pub fn decode<T>(&self, codec: &impl Codec<T>) -> Result<T> {
        codec.decode(&self.payload)
    }
}

impl fmt::Debug for Message {
    /// Without the payload and the headers' values: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("topic", &self.topic)
            .field("headers", &self.headers)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}
