//! What was tried, for the error that says why it failed.

use crate::error::{Error, ErrorKind};
use crate::storage::Table;

/// What was tried on a storage, kept cheap: it becomes text only when it fails.
///
/// ```
/// use cap_core::backend::Attempt;
/// use cap_core::{ErrorKind, Table};
///
/// let attempt = Attempt::on("claim from", Table::Outbox);
/// let error = attempt.failed(ErrorKind::Unavailable, "mysql db:3306/shop", "the connection was lost");
/// assert!(error.to_string().starts_with("cannot claim from the outbox of mysql db:3306/shop: the connection was lost"));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    operation: &'static str,
    table: Option<Table>,
}

impl Attempt {
    /// On one of the tables. The operation is a verb with its preposition: `claim from`.
    pub const fn on(operation: &'static str, table: Table) -> Self {
        Self { operation, table: Some(table) }
    }

    /// On the whole database: `prepare the tables of`.
    pub const fn on_database(operation: &'static str) -> Self {
        Self { operation, table: None }
    }

    /// The verb with its preposition.
    pub const fn operation(self) -> &'static str {
        self.operation
    }

    /// The error that says it, of the database at `place`: kind and address, without secrets.
    pub fn failed(self, kind: ErrorKind, place: &str, reason: impl Into<String>) -> Error {
        Error::new(kind, self.operation, self.subject(place), reason)
    }

    /// The same for an error of the driver: what it says, and what to do about it if that is known.
    pub fn failed_with(
        self,
        kind: ErrorKind,
        place: &str,
        said: String,
        advice: Option<&str>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        let reason = match advice {
            Some(advice) => format!("{said}: {advice}"),
            None => said,
        };
        self.failed(kind, place, reason).because(cause)
    }

    /// What it was done to: `the outbox of mysql db.example.com:3306/orders`.
    pub fn subject(self, place: &str) -> String {
        match self.table {
            Some(table) => format!("the {table} of {place}"),
            None => place.to_owned(),
        }
    }
}
