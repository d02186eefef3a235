//! Numbers as databases count them: what is beyond their range is as good as its end.

use crate::lifecycle::State;

/// A limit.
pub fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// How many attempts a state counts.
pub fn attempts(state: &State) -> i32 {
    i32::try_from(state.attempts()).unwrap_or(i32::MAX)
}

/// How many crashes a state counts.
pub fn crashes(state: &State) -> i32 {
    i32::try_from(state.crashes()).unwrap_or(i32::MAX)
}
