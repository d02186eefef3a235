//! The wrapper object: what the `Content` column of a record holds.
//!
//! ```json
//! {"Id":"65…","Timestamp":"2026-11-23T08:00:00.000000Z","Content":{"id":"A-1"},"CallbackName":null,"Headers":{…}}
//! ```
//!
//! `Content` is the payload itself when it is JSON, kept to the byte. Any other payload is kept in base64, and then
//! `ContentEncoding` says `base64`. Rows of .NET CAP (`Headers` and `Value`, from 3.0 on) and of CAP 2
//! (`Content` as a string, no `Headers`) are read too, with whatever capitals their naming policy gave the members; the
//! former are written, too, where [`StoredForm::NetCap`] asks for it.

mod form;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

pub use form::StoredForm;
use form::{IN_BASE64, TO_THE_LETTER};

use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::headers::{self, Headers};
use crate::id::MessageId;
use crate::message::Message;
use crate::name::Topic;
use crate::time::Timestamp;

/// The wrapper object of `message` in our own form, as JSON text.
pub fn wrap(message: &Message, published: Timestamp) -> String {
    StoredForm::Own.wrap(message, published)
}

/// The SHA-256 of a payload, in hexadecimal (FIPS 180-4).
pub fn digest(payload: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(payload).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(alias = "Id")]
    id: Option<String>,
    #[serde(borrow, default, alias = "Content", deserialize_with = "raw")]
    content: Option<&'a RawValue>,
    #[serde(alias = "ContentEncoding", alias = "contentEncoding")]
    content_encoding: Option<String>,
    #[serde(alias = "CallbackName", alias = "callbackName")]
    callback_name: Option<String>,
    #[serde(alias = "Headers", default, deserialize_with = "some_headers")]
    headers: Option<Headers>,
    #[serde(borrow, default, alias = "Value", deserialize_with = "raw")]
    value: Option<&'a RawValue>,
}

/// Keeps a member that is JSON `null` apart from one that is absent.
fn raw<'de: 'a, 'a, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Headers whose value is null are left out.
fn some_headers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Headers>, D::Error> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Option<Headers>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object whose members are text or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
            let mut headers = Headers::new();
            while let Some((name, value)) = map.next_entry::<String, Option<String>>()? {
                if let Some(value) = value {
                    headers.set(name, value);
                }
            }
            Ok(Some(headers))
        }
    }

    deserializer.deserialize_any(Members)
}

/// Reads a wrapper object back. `topic` is the record's `Name`; `fallback` its message id, for wrappers without one.
///
/// # Errors
/// `Corrupt`, with the reason, when `content` is none of the known forms.
pub fn unwrap(content: &str, topic: &Topic, fallback: &MessageId) -> Result<Message> {
    let corrupt = |reason: String| {
        Error::new(ErrorKind::Corrupt, "read the stored content of", format!("message {fallback}"), reason)
    };
    let stored: Stored<'_> = serde_json::from_str(content).map_err(|error| corrupt(codec::fault(&error)))?;

    let has_headers = stored.headers.is_some();
    let mut headers = stored.headers.unwrap_or_default();
    let payload = if let Some(value) = stored.value {
        net_cap_payload(value, stored.content_encoding.as_deref()).map_err(corrupt)?
    } else if has_headers {
        let content = stored.content.ok_or_else(|| corrupt("the member `Content` is missing".into()))?;
        our_payload(content, stored.content_encoding.as_deref()).map_err(corrupt)?
    } else {
        let content = stored.content.ok_or_else(|| corrupt("it has neither `Content` nor `Value`".into()))?;
        cap_2_payload(content).map_err(corrupt)?
    };
    if let Some(callback) = stored.callback_name.filter(|name| !name.is_empty())
        && headers.get(headers::CALLBACK_NAME).is_none()
    {
        headers.set(headers::CALLBACK_NAME, callback);
    }
    let id = stored
        .id
        .as_deref()
        .or_else(|| headers.get(headers::MESSAGE_ID))
        .and_then(|id| MessageId::try_from(id).ok())
        .unwrap_or_else(|| fallback.clone());
    Ok(Message { id, topic: topic.clone(), headers, payload })
}

fn our_payload(content: &RawValue, encoding: Option<&str>) -> Result<Bytes, String> {
    match encoding {
        None => Ok(Bytes::copy_from_slice(content.get().as_bytes())),
        Some(TO_THE_LETTER) => Ok(Bytes::copy_from_slice(content.get().as_bytes())),
        Some(IN_BASE64) => {
            let text: String = serde_json::from_str(content.get())
                .map_err(|_| "`ContentEncoding` is base64 but the payload is no string".to_owned())?;
            BASE64.decode(text).map(Bytes::from).map_err(|error| format!("the payload is no base64: {error}"))
        }
        Some(other) => Err(format!("unknown `ContentEncoding` {other:?}")),
    }
}

/// .NET CAP sends null as an empty body.
fn net_cap_payload(value: &RawValue, encoding: Option<&str>) -> Result<Bytes, String> {
    match (value.get(), encoding) {
        ("null", None) => Ok(Bytes::new()),
        _ => our_payload(value, encoding),
    }
}

