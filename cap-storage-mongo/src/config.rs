//! Options: where the database is and how it is used.

use std::fmt;
use std::time::Duration;

use cap_core::{Error, Result};
use mongodb::options::{
    Acknowledgment, ClientOptions, ConnectionString, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
};
use serde::Deserialize;

/// The longest name of a database, in bytes.
const MAX_DATABASE: usize = 63;

/// The longest prefix, in bytes: names of collections, with the database's, have at most 255.
const MAX_PREFIX: usize = 100;

/// The longest time limit.
const MAX_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How a [`MongoStorage`](crate::MongoStorage) uses its database. Also read from a config file, with durations written
/// as `5s`. Its debug output does not show the URL, which may hold a password.
///
/// ```
/// use std::time::Duration;
/// use cap_storage_mongo::MongoOptions;
///
/// let options = MongoOptions::new("mongodb://orders:secret@db.example.com/?replicaSet=rs0")
///     .database("orders")
///     .prefix("bus")
///     .connect_timeout(Duration::from_secs(3));
/// assert!(!format!("{options:?}").contains("secret"));
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MongoOptions {
    pub(crate) url: String,
    pub(crate) database: String,
    pub(crate) prefix: String,
    pub(crate) migrate: bool,
    #[serde(with = "humantime_serde")]
    pub(crate) connect_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) statement_timeout: Duration,
    pub(crate) pool_size: u32,
    pub(crate) weaken_durability: bool,
}

impl Default for MongoOptions {
    /// No URL, for use with a client that is there already.
    fn default() -> Self {
        Self {
            url: String::new(),
            database: "cap".to_owned(),
            prefix: "cap".to_owned(),
            migrate: true,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            pool_size: 10,
            weaken_durability: false,
        }
    }
}

impl MongoOptions {
    /// The defaults for the cluster at `url`: `mongodb://user:password@host:27017,host2:27017/?replicaSet=rs0`, with the
    /// driver's parameters (`&tls=true&tlsCAFile=/etc/ca.pem`). Read and write concerns and the read preference in it do
    /// not apply, see [`weaken_durability`](Self::weaken_durability); nor does its database, which is that of the user
    /// unless `authSource` names another.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// The database of the collections; `cap` by default, as in .NET CAP. A transaction may span databases, so your
    /// business data may be in the same or in another one.
    #[must_use]
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.database = database.into();
        self
    }

    /// What the collections' names begin with; `cap` by default, for `cap.published`, `cap.received`, `cap.nodes`,
    /// `cap.chores` and `cap.schema`. Engines with different prefixes share nothing but the database.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Whether [`prepare`](cap_core::Storage::prepare) creates and upgrades the collections; `true` by default. With
    /// `false` it only checks them, and somebody runs what [`print_schema`](Self::print_schema) answers beforehand.
    #[must_use]
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// How long to wait for a server that can be used, and for a connection, before the answer is `Unavailable`; 10 s by
    /// default, at most a day. A client of yours keeps its own limits.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// How long one call may take before it is given up and answered with `Unavailable`; 30 s by default, at most a day.
    /// It does not count for migrations, and not for what a handler does in its own transaction.
    #[must_use]
    pub fn statement_timeout(mut self, statement_timeout: Duration) -> Self {
        self.statement_timeout = statement_timeout;
        self
    }

    /// The greatest number of calls that are under way at once, and of connections of the storage's own client to each
    /// server; 10 by default. Two more are for leases, so that busy connections never cost a node its life, and one
    /// watches.
    #[must_use]
    pub fn pool_size(mut self, pool_size: u32) -> Self {
        self.pool_size = pool_size;
        self
    }

    /// Takes the **write concern of the URL** (or of your client) in place of `majority`, journaled; `false` by default.
    /// With a weaker one, what was stored, sent and acknowledged may be **lost or done twice** when the primary changes.
    /// A warning says so each time that the storage is prepared.
    #[must_use]
    pub fn weaken_durability(mut self, weaken_durability: bool) -> Self {
        self.weaken_durability = weaken_durability;
        self
    }

    /// The script that makes the collections from nothing, or from those of .NET CAP, for those who apply it themselves
    /// (with `mongosh`) and set [`migrate`](Self::migrate) to `false`. Collections of an older version need what comes
    /// after it: each begins with a comment, `// Version 2`. Each line is one command, and may be run again.
    ///
    /// # Errors
    /// `Invalid` when the database's name or the prefix cannot be.
    pub fn print_schema(&self) -> Result<String> {
        check_database(&self.database)?;
        check_prefix(&self.prefix)?;
        Ok(crate::schema::print(&self.database, &self.prefix))
    }

    /// What the driver connects with. Does no I/O, but for the DNS records of a `mongodb+srv` URL.
    pub(crate) async fn client_options(&self) -> Result<ClientOptions> {
        // The URL itself is left out: it may hold a password.
        let refuse = |reason: String| Err(Error::invalid("the mongodb URL", reason));
        if self.url.is_empty() {
            return refuse("it is empty; write mongodb://user:password@host:27017/?replicaSet=rs0".into());
        }
        let parsed = match ConnectionString::parse(&self.url) {
            Ok(parsed) => parsed,
            Err(_) => return refuse(why_no_url(&self.url)),
        };
        let mut options = match ClientOptions::parse(parsed).await {
            Ok(options) => options,
            Err(error) => return Err(crate::error::no_hosts(error)),
        };
        options.app_name.get_or_insert_with(|| "cap".to_owned());
        options.max_pool_size = Some(self.pool_size);
        options.connect_timeout = Some(self.connect_timeout);
        options.server_selection_timeout = Some(self.connect_timeout);
        options.retry_reads = Some(true);
        options.retry_writes = Some(true);
        options.read_concern = Some(ReadConcern::majority());
        options.selection_criteria = Some(primary());
        if self.weaken_durability {
            options.write_concern.get_or_insert_with(durable);
        } else {
            options.write_concern = Some(durable());
        }
        Ok(options)
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_database(&self.database)?;
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
            return Err(Error::invalid("pool size 0", "there would be no connection"));
        }
        Ok(())
    }
}

