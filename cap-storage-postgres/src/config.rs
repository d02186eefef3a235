//! Options: where the database is and how it is used.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cap_core::{Error, Result};
use cap_storage_sqlx::{Limits, check_url, has_parameter, without_brackets};
use serde::Deserialize;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// The longest name of a schema, in bytes: PostgreSQL cuts longer ones.
const MAX_SCHEMA: usize = 63;

/// The parameters of a URL that the driver knows.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "options[",
];

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
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) certificate_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
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
            ca_file: None,
            certificate_file: None,
            key_file: None,
        }
    }
}

impl PostgresOptions {
    /// The defaults for the database at `url`: `postgres://role:password@host:5432/database`, with the driver's
    /// parameters (`?sslmode=verify-full&sslrootcert=/etc/ca.pem&sslcert=/etc/me.pem&sslkey=/etc/me.key`). Others, such as
    /// `target_session_attrs`, are refused by name, and so are several hosts.
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

    /// A file of certificates in PEM form that are trusted beside those of the system: the server has to show one that is
    /// signed by one of them. Unless the URL says otherwise (`sslmode`), the connection then has to be encrypted, and the
    /// certificate has to be that of the host.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// A file with the certificate of this client in PEM form, with which it shows who it is; it needs
    /// [`key_file`](Self::key_file). Unless the URL says otherwise (`sslmode`), the connection then has to be encrypted.
    #[must_use]
    pub fn certificate_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.certificate_file = Some(path.into());
        self
    }

    /// A file with the private key of the client's certificate in PEM form, which has no password.
    #[must_use]
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key_file = Some(path.into());
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
        if let Err(reason) = check_url(&self.url, PARAMETERS) {
            return refuse(reason);
        }
        let options = match PgConnectOptions::from_str(&self.url) {
            Ok(options) => self.with_certificates(options)?.disable_statement_logging(),
            Err(sqlx::Error::Configuration(error)) => return refuse(error.to_string()),
            Err(error) => return refuse(error.to_string()),
        };
        let options = match without_brackets(options.get_host()).map(str::to_owned) {
            Some(host) => options.host(&host),
            None => options,
        };
        match options.get_application_name() {
            None => Ok(options.application_name("cap")),
            Some(_) => Ok(options),
        }
    }

    fn with_certificates(&self, mut options: PgConnectOptions) -> Result<PgConnectOptions> {
        let has_mode = has_parameter(&self.url, &["sslmode", "ssl-mode"]);
        let is_named = self.ca_file.is_some() || self.certificate_file.is_some();
        if is_named && matches!(options.get_ssl_mode(), PgSslMode::Disable) {
            let reason = "the connection would not be encrypted: remove `sslmode` from the URL";
            return Err(Error::invalid("ca_file, certificate_file", reason));
        }
        if let Some(ca) = &self.ca_file {
            options = options.ssl_root_cert(ca);
        }
        if let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        match (has_mode, &self.ca_file) {
            (false, Some(_)) => Ok(options.ssl_mode(PgSslMode::VerifyFull)),
            (false, None) if is_named => Ok(options.ssl_mode(PgSslMode::Require)),
            _ => Ok(options),
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
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return Err(Error::invalid("certificate_file, key_file", "one of them is nothing without the other"));
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
            .field("ca_file", &self.ca_file)
            .field("certificate_file", &self.certificate_file)
            .field("key_file", &self.key_file)
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
    fn a_parameter_of_the_url_that_is_not_known_is_refused_by_name() {
        for (parameter, named) in [
            ("target_session_attrs=read-write", "`target_session_attrs`"),
            ("connect_timeout=5", "`connect_timeout`"),
            ("sslmod=require", "`sslmod`"),
            ("host=a,b", "`host` names several servers"),
        ] {
            let url = format!("postgres://u:hunter2@db/o?{parameter}");
            let error = PostgresOptions::new(url).connect_options().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(named) && !error.to_string().contains("hunter2"), "{error}");
        }
        let error = PostgresOptions::new("postgres://u:hunter2@a,b/o").connect_options().unwrap_err();
        assert!(error.to_string().contains("several hosts"), "{error}");
        let all =
            "postgres://u@db/o?sslmode=disable&options=-c%20geqo%3Doff&options[jit]=off&application_name=shop&user=v";
        let options = PostgresOptions::new(all).connect_options().unwrap();
        assert_eq!((options.get_username(), options.get_application_name()), ("v", Some("shop")));
    }

    #[test]
    fn an_address_of_ipv6_is_understood() {
        for (url, host) in [("postgres://u@[::1]:77/o", "::1"), ("postgres://u@[2001:db8::7]/o", "2001:db8::7")] {
            assert_eq!(PostgresOptions::new(url).connect_options().unwrap().get_host(), host);
        }
    }

    #[test]
    fn certificates_make_the_connection_an_encrypted_one() {
        let mode = |options: PostgresOptions| options.connect_options().unwrap().get_ssl_mode();
        let (plain, chosen) = ("postgres://u@db/o", "postgres://u@db/o?sslmode=verify-ca");
        let of_client = |url: &str| PostgresOptions::new(url).certificate_file("me.pem").key_file("me.key");
        assert!(matches!(mode(PostgresOptions::new(plain)), PgSslMode::Prefer));
        assert!(matches!(mode(PostgresOptions::new(plain).ca_file("ca.pem")), PgSslMode::VerifyFull));
        assert!(matches!(mode(of_client(plain)), PgSslMode::Require));
        assert!(matches!(mode(of_client(chosen).ca_file("ca.pem")), PgSslMode::VerifyCa));
        let url = of_client(plain).ca_file("ca.pem").connect_options().unwrap().to_url_lossy();
        for file in ["sslrootcert=file%3A+ca.pem", "sslcert=file%3A+me.pem", "sslkey=file%3A+me.key"] {
            assert!(url.as_str().contains(file), "{url}");
        }
        let error = of_client("postgres://u@db/o?sslmode=disable").connect_options().unwrap_err();
        assert!(error.to_string().contains("not be encrypted"), "{error}");
        PostgresOptions::new(plain).certificate_file("me.pem").check().unwrap_err();
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
