//! When a failed attempt is tried again.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::FAR;

/// The longest pause of the attempts that follow at once.
const SHORT_JITTER: Duration = Duration::from_millis(50);

/// How often, and after what pauses, a failed record is tried again.
///
/// The default is 50 attempts in all: three at once with a short jitter (at most 50 ms), then after pauses that are drawn
/// evenly from zero to a bound, which doubles from 1 s to 60 s. On average they are half the bound, so that what always
/// fails is dead after some 21 minutes.
///
/// ```
/// use std::time::Duration;
/// use cap_core::{Backoff, Limit, RetryPolicy};
///
/// let patient = RetryPolicy { limit: Limit::None, ..RetryPolicy::default() };
/// let fixed = RetryPolicy { backoff: Backoff::Fixed { delay: Duration::from_secs(5) }, immediate: 0, ..patient };
/// assert_eq!(fixed.delay_after(1, 0.5), Duration::from_secs(5));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// After how many attempts a record is dead.
    pub limit: Limit,
    /// How many attempts are made at once, the first included, before the backoff begins.
    pub immediate: u32,
    /// The pauses after that.
    pub backoff: Backoff,
    /// After how many attempts in a row that ended with their process, the last of them alone, a message is tried alone
    /// once more; if the process dies again, it is given up. It has nothing to do with `limit`, since a crash may be
    /// anybody's fault. Default 10, at least 2. Without a limit it is never given up.
    pub crashes: u32,
}

/// How many attempts there may be. In a config file: a number, or `"none"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// At most this many, at least one.
    Attempts(u32),
    /// As many as it takes.
    None,
}

/// How the pause grows from one failure to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Backoff {
    /// Always the same pause.
    Fixed {
        /// The pause.
        #[serde(with = "humantime_serde")]
        delay: Duration,
    },
    /// Exponential with full jitter: the pause is drawn evenly from zero to `base × 2ⁿ`, at most `max`
    /// (the "full jitter" of the AWS Architecture Blog, *Exponential Backoff And Jitter*, 2015).
    Exponential {
        /// The first upper bound.
        #[serde(with = "humantime_serde")]
        base: Duration,
        /// The greatest upper bound.
        #[serde(with = "humantime_serde")]
        max: Duration,
    },
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            limit: Limit::Attempts(50),
            immediate: 3,
            backoff: Backoff::Exponential { base: Duration::from_secs(1), max: Duration::from_secs(60) },
            crashes: 10,
        }
    }
}

impl RetryPolicy {
    /// No second attempt: the first failure is final.
    pub fn never() -> Self {
        Self { limit: Limit::Attempts(1), ..Self::default() }
    }

    /// At most `attempts`, always `delay` apart.
    pub fn fixed(attempts: u32, delay: Duration) -> Self {
        Self { limit: Limit::Attempts(attempts), immediate: 0, backoff: Backoff::Fixed { delay }, ..Self::default() }
    }

    /// Whether, after `attempts` have begun, there may be another.
    pub fn allows_another(&self, attempts: u32) -> bool {
        match self.limit {
            Limit::Attempts(limit) => attempts < limit,
            Limit::None => true,
        }
    }

    /// Whether a message is tried alone after so many attempts in a row that ended with their process.
    pub fn tries_alone_after(&self, crashes: u32) -> bool {
        self.limit != Limit::None && crashes >= self.crashes.max(2) - 1
    }

    /// The pause after the failure of attempt number `attempts` (from 1). `roll` in `0.0..1.0` is the jitter's dice.
    pub fn delay_after(&self, attempts: u32, roll: f64) -> Duration {
        let roll = roll.clamp(0.0, 1.0);
        if attempts < self.immediate {
            return SHORT_JITTER.mul_f64(roll);
        }
        match self.backoff {
            Backoff::Fixed { delay } => delay.min(FAR),
            Backoff::Exponential { base, max } => {
                let doublings = attempts.saturating_sub(self.immediate.max(1)).min(63);
                let bound = u32::try_from(1_u64 << doublings.min(31))
                    .ok()
                    .and_then(|factor| base.checked_mul(factor))
                    .map_or(max, |bound| bound.min(max));
                bound.min(FAR).mul_f64(roll)
            }
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempts(limit) => limit.fmt(f),
            Self::None => f.write_str("none"),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Attempts(limit) => serializer.serialize_u32(*limit),
            Self::None => serializer.serialize_str("none"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u32),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(limit) => Ok(Self::Attempts(limit)),
            Form::Text(text) if text == "none" => Ok(Self::None),
            Form::Text(text) => {
                Err(serde::de::Error::custom(format!("a retry limit is a number or \"none\", not {text:?}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_tries_three_times_at_once_then_from_one_second_to_sixty() {
        let policy = RetryPolicy::default();
        let bounds: Vec<_> = (1..=12).map(|attempt| policy.delay_after(attempt, 1.0)).collect();
        let seconds = |n| Duration::from_secs(n);
        assert_eq!(bounds[..2], [SHORT_JITTER; 2]);
        assert_eq!(bounds[2..], [1, 2, 4, 8, 16, 32, 60, 60, 60, 60].map(seconds));
        assert_eq!(policy.delay_after(20, 0.0), Duration::ZERO);
        assert!(policy.allows_another(49) && !policy.allows_another(50));
    }

    #[test]
    fn what_always_fails_is_dead_after_some_21_minutes() {
        let policy = RetryPolicy::default();
        let attempts = (1..).take_while(|attempts| policy.allows_another(*attempts));
        let on_average: Duration = attempts.map(|attempts| policy.delay_after(attempts, 0.5)).sum();
        assert_eq!(on_average.as_secs() / 60, 21);
    }

    #[test]
    fn a_limit_is_a_number_or_none_in_a_config_file() {
        let read = |text| serde_json::from_str::<RetryPolicy>(text);
        assert_eq!(read(r#"{"limit":"none"}"#).unwrap().limit, Limit::None);
        assert_eq!(read(r#"{"limit":7}"#).unwrap().limit, Limit::Attempts(7));
        assert!(read(r#"{"limit":"many"}"#).is_err());
        let fixed = read(r#"{"backoff":{"fixed":{"delay":"5s"}}}"#).unwrap();
        assert_eq!(fixed.backoff, Backoff::Fixed { delay: Duration::from_secs(5) });
    }

    proptest! {
        #[test]
        fn a_pause_never_overflows_and_never_exceeds_its_bound(
            attempts: u32,
            roll in prop_oneof![0.0..1.0f64, Just(1.0)],
            base in 1u64..u64::MAX / 2,
            max in prop_oneof![Just(Duration::from_secs(60)), any::<Duration>(), Just(Duration::MAX)],
        ) {
            let policy = RetryPolicy {
                limit: Limit::None,
                immediate: 3,
                backoff: Backoff::Exponential { base: Duration::from_millis(base), max },
                ..RetryPolicy::default()
            };
            prop_assert!(policy.delay_after(attempts, roll) <= max);
        }
    }
}
