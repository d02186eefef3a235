//! How a typed payload becomes bytes and back.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::error::{Error, ErrorKind, Result};

/// The media type of JSON, the default.
pub const JSON: &str = "application/json";

/// Encodes and decodes payloads of type `T`.
///
/// A message's payload and content type are kept to the byte, whatever codec made them. JSON is the default and what
/// .NET CAP understands; implement this for another format and publish with
/// `Publish::encoded`.
pub trait Codec<T> {
    /// The media type of what [`Codec::encode`] makes, such as `application/json`.
    fn content_type(&self) -> &str;

    /// The payload for `value`.
    ///
    /// # Errors
    /// `Invalid` when the value cannot be expressed.
    fn encode(&self, value: &T) -> Result<Bytes>;

    /// The value of `payload`.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no value of this type.
    fn decode(&self, payload: &[u8]) -> Result<T>;
}

/// JSON by `serde_json`.
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonCodec;

impl<T: Serialize + DeserializeOwned> Codec<T> for JsonCodec {
    fn content_type(&self) -> &str {
        JSON
    }

    fn encode(&self, value: &T) -> Result<Bytes> {
        encode_json(value)
    }

    fn decode(&self, payload: &[u8]) -> Result<T> {
        decode_json(payload)
    }
}

/// `value` as JSON.
///
/// # Errors
/// `Invalid` when the value cannot be expressed.
pub fn encode_json<T: Serialize + ?Sized>(value: &T) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
        Error::with_source(ErrorKind::Invalid, "encode as JSON", format!("a {}", type_name::<T>()), error)
    })
}

/// An empty payload is read as JSON `null`, which is how .NET CAP sends null.
pub(crate) fn decode_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    let text: &[u8] = if payload.is_empty() { b"null" } else { payload };
    serde_json::from_slice(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "decode from JSON", format!("a {}", type_name::<T>()), fault(&error))
    })
}

/// What is wrong with a JSON text, and where, without quoting it: it may be confidential, and reasons are logged and stored.
pub(crate) fn fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if error.classify() != Category::Data {
        return text;
    }
    let what = what_does_not_fit(&text).unwrap_or_else(|| "it does not fit the type".into());
    format!("{what} at line {} column {}", error.line(), error.column())
}

/// The words of `serde` without the value that it names. Nothing if they are somebody else's.
fn what_does_not_fit(text: &str) -> Option<String> {
    const OF_SERDE: [&str; 5] =
        ["invalid type: ", "invalid value: ", "invalid length ", "unknown variant ", "unknown field "];
    let (fault, _) = text.rsplit_once(" at line ").unwrap_or((text, ""));
    // These names are the type's.
    if fault.starts_with("missing field `") || fault.starts_with("duplicate field `") {
        return Some(fault.to_owned());
    }
    OF_SERDE.iter().find(|words| fault.starts_with(**words))?;
    // The value may hold anything, these words included; what is expected comes after it.
    let (found, expected) = fault.rsplit_once(", expected ")?;
    let kind = found.split(['`', '"']).next().unwrap_or(found).trim_end();
    Some(format!("{kind}, expected {expected}"))
}

/// The short name of a type, as `cap-msg-type` carries it: without modules and type parameters.
pub fn type_name<T: ?Sized>() -> &'static str {
    let full = std::any::type_name::<T>();
    let head = full.split('<').next().unwrap_or(full);
    head.rsplit("::").next().unwrap_or(head).trim_start_matches('&')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_payload_is_null() {
        assert_eq!(decode_json::<Option<u8>>(b"").unwrap(), None);
        assert_eq!(decode_json::<u8>(b"").unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn what_cannot_be_decoded_is_told_without_its_values() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "it is never decoded")]
        struct Order {
            total: u32,
            paid: Option<std::net::Ipv4Addr>,
            state: Option<State>,
        }
        #[derive(Debug, serde::Deserialize)]
        enum State {
            Open,
        }
        let told = |payload: &str| decode_json::<Order>(payload.as_bytes()).unwrap_err().reason().to_owned();
        assert_eq!(
            told(r#"{"total": "s3cret, expected s3cret"}"#),
            "invalid type: string, expected u32 at line 1 column 35"
        );
        assert_eq!(told(r#"{"total": -77}"#), "invalid value: integer, expected u32 at line 1 column 13");
        let unknown = "unknown field, expected one of `total`, `paid`, `state` at line 1 column 9";
        assert_eq!(told(r#"{"s3cret": 1}"#), unknown);
        assert_eq!(told(r#"{}"#), "missing field `total` at line 1 column 2");
        assert_eq!(told(r#"{"total": 1, "paid": "s3cret"}"#), "it does not fit the type at line 1 column 29");
        let variant = told(r#"{"total": 1, "state": "s3cret"}"#);
        assert!(variant.starts_with("unknown variant, expected `Open` at line 1"), "{variant}");
        assert!(told(r#"{"total": s3cret"#).starts_with("expected value at line 1"));
    }

    #[test]
    fn type_names_are_short() {
        assert_eq!(type_name::<Vec<String>>(), "Vec");
        assert_eq!(type_name::<std::time::Duration>(), "Duration");
        assert_eq!(type_name::<str>(), "str");
    }
}
