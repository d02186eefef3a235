//! Options: where the database is and how it is used.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cap_core::{Error, Result};
use cap_storage_sqlx::Limits;
use serde::Deserialize;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// The longest name of a schema, in bytes: PostgreSQL cuts longer ones.
const MAX_SCHEMA: usize = 63;

/// The longest time limit; PostgreSQL counts in milliseconds, as an `int`.
const MAX_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How a [`PostgresStorage`](crate::PostgresStorage) uses its database. Also read from a config file, with durations
/// written as `5s`. Its debug output does not show the URL, which may hold a password.
///
/// ```
/// use std::time::Duration;
/// use cap_storage_postgres::PostgresOptions;
///
/// let options = PostgresOptions::new("postgres://orders:secret@db.example.com/orders")
///     .schema("bus")
///     .pool_size(20)
///     .connect_timeout(Duration::from_secs(3));
/// assert!(!format!("{options:?}").contains("secret"));
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresOptions {
    pub(crate) url: String,
    pub(crate) schema: String,
    pub(crate) migrate: bool,
    #[serde(with = "humantime_serde")]
    pub(crate) connect_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) statement_timeout: Duration,
    pub(crate) pool_size: u32,
}

impl Default for PostgresOptions {
    /// No URL, for use with a pool that is there already.
    fn default() -> Self {
        Self {
            url: String::new(),
            schema: "cap".to_owned(),
            migrate: true,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            pool_size: 10,
        }
    }
}

impl PostgresOptions {
    /// The defaults for the database at `url`: `postgres://role:password@host:5432/database`, with the driver's
    /// parameters (`?sslmode=verify-full&sslrootcert=/etc/ca.pem`).
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// The schema of the tables; `cap` by default, for `"cap"."published"`, `"cap"."received"`, `"cap"."nodes"`,
    /// `"cap"."chores"` and `"cap"."schema"`. Engines with different schemas share nothing but the database.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Whether [`prepare`](cap_core::Storage::prepare) creates and upgrades the tables; `true` by default. With `false`
    /// it only checks them, and somebody runs what [`print_schema`](Self::print_schema) answers beforehand.
    #[must_use]
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// How long to wait for a connection, a new one or a free one of the pool, before the answer is `Unavailable`;
    /// 10 s by default, at most a day. A pool of yours keeps its own limit.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// How long one call may take before it is given up and answered with `Unavailable`; 30 s by default, at most a
    /// day. It does not count for migrations, and not for what a handler does in its own transaction.
    #[must_use]
    pub fn statement_timeout(mut self, statement_timeout: Duration) -> Self {
        self.statement_timeout = statement_timeout;
        self
    }

    /// The greatest number of connections of the storage's own pool; 10 by default. Every transactional handler at
    /// work needs one. Up to four more are used beside the pool: three for leases, so that a busy pool never costs
    /// a node its life, and one that listens; a server that gives fewer is no failure.
    #[must_use]
    pub fn pool_size(mut self, pool_size: u32) -> Self {
        self.pool_size = pool_size;
        self
    }

