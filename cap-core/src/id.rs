//! Identities: of messages, records, nodes and claims.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::shown::{Shown, shown};

/// The longest message id accepted, in bytes.
pub const MAX_MESSAGE_ID: usize = 128;

/// Identifies a message everywhere: in the outbox, on the wire (`cap-msg-id`) and in every inbox.
///
/// Generated ids are 24 hex characters made by the ObjectId algorithm (the MongoDB `ObjectId` specification): 4 bytes of
/// seconds, 5 random bytes of the process, a 3-byte counter. Here seconds and counter are one 56-bit number that only
/// grows, so a process never repeats an id, however many it makes in a second and wherever its clock jumps.
///
/// Ids of other origin (a decimal snowflake of .NET CAP, a key of your own for idempotent publishing) are any printable
/// text of at most [`MAX_MESSAGE_ID`] bytes. Ids are not for ordering.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// A new id, never given before by this process.
    pub fn generate() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let floor = (now & 0xFFFF_FFFF) << 24;
        let mut made = 0;
        LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
            made = floor.max(last + 1);
            Some(made)
        })
        .expect("the closure always answers Some");
        Self::from_parts(made, process_bytes())
    }

    /// An id that depends only on `parts`: the same parts give the same id, in every process (UUIDv5 with SHA-1, cut
    /// to 12 bytes). For messages whose publishing must be idempotent, such as replies.
    pub fn derive(parts: &[&[u8]]) -> Self {
        let mut name = Vec::new();
        for part in parts {
            name.extend_from_slice(&(part.len() as u64).to_be_bytes());
            name.extend_from_slice(part);
        }
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, &name);
        Self(hex(&digest.as_bytes()[..12]).into())
    }

    /// An id that the storage gives back; `row-` and the record's address if somebody wrote a record without a usable
    /// one.
    pub fn from_stored(id: Option<&str>, record: RecordId) -> Self {
        id.and_then(|id| Self::try_from(id).ok()).unwrap_or_else(|| Self(format!("row-{record}").into()))
    }

    fn from_parts(seconds_and_counter: u64, process: [u8; 5]) -> Self {
        let clock = seconds_and_counter.to_be_bytes();
        let mut bytes = [0u8; 12];
        bytes[..4].copy_from_slice(&clock[1..5]);
        bytes[4..9].copy_from_slice(&process);
        bytes[9..].copy_from_slice(&clock[5..]);
        Self(hex(&bytes).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id for people to read, in logs: it may come from anywhere.
    pub fn shown(&self) -> Shown<'_> {
        shown(&self.0)
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

fn process_bytes() -> [u8; 5] {
    static PROCESS: OnceLock<[u8; 5]> = OnceLock::new();
    *PROCESS.get_or_init(|| {
        let random = Uuid::new_v4();
        let mut bytes = [0u8; 5];
        bytes.copy_from_slice(&random.as_bytes()[..5]);
        bytes
    })
}

impl TryFrom<&str> for MessageId {
    type Error = Error;

    /// Takes an id of your own.
    ///
    /// # Errors
    /// `Invalid` when it is empty, longer than [`MAX_MESSAGE_ID`] bytes or holds a control character.
    fn try_from(text: &str) -> Result<Self> {
        let refuse = |reason: String| Err(Error::invalid(format!("message id {text:.60?}"), reason));
        if text.is_empty() {
            return refuse("it is empty".into());
        }
        if text.len() > MAX_MESSAGE_ID {
            return refuse(format!("it has {} bytes, the limit is {MAX_MESSAGE_ID}", text.len()));
        }
        if text.chars().any(char::is_control) {
            return refuse("it holds a control character".into());
        }
        Ok(Self(text.into()))
    }
}

impl std::str::FromStr for MessageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::try_from(text)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::try_from(text.as_str()).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({})", self.shown())
    }
}

/// The address of a record in its table. The database assigns it; it says nothing about order or time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordId(pub i64);

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of one engine: a node that lost its lease goes on under a new id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub Uuid);

impl NodeId {
    /// A new node id.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Fences one claim: only who shows the token that a record was claimed with may settle it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimToken(pub Uuid);

impl ClaimToken {
    /// A new token, for one claim.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_million_generated_ids_are_distinct_and_are_24_hex_characters() {
        let mut seen = HashSet::with_capacity(1_000_000);
        for _ in 0..1_000_000 {
            let id = MessageId::generate();
            assert_eq!(id.as_str().len(), 24);
            assert!(id.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()));
            assert!(seen.insert(id));
        }
    }

    #[test]
    fn ids_generated_on_many_threads_are_distinct() {
        let threads: Vec<_> = (0..8)
            .map(|_| std::thread::spawn(|| (0..20_000).map(|_| MessageId::generate()).collect::<Vec<_>>()))
            .collect();
        let all: HashSet<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(all.len(), 160_000);
    }

    #[test]
    fn an_id_carries_seconds_process_and_counter_in_the_object_id_layout() {
        let id = MessageId::from_parts(0x0065_4321_AB00_0007, [1, 2, 3, 4, 5]);
        assert_eq!(id.as_str(), "654321ab0102030405000007");
    }

    #[test]
    fn a_derived_id_depends_on_each_part_and_its_borders() {
        let derive = MessageId::derive;
        assert_eq!(derive(&[b"a", b"b"]), derive(&[b"a", b"b"]));
        assert_ne!(derive(&[b"a", b"b"]), derive(&[b"b", b"a"]));
        assert_ne!(derive(&[b"ab", b"c"]), derive(&[b"a", b"bc"]));
        assert_eq!(derive(&[b"a"]).as_str().len(), 24);
    }

    #[test]
    fn foreign_ids_are_accepted_and_bad_ones_are_named() {
        assert_eq!(MessageId::try_from("7231557894").unwrap().as_str(), "7231557894");
        for bad in ["", "a\nb", &"x".repeat(129)] {
            let error = MessageId::try_from(bad).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Invalid, "{bad:?}");
        }
    }
}