/// CAP 2 kept the payload as a string: JSON text for objects, plain text for simple types.
fn cap_2_payload(content: &RawValue) -> Result<Bytes, String> {
    let text: String =
        serde_json::from_str(content.get()).map_err(|_| "it has no `Headers` and `Content` is no string".to_owned())?;
    if text.is_empty() || serde_json::from_str::<&RawValue>(&text).is_ok() {
        return Ok(Bytes::from(text));
    }
    codec::encode_json(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(payload: &[u8], headers: &[(&str, &str)]) -> Message {
        Message {
            id: MessageId::try_from("65000000aabbccddee000001").unwrap(),
            topic: Topic::try_from("order.placed").unwrap(),
            headers: headers.iter().copied().collect(),
            payload: Bytes::copy_from_slice(payload),
        }
    }

    fn round_trip(message: &Message) -> Message {
        let content = wrap(message, Timestamp::from_micros(0));
        unwrap(&content, &message.topic, &message.id).unwrap()
    }

    #[test]
    fn the_wrapper_holds_a_json_payload_as_json() {
        let content = wrap(&message(br#"{"id":"A-1"}"#, &[("cap-callback-name", "paid")]), Timestamp::from_micros(0));
        assert_eq!(
            content,
            r#"{"Id":"65000000aabbccddee000001","Timestamp":"1970-01-01T00:00:00.000000Z","Content":{"id":"A-1"},"CallbackName":"paid","Headers":{"cap-callback-name":"paid"}}"#
        );
    }

    #[test]
    fn in_ascii_nothing_of_a_message_is_lost() {
        let original =
            message("{\"name\":\"日本 𝄞\"}".as_bytes(), &[("x-name", "Ærøskøbing 𝄞"), ("cap-callback-name", "paid")]);
        let content = StoredForm::Own.wrap_ascii(&original, Timestamp::from_micros(0));
        assert!(content.is_ascii(), "{content}");
        assert_eq!(unwrap(&content, &original.topic, &original.id).unwrap(), original);
        let plain = message(br#"{"id":"A-1"}"#, &[]);
        assert_eq!(
            StoredForm::Own.wrap_ascii(&plain, Timestamp::from_micros(0)),
            wrap(&plain, Timestamp::from_micros(0))
        );
    }

    #[test]
    fn what_is_left_of_a_message_without_its_payload_is_small_plain_and_readable() {
        let long = "ä".repeat(100_000);
        let large =
            message(long.as_bytes(), &[("cap-msg-group", "billing.v1"), ("x-large", &long), ("cap-msg-type", "T")]);
        let content = StoredForm::Own.without_payload(&large, Timestamp::from_micros(0));
        assert!(content.is_ascii() && content.len() < 1000, "{content}");
        let read = unwrap(&content, &large.topic, &large.id).unwrap();
        assert_eq!((read.id, read.headers.get("cap-msg-group")), (large.id, Some("billing.v1")));
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn payloads_that_are_no_json_keep_their_bytes_and_content_type() {
        for payload in [&b""[..], b"\xff\x00\xfe", b" {} ", b"null", b"{\"a\" : 1.0e2}", b"not json"] {
            let original = message(payload, &[]);
            assert_eq!(round_trip(&original), original, "{payload:?}");
        }
        let cbor = message(b"1", &[("content-type", "application/cbor")]);
        assert_eq!(round_trip(&cbor), cbor);
    }

    proptest! {
        #[test]
        fn any_payload_and_any_headers_survive(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            headers in proptest::collection::btree_map(".{0,12}", ".{0,30}", 0..5),
        ) {
            let mut original = message(&payload, &[]);
            original.headers = headers.into_iter().filter(|(name, _)| name != "cap-callback-name").collect();
            prop_assert_eq!(round_trip(&original), original);
        }

        #[test]
        fn reading_any_text_never_panics(text in ".{0,200}") {
            let template = message(b"", &[]);
            let _ = unwrap(&text, &template.topic, &template.id);
        }
    }

    #[test]
    fn a_row_of_net_cap_is_read() {
        let content = r#"{"Headers":{"cap-callback-name":null,"cap-msg-id":"7231","cap-corr-id":"7231","cap-corr-seq":"0","cap-msg-name":"shop.paid","cap-msg-type":"Paid","cap-senttime":"07/01/2026 16:02:20"},"Value":{"OrderId":5}}"#;
        let read =
            unwrap(content, &Topic::try_from("shop.paid").unwrap(), &MessageId::try_from("row-1").unwrap()).unwrap();
        assert_eq!(read.id.as_str(), "7231");
        assert_eq!(&read.payload[..], br#"{"OrderId":5}"#);
        assert_eq!(read.callback(), None);
        let camel = unwrap(
            r#"{"headers":{"cap-msg-id":"9"},"value":null}"#,
            &read.topic,
            &MessageId::try_from("row-2").unwrap(),
        )
        .unwrap();
        assert_eq!((camel.id.as_str(), &camel.payload[..]), ("9", &b""[..]));
    }

    #[test]
    fn a_row_of_cap_2_is_read() {
        let content = r#"{"Id":"5f0000000000000000000001","Timestamp":"2019-01-01T00:00:00","Content":"{\"a\":1}","CallbackName":"back"}"#;
        let topic = Topic::try_from("t").unwrap();
        let fallback = MessageId::generate();
        let read = unwrap(content, &topic, &fallback).unwrap();
        assert_eq!((&read.payload[..], read.callback()), (&br#"{"a":1}"#[..], Some("back")));
        let plain = unwrap(r#"{"Id":"5f0000000000000000000001","Content":"hello"}"#, &topic, &fallback).unwrap();
        assert_eq!(&plain.payload[..], br#""hello""#);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let topic = Topic::try_from("t").unwrap();
        let fallback = MessageId::try_from("row-9").unwrap();
        for bad in [
            "",
            "{}",
            "[]",
            "nonsense",
            r#"{"Headers":{}}"#,
            r#"{"Headers":{},"Content":"%","ContentEncoding":"base64"}"#,
        ] {
            let error = unwrap(bad, &topic, &fallback).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("row-9"), "{error}");
        }
    }
}
