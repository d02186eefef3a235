//! Header names that RabbitMQ reads itself, carried so that it does not.

use std::borrow::Cow;

/// What such a name is written with on the wire.
const PREFIX: &str = "cap-escaped-";

/// In lower case. `CC` and `BCC` route a message to further queues, and if they are no lists the broker closes the
/// channel; the others are written, counted with or acted on by dead-lettering, quorum queues, streams, federation,
/// shovels, and the plugins for delays, deduplication and timestamps.
const READ_BY_THE_BROKER: &[&str] = &[
    "bcc",
    "cc",
    "timestamp_in_ms",
    "x-acquired-count",
    "x-cache-ttl",
    "x-death",
    "x-deduplication-header",
    "x-delay",
    "x-delivery-count",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-received-from",
    "x-shovelled",
    "x-stream-filter-value",
    "x-stream-offset",
];

/// The name of a header on the wire.
pub(crate) fn escape(name: &str) -> Cow<'_, str> {
    let is_read = READ_BY_THE_BROKER.iter().any(|read| read.eq_ignore_ascii_case(name));
    if is_read || name.starts_with(PREFIX) { Cow::Owned(format!("{PREFIX}{name}")) } else { Cow::Borrowed(name) }
}

/// The name that it was sent under.
pub(crate) fn unescape(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_and_none_is_left_for_the_broker() {
        let plain =
            ["BCC", "Cc", "x-death", "X-Delay", "cap-msg-id", "ccc", "", "cap-escaped-BCC", "cap-escaped-", "größe"];
        for name in plain.iter().chain(READ_BY_THE_BROKER) {
            let escaped = escape(name);
            assert_eq!(unescape(&escaped), *name);
            assert!(!READ_BY_THE_BROKER.contains(&escaped.to_lowercase().as_str()), "{escaped}");
        }
        assert_eq!(escape("cap-msg-id"), "cap-msg-id");
        assert_eq!(escape("BCC"), "cap-escaped-BCC");
    }
}