impl fmt::Debug for MongoOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoOptions")
            .field("database", &self.database)
            .field("prefix", &self.prefix)
            .field("migrate", &self.migrate)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("pool_size", &self.pool_size)
            .field("weaken_durability", &self.weaken_durability)
            .finish_non_exhaustive()
    }
}

/// What a majority has in its journal survives the change of a primary.
pub(crate) fn durable() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build()
}

pub(crate) fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}

/// What the driver says of the URL without its user and password, which must not be shown.
fn why_no_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "it does not begin with mongodb://".into();
    };
    if scheme != "mongodb" && scheme != "mongodb+srv" {
        return "it does not begin with mongodb://".into();
    }
    if scheme == "mongodb+srv" && !cfg!(feature = "srv") {
        return "mongodb+srv:// needs the feature `srv` of cap-storage-mongo".into();
    }
    let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
    match ConnectionString::parse(format!("{scheme}://{hosts}")) {
        Err(error) => crate::error::text_of(&error),
        Ok(_) => "user or password cannot be read: such characters as @ : / % are written %40 %3A %2F %25".into(),
    }
}

fn check_database(database: &str) -> Result<()> {
    let refuse = |reason: String| Err(Error::invalid(format!("mongodb database {database:.80?}"), reason));
    if database.is_empty() {
        return refuse("it is empty".into());
    }
    if database.len() > MAX_DATABASE {
        return refuse(format!("it has {} bytes, the limit is {MAX_DATABASE}", database.len()));
    }
    if let Some(bad) = database.chars().find(|c| c.is_control() || c.is_whitespace() || "/\\.\"$*<>:|?".contains(*c)) {
        return refuse(format!("it holds {bad:?}, which has no place in the name of a database"));
    }
    if ["admin", "local", "config"].contains(&database) {
        return refuse("MongoDB keeps such databases for itself".into());
    }
    Ok(())
}

