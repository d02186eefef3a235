//! Publishing: a message is prepared here, purely, and becomes an outbox record.

mod batcher;
mod prepare;

pub(crate) use batcher::{Batcher, Batches, insert_jobs, unknown};
pub(crate) use prepare::{Preparer, Reserved, json_bytes};

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cap_core::{Codec, Due, Headers, MessageId, Result, codec, headers};
use serde::Serialize;

/// A message to be published, with everything that can be said about it.
///
/// ```
/// use std::time::Duration;
/// use cap_engine::Publish;
///
/// let reminder = Publish::json("invoice.remind", &42)
///     .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
///     .callback("invoice.reminded")
///     .id("invoice-42-reminder-1") // published again: `Duplicate`, not a second message
///     .delay(Duration::from_secs(3600));
/// ```
#[derive(Debug, Clone)]
#[must_use = "it does nothing until it is published"]
pub struct Publish {
    topic: String,
    payload: Result<Bytes>,
    type_name: &'static str,
    content_type: Option<String>,
    headers: Headers,
    callback: Option<String>,
    id: Option<String>,
    /// Whether the caller chose the id.
    is_own_id: bool,
    due: Due,
    delay: Option<Duration>,
    prefixed: bool,
}

impl Publish {
    /// A message whose payload is `value` as JSON.
    pub fn json<T: Serialize + ?Sized>(topic: impl Into<String>, value: &T) -> Self {
        Self::new(topic.into(), codec::encode_json(value), codec::type_name::<T>(), None)
    }

    /// A message whose payload is `value` in the format of `codec`.
    pub fn encoded<T, C: Codec<T>>(topic: impl Into<String>, value: &T, codec: &C) -> Self {
        let content_type = Some(codec.content_type().to_owned()).filter(|media_type| media_type != codec::JSON);
        Self::new(topic.into(), codec.encode(value), codec::type_name::<T>(), content_type)
    }

    /// A message whose payload is already bytes of the given media type; kept to the byte.
    pub fn bytes(topic: impl Into<String>, payload: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        let content_type = Some(content_type.into()).filter(|media_type| media_type != codec::JSON);
        Self::new(topic.into(), Ok(payload.into()), "bytes", content_type)
    }

    fn new(topic: String, payload: Result<Bytes>, type_name: &'static str, content_type: Option<String>) -> Self {
        Self {
            topic,
            payload,
            type_name,
            content_type,
            headers: Headers::new(),
            callback: None,
            id: None,
            is_own_id: false,
            due: Due::Now,
            delay: None,
            prefixed: false,
        }
    }

    /// The topic has the engine's prefix already: it comes from a header that was prefixed when it was published.
    pub(crate) fn topic_is_final(&mut self) {
        self.prefixed = true;
    }

    /// Gives it the id that `derive` makes of topic and payload, unless it has one of its own.
    pub(crate) fn id_or_derived(mut self, derive: impl FnOnce(&str, &[u8]) -> MessageId) -> Self {
        if let (None, Ok(payload)) = (&self.id, &self.payload) {
            self.id = Some(derive(&self.topic, payload).to_string());
        }
        self
    }

    /// Adds a header. Reserved names (those that publishing sets, see [`cap_core::headers`]) are refused when publishing.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.set(Into::<String>::into(name), value);
        self
    }

    /// Belongs to the trace of the message with these headers, unless it was given one.
    pub(crate) fn traced_as(mut self, origin: &Headers) -> Self {
        if self.headers.get(headers::TRACE[0]).is_none() {
            for name in headers::TRACE {
                origin.get(name).into_iter().for_each(|value| self.headers.set(name, value));
            }
        }
        self
    }

    /// Asks for the handlers' replies on `topic`.
    pub fn callback(mut self, topic: impl Into<String>) -> Self {
        self.callback = Some(topic.into());
        self
    }

    /// Gives it an id of your own, for idempotent publishing: a second message with the same id, whatever its topic, is
    /// answered as `Duplicate` and not stored, as long as the first is kept (24 h after it was sent, by default). It means
    /// something only beside this service ([`Options::service`](crate::Options::service)): another may choose the same.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        (self.id, self.is_own_id) = (Some(id.into()), true);
        self
    }

    /// To be sent this long after it is published, by the database's clock.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay).filter(|delay| !delay.is_zero());
        self.due = self.delay.map_or(Due::Now, Due::In);
        self
    }

    /// To be sent at `moment`, by the database's clock. A moment that has passed means at once.
    pub fn at(mut self, moment: SystemTime) -> Self {
        self.delay = None;
        self.due = Due::At(moment.into());
        self
    }
}
