//! The forms in which a wrapper object is written.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::codec;
use crate::headers::{self, Headers};
use crate::message::Message;
use crate::time::Timestamp;

/// `ContentEncoding` of a payload that is kept in base64.
pub(super) const IN_BASE64: &str = "base64";
/// `ContentEncoding` of a `Value` that is the payload to the letter, although it is `null`.
pub(super) const TO_THE_LETTER: &str = "json";

/// What the wrapper object takes beside the payload, mostly.
const ROOM: usize = 512;

/// The form in which contents are written. Each engine reads both, whichever it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredForm {
    /// `Id`, `Timestamp`, `Content`, `CallbackName` and `Headers`.
    #[default]
    Own,
    /// `Headers` and `Value`, as .NET CAP 3 to 10 has them: its nodes can go on with what is in the tables. What it has no
    /// place for is in members that it passes over, so nothing of a message is lost either way, but for what is written
    /// into a database whose encoding is not Unicode: there a payload keeps its value, and not its bytes.
    NetCap,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Own<'a> {
    id: &'a str,
    timestamp: String,
    content: Payload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'static str>,
    callback_name: Option<&'a str>,
    headers: &'a Headers,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetCap<'a> {
    headers: &'a Headers,
    value: Payload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'static str>,
    /// If the headers do not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Null,
    Json(&'a RawValue),
    Encoded(String),
}

impl StoredForm {
    /// The wrapper object of `message`, as JSON text.
    pub fn wrap(self, message: &Message, published: Timestamp) -> String {
        self.write(message, as_embeddable_json(message), published)
    }

    /// The same in ASCII, for a database whose encoding is not Unicode: what is not ASCII is escaped. In our own form a
    /// payload that is not ASCII is kept in base64, to the byte.
    pub fn wrap_ascii(self, message: &Message, published: Timestamp) -> String {
        let json = as_embeddable_json(message).filter(|raw| self == Self::NetCap || raw.get().is_ascii());
        escaped(&self.write(message, json, published))
    }

    /// The wrapper object of a message that is too much for a database: in ASCII, without its payload, and with those
    /// headers that tell which message it was.
    pub fn without_payload(self, message: &Message, published: Timestamp) -> String {
        let kept = [headers::MESSAGE_ID, headers::MESSAGE_NAME, headers::MESSAGE_GROUP, headers::CONTENT_TYPE];
        let headers = kept.into_iter().filter_map(|name| Some((name, message.headers.get(name)?)));
        let headers = headers.filter(|(_, value)| value.len() <= ROOM).collect();
        let rest = Message { headers, payload: Bytes::from_static(b"null"), ..message.clone() };
        escaped(&self.write(&rest, serde_json::from_str("null").ok(), published))
    }

    fn write(self, message: &Message, json: Option<&RawValue>, published: Timestamp) -> String {
        match self {
            Self::Own => {
                let (content, content_encoding) = payload(message, json);
                let (id, timestamp) = (message.id.as_str(), published.to_string());
                let (callback_name, headers) = (message.callback(), &message.headers);
                json_text(message, &Own { id, timestamp, content, content_encoding, callback_name, headers })
            }
            Self::NetCap => {
                let (value, content_encoding) = match json {
                    _ if message.payload.is_empty() => (Payload::Null, None),
                    Some(raw) if raw.get() == "null" => (Payload::Null, Some(TO_THE_LETTER)),
                    json => payload(message, json),
                };
                let id = message.id.as_str();
                let id = (message.headers.get(headers::MESSAGE_ID) != Some(id)).then_some(id);
                json_text(message, &NetCap { headers: &message.headers, value, content_encoding, id })
            }
        }
    }
}

fn payload<'a>(message: &Message, json: Option<&'a RawValue>) -> (Payload<'a>, Option<&'static str>) {
    match json {
        Some(raw) => (Payload::Json(raw), None),
        None => (Payload::Encoded(BASE64.encode(&message.payload)), Some(IN_BASE64)),
    }
}

