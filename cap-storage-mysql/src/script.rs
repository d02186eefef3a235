//! Several statements in one round trip, and the literals in them.
//!
//! Only what this file makes of a value gets into a script: numbers and hexadecimal digits. So there is nothing to
//! escape, whatever the session's sql_mode, and nothing that its charset could change.

use std::future::poll_fn;

use cap_storage_sqlx::Fallible;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Either, MySql, MySqlConnection};

use crate::sql::{self, Statement};

/// Statements that are sent together, as far as a packet goes. The first that fails is the last that is carried out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(Vec<String>);

/// How many bytes are sent at once, unless a single statement has more: less than any server takes.
const PACKET: usize = 256 << 10;

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
        if template.is_empty() {
            return self;
        }
        let statement = filled(template, values);
        match self.0.last_mut() {
            Some(packet) if packet.len() + statement.len() < PACKET => {
                packet.push_str("; ");
                packet.push_str(&statement);
            }
            _ => self.0.push(statement),
        }
        self
    }

    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        self.0.join("; ")
    }

    /// Runs it to its end; an answer for each statement. One without statements asks nothing.
    pub(crate) async fn run(self, connection: &mut MySqlConnection) -> Fallible<Vec<Answer>> {
        let mut answers = Vec::new();
        for packet in self.0 {
            send(packet, connection, &mut answers).await?;
        }
        Ok(answers)
    }
}

async fn send(packet: String, connection: &mut MySqlConnection, answers: &mut Vec<Answer>) -> Fallible<()> {
    let mut results = sqlx::raw_sql(AssertSqlSafe(packet)).fetch_many::<_, MySql>(connection);
    let mut rows = Vec::new();
    while let Some(result) = poll_fn(|context| results.as_mut().poll_next(context)).await {
        match result? {
            Either::Right(row) => rows.push(row),
            Either::Left(done) => {
                let (affected, inserted) = (done.rows_affected(), done.last_insert_id());
                answers.push(Answer { rows: std::mem::take(&mut rows), affected, inserted });
            }
        }
    }
    Ok(())
}

/// The template with `{name}` in it replaced by the literal of that name.
fn filled(template: &str, values: &[(&str, &str)]) -> String {
    let mut statement = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        statement.push_str(before);
        let known = values.iter().find_map(|(name, value)| {
            let after = after.strip_prefix(name)?.strip_prefix('}')?;
            Some((*value, after))
        });
        match known {
            Some((value, after)) => {
                statement.push_str(value);
                rest = after;
            }
            None => {
                statement.push('{');
                rest = after;
            }
        }
    }
    statement.push_str(rest);
    statement
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
        assert_eq!(script.text(), "a {y} {1,2} {y; b");
    }

    #[test]
    fn what_is_too_much_for_a_packet_is_sent_in_several() {
        let long = "x".repeat(PACKET / 3);
        let script = (0..5).fold(Script::begin(), |script, _| script.plain(&long)).commit();
        assert!(script.0.len() > 1 && script.0.iter().all(|packet| packet.len() <= PACKET), "{}", script.0.len());
        assert_eq!(script.text().matches(&long).count(), 5);
    }
}
