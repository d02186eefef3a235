//! What is told of the rows that .NET CAP has left, when its tables are taken over.

use std::fmt;

use cap_core::storage::Table;

/// How many rows of each status a table of .NET CAP's had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftBehind {
    /// Which of the two.
    pub table: Table,
    /// A status as .NET CAP calls it, and how many rows have it.
    pub rows: Vec<(String, i64)>,
}

impl LeftBehind {
    /// How many have a time of their own when they are due.
    fn delayed(&self) -> i64 {
        let delayed = self.rows.iter().filter(|(status, _)| matches!(status.as_str(), "Delayed" | "Queued"));
        delayed.map(|(_, number)| number).sum()
    }
}

impl fmt::Display for LeftBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (status, number)) in self.rows.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{number} {status}")?;
        }
        if self.rows.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// Tells the log what was taken over. `zone` is the one in which .NET CAP's times were read, if somebody has named it, and
/// `setting` what names it: without it they were read as UTC, and that is warned of if any row is to be sent at its time.
pub fn tell_of_takeover(left: &[LeftBehind], zone: Option<&str>, setting: &str) {
    let read_in = zone.unwrap_or("UTC");
    for of in left {
        tracing::info!(cap.table = %of.table, cap.rows = %of, cap.zone = read_in, "took over the rows of .NET CAP");
    }
    let delayed: i64 = left.iter().map(LeftBehind::delayed).sum();
    if delayed > 0 && zone.is_none() {
        tracing::warn!(
            cap.delayed = delayed,
            cap.setting = setting,
            "the times of .NET CAP's delayed messages were read as UTC, since no zone was named: if its hosts were in \
             another one, they will be sent hours early or late"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(rows: &[(&str, i64)]) -> LeftBehind {
        let rows = rows.iter().map(|(status, number)| ((*status).to_owned(), *number)).collect();
        LeftBehind { table: Table::Outbox, rows }
    }

    #[test]
    fn rows_are_told_by_their_status() {
        assert_eq!(left(&[("Delayed", 2), ("Succeeded", 17)]).to_string(), "2 Delayed, 17 Succeeded");
        assert_eq!(left(&[]).to_string(), "none");
    }

    #[test]
    fn what_cap_had_in_memory_has_a_time_of_its_own_too() {
        assert_eq!(left(&[("Delayed", 2), ("Failed", 1), ("Queued", 3)]).delayed(), 5);
    }
}
