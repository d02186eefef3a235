//! The options of a transport.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::settings::is_secret;

/// Who makes a topic that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreateTopics {
    /// Who subscribes. A topic that is sent to is made only if a group wants it by a pattern; else the message is
    /// reported as `Unroutable`: it stays in the outbox and is tried again.
    #[default]
    OnSubscribe,
    /// Who subscribes and who sends: no message is ever `Unroutable`. It waits in its topic for the groups to come, which
    /// begin with the oldest message that is left.
    Always,
    /// Nobody here: topics are made by other means. To subscribe to one that is missing is refused, to send to one is
    /// `Unroutable`.
    Never,
}

/// Where the brokers are and how they are used. All but their addresses have defaults that suit production; durations are
/// written as `30s` in a configuration file.
///
/// ```
/// use std::time::Duration;
/// use cap_transport_kafka::{Kafka, KafkaOptions};
///
/// let options = KafkaOptions::new("broker-1:9092,broker-2:9092")
///     .connect_timeout(Duration::from_secs(3))
///     .set("security.protocol", "sasl_ssl")
///     .set("sasl.mechanism", "SCRAM-SHA-512")
///     .set("sasl.username", "orders")
///     .set("sasl.password", "s3cret");
/// assert!(!format!("{options:?}").contains("s3cret"));
/// let transport = Kafka::with_options(options)?;
/// # Ok::<(), cap_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaOptions {
    pub(crate) brokers: String,
    pub(crate) create_topics: CreateTopics,
    pub(crate) partitions: Option<i32>,
    pub(crate) replicas: Option<i32>,
    #[serde(with = "humantime_serde")]
    pub(crate) topic_refresh: Duration,
    pub(crate) window: usize,
    pub(crate) window_bytes: usize,
    pub(crate) max_body: usize,
    #[serde(with = "humantime_serde")]
    pub(crate) confirm_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) connect_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) commit_interval: Duration,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) certificate_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) settings: BTreeMap<String, String>,
}

impl Default for KafkaOptions {
    /// A broker on this machine, without TLS and SASL.
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".into(),
            create_topics: CreateTopics::default(),
            partitions: None,
            replicas: None,
            topic_refresh: Duration::from_secs(10),
            window: 2_000,
            window_bytes: 64 * 1024 * 1024,
            max_body: 1_000_000,
            confirm_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            commit_interval: Duration::from_millis(200),
            ca_file: None,
            certificate_file: None,
            key_file: None,
            settings: BTreeMap::new(),
        }
    }
}