fn check_prefix(prefix: &str) -> Result<()> {
    let refuse = |reason: String| Err(Error::invalid(format!("mongodb prefix {prefix:.80?}"), reason));
    if prefix.is_empty() {
        return refuse("it is empty: the collections would be named after nothing".into());
    }
    if prefix.len() > MAX_PREFIX {
        return refuse(format!("it has {} bytes, the limit is {MAX_PREFIX}", prefix.len()));
    }
    if let Some(bad) = prefix.chars().find(|c| c.is_control() || "$\"'`\\".contains(*c)) {
        return refuse(format!("it holds {bad:?}, which has no place in the name of a collection"));
    }
    if prefix.trim() != prefix {
        return refuse("it begins or ends with white space".into());
    }
    if prefix == "system" || prefix.starts_with("system.") || prefix.starts_with('.') {
        return refuse("MongoDB keeps such names for itself".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cap_core::ErrorKind;

    use super::*;

    #[test]
    fn options_come_from_a_config_file_with_durations_for_people() {
        let read = |text| serde_json::from_str::<MongoOptions>(text);
        assert_eq!(read(r#"{"url":"mongodb://db"}"#).unwrap(), MongoOptions::new("mongodb://db"));
        let all = r#"{"url":"mongodb://db","database":"orders","prefix":"bus","migrate":false,"connect_timeout":"250ms",
                      "statement_timeout":"1m","pool_size":3,"weaken_durability":true}"#;
        let expected = MongoOptions::new("mongodb://db")
            .database("orders")
            .prefix("bus")
            .migrate(false)
            .connect_timeout(Duration::from_millis(250))
            .statement_timeout(Duration::from_secs(60))
            .pool_size(3)
            .weaken_durability(true);
        assert_eq!(read(all).unwrap(), expected);
        assert!(read(r#"{"url":"mongodb://db","databse":"bus"}"#).is_err(), "a misspelt option was accepted");
    }

    #[tokio::test]
    async fn a_wrong_url_is_refused_without_being_shown() {
        for (url, said) in [
            ("", "empty"),
            ("postgres://u:hunter2@db/o", "mongodb://"),
            ("db:27017", "mongodb://"),
            ("mongodb://u:hunter2@db:port/o", "port"),
            ("mongodb://u:hunter2@db/?replicaSet=", ""),
            ("mongodb://u:hunter2@db/?no", "="),
            ("mongodb://u:hun@ter2@db/", "%40"),
            ("mongodb://u:hunter2@/", ""),
        ] {
            let Err(error) = MongoOptions::new(url).client_options().await else {
                assert!(said.is_empty(), "{url} was accepted");
                continue;
            };
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url:?}");
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2") && !shown.contains("ter2"), "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
        if !cfg!(feature = "srv") {
            let error =
                MongoOptions::new("mongodb+srv://u:hunter2@db.example.com/").client_options().await.unwrap_err();
            assert!(error.to_string().contains("feature `srv`"), "{error}");
        }
    }

    #[tokio::test]
    async fn writes_are_durable_whatever_the_url_says_unless_it_is_allowed() {
        let url = "mongodb://db/?w=1&journal=false&readConcernLevel=available&readPreference=secondary";
        let options = MongoOptions::new(url).client_options().await.unwrap();
        assert_eq!(options.write_concern, Some(durable()));
        assert_eq!(options.read_concern, Some(ReadConcern::majority()));
        assert_eq!(options.selection_criteria, Some(primary()));
        let options = MongoOptions::new(url).weaken_durability(true).client_options().await.unwrap();
        assert_eq!(options.write_concern.unwrap().w, Some(Acknowledgment::Nodes(1)));
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        for bad in [
            MongoOptions::default().pool_size(0),
            MongoOptions::default().connect_timeout(Duration::MAX),
            MongoOptions::default().statement_timeout(Duration::ZERO),
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
        MongoOptions::default().check().unwrap();
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let long = "x".repeat(101);
        for bad in ["", "a\"b", "a$b", "a\nb", "a\0", " a", "system.x", ".a", "a\\", &long] {
            let error = MongoOptions::default().prefix(bad).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
            assert!(error.to_string().contains("prefix"), "{error}");
        }
        for bad in ["", "a.b", "a b", "a/b", "a$", "admin", "local", &long] {
            let error = MongoOptions::default().database(bad).check().unwrap_err();
            assert!(error.to_string().contains("database"), "{error}");
        }
        for good in ["cap", "my-bus", "bestellung-ä", "Public"] {
            MongoOptions::default().prefix(good).database(good).check().unwrap();
        }
    }
}
