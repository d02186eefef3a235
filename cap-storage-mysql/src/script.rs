//! Several statements in one round trip, and the literals in them.
//!
//! Only what this file makes of a value gets into a script: numbers and hexadecimal digits. So there is nothing to
//! escape, whatever the session's sql_mode, and nothing that its charset could change.

use std::future::poll_fn;

use cap_storage_sqlx::Fallible;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Either, MySql, MySqlConnection};

use crate::sql::{self, Statement};

/// Statements that are sent together. The first that fails is the last that is carried out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(String);

/// What one statement of a script came to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) rows: Vec<MySqlRow>,
    /// How many rows it found to change, be it that the change made no difference: the driver asks for this count.
    pub(crate) affected: u64,
    /// The address of the first row that it inserted; 0 if it inserted none.
    pub(crate) inserted: u64,
}

impl Script {
    /// Begins a transaction.
    pub(crate) fn begin() -> Self {
        Self::default().plain(sql::BEGIN)
    }

    /// Begins a transaction that only reads.
    pub(crate) fn begin_reading() -> Self {
        Self::default().plain(sql::BEGIN_READING)
    }

    /// Ends the transaction.
    pub(crate) fn commit(self) -> Self {
        self.plain(sql::COMMIT)
    }

    pub(crate) fn plain(self, statement: &str) -> Self {
        self.append(statement, &[])
    }

    pub(crate) fn plain_with(self, statement: &str, values: &[(&str, &str)]) -> Self {
        self.append(statement, values)
    }

    /// Appends a statement, `{name}` in it replaced by the literal of that name.
    pub(crate) fn then(self, statement: &Statement, values: &[(&str, &str)]) -> Self {
        self.append(statement.text(), values)
    }

    fn append(mut self, template: &str, values: &[(&str, &str)]) -> Self {
        if !self.0.is_empty() && !template.is_empty() {
            self.0.push_str("; ");
        }
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            self.0.push_str(before);
            let known = values.iter().find_map(|(name, value)| {
                let after = after.strip_prefix(name)?.strip_prefix('}')?;
                Some((*value, after))
            });
            match known {
                Some((value, after)) => {
                    self.0.push_str(value);
                    rest = after;
                }
                None => {
                    self.0.push('{');
                    rest = after;
                }
            }
        }
        self.0.push_str(rest);
        self
    }

    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Runs it to its end; an answer for each statement. One without statements asks nothing.
    pub(crate) async fn run(self, connection: &mut MySqlConnection) -> Fallible<Vec<Answer>> {
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let mut results = sqlx::raw_sql(AssertSqlSafe(self.0)).fetch_many::<_, MySql>(connection);
        let (mut answers, mut rows) = (Vec::new(), Vec::new());
        while let Some(result) = poll_fn(|context| results.as_mut().poll_next(context)).await {
            match result? {
                Either::Right(row) => rows.push(row),
                Either::Left(done) => {
                    let (affected, inserted) = (done.rows_affected(), done.last_insert_id());
                    answers.push(Answer { rows: std::mem::take(&mut rows), affected, inserted });
                }
            }
        }
        Ok(answers)
    }
}

pub(crate) fn number(value: Option<i64>) -> String {
    value.map_or_else(null, |value| value.to_string())
}

pub(crate) fn text(value: Option<&str>) -> String {
    value.map_or_else(null, |value| format!("_utf8mb4 {}", bytes(value.as_bytes())))
}

pub(crate) fn bytes(value: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut literal = String::with_capacity(value.len() * 2 + 3);
    literal.push_str("x'");
    for byte in value {
        literal.push(char::from(DIGITS[usize::from(byte >> 4)]));
        literal.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    literal.push('\'');
    literal
}

/// What goes between the brackets of an `IN`: at least one literal.
pub(crate) fn list(literals: impl Iterator<Item = String>) -> String {
    literals.collect::<Vec<_>>().join(",")
}

pub(crate) fn null() -> String {
    "NULL".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_never_sql_whatever_it_holds() {
        let hostile = "'; DROP TABLE x; -- {ids} \\ \0 ü";
        let literal = text(Some(hostile));
        assert!(literal.starts_with("_utf8mb4 x'"));
        let digits = literal.trim_start_matches("_utf8mb4 x'").trim_end_matches('\'');
        assert!(digits.len() == hostile.len() * 2 && digits.chars().all(|c| c.is_ascii_hexdigit()), "{literal}");
        assert_eq!((text(None), number(None), number(Some(i64::MIN))), (null(), null(), i64::MIN.to_string()));
    }

    #[test]
    fn holes_are_filled_once_and_statements_are_separated() {
        let script = Script::default().append("a {x} {1,2} {y", &[("x", "{y}"), ("y", "no")]).plain("").plain("b");
        assert_eq!(script.0, "a {y} {1,2} {y; b");
    }
}