impl KafkaOptions {
    /// Default options for a cluster: `host:port`, or several with commas between them, of which one must answer. An address
    /// may begin with the protocol (`sasl_ssl://`), if it is that of `security.protocol`; it holds no user and no parameters.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), ..Self::default() }
    }

    /// Who makes topics that do not exist. Default: who subscribes.
    #[must_use]
    pub fn create_topics(mut self, create_topics: CreateTopics) -> Self {
        self.create_topics = create_topics;
        self
    }

    /// How many partitions a topic gets that is made here: at most so many members of a group share it. Default: the
    /// broker's `num.partitions`.
    #[must_use]
    pub fn partitions(mut self, partitions: i32) -> Self {
        self.partitions = Some(partitions);
        self
    }

    /// How many copies of each partition a topic gets that is made here. Default: the broker's
    /// `default.replication.factor`, which is 1 unless somebody raised it: then a message is lost with its broker.
    #[must_use]
    pub fn replicas(mut self, replicas: i32) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// How often consumers look for new topics that match their patterns, for new partitions, and whether the logs are still
    /// the ones that the group's positions were made in. Default: 10 s.
    #[must_use]
    pub fn topic_refresh(mut self, interval: Duration) -> Self {
        self.topic_refresh = interval;
        self
    }

    /// How many messages may be on their way to the brokers, unconfirmed; one topic may have four times as many of them as
    /// are left for all others. A full window makes senders wait. Default: 2000.
    #[must_use]
    pub fn window(mut self, messages: usize) -> Self {
        self.window = messages;
        self
    }

    /// How many bytes of messages may be on their way to the brokers, unconfirmed, shared as the window is; a topic that has
    /// nothing on its way may have one message up to twice the limit. Default: 64 MiB.
    #[must_use]
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// The largest body, in bytes; a larger one is `Invalid`. A topic's `max.message.bytes` is for body, headers and key
    /// together. Default: 1,000,000, which leaves room for 48 KB of headers within the broker's own limit.
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// How long the brokers may take to confirm a message before it is given up and reported as `Unavailable`, and how
    /// long it may wait for room in the window before that. Default: 30 s.
    #[must_use]
    pub fn confirm_timeout(mut self, timeout: Duration) -> Self {
        self.confirm_timeout = timeout;
        self
    }

    /// How long connecting, or making topics and subscribing, may take. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How often offsets are committed, at most; they are also committed when a partition goes to another member, and
    /// when a consumer ends. What is acknowledged and not yet committed when the process is killed is delivered again,
    /// and recognised by the inbox. Default: 200 ms.
    #[must_use]
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }

    /// A file of certificates in PEM form that are trusted instead of those of the system. With it, and with a certificate
    /// of the client's own, connections are encrypted: `security.protocol` is `ssl`, or `sasl_ssl` with a `sasl.mechanism`,
    /// if it is not set. Default: none.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// The client's own certificate with its chain, in PEM form, for brokers that ask for one; with
    /// [`KafkaOptions::key_file`]. Read when a client is made. Default: none.
    #[must_use]
    pub fn certificate_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.certificate_file = Some(path.into());
        self
    }

    /// The private key of the client's certificate, in PEM form; if it is encrypted, its password is the setting
    /// `ssl.key.password`. Default: none.
    #[must_use]
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key_file = Some(path.into());
        self
    }

    /// One of [librdkafka's settings](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md), such as
    /// `security.protocol`, `ssl.ca.location` or `compression.type`. Names and values are checked by
    /// [`Kafka::with_options`](crate::Kafka::with_options); those that the promises depend on (`acks`, `group.id`,
    /// `enable.auto.commit`, …) cannot be set. A later value replaces an earlier one.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }
}

impl fmt::Debug for KafkaOptions {
    /// Without the values of secret settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value)| if is_secret(name) { (name, "set") } else { (name, value) };
        let settings: BTreeMap<&str, &str> =
            self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).map(shown).collect();
        f.debug_struct("KafkaOptions")
            .field("brokers", &self.brokers)
            .field("create_topics", &self.create_topics)
            .field("partitions", &self.partitions)
            .field("replicas", &self.replicas)
            .field("topic_refresh", &self.topic_refresh)
            .field("window", &self.window)
            .field("window_bytes", &self.window_bytes)
            .field("max_body", &self.max_body)
            .field("confirm_timeout", &self.confirm_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("commit_interval", &self.commit_interval)
            .field("ca_file", &self.ca_file)
            .field("certificate_file", &self.certificate_file)
            .field("key_file", &self.key_file)
            .field("settings", &settings)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_deserialize_with_defaults_and_readable_durations() {
        let text =
            r#"{"brokers": "b:1", "create_topics": "never", "confirm_timeout": "5s", "settings": {"client.id": "x"}}"#;
        let options: KafkaOptions = serde_json::from_str(text).unwrap();
        let expected = KafkaOptions::new("b:1").create_topics(CreateTopics::Never).set("client.id", "x");
        assert_eq!(options, expected.confirm_timeout(Duration::from_secs(5)));
        assert!(serde_json::from_str::<KafkaOptions>(r#"{"confirm_timout": "1s"}"#).is_err());
    }

    #[test]
    fn debug_shows_settings_but_no_secret() {
        let options = KafkaOptions::default().set("client.id", "orders").set("ssl.key.pem", "s3cret");
        let shown = format!("{options:?}");
        assert!(shown.contains("orders") && shown.contains("ssl.key.pem") && !shown.contains("s3cret"), "{shown}");
    }
}
