//! Messages as they are on the wire: what .NET CAP sends and understands.

use cap_core::transport::{Delivery, DeliveryTag};
use cap_core::{Error, ErrorKind, Headers, Message, Result, headers};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::Value;

use crate::escape::{escape, unescape};
use crate::settings::MAX_SHORT_STRING;

const PERSISTENT: u8 = 2;
const JSON: &str = "application/json";
/// What a content header frame takes beside its strings and its table: frame, class, body size, flags, delivery mode.
const HEADER_FRAME_BYTES: usize = 8 + 2 + 2 + 8 + 2 + 1;

/// The properties that a message travels with: all its headers as long strings, its id and content type once more
/// where other AMQP clients look for them.
pub(crate) fn properties(message: &Message) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in message.headers.iter() {
        table.insert(escape(name).as_ref().into(), AMQPValue::LongString(value.into()));
    }
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(message.id.as_str().into())
        .with_headers(table);
    match ShortString::try_new(message.content_type()) {
        Ok(content_type) => properties.with_content_type(content_type),
        Err(_) => properties,
    }
}

/// Refuses what the broker would answer by closing the channel or the connection, with all other messages on it.
pub(crate) fn check(message: &Message, max_body: usize, frame_max: usize) -> Result<()> {
    let refuse = |reason: String| {
        let subject = format!("message {} to topic `{}`", message.id, message.topic);
        Err(Error::new(ErrorKind::Invalid, "send", subject, reason))
    };
    if message.payload.len() > max_body {
        return refuse(format!("its body has {} bytes, the limit is {max_body}", message.payload.len()));
    }
    if let Some((name, _)) = message.headers.iter().find(|(name, _)| escape(name).len() > MAX_SHORT_STRING) {
        return refuse(format!("the name of header {name:.40?}… has more than {MAX_SHORT_STRING} bytes"));
    }
    let size = header_frame_bytes(message);
    if size > frame_max {
        return refuse(format!("its headers take {size} bytes, and the broker allows {frame_max} for a frame"));
    }
    Ok(())
}

fn header_frame_bytes(message: &Message) -> usize {
    let entries: usize = message.headers.iter().map(|(name, value)| 1 + escape(name).len() + 1 + 4 + value.len()).sum();
    HEADER_FRAME_BYTES + 1 + message.id.as_str().len() + 1 + message.content_type().len() + 4 + entries
}

/// A delivery as it came, with its headers as text.
pub(crate) fn delivery(delivery: lapin::message::Delivery) -> Delivery {
    let properties = &delivery.properties;
    Delivery {
        tag: DeliveryTag(delivery.delivery_tag),
        topic: delivery.routing_key.to_string(),
        headers: headers_of(properties),
        origin: properties.message_id().as_ref().map(ToString::to_string).filter(|id| !id.is_empty()),
        redelivered: delivery.redelivered,
        body: fitted(delivery.data).into(),
    }
}

/// The driver puts a body together in a buffer that grows: what is over is given back.
fn fitted(mut body: Vec<u8>) -> Vec<u8> {
    if body.capacity() - body.len() > body.len() / 8 {
        body.shrink_to_fit();
    }
    body
}

/// The headers as text. A content type other than JSON that only the property tells becomes a header, too.
pub(crate) fn headers_of(properties: &BasicProperties) -> Headers {
    let mut found = Headers::new();
    for (name, value) in properties.headers().iter().flatten() {
        if let Some(value) = text(value) {
            found.set(unescape(name.as_str()), value);
        }
    }
    let content_type = properties.content_type().as_ref().map_or("", ShortString::as_str);
    if !content_type.is_empty() && content_type != JSON && found.get(headers::CONTENT_TYPE).is_none() {
        found.set(headers::CONTENT_TYPE, content_type);
    }
    found
}

