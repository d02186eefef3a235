//! Points in time, as the storages keep them: microseconds in UTC.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time: microseconds since 1970-01-01T00:00:00Z.
///
/// The engine never compares two clocks: times that decide anything are computed by the database from [`Due`] and a
/// duration. A `Timestamp` made here only informs people, or is a moment that the user named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// The longest delay, lease and retention that means anything: a thousand years. Longer ones are cut to it, so that no sum
/// with a clock overflows.
pub const FAR: Duration = Duration::from_secs(365_250 * 24 * 3600);

impl Timestamp {
    /// The first moment that is told apart: 1970-01-01T00:00:00Z.
    pub const EARLIEST: Self = Self(0);
    /// The last moment that is told apart: 9000-01-01T00:00:00Z. Every database has it.
    pub const LATEST: Self = Self(221_845_392_000_000_000);

    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The host's clock now. For information only.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// The host's view as [`SystemTime`]; times before 1970 are cut to it.
    pub fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let micros = match time.duration_since(UNIX_EPOCH) {
            Ok(age) => i64::try_from(age.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Self(micros)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds: `2026-11-23T08:00:00.000000Z`. What is later than [`Timestamp::LATEST`] is told
    /// as that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_micros((*self).min(Self::LATEST).to_system_time()).fmt(f)
    }
}

/// A duration as whole microseconds for a database, saturating.
pub fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// When a record becomes due, by the **database's** clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// As soon as it is committed.
    Now,
    /// This long after the database's present time.
    In(Duration),
    /// At a moment that the user named.
    At(Timestamp),
}

impl Due {
    /// The same, but no farther off than can be told apart ([`FAR`], [`Timestamp::LATEST`]).
    #[must_use]
    pub fn bounded(self) -> Self {
        match self {
            Self::Now => Self::Now,
            Self::In(delay) => Self::In(delay.min(FAR)),
            Self::At(moment) => Self::At(moment.clamp(Timestamp::EARLIEST, Timestamp::LATEST)),
        }
    }

    /// The due time in microseconds since the epoch, given the database's present time in the same unit. For storages
    /// that compute times outside of their query language.
    pub fn resolve(self, database_now: i64) -> i64 {
        match self {
            Self::Now => database_now,
            Self::In(delay) => database_now.saturating_add(micros(delay)),
            Self::At(moment) => moment.as_micros(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_as_rfc_3339_in_utc() {
        assert_eq!(Timestamp::from_micros(1_500_000).to_string(), "1970-01-01T00:00:01.500000Z");
    }

    #[test]
    fn the_bounds_are_years_that_every_database_has() {
        assert_eq!(Timestamp::LATEST.to_string(), "9000-01-01T00:00:00.000000Z");
        assert_eq!(Timestamp::EARLIEST.to_string(), "1970-01-01T00:00:00.000000Z");
        assert_eq!(Timestamp::from_micros(i64::MAX).to_string(), Timestamp::LATEST.to_string());
        assert_eq!(Timestamp::from_micros(i64::MIN).to_string(), Timestamp::EARLIEST.to_string());
    }

    #[test]
    fn a_due_time_is_computed_from_the_database_clock() {
        assert_eq!(Due::Now.resolve(7), 7);
        assert_eq!(Due::In(Duration::from_millis(2)).resolve(7), 2_007);
        assert_eq!(Due::At(Timestamp::from_micros(3)).resolve(7), 3);
        assert_eq!(Due::In(Duration::MAX).resolve(7), i64::MAX);
    }
}
