//! How a typed payload becomes bytes and back.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// The media type of JSON, the default.
pub const JSON: &str = "application/json";

/// Encodes and decodes payloads of type `T`.
///
/// A message's payload and content type are kept to the byte, whatever codec made them. JSON is the default and what
/// .NET CAP understands; implement this for another format and publish with
/// [`Publish::encoded`](crate::Publish::encoded).
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

pub(crate) fn encode_json<T: Serialize + ?Sized>(value: &T) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
        Error::with_source(ErrorKind::Invalid, "encode as JSON", format!("a {}", type_name::<T>()), error)
    })
}

/// An empty payload is read as JSON `null`, which is how .NET CAP sends null.
pub(crate) fn decode_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    let text: &[u8] = if payload.is_empty() { b"null" } else { payload };
    serde_json::from_slice(text).map_err(|error| {
        Error::with_source(ErrorKind::Corrupt, "decode from JSON", format!("a {}", type_name::<T>()), error)
    })
}

/// The short name of a type, as `cap-msg-type` carries it: without modules and type parameters.
pub(crate) fn type_name<T: ?Sized>() -> &'static str {
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
    fn type_names_are_short() {
        assert_eq!(type_name::<Vec<String>>(), "Vec");
        assert_eq!(type_name::<std::time::Duration>(), "Duration");
        assert_eq!(type_name::<str>(), "str");
    }
}
