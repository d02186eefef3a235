//! What a run of a suite found: one entry for each check, none left out.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The backend keeps the promise.
    Passed,
    /// It does not; the text says what was expected and what came.
    Failed(String),
    /// The backend does not declare what the check needs.
    Unsupported {
        /// The capability.
        capability: &'static str,
        /// Whether a second check saw that the backend refuses, as it must; otherwise there is nothing to see.
        verified: bool,
    },
}

impl Outcome {
    /// The outcome in a word: `passed`, `failed` or `unsupported`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Unsupported { .. } => "unsupported",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Passed => String::new(),
            Self::Failed(text) => text.clone(),
            Self::Unsupported { capability, verified: true } => format!("no {capability}; refused as it must be"),
            Self::Unsupported { capability, verified: false } => format!("no {capability}; nothing to verify"),
        }
    }
}

/// One check's line in a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The check's number.
    pub id: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The promises that it quotes.
    pub promises: &'static [&'static str],
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, clean-up included.
    pub took: Duration,
}

impl fmt::Display for Entry {
    /// One line: number, outcome, time, name, and what there is to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.took.as_millis();
        write!(f, "{:<6} {:<11} {millis:>6} ms  {}", self.id, self.outcome.word(), self.name)?;
        match self.outcome.detail() {
            detail if detail.is_empty() => Ok(()),
            detail => write!(f, ": {detail}"),
        }
    }
}

/// The outcome of every check of a run. Displays as a table with a closing line of counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What was checked: a backend's name.
    pub subject: String,
    /// One entry for each check that the filter let through, in the order of the suite.
    pub entries: Vec<Entry>,
}

impl Report {
    /// Whether no check failed.
    pub fn is_conformant(&self) -> bool {
        self.failed().next().is_none()
    }

    /// The entries of the checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| matches!(entry.outcome, Outcome::Failed(_)))
    }

    /// The entry of a check, by its number or its name.
    pub fn entry(&self, id_or_name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == id_or_name || entry.name == id_or_name)
    }

    fn count(&self, word: &str) -> usize {
        self.entries.iter().filter(|entry| entry.outcome.word() == word).count()
    }

    /// The report as a JSON object: `subject`, `passed`, `failed`, `unsupported` (counts) and `checks`, each with `id`,
    /// `name`, `promises`, `outcome`, `detail` and `millis`.
    pub fn to_json(&self) -> Value {
        let checks: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| {
                json!({
                    "id": entry.id,
                    "name": entry.name,
                    "promises": entry.promises,
                    "outcome": entry.outcome.word(),
                    "detail": entry.outcome.detail(),
                    "millis": u64::try_from(entry.took.as_millis()).unwrap_or(u64::MAX),
                })
            })
            .collect();
        json!({
            "subject": self.subject,
            "passed": self.count("passed"),
            "failed": self.count("failed"),
            "unsupported": self.count("unsupported"),
            "checks": checks,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Entry) -> String| self.entries.iter().map(|entry| text(entry).len()).max().unwrap_or(0);
        let name_width = width(|entry| entry.name.to_owned());
        let promises_width = width(|entry| entry.promises.join(" "));
        for entry in &self.entries {
            let line = format!(
                "{:<6} {:<name_width$}  {:<promises_width$}  {:>6} ms  {:<11}  {}",
                entry.id,
                entry.name,
                entry.promises.join(" "),
                entry.took.as_millis(),
                entry.outcome.word(),
                entry.outcome.detail(),
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        let [passed, failed, unsupported] = ["passed", "failed", "unsupported"].map(|word| self.count(word));
        write!(f, "{}: {passed} passed, {failed} failed, {unsupported} unsupported", self.subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let entry = |id, name, outcome| Entry { id, name, promises: &["send/1"], outcome, took: Duration::ZERO };
        let unsupported = |verified| Outcome::Unsupported { capability: "wildcards", verified };
        Report {
            subject: "a backend".into(),
            entries: vec![
                entry("T-001", "short", Outcome::Passed),
                entry("T-002", "a_longer_name", Outcome::Failed("found 2".into())),
                entry("T-003", "verified", unsupported(true)),
                entry("T-004", "unverified", unsupported(false)),
            ],
        }
    }

    #[test]
    fn the_table_is_aligned_and_ends_with_the_counts() {
        let text = report().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "T-001  short          send/1       0 ms  passed");
        assert_eq!(lines[1], "T-002  a_longer_name  send/1       0 ms  failed       found 2");
        assert!(lines[2].ends_with("no wildcards; refused as it must be"));
        assert!(lines[3].ends_with("no wildcards; nothing to verify"));
        assert_eq!(lines[4], "a backend: 1 passed, 1 failed, 2 unsupported");
    }

    #[test]
    fn the_json_holds_every_entry() {
        let json = report().to_json();
        assert_eq!(json["failed"], 1);
        assert_eq!(json["unsupported"], 2);
        assert_eq!(json["checks"].as_array().map(Vec::len), Some(4));
        assert_eq!(json["checks"][1]["detail"], "found 2");
    }

    #[test]
    fn a_report_with_a_failed_check_is_not_conformant() {
        assert!(!report().is_conformant());
        assert_eq!(report().failed().map(|entry| entry.id).collect::<Vec<_>>(), ["T-002"]);
        assert!(Report::default().is_conformant());
    }
}
