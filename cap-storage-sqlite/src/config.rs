//! Options: where the database file is and how it is used.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cap_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// The longest prefix, in bytes.
const MAX_PREFIX: usize = 64;

/// The longest busy timeout: SQLite counts it in milliseconds, as an `int`.
const MAX_BUSY_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How a [`SqliteStorage`](crate::SqliteStorage) uses its file. Also read from a config file, with durations written as
/// `5s`.
///
/// ```
/// use std::time::Duration;
/// use cap_storage_sqlite::{SqliteOptions, Synchronous};
///
/// let options = SqliteOptions::new("/var/lib/orders.db")
///     .synchronous(Synchronous::Normal)
///     .busy_timeout(Duration::from_secs(10));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteOptions {
    pub(crate) path: PathBuf,
    #[serde(default)]
    pub(crate) synchronous: Synchronous,
    #[serde(default = "default_busy_timeout", with = "humantime_serde")]
    pub(crate) busy_timeout: Duration,
    #[serde(default = "default_prefix")]
    pub(crate) prefix: String,
    #[serde(default = "default_migrate")]
    pub(crate) migrate: bool,
}

/// How durable a commit is when the power fails. A crash of the process, however hard, loses nothing with either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Each commit is on the disk before it is answered. The default.
    #[default]
    Full,
    /// Commits reach the disk at the next checkpoint: a loss of power may take the last ones back, those of a business
    /// transaction and of its messages together. Several times faster.
    Normal,
}

impl Synchronous {
    pub(crate) const fn as_sql(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

impl fmt::Display for Synchronous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_sql())
    }
}

fn default_busy_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_prefix() -> String {
    "cap".to_owned()
}

fn default_migrate() -> bool {
    true
}

impl SqliteOptions {
    /// The defaults for the file at `path`, which is created when it is not there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            synchronous: Synchronous::default(),
            busy_timeout: default_busy_timeout(),
            prefix: default_prefix(),
            migrate: default_migrate(),
        }
    }

    /// How durable a commit is when the power fails; [`Synchronous::Full`] by default. Counts for the storage's own
    /// commits: a transaction of yours is as durable as your own connection makes it.
    #[must_use]
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// How long the storage waits for other writers of the file before it answers `Unavailable`; 5 s by default, at
    /// most a day.
    #[must_use]
    pub fn busy_timeout(mut self, busy_timeout: Duration) -> Self {
        self.busy_timeout = busy_timeout;
        self
    }

    /// What the table names begin with; `cap` by default, for `"cap.published"`, `"cap.received"`, `"cap.nodes"`,
    /// `"cap.chores"` and `"cap.schema"`. Engines with different prefixes share nothing but the file.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Whether [`prepare`](cap_core::Storage::prepare) creates and upgrades the tables; `true` by default. With `false`
    /// it only checks them, and somebody runs what [`print_schema`](Self::print_schema) answers beforehand.
    #[must_use]
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The SQL that makes the tables from nothing, for those who apply it themselves (with the `sqlite3` shell, for
    /// instance) and set [`migrate`](Self::migrate) to `false`. Tables of an older version need what comes after it:
    /// each begins with a comment, `-- Version 2`.
    ///
    /// # Errors
    /// `Invalid` when the prefix cannot be part of a table's name.
    pub fn print_schema(&self) -> Result<String> {
        check_prefix(&self.prefix)?;
        Ok(crate::schema::print(&self.prefix))
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_path(&self.path)?;
        check_prefix(&self.prefix)?;
        if self.busy_timeout > MAX_BUSY_TIMEOUT {
            let subject = format!("busy timeout {:?}", self.busy_timeout);
            return Err(Error::invalid(subject, "it is longer than a day"));
        }
        Ok(())
    }
}

fn check_path(path: &Path) -> Result<()> {
    let refuse = |reason: &str| Err(Error::invalid(format!("sqlite path {path:?}"), reason));
    let text = path.to_string_lossy();
    if text.is_empty() {
        return refuse("it is empty: SQLite would make a temporary database for each connection");
    }
    if text.contains(":memory:") || text.contains("mode=memory") {
        return refuse(
            "each connection would see a database in memory of its own; use a file, or the crate `cap-storage-memory` \
             for a storage that lives in this process",
        );
    }
    if text.starts_with("file:") {
        return refuse("it is a URI; give a plain path");
    }
    Ok(())
}

fn check_prefix(prefix: &str) -> Result<()> {
    let refuse = |reason: String| Err(Error::invalid(format!("sqlite prefix {prefix:.80?}"), reason));
    if prefix.is_empty() {
        return refuse("it is empty: the tables would be named after nothing".into());
    }
    if prefix.len() > MAX_PREFIX {
        return refuse(format!("it has {} bytes, the limit is {MAX_PREFIX}", prefix.len()));
    }
    if let Some(bad) = prefix.chars().find(|c| c.is_control() || "\"'`[]{}".contains(*c)) {
        return refuse(format!("it holds {bad:?}, which has no place in the name of a table"));
    }
    if prefix.trim() != prefix {
        return refuse("it begins or ends with white space".into());
    }
    if prefix.to_ascii_lowercase().starts_with("sqlite_") {
        return refuse("SQLite keeps names that begin with `sqlite_` for itself".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cap_core::ErrorKind;

    use super::*;

    #[test]
    fn options_come_from_a_config_file_with_durations_for_people() {
        let read = |text| serde_json::from_str::<SqliteOptions>(text);
        assert_eq!(read(r#"{"path":"orders.db"}"#).unwrap(), SqliteOptions::new("orders.db"));
        let all = r#"{"path":"o.db","synchronous":"normal","busy_timeout":"250ms","prefix":"bus","migrate":false}"#;
        let expected = SqliteOptions::new("o.db")
            .synchronous(Synchronous::Normal)
            .busy_timeout(Duration::from_millis(250))
            .prefix("bus")
            .migrate(false);
        assert_eq!(read(all).unwrap(), expected);
        assert!(read(r#"{"path":"o.db","sychronous":"full"}"#).is_err(), "a misspelt option was accepted");
    }

    #[test]
    fn a_database_in_memory_is_refused_and_the_right_crate_named() {
        for path in [":memory:", "file::memory:?cache=shared", "file:x?mode=memory"] {
            let error = SqliteOptions::new(path).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("cap-storage-memory"), "{error}");
        }
        for path in ["", "file:orders.db"] {
            assert_eq!(SqliteOptions::new(path).check().unwrap_err().kind(), ErrorKind::Invalid, "{path:?}");
        }
    }

    #[test]
    fn a_prefix_that_cannot_be_part_of_a_table_name_is_refused() {
        for bad in ["", "a\"b", "a'b", "a\nb", "a\0", " a", "SQLite_x", "{now}", &"x".repeat(65)] {
            let error = SqliteOptions::new("o.db").prefix(bad).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
            assert!(error.to_string().contains("prefix"), "{error}");
        }
        for good in ["cap", "My Bus", "bestellung-ä", "x;DROP"] {
            SqliteOptions::new("o.db").prefix(good).check().unwrap();
        }
    }
}
