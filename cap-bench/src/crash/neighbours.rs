//! How much slower healthy messages are handled while a nemesis is at work than while none is: pure.
//!
//! - *latency*: the time from the answer to an order's commit to its effect in a group, less the outages in between.
//! - *calm*: the latencies of the orders that were committed in calm windows; *beside* a nemesis: those of its windows.
//! - *slow*: the median beside a nemesis is above twice the calm one, and above a floor below which noise decides.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::median;

/// The windows without a nemesis are called so.
pub(crate) const CALM: &str = "calm";
/// The median beside a nemesis may be so many times the calm one.
const FACTOR: f64 = 2.0;
/// A median below this, in milliseconds, is never called slow.
const FLOOR_MS: f64 = 50.0;
/// Fewer latencies than this say nothing.
const ENOUGH: usize = 20;

/// A time in which one nemesis, or none, was at work; in microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) of: String,
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// Whether neighbours are to keep their speed in it.
    pub(crate) judged: bool,
}

/// One effect of one order, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Latency {
    pub(crate) committed: i64,
    pub(crate) took: i64,
}

/// How the neighbours of one nemesis fared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Beside {
    pub(crate) messages: usize,
    pub(crate) median_ms: f64,
    /// Of the calm median; none if one of the two is of too few messages.
    pub(crate) times_calm: Option<f64>,
    /// Too slow; never where neighbours cannot keep their speed.
    pub(crate) slow: bool,
}

/// By nemesis, and for the calm windows under [`CALM`].
pub(crate) fn measure(windows: &[Window], latencies: &[Latency]) -> BTreeMap<String, Beside> {
    let mut sorted: BTreeMap<&str, (Vec<f64>, bool)> = BTreeMap::new();
    for window in windows {
        let within = latencies.iter().filter(|latency| (window.from..window.until).contains(&latency.committed));
        let entry = sorted.entry(&window.of).or_insert((Vec::new(), window.judged));
        entry.0.extend(within.map(|latency| latency.took as f64 / 1000.0));
    }
    let calm = sorted.get(CALM).filter(|(took, _)| took.len() >= ENOUGH).map(|(took, _)| median(took));
    let beside = |(of, (took, judged)): (&str, (Vec<f64>, bool))| {
        let median_ms = if took.is_empty() { 0.0 } else { median(&took) };
        let times_calm = calm.filter(|_| took.len() >= ENOUGH).map(|calm| median_ms / calm.max(0.001));
        let slow = judged && median_ms > FLOOR_MS && times_calm.is_some_and(|times| times > FACTOR);
        let times_calm = times_calm.map(|times| (times * 100.0).round() / 100.0);
        (of.to_owned(), Beside { messages: took.len(), median_ms, times_calm, slow })
    };
    sorted.into_iter().map(beside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A calm minute with 10 ms, and a minute with a nemesis and so many milliseconds.
    fn measured(beside_ms: i64, judged: bool) -> Beside {
        let window = |of: &str, from, judged| Window { of: of.into(), from, until: from + 60_000_000, judged };
        let windows = [window(CALM, 0, true), window("poison", 100_000_000, judged)];
        let latencies = |from: i64, ms| (0..30).map(move |n| Latency { committed: from + n, took: ms * 1000 });
        let latencies: Vec<_> = latencies(0, 40).chain(latencies(100_000_000, beside_ms)).collect();
        measure(&windows, &latencies)["poison"].clone()
    }

    #[test]
    fn twice_as_slow_is_allowed_and_more_is_slow() {
        assert!(!measured(80, true).slow);
        assert!(measured(81, true).slow);
        assert_eq!(measured(100, true).times_calm, Some(2.5));
        assert!(!measured(81, false).slow, "where they cannot keep their speed");
    }

    #[test]
    fn below_the_floor_nothing_is_slow() {
        let windows = [CALM, "poison"].map(|of| Window { of: of.into(), from: 0, until: 1000, judged: true });
        let latencies: Vec<_> = (0..100).map(|committed| Latency { committed, took: 1 }).collect();
        assert!(!measure(&windows, &latencies)["poison"].slow);
    }

    #[test]
    fn too_few_messages_say_nothing() {
        let windows = [Window { of: "poison".into(), from: 0, until: 1000, judged: true }];
        let latencies = [Latency { committed: 1, took: 90_000_000 }];
        let beside = &measure(&windows, &latencies)["poison"];
        assert_eq!((beside.messages, beside.times_calm, beside.slow), (1, None, false));
    }
}