fn json_text(message: &Message, wrapper: &impl Serialize) -> String {
    let mut text = Vec::with_capacity(message.payload.len() + ROOM);
    serde_json::to_writer(&mut text, wrapper).expect("text, maps of text and raw JSON always serialize");
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// JSON text in ASCII: outside of strings it has nothing else, and within them an escape says the same (RFC 8259,
/// section 7).
fn escaped(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for char in json.chars() {
        if char.is_ascii() {
            ascii.push(char);
            continue;
        }
        for unit in char.encode_utf16(&mut [0; 2]) {
            ascii.push_str(&format!("\\u{unit:04x}"));
        }
    }
    ascii
}

/// The payload as raw JSON, if embedding it gives back the very same bytes.
fn as_embeddable_json(message: &Message) -> Option<&RawValue> {
    if !message.content_type().starts_with(codec::JSON) {
        return None;
    }
    let raw: &RawValue = serde_json::from_slice(&message.payload).ok()?;
    (raw.get().len() == message.payload.len()).then_some(raw)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::unwrap;
    use crate::id::MessageId;
    use crate::name::Topic;

    fn message(payload: &[u8], headers: &[(&str, &str)]) -> Message {
        Message {
            id: MessageId::try_from("65000000aabbccddee000001").unwrap(),
            topic: Topic::try_from("order.placed").unwrap(),
            headers: headers.iter().copied().collect(),
            payload: Bytes::copy_from_slice(payload),
        }
    }

    /// As a .NET node reads it: two members, and others passed over.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct DotnetMessage {
        headers: std::collections::BTreeMap<String, Option<String>>,
        value: serde_json::Value,
    }

    fn read_back(content: &str, original: &Message) -> Message {
        unwrap(content, &original.topic, &MessageId::try_from("another-one").unwrap()).unwrap()
    }

    #[test]
    fn caps_form_has_headers_and_value() {
        let id = ("cap-msg-id", "65000000aabbccddee000001");
        let content = StoredForm::NetCap.wrap(&message(br#"{"id":"A-1"}"#, &[id]), Timestamp::from_micros(0));
        assert_eq!(content, r#"{"Headers":{"cap-msg-id":"65000000aabbccddee000001"},"Value":{"id":"A-1"}}"#);
    }

    #[test]
    fn null_nothing_and_what_is_no_json_are_told_apart() {
        for payload in [&b""[..], b"null", b" null", b"\"null\"", b"\xff\x00\xfe", b"not json", b"{\"a\" : 1.0e2}"] {
            let original = message(payload, &[("cap-callback-name", "paid")]);
            let content = StoredForm::NetCap.wrap(&original, Timestamp::from_micros(0));
            assert_eq!(read_back(&content, &original), original, "{payload:?}");
        }
        let cbor = message(b"1", &[("content-type", "application/cbor")]);
        assert_eq!(read_back(&StoredForm::NetCap.wrap(&cbor, Timestamp::from_micros(0)), &cbor), cbor);
    }

    #[test]
    fn in_ascii_caps_form_keeps_a_payloads_value() {
        let original = message("{\"name\":\"日本 𝄞\"}".as_bytes(), &[("x-name", "Ærøskøbing 𝄞")]);
        let content = StoredForm::NetCap.wrap_ascii(&original, Timestamp::from_micros(0));
        assert!(content.is_ascii(), "{content}");
        let dotnet: DotnetMessage = serde_json::from_str(&content).unwrap();
        assert_eq!(dotnet.value, serde_json::json!({"name": "日本 𝄞"}));
        let read = read_back(&content, &original);
        assert_eq!((&read.headers, &read.id), (&original.headers, &original.id));
        let value: serde_json::Value = serde_json::from_slice(&read.payload).unwrap();
        assert_eq!(value, dotnet.value);
    }

    #[test]
    fn without_its_payload_caps_form_is_readable_by_both() {
        let large = message("ä".repeat(100_000).as_bytes(), &[("cap-msg-id", "7"), ("cap-msg-group", "billing.v1")]);
        let content = StoredForm::NetCap.without_payload(&large, Timestamp::from_micros(0));
        assert!(content.is_ascii() && content.len() < 1000, "{content}");
        assert_eq!(read_back(&content, &large).headers.get("cap-msg-group"), Some("billing.v1"));
        assert!(serde_json::from_str::<DotnetMessage>(&content).unwrap().value.is_null());
    }

    proptest! {
        #[test]
        fn any_message_survives_caps_form_and_a_net_node_finds_the_same_in_it(
            json in proptest::option::of(".{0,40}"),
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            headers in proptest::collection::btree_map(".{0,12}", ".{0,30}", 0..5),
        ) {
            let payload = json.as_ref().map_or(bytes, |text| serde_json::to_vec(text).unwrap());
            let mut original = message(&payload, &[]);
            original.headers = headers.into_iter().collect();
            let content = StoredForm::NetCap.wrap(&original, Timestamp::from_micros(0));
            prop_assert_eq!(&read_back(&content, &original), &original);
            let dotnet: DotnetMessage = serde_json::from_str(&content).unwrap();
            for (name, value) in original.headers.iter() {
                prop_assert_eq!(dotnet.headers.get(name).and_then(Option::as_deref), Some(value));
            }
            if let Some(text) = json {
                prop_assert_eq!(dotnet.value, serde_json::Value::String(text));
            }
        }
    }
}
