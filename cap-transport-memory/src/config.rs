//! The options of a broker.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::group::Limits;

/// Longer than anyone waits, and short enough to be added to any clock.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The limits of an in-process broker. All have defaults; durations are written as `10s` in a configuration file.
///
/// ```
/// use std::time::Duration;
/// use cap_transport_memory::{MemoryTransportOptions, MemoryTransport};
///
/// let options = MemoryTransportOptions::default().confirm_timeout(Duration::from_secs(2)).max_body(64 * 1024);
/// let transport = MemoryTransport::with_options(options);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryTransportOptions {
    #[serde(with = "humantime_serde")]
    confirm_timeout: Duration,
    max_body: Option<usize>,
    queue_capacity: usize,
    queue_bytes: usize,
    #[serde(with = "humantime_serde")]
    room_timeout: Duration,
}

impl Default for MemoryTransportOptions {
    fn default() -> Self {
        Self {
            confirm_timeout: Duration::from_secs(10),
            max_body: None,
            queue_capacity: 10_000,
            queue_bytes: 64 * 1024 * 1024,
            room_timeout: Duration::from_millis(500),
        }
    }
}

impl MemoryTransportOptions {
    /// How long a message may wait for the acknowledgement of every group, with what it waited for room, before it is
    /// reported as `Unavailable`. Default: 10 s.
    #[must_use]
    pub fn confirm_timeout(mut self, timeout: Duration) -> Self {
        self.confirm_timeout = timeout;
        self
    }

    /// The largest body, in bytes; a larger one is `Invalid`. Default: no limit.
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = Some(bytes);
        self
    }

    /// How many messages a group's queue holds, those out with consumers not counted; at least 1. A full queue makes
    /// senders wait. Default: 10,000.
    #[must_use]
    pub fn queue_capacity(mut self, messages: usize) -> Self {
        self.queue_capacity = messages;
        self
    }

    /// How many bytes of bodies a group's queue holds, those out with consumers not counted, and whatever it holds, one
    /// message. A full queue makes senders wait. Default: 64 MiB.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes;
        self
    }

    /// How long a sender waits for room in a full queue before the message is reported as `Environment`. Then nobody
    /// waits for this queue until something is taken from it, so that a group that is stuck does not hold up others.
    /// Default: 500 ms.
    #[must_use]
    pub fn room_timeout(mut self, timeout: Duration) -> Self {
        self.room_timeout = timeout;
        self
    }

    pub(crate) fn patience(&self) -> Duration {
        self.room_timeout.min(self.timeout())
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.confirm_timeout.min(LONGEST_TIMEOUT)
    }

    pub(crate) fn body_limit(&self) -> Option<usize> {
        self.max_body
    }

    pub(crate) fn capacity(&self) -> Limits {
        Limits { messages: self.queue_capacity.max(1), bytes: self.queue_bytes.max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_deserialize_with_defaults_and_readable_durations() {
        let options: MemoryTransportOptions =
            serde_json::from_str(r#"{"confirm_timeout": "250ms", "max_body": 10}"#).unwrap();
        assert_eq!(options, MemoryTransportOptions::default().confirm_timeout(Duration::from_millis(250)).max_body(10));
        assert!(serde_json::from_str::<MemoryTransportOptions>(r#"{"confirm_timout": "1s"}"#).is_err());
    }
}
