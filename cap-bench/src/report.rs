//! What a run prints: progress on stderr, and on stdout a table or one JSON object.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::backend::Fallible;

/// A line for whoever waits.
pub(crate) fn progress(line: fmt::Arguments<'_>) {
    eprintln!("{line}");
}

/// The middle one; the lower of the two middle ones of an even number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// What was measured, ready to be printed.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) bench: &'static str,
    pub(crate) storage: String,
    pub(crate) transport: String,
    pub(crate) settings: Value,
    pub(crate) figures: Map<String, Value>,
}

impl Report {
    /// Prints it: as the last line of stdout in JSON, or as a table.
    pub(crate) fn print(self, as_json: bool) {
        let mut all = Map::new();
        all.insert("bench".into(), self.bench.into());
        all.insert("storage".into(), self.storage.into());
        all.insert("transport".into(), self.transport.into());
        all.extend(self.figures);
        all.insert("settings".into(), self.settings);
        if as_json {
            println!("{}", Value::Object(all));
            return;
        }
        for (name, value) in all {
            match value {
                Value::String(text) => println!("{name:>22}  {text}"),
                other => println!("{name:>22}  {other}"),
            }
        }
    }
}

/// Rates of rounds in turn, higher being better.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    ours: Vec<f64>,
    twin: Vec<f64>,
}

impl Comparison {
    pub(crate) fn add(&mut self, ours: f64, twin: f64) {
        self.ours.push(ours);
        self.twin.push(twin);
    }

    /// Medians; the ratio is the median of the rounds' ratios, since neighbours in time have the same noise.
    pub(crate) fn figures(&self, unit: &str) -> Map<String, Value> {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.twin).map(|(ours, twin)| ours / twin).collect();
        object(json!({
            "unit": unit,
            "ours": median(&self.ours).round(),
            "twin": median(&self.twin).round(),
            "ratio": rounded(median(&ratios)),
            "ours_rounds": self.ours.iter().map(|rate| rate.round()).collect::<Vec<_>>(),
            "twin_rounds": self.twin.iter().map(|rate| rate.round()).collect::<Vec<_>>(),
        }))
    }
}

/// Latencies of rounds in turn, lower being better: a ratio below 1 means that ours is faster.
#[derive(Debug, Default)]
pub(crate) struct LatencyComparison {
    ours: Latencies,
    twin: Latencies,
}

#[derive(Debug, Default)]
struct Latencies {
    p50: Vec<f64>,
    p99: Vec<f64>,
    highest: f64,
}

impl Latencies {
    fn add(&mut self, histogram: &Histogram<u64>) {
        self.p50.push(milliseconds(histogram.value_at_quantile(0.5)));
        self.p99.push(milliseconds(histogram.value_at_quantile(0.99)));
        self.highest = self.highest.max(milliseconds(histogram.max()));
    }
}

impl LatencyComparison {
    pub(crate) fn add(&mut self, ours: &Histogram<u64>, twin: &Histogram<u64>) -> Fallible {
        if ours.is_empty() || twin.is_empty() {
            return Err("nothing was measured".into());
        }
        self.ours.add(ours);
        self.twin.add(twin);
        Ok(())
    }

    /// In milliseconds; `ours`, `twin` and `ratio` are those of the median.
    pub(crate) fn figures(&self) -> Map<String, Value> {
        let ratio = |ours: &[f64], twin: &[f64]| {
            let ratios: Vec<f64> = ours.iter().zip(twin).map(|(ours, twin)| ours / twin).collect();
            rounded(median(&ratios))
        };
        let (ours, twin) = (&self.ours, &self.twin);
        object(json!({
            "unit": "ms",
            "ours": median(&ours.p50),
            "twin": median(&twin.p50),
            "ratio": ratio(&ours.p50, &twin.p50),
            "p50": median(&ours.p50),
            "p99": median(&ours.p99),
            "twin_p50": median(&twin.p50),
            "twin_p99": median(&twin.p99),
            "ratio_p50": ratio(&ours.p50, &twin.p50),
            "ratio_p99": ratio(&ours.p99, &twin.p99),
            "max": ours.highest,
            "twin_max": twin.highest,
        }))
    }
}

/// What an idle node asks, a second.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    pub(crate) calls: f64,
    pub(crate) transactions: Option<f64>,
    pub(crate) by_method: BTreeMap<&'static str, u64>,
}

impl Idle {
    /// There is no twin of doing nothing.
    pub(crate) fn figures(&self) -> Map<String, Value> {
        object(json!({
            "unit": "statements/s",
            "ours": rounded(self.transactions.unwrap_or(self.calls)),
            "twin": null,
            "ratio": null,
            "storage_calls_per_s": rounded(self.calls),
            "server_transactions_per_s": self.transactions.map(rounded),
            "calls_since_start": self.by_method,
        }))
    }
}

/// The members of a JSON object.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_ratio_is_that_of_neighbours_in_time() {
        let mut comparison = Comparison::default();
        for (ours, twin) in [(10.0, 10.0), (1.0, 2.0), (100.0, 100.0)] {
            comparison.add(ours, twin);
        }
        assert_eq!(comparison.figures("")["ratio"], 1.0);
    }
}