/// A header's value as text; none if it is null. Bytes are taken for UTF-8, as .NET CAP takes them.
fn text(value: &AMQPValue) -> Option<String> {
    if let AMQPValue::LongString(text) = value {
        return Some(long(text));
    }
    match json(value) {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Void => Value::Null,
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Timestamp(value) => (*value).into(),
        AMQPValue::Float(value) => value.to_string().into(),
        AMQPValue::Double(value) => value.to_string().into(),
        AMQPValue::DecimalValue(value) => decimal(value.scale, value.value).into(),
        AMQPValue::ShortString(value) => value.as_str().into(),
        AMQPValue::LongString(value) => long(value).into(),
        AMQPValue::ByteArray(value) => String::from_utf8_lossy(value.as_slice()).into(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => {
            table.into_iter().map(|(name, value)| (name.to_string(), json(value))).collect()
        }
    }
}

fn long(value: &LongString) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// `scale` digits of `value` are behind the point.
fn decimal(scale: u8, value: u32) -> String {
    let scale = usize::from(scale);
    if scale == 0 {
        return value.to_string();
    }
    let digits = format!("{value:0width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use cap_core::MessageId;
    use lapin::types::{ByteArray, DecimalValue, FieldArray};

    use super::*;

    fn message(headers: &[(&str, &str)], bytes: usize) -> Message {
        let headers = headers.iter().copied().collect();
        let topic = "order.placed".parse().unwrap();
        Message { id: MessageId::generate(), topic, headers, payload: vec![b'1'; bytes].into() }
    }

    #[test]
    fn headers_of_every_type_become_text_and_null_is_absent() {
        let list = FieldArray::from(vec![AMQPValue::LongInt(1), AMQPValue::Void, AMQPValue::Boolean(true)]);
        let mut inner = FieldTable::default();
        inner.insert("queue".into(), AMQPValue::LongString("a \"b\"".into()));
        let cases = [
            ("void", AMQPValue::Void, None),
            ("text", AMQPValue::LongString("Zürich".into()), Some("Zürich")),
            ("short", AMQPValue::ShortString("x".into()), Some("x")),
            ("bytes", AMQPValue::ByteArray(ByteArray::from(b"raw".to_vec())), Some("raw")),
            ("yes", AMQPValue::Boolean(true), Some("true")),
            ("int", AMQPValue::LongLongInt(-7), Some("-7")),
            ("float", AMQPValue::Double(1.5), Some("1.5")),
            ("when", AMQPValue::Timestamp(1_700_000_000), Some("1700000000")),
            ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 3, value: 42 }), Some("0.042")),
            ("list", AMQPValue::FieldArray(list), Some("[1,null,true]")),
            ("table", AMQPValue::FieldTable(inner), Some(r#"{"queue":"a \"b\""}"#)),
        ];
        let mut table = FieldTable::default();
        for (name, value, _) in &cases {
            table.insert((*name).into(), value.clone());
        }
        let headers = headers_of(&BasicProperties::default().with_headers(table));
        for (name, _, expected) in cases {
            assert_eq!(headers.get(name), expected, "{name}");
        }
    }

    #[test]
    fn a_foreign_content_type_becomes_a_header_and_json_does_not() {
        let headers =
            |content_type: &str| headers_of(&BasicProperties::default().with_content_type(content_type.into()));
        assert_eq!(headers("text/plain").get(headers::CONTENT_TYPE), Some("text/plain"));
        assert!(headers("application/json").is_empty());
    }

    #[test]
    fn what_would_close_the_channel_is_invalid() {
        let long_name = "n".repeat(256);
        let long_value = "v".repeat(5_000);
        for (message, word) in [
            (message(&[], 11), "body"),
            (message(&[(&long_name, "x")], 1), "name"),
            (message(&[("a", &long_value)], 1), "headers"),
        ] {
            let error = check(&message, 10, 4_096).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.reason().contains(word), "{error}");
        }
        assert!(check(&message(&[("a", "b")], 10), 10, 4_096).is_ok());
    }

    #[test]
    fn the_size_of_the_header_frame_is_not_underestimated() {
        let message = message(&[("größe", "Zürich"), ("content-type", "text/plain"), ("x", ""), ("BCC", "y")], 3);
        let properties = properties(&message);
        // The properties as they are written, in an AMQP frame: type, channel, size, class, weight, body size, end.
        let written = lapin::protocol::basic::gen_properties::<Vec<u8>>(&properties);
        let mut bytes = Vec::new();
        let _ = written(Vec::new().into()).map(|context| bytes = context.into_inner().0);
        assert_eq!(header_frame_bytes(&message), 1 + 2 + 4 + 2 + 2 + 8 + bytes.len() + 1);
    }
}
