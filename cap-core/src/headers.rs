//! A message's metadata: names and text values, CAP's own among them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The message id. Set when publishing.
pub const MESSAGE_ID: &str = "cap-msg-id";
/// The id of the message that this one answers; its own id otherwise.
pub const CORRELATION_ID: &str = "cap-corr-id";
/// How many answers deep this message is: `0`, and one more for each answer.
pub const CORRELATION_SEQUENCE: &str = "cap-corr-seq";
/// The topic.
pub const MESSAGE_NAME: &str = "cap-msg-name";
/// The short name of the payload's type.
pub const MESSAGE_TYPE: &str = "cap-msg-type";
/// The topic that the handler's reply is to be published to.
pub const CALLBACK_NAME: &str = "cap-callback-name";
/// When the message was published, `MM/dd/yyyy HH:mm:ss` in UTC (the form of .NET CAP from 8.3 on).
pub const SENT_TIME: &str = "cap-senttime";
/// The delay of a delayed message, a .NET constant time span `[d.]hh:mm:ss[.fffffff]`.
pub const DELAY_TIME: &str = "cap-delaytime";
/// The effective group name; the receiving side sets it, so it is in inbox records only.
pub const MESSAGE_GROUP: &str = "cap-msg-group";
/// The service that published the message, where the id is one of its own choice: such an id means something only beside it.
/// Ours: .NET CAP passes it through.
pub const PUBLISHER: &str = "cap-publisher";
/// Why an attempt failed, as .NET CAP writes it.
pub const EXCEPTION: &str = "cap-exception";
/// The host that executes the message, as .NET CAP writes it.
pub const EXECUTION_INSTANCE: &str = "cap-exec-instance-id";
/// The ordering key for Kafka; without it the message id is the key.
pub const KAFKA_KEY: &str = "cap-kafka-key";
/// The payload's media type; absent for JSON. Ours: .NET CAP knows only JSON and passes it through.
pub const CONTENT_TYPE: &str = "content-type";

/// What says which trace a message belongs to (W3C Trace Context): messages that its handlers publish have the same, unless they
/// are given others.
pub const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// Headers that publishing fills in, and that callers therefore may not set themselves.
pub const RESERVED: &[&str] = &[
    MESSAGE_ID,
    MESSAGE_NAME,
    MESSAGE_TYPE,
    CALLBACK_NAME,
    SENT_TIME,
    DELAY_TIME,
    MESSAGE_GROUP,
    PUBLISHER,
    EXCEPTION,
    EXECUTION_INSTANCE,
    CONTENT_TYPE,
];

/// Names that every message has, most of them: they need no memory of their own.
const COMMON: &[&str] =
    &[MESSAGE_ID, MESSAGE_NAME, CORRELATION_ID, CORRELATION_SEQUENCE, MESSAGE_TYPE, SENT_TIME, MESSAGE_GROUP];

fn well_known(name: &str) -> Option<&'static str> {
    COMMON.iter().copied().find(|known| *known == name)
}

/// The longest header name, in bytes (an AMQP short string).
pub const MAX_HEADER_NAME: usize = 255;

/// A map of header names to text, ordered by name. A header that .NET CAP sends as null is absent here.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Headers(BTreeMap<Cow<'static, str>, String>);

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `name`; names are case-sensitive.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets `name`, whatever it is: for backends and for headers that were checked before.
    pub fn set<N: Into<String> + AsRef<str>>(&mut self, name: N, value: impl Into<String>) {
        let name = match well_known(name.as_ref()) {
            Some(name) => Cow::Borrowed(name),
            None => Cow::Owned(name.into()),
        };
        self.0.insert(name, value.into());
    }

    /// Takes `name` out.
    pub fn remove(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// All headers, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value.as_str()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::new();
        pairs.into_iter().for_each(|(name, value)| headers.set(Into::<String>::into(name), value));
        headers
    }
}

impl fmt::Debug for Headers {
    /// Names only: values may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Headers")?;
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_values() {
        let headers = Headers::from_iter([("authorization", "s3cret")]);
        assert!(!format!("{headers:?}").contains("s3cret"));
    }
}
