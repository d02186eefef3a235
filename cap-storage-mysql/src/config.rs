//! Options: where the database is and how it is used.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cap_core::{Error, Result};
use cap_storage_sqlx::{Limits, check_url, has_parameter, without_brackets};
use serde::Deserialize;
use sqlx::ConnectOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

/// The longest prefix, in characters: the name of a table has 64 at most, and ours end with `.published`.
const MAX_PREFIX: usize = 54;

/// The parameters of a URL that the driver knows.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "charset",
    "collation",
    "statement-cache-capacity",
    "socket",
    "timezone",
    "time-zone",
];

/// The longest time limit.
const MAX_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How a [`MySqlStorage`](crate::MySqlStorage) uses its database. Also read from a config file, with durations
/// written as `5s`. Its debug output does not show the URL, which may hold a password.
///
/// ```
/// use std::time::Duration;
/// use cap_storage_mysql::MySqlOptions;
///
/// let options = MySqlOptions::new("mysql://orders:secret@db.example.com/orders")
///     .prefix("bus")
///     .pool_size(20)
///     .connect_timeout(Duration::from_secs(3));
/// assert!(!format!("{options:?}").contains("secret"));
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MySqlOptions {
    pub(crate) url: String,
    pub(crate) prefix: String,
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

impl Default for MySqlOptions {
    /// No URL, for use with a pool that is there already.
    fn default() -> Self {
        Self {
            url: String::new(),
            prefix: "cap".to_owned(),
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

impl MySqlOptions {
    /// The defaults for the database at `url`: `mysql://user:password@host:3306/database`, with the driver's parameters
    /// (`?ssl-mode=VERIFY_IDENTITY&ssl-ca=/etc/ca.pem&ssl-cert=/etc/me.pem&ssl-key=/etc/me.key`). Others are refused by name,
    /// and so are several hosts.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// What the table names begin with; `cap` by default, for `` `cap.published` ``, `` `cap.received` ``,
    /// `` `cap.nodes` ``, `` `cap.chores` `` and `` `cap.schema` `` in the database of the URL: each is one name with a dot
    /// in it. Engines with different prefixes share nothing but the database; let them differ in more than upper and
    /// lower case.
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
    /// work needs one. Up to three more are used beside the pool, for leases, so that a busy pool never costs a node its
    /// life.
    #[must_use]
    pub fn pool_size(mut self, pool_size: u32) -> Self {
        self.pool_size = pool_size;
        self
    }

    /// A file of certificates in PEM form that are trusted beside those of the system: the server has to show one that is
    /// signed by one of them. Unless the URL says otherwise (`ssl-mode`), the connection then has to be encrypted, and the
    /// certificate has to be that of the host.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// A file with the certificate of this client in PEM form, with which it shows who it is; it needs
    /// [`key_file`](Self::key_file). Unless the URL says otherwise (`ssl-mode`), the connection then has to be encrypted.
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

    /// The SQL that makes the tables from nothing, or from those of .NET CAP, for those who apply it themselves (with the
    /// `mysql` or `mariadb` client, for instance) and set [`migrate`](Self::migrate) to `false`. Tables of an older version
    /// need what comes after it: each begins with a comment, `-- Version 2`.
    ///
    /// # Errors
    /// `Invalid` when the prefix cannot be part of a table's name.
    pub fn print_schema(&self) -> Result<String> {
        check_prefix(&self.prefix)?;
        Ok(crate::schema::print(&self.prefix))
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            pool_size: self.pool_size,
            connect_timeout: self.connect_timeout,
            statement_timeout: self.statement_timeout,
        }
    }

    /// What the driver connects with.
    pub(crate) fn connect_options(&self) -> Result<MySqlConnectOptions> {
        // The URL itself is left out: it may hold a password.
        let refuse = |reason: String| Err(Error::invalid("the mysql URL", reason));
        if self.url.is_empty() {
            return refuse("it is empty; write mysql://user:password@host:3306/database".into());
        }
        if !["mysql://", "mariadb://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            return refuse("it does not begin with mysql:// or mariadb://".into());
        }
        if let Err(reason) = check_url(&self.url, PARAMETERS) {
            return refuse(reason);
        }
        let options = match MySqlConnectOptions::from_str(&self.url) {
            Ok(options) if options.get_database().is_none() => {
                return refuse("it names no database; write mysql://user:password@host:3306/database".into());
            }
            Ok(options) => self.with_certificates(options)?.disable_statement_logging(),
            Err(sqlx::Error::Configuration(error)) => return refuse(error.to_string()),
            Err(error) => return refuse(error.to_string()),
        };
        match without_brackets(options.get_host()).map(str::to_owned) {
            Some(host) => Ok(options.host(&host)),
            None => Ok(options),
        }
    }

    fn with_certificates(&self, mut options: MySqlConnectOptions) -> Result<MySqlConnectOptions> {
        let has_mode = has_parameter(&self.url, &["sslmode", "ssl-mode"]);
        let is_named = self.ca_file.is_some() || self.certificate_file.is_some();
        if is_named && matches!(options.get_ssl_mode(), MySqlSslMode::Disabled) {
            let reason = "the connection would not be encrypted: remove `ssl-mode` from the URL";
            return Err(Error::invalid("ca_file, certificate_file", reason));
        }
        if let Some(ca) = &self.ca_file {
            options = options.ssl_ca(ca);
        }
        if let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        match (has_mode, &self.ca_file) {
            (false, Some(_)) => Ok(options.ssl_mode(MySqlSslMode::VerifyIdentity)),
            (false, None) if is_named => Ok(options.ssl_mode(MySqlSslMode::Required)),
            _ => Ok(options),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_prefix(&self.prefix)?;
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

impl fmt::Debug for MySqlOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlOptions")
            .field("prefix", &self.prefix)
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

/// Prefixes that pass are quoted in every statement, as part of a name, and in the migrations as text.
fn check_prefix(prefix: &str) -> Result<()> {
    let refuse = |reason: String| Err(Error::invalid(format!("mysql prefix {prefix:.80?}"), reason));
    if prefix.is_empty() {
        return refuse("it is empty: the tables would be named after nothing".into());
    }
    let length = prefix.chars().count();
    if length > MAX_PREFIX {
        return refuse(format!("it has {length} characters, the limit is {MAX_PREFIX}"));
    }
    let is_bad = |c: &char| c.is_control() || u32::from(*c) > 0xFFFF || "\"'`\\{}".contains(*c);
    if let Some(bad) = prefix.chars().find(is_bad) {
        return refuse(format!("it holds {bad:?}, which has no place in the name of a table"));
    }
    if prefix.trim() != prefix {
        return refuse("it begins or ends with white space".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cap_core::ErrorKind;

    use super::*;

    #[test]
    fn options_come_from_a_config_file_with_durations_for_people() {
        let read = |text| serde_json::from_str::<MySqlOptions>(text);
        assert_eq!(read(r#"{"url":"mysql://db/o"}"#).unwrap(), MySqlOptions::new("mysql://db/o"));
        let all = r#"{"url":"mysql://db/o","prefix":"bus","migrate":false,"connect_timeout":"250ms",
                      "statement_timeout":"1m","pool_size":3}"#;
        let expected = MySqlOptions::new("mysql://db/o")
            .prefix("bus")
            .migrate(false)
            .connect_timeout(Duration::from_millis(250))
            .statement_timeout(Duration::from_secs(60))
            .pool_size(3);
        assert_eq!(read(all).unwrap(), expected);
        assert!(read(r#"{"url":"mysql://db/o","prefx":"bus"}"#).is_err(), "a misspelt option was accepted");
    }

    #[test]
    fn a_wrong_url_is_refused_without_being_shown() {
        for (url, reason) in [
            ("", "empty"),
            ("postgres://u:hunter2@db/o", "mysql://"),
            ("db:3306", "mysql://"),
            ("mysql://u:hunter2@db:port/o", "port"),
            ("mysql://u:hunter2@db", "names no database"),
            ("mysql://u:hunter2@db/", "names no database"),
            ("mysql://u:hunter2@db/o?ssl-mode=never", "never"),
        ] {
            let error = MySqlOptions::new(url).connect_options().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url:?}");
            assert!(error.to_string().contains(reason), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        MySqlOptions::new("mariadb://u:p@db/o").connect_options().unwrap();
    }

    #[test]
    fn a_parameter_of_the_url_that_is_not_known_is_refused_by_name() {
        for (parameter, named) in
            [("useSSL=true", "`useSSL`"), ("tls=1", "`tls`"), ("sslkey=k&sslmod=REQUIRED", "`sslmod`")]
        {
            let url = format!("mysql://u:hunter2@db/o?{parameter}");
            let error = MySqlOptions::new(url).connect_options().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(named) && !error.to_string().contains("hunter2"), "{error}");
        }
        let error = MySqlOptions::new("mysql://u:hunter2@a:1,b:2/o").connect_options().unwrap_err();
        assert!(error.to_string().contains("several hosts"), "{error}");
        let all =
            "mysql://u@db/o?ssl-mode=DISABLED&charset=utf8mb4&collation=utf8mb4_bin&timezone=%2B00:00&socket=/run/m";
        MySqlOptions::new(all).connect_options().unwrap();
    }

    #[test]
    fn an_address_of_ipv6_is_understood() {
        for (url, host) in [("mysql://u@[::1]:77/o", "::1"), ("mariadb://u@[2001:db8::7]/o", "2001:db8::7")] {
            assert_eq!(MySqlOptions::new(url).connect_options().unwrap().get_host(), host);
        }
    }

    #[test]
    fn certificates_make_the_connection_an_encrypted_one() {
        let mode = |options: MySqlOptions| options.connect_options().unwrap().get_ssl_mode();
        let (plain, chosen) = ("mysql://u@db/o", "mysql://u@db/o?ssl-mode=VERIFY_CA");
        let of_client = |url: &str| MySqlOptions::new(url).certificate_file("me.pem").key_file("me.key");
        assert!(matches!(mode(MySqlOptions::new(plain)), MySqlSslMode::Preferred));
        assert!(matches!(mode(MySqlOptions::new(plain).ca_file("ca.pem")), MySqlSslMode::VerifyIdentity));
        assert!(matches!(mode(of_client(plain)), MySqlSslMode::Required));
        assert!(matches!(mode(of_client(chosen).ca_file("ca.pem")), MySqlSslMode::VerifyCa));
        let url = of_client(plain).ca_file("ca.pem").connect_options().unwrap().to_url_lossy();
        for file in ["ssl-ca=file%3A+ca.pem", "ssl-cert=file%3A+me.pem", "ssl-key=file%3A+me.key"] {
            assert!(url.as_str().contains(file), "{url}");
        }
        let error = of_client("mysql://u@db/o?ssl-mode=DISABLED").connect_options().unwrap_err();
        assert!(error.to_string().contains("not be encrypted"), "{error}");
        MySqlOptions::new(plain).certificate_file("me.pem").check().unwrap_err();
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        for bad in [
            MySqlOptions::default().pool_size(0),
            MySqlOptions::default().connect_timeout(Duration::MAX),
            MySqlOptions::default().statement_timeout(Duration::ZERO),
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
        MySqlOptions::default().check().unwrap();
    }

    #[test]
    fn a_prefix_that_cannot_be_part_of_a_table_name_is_refused() {
        let long = "ü".repeat(55);
        for bad in ["", "a\"b", "a'b", "a`b", "a\nb", "a\0", " a", "a ", "{now}", "a\\", "🦀", &long] {
            let error = MySqlOptions::default().prefix(bad).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
            assert!(error.to_string().contains("prefix"), "{error}");
        }
        for good in ["cap", "My Bus", "bestellung-ä", "x; DROP TABLE y; --", "a.b", "?", &long[2..]] {
            MySqlOptions::default().prefix(good).check().unwrap();
        }
    }
}