    /// The SQL that makes the tables from nothing, or from those of .NET CAP, for those who apply it themselves (with
    /// `psql`, for instance) and set [`migrate`](Self::migrate) to `false`. Tables of an older version need what comes
    /// after it: each begins with a comment, `-- Version 2`.
    ///
    /// # Errors
    /// `Invalid` when the schema's name cannot be.
    pub fn print_schema(&self) -> Result<String> {
        check_schema(&self.schema)?;
        Ok(crate::schema::print(&self.schema))
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            pool_size: self.pool_size,
            connect_timeout: self.connect_timeout,
            statement_timeout: self.statement_timeout,
        }
    }

    /// What the driver connects with.
    pub(crate) fn connect_options(&self) -> Result<PgConnectOptions> {
        // The URL itself is left out: it may hold a password.
        let refuse = |reason: String| Err(Error::invalid("the postgres URL", reason));
        if self.url.is_empty() {
            return refuse("it is empty; write postgres://role:password@host:5432/database".into());
        }
        if !["postgres://", "postgresql://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            return refuse("it does not begin with postgres://".into());
        }
        match PgConnectOptions::from_str(&self.url) {
            Ok(options) if options.get_application_name().is_none() => {
                Ok(options.application_name("cap").disable_statement_logging())
            }
            Ok(options) => Ok(options.disable_statement_logging()),
            Err(sqlx::Error::Configuration(error)) => refuse(error.to_string()),
            Err(error) => refuse(error.to_string()),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_schema(&self.schema)?;
        for (name, limit) in [("connect", self.connect_timeout), ("statement", self.statement_timeout)] {
            if limit > MAX_LIMIT {
                return Err(Error::invalid(format!("{name} timeout {limit:?}"), "it is longer than a day"));
            }
            if limit < Duration::from_millis(1) {
                return Err(Error::invalid(format!("{name} timeout {limit:?}"), "it is shorter than a millisecond"));
            }
        }
        if self.pool_size == 0 {
            return Err(Error::invalid("pool size 0", "the pool would have no connection"));
        }
        Ok(())
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("schema", &self.schema)
            .field("migrate", &self.migrate)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}

/// Names that pass are quoted in every statement.
fn check_schema(schema: &str) -> Result<()> {
    let refuse = |reason: String| Err(Error::invalid(format!("postgres schema {schema:.80?}"), reason));
    if schema.is_empty() {
        return refuse("it is empty: the tables would be named after nothing".into());
    }
    if schema.len() > MAX_SCHEMA {
        return refuse(format!("it has {} bytes, the limit is {MAX_SCHEMA}", schema.len()));
    }
    if let Some(bad) = schema.chars().find(|c| c.is_control() || "\"'`\\${}".contains(*c)) {
        return refuse(format!("it holds {bad:?}, which has no place in the name of a schema"));
    }
    if schema.trim() != schema {
        return refuse("it begins or ends with white space".into());
    }
    if schema.starts_with("pg_") || schema == "information_schema" {
        return refuse("PostgreSQL keeps such names for itself".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cap_core::ErrorKind;

    use super::*;

    #[test]
    fn options_come_from_a_config_file_with_durations_for_people() {
        let read = |text| serde_json::from_str::<PostgresOptions>(text);
        assert_eq!(read(r#"{"url":"postgres://db/o"}"#).unwrap(), PostgresOptions::new("postgres://db/o"));
        let all = r#"{"url":"postgres://db/o","schema":"bus","migrate":false,"connect_timeout":"250ms",
                      "statement_timeout":"1m","pool_size":3}"#;
        let expected = PostgresOptions::new("postgres://db/o")
            .schema("bus")
            .migrate(false)
            .connect_timeout(Duration::from_millis(250))
            .statement_timeout(Duration::from_secs(60))
            .pool_size(3);
        assert_eq!(read(all).unwrap(), expected);
        assert!(read(r#"{"url":"postgres://db/o","shema":"bus"}"#).is_err(), "a misspelt option was accepted");
    }

    #[test]
    fn a_wrong_url_is_refused_without_being_shown() {
        for url in
            ["", "mysql://u:hunter2@db/o", "db:5432", "postgres://u:hunter2@db:port/o", "postgres://u:hunter2@:5/"]
        {
            let Err(error) = PostgresOptions::new(url).connect_options() else { continue };
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url:?}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        assert!(PostgresOptions::new("postgres://u:p@db:port/o").connect_options().is_err());
        assert!(PostgresOptions::new("db:5432").connect_options().is_err());
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        for bad in [
            PostgresOptions::default().pool_size(0),
            PostgresOptions::default().connect_timeout(Duration::MAX),
            PostgresOptions::default().statement_timeout(Duration::ZERO),
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
        PostgresOptions::default().check().unwrap();
    }

    #[test]
    fn a_hostile_schema_is_refused_or_fit_to_be_quoted() {
        let long = "x".repeat(64);
        for bad in ["", "a\"b", "a'b", "a\nb", "a\0", " a", "pg_x", "{now}", "$$", "a\\", &long] {
            let error = PostgresOptions::default().schema(bad).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
            assert!(error.to_string().contains("schema"), "{error}");
        }
        for good in ["cap", "My Bus", "bestellung-ä", "x; DROP SCHEMA public", "a.b", "Public"] {
            PostgresOptions::default().schema(good).check().unwrap();
        }
    }
}
