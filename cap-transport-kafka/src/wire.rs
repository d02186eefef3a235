//! Messages as they are on the wire: what .NET CAP sends and understands.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use cap_core::transport::{Delivery, DeliveryTag};
use cap_core::{Error, ErrorKind, Headers, Message, Result, headers};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};

use crate::pattern;
use crate::progress::Born;

/// Refuses what Kafka would refuse, or what would make it refuse its neighbours.
pub(crate) fn check(message: &Message, max_body: usize) -> Result<()> {
    pattern::check("send to", message.topic.as_str())?;
    if message.payload.len() > max_body {
        let subject = format!("message {} to topic `{}`", message.id, message.topic);
        let reason = format!("its body has {} bytes, the limit is {max_body}", message.payload.len());
        return Err(Error::new(ErrorKind::Invalid, "send", subject, reason));
    }
    Ok(())
}

/// About what a message takes on its way.
pub(crate) fn size(message: &Message) -> usize {
    let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    message.payload.len() + headers + key(message).len()
}

/// The key, which decides the partition: messages with the same one keep their order.
pub(crate) fn key(message: &Message) -> &str {
    message.headers.get(headers::KAFKA_KEY).filter(|key| !key.is_empty()).unwrap_or(message.id.as_str())
}

/// All headers, as UTF-8.
pub(crate) fn headers_out(message: &Message) -> OwnedHeaders {
    let headers = OwnedHeaders::new_with_capacity(message.headers.len());
    message.headers.iter().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// When a record was made, as the record says.
pub(crate) fn born(record: &BorrowedMessage<'_>) -> Born {
    record.timestamp().to_millis()
}

/// A record as it came, with its headers as text. A null value (a tombstone) becomes an empty body.
///
/// The origin holds the record's time as well as its place: a topic that was deleted and made again has the same offsets
/// once more.
pub(crate) fn delivery(record: &BorrowedMessage<'_>) -> Delivery {
    let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
    let time = born(record).map_or_else(String::new, |time| format!("@{time}"));
    Delivery {
        tag: DeliveryTag(0),
        topic: topic.to_owned(),
        headers: record.headers().map(headers_in).unwrap_or_default(),
        body: record.payload().map(Bytes::copy_from_slice).unwrap_or_default(),
        origin: Some(format!("{topic}/{partition}/{offset}{time}")),
        redelivered: false,
    }
}

/// Headers as text: of several with one name the last counts, as in Kafka's own clients; one that is null is absent; what
/// is no UTF-8 is made so.
fn headers_in(raw: &BorrowedHeaders) -> Headers {
    let read = |place: usize| {
        let header = raw.try_get(place)?;
        Some((header.key.to_owned(), header.value.map(|value| String::from_utf8_lossy(value).into_owned())))
    };
    let mut found = Headers::new();
    for place in 0..raw.count() {
        // The driver panics on a name that is no UTF-8. Such a header is left out, as if it were not there.
        let Ok(Some((name, value))) = catch_unwind(AssertUnwindSafe(|| read(place))) else {
            continue;
        };
        match value {
            Some(value) => found.set(name, value),
            None => drop(found.remove(&name)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use cap_core::MessageId;

    use super::*;

    fn message(headers: &[(&str, &str)], bytes: usize) -> Message {
        let headers = headers.iter().copied().collect();
        let topic = "order.placed".parse().unwrap();
        Message { id: MessageId::generate(), topic, headers, payload: vec![b'1'; bytes].into() }
    }

    #[test]
    fn the_key_is_the_ordering_key_and_else_the_id() {
        let keyed = message(&[(headers::KAFKA_KEY, "customer-1")], 1);
        assert_eq!(key(&keyed), "customer-1");
        let plain = message(&[(headers::KAFKA_KEY, "")], 1);
        assert_eq!(key(&plain), plain.id.as_str());
    }

    #[test]
    fn headers_of_every_kind_become_text_and_null_is_absent() {
        let raw = OwnedHeaders::new()
            .insert(Header { key: "text", value: Some("Zürich") })
            .insert(Header { key: "bytes", value: Some(&b"a\xffb"[..]) })
            .insert(Header { key: "null", value: None::<&str> })
            .insert(Header { key: "empty", value: Some("") })
            .insert(Header { key: "twice", value: Some("first") })
            .insert(Header { key: "twice", value: Some("last") })
            .insert(Header { key: "taken back", value: Some("first") })
            .insert(Header { key: "taken back", value: None::<&str> });
        let headers = headers_in(raw.as_borrowed());
        let expected = [("bytes", "a\u{fffd}b"), ("empty", ""), ("text", "Zürich"), ("twice", "last")];
        assert_eq!(headers, expected.into_iter().collect());
    }

    #[test]
    fn a_body_over_the_limit_is_invalid() {
        let error = check(&message(&[], 11), 10).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.reason().contains("body"), "{error}");
        assert!(check(&message(&[], 10), 10).is_ok());
    }
}
