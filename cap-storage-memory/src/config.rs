//! The options.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits of a [`MemoryStorage`](crate::MemoryStorage): memory is bounded.
///
/// ```
/// use cap_storage_memory::{MemoryStorageOptions, MemoryStorage};
///
/// let small = MemoryStorage::with_options(MemoryStorageOptions { max_records: 1_000, ..MemoryStorageOptions::default() });
/// # let _ = small;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryStorageOptions {
    /// How many records there may be in both tables together, terminal ones included; an insert beyond it answers
    /// `Unavailable`. Default: 1,000,000.
    pub max_records: usize,
    /// The longest content of a record, in bytes; a longer one is `Rejected`. Default: none.
    pub max_content: Option<usize>,
    /// How long an insert waits for an open transaction that has published a message of the same id, before it
    /// answers `Unavailable`. Default: 5 s.
    #[serde(with = "humantime_serde")]
    pub lock_wait: Duration,
    /// Whether the open transaction of a handler keeps its record locked, as it does in a database: nobody settles the
    /// record or takes it over before the transaction ends. Otherwise a commit that comes too late is refused. Default:
    /// no.
    pub lock_records: bool,
}

impl Default for MemoryStorageOptions {
    fn default() -> Self {
        Self { max_records: 1_000_000, max_content: None, lock_wait: Duration::from_secs(5), lock_records: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_a_config_file() {
        let read = |text| serde_json::from_str::<MemoryStorageOptions>(text);
        let options = read(r#"{"max_records": 10, "lock_wait": "30s"}"#).unwrap();
        assert_eq!((options.max_records, options.lock_wait), (10, Duration::from_secs(30)));
        assert_eq!(read("{}").unwrap(), MemoryStorageOptions::default());
        assert!(read(r#"{"max_record": 10}"#).is_err());
    }
}
