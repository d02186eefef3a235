//! A state's times as a database counts them.

use std::time::Duration;

use crate::lifecycle::State;
use crate::time::{Due, micros};

/// What a database can hold, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The longest duration: longer ones are cut to it, so that sums with the clock stay in range.
    pub far: i64,
    /// The first and the last moment, counted from 1970: others are cut to them.
    pub moments: (i64, i64),
}

impl Range {
    /// A duration.
    pub fn span(&self, duration: Duration) -> i64 {
        micros(duration).min(self.far)
    }
}

/// The times of a state, in microseconds. The database adds its clock to those that begin with "in".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// When it is due, counted from 1970, if that is a moment.
    pub due_at: Option<i64>,
    /// In how long it is due, if that is counted from now.
    pub due_in: Option<i64>,
    /// In how long it expires.
    pub expires_in: Option<i64>,
}

impl Times {
    /// Those of `state`, as far as `range` goes.
    pub fn of(state: &State, range: &Range) -> Self {
        let (first, last) = range.moments;
        let (due_at, due_in) = match state.due() {
            None => (None, None),
            Some(Due::Now) => (None, Some(0)),
            Some(Due::In(delay)) => (None, Some(range.span(delay))),
            Some(Due::At(moment)) => (Some(moment.as_micros().clamp(first, last)), None),
        };
        Self { due_at, due_in, expires_in: state.expires().map(|expires| range.span(expires)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle;
    use crate::time::Timestamp;

    #[test]
    fn what_is_out_of_range_is_cut_and_nothing_overflows() {
        let range = Range { far: 1_000, moments: (1, 5) };
        let times = |due| Times::of(&lifecycle::scheduled(due), &range);
        assert_eq!((times(Due::Now).due_in, times(Due::Now).due_at), (Some(0), None));
        assert_eq!(times(Due::In(Duration::MAX)).due_in, Some(1_000));
        assert_eq!(times(Due::At(Timestamp::from_micros(i64::MAX))).due_at, Some(5));
        assert_eq!(times(Due::At(Timestamp::from_micros(i64::MIN))).due_at, Some(1));
    }
}
