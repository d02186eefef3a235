//! What the options come to when they are checked: the settings of each kind of client.

use std::path::Path;
use std::time::Duration;

use cap_core::transport::Subscription;
use cap_core::{Error, Result};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use crate::address;
use crate::config::{CreateTopics, KafkaOptions};
use crate::ledger::Budget;
use crate::pattern::NEVER_CONSUMED;
use crate::traffic::Load;

/// The setting with a member's name that outlives its process.
pub(crate) const STATIC_NAME: &str = "group.instance.id";

const SUBJECT: &str = "the Kafka options";

/// What key and headers may take beside the largest body before a message counts as too large; the topic's own limit
/// counts first.
const HEADER_ROOM: usize = 256 * 1024;
/// librdkafka's own limit of `message.max.bytes`.
const MAX_MESSAGE: usize = 1_000_000_000;
/// librdkafka's own limit of `queue.buffering.max.kbytes`.
const MAX_QUEUE_KIB: usize = 2_147_483_647;
/// After 0.1 s, doubled each time up to 1 s.
const RETRIES: &str = "6";
/// How many shares of a consumer's bytes are for what librdkafka fetches ahead: its queue, and an answer of each of three
/// brokers.
const FETCHED: usize = 4;

/// One of these shares.
fn fetched(prefetch_bytes: usize) -> usize {
    (prefetch_bytes / 16).min(16 * 1024 * 1024)
}

/// Settings that the promises depend on, or that options of our own stand for.
const OWNED: &[(&str, &str)] = &[
    ("acks", "all replicas acknowledge, always"),
    ("allow.auto.create.topics", "the option `create_topics` stands for it"),
    ("auto.commit.enable", "offsets are committed when messages are acknowledged"),
    ("auto.commit.interval.ms", "the option `commit_interval` stands for it"),
    ("bootstrap.servers", "the option `brokers` stands for it"),
    ("delivery.timeout.ms", "the option `confirm_timeout` stands for it"),
    ("enable.auto.commit", "offsets are committed when messages are acknowledged"),
    ("enable.auto.offset.store", "offsets are committed when messages are acknowledged"),
    ("enable.idempotence", "it is on, always"),
    ("enable.partition.eof", "it is off, always"),
    ("group.id", "each group of the engine is a consumer group"),
    ("group.protocol", "the classic protocol, as of .NET CAP, is used always"),
    ("log.queue", "logs go to `tracing`, always"),
    ("message.max.bytes", "the option `max_body` stands for it"),
    ("message.timeout.ms", "the option `confirm_timeout` stands for it"),
    ("metadata.broker.list", "the option `brokers` stands for it"),
    ("partition.assignment.strategy", "it is `cooperative-sticky`, always"),
    ("queue.buffering.max.kbytes", "the option `window_bytes` stands for it"),
    ("queue.buffering.max.messages", "the option `window` stands for it"),
    ("request.required.acks", "all replicas acknowledge, always"),
    ("topic.blacklist", "it keeps what patterns must not match out"),
    ("topic.metadata.refresh.interval.ms", "the option `topic_refresh` stands for it"),
    ("transactional.id", "transactions of Kafka are not used"),
];

/// Whether a setting's value must not be shown.
pub(crate) fn is_secret(name: &str) -> bool {
    let is_material = name.ends_with(".pem") && name != "ssl.ca.pem" && name != "ssl.certificate.pem";
    is_material || ["password", "secret", "oauthbearer.config", "jaas"].iter().any(|part| name.contains(part))
}

impl KafkaOptions {
    /// Checks everything and names all that is wrong.
    pub(crate) fn check(self) -> Result<Settings> {
        let mut faults = Vec::new();
        let mut require = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let brokers: Vec<&str> = self.brokers.split(',').map(str::trim).collect();
        for broker in &brokers {
            if let Err(fault) = address::check(broker, &self.protocol()) {
                require(false, format!("brokers: {fault}"));
            }
        }
        let has_certificate = self.certificate_file.is_some();
        require(
            has_certificate == self.key_file.is_some(),
            "certificate_file, key_file: there must be both of them, or none".into(),
        );
        let own = self.tls_files();
        require(
            own.is_empty() || self.protocol().ends_with("ssl"),
            format!(
                "{}: `security.protocol` must be `ssl` or `sasl_ssl`",
                own.iter().map(|(own, ..)| *own).collect::<Vec<_>>().join(", ")
            ),
        );
        for (option, setting, path) in &own {
            require(
                !self.settings.contains_key(*setting),
                format!("settings: `{setting}` and the option {option} are the same"),
            );
            require(path.to_str().is_some(), format!("{option}: its path is not UTF-8"));
        }
        let place = format!("kafka {}", brokers.join(","));
        require(self.window >= 1, "window: it must be at least 1".into());
        require(self.window_bytes >= 1, "window_bytes: it must be at least 1".into());
        let fits = (1..=MAX_MESSAGE - HEADER_ROOM).contains(&self.max_body);
        require(fits, format!("max_body: {} is not between 1 and {}", self.max_body, MAX_MESSAGE - HEADER_ROOM));
        for (name, number) in [("partitions", self.partitions), ("replicas", self.replicas)] {
            require(number.is_none_or(|number| number >= 1), format!("{name}: it must be at least 1"));
        }
        for (name, duration) in [
            ("confirm_timeout", self.confirm_timeout),
            ("connect_timeout", self.connect_timeout),
            ("commit_interval", self.commit_interval),
            ("topic_refresh", self.topic_refresh),
        ] {
            let sensible = (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&duration);
            require(sensible, format!("{name}: {duration:?} is not between 10ms and 1h"));
        }
        for name in self.settings.keys() {
            if let Some((_, why)) = OWNED.iter().find(|(owned, _)| owned == name) {
                require(false, format!("settings: `{name}` cannot be set: {why}"));
            }
        }
        for (name, value) in &self.settings {
            if let Err(fault) = check_setting(name, value) {
                require(false, fault);
            }
        }
        if !faults.is_empty() {
            return Err(Error::invalid(SUBJECT, faults.join("; ")));
        }
        Ok(Settings { place, options: self })
    }

    /// The files for TLS that there are: the option, its setting, and the path.
    fn tls_files(&self) -> Vec<(&'static str, &'static str, &Path)> {
        let all = [
            ("ca_file", "ssl.ca.location", &self.ca_file),
            ("certificate_file", "ssl.certificate.location", &self.certificate_file),
            ("key_file", "ssl.key.location", &self.key_file),
        ];
        all.into_iter().filter_map(|(option, setting, path)| Some((option, setting, path.as_deref()?))).collect()
    }

    /// What is spoken to brokers, as the setting `security.protocol` has it.
    fn protocol(&self) -> String {
        let has = |name: &str| self.settings.contains_key(name);
        let has_user = has("sasl.mechanism") || has("sasl.mechanisms");
        match self.settings.get("security.protocol") {
            Some(protocol) => protocol.to_ascii_lowercase(),
            None if self.tls_files().is_empty() => "plaintext".into(),
            None if has_user => "sasl_ssl".into(),
            None => "ssl".into(),
        }
    }
}

/// What librdkafka says of one setting. Its words quote the value, which a secret's must not.
fn check_setting(name: &str, value: &str) -> std::result::Result<(), String> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(_) if is_secret(name) => {
            Err(format!("settings: `{name}` has no value that it can have, or does not exist"))
        }
        Err(KafkaError::ClientConfig(_, words, _, _)) => Err(format!("settings: `{name}`: {words}")),
        Err(other) => Err(format!("settings: `{name}`: {other}")),
    }
}

/// Options that were checked.
pub(crate) struct Settings {
    /// Kind and place, for people.
    pub(crate) place: String,
    options: KafkaOptions,
}

impl Settings {
    /// What all clients have in common. What the user has set comes last, and wins.
    fn client(&self, mut own: Vec<(&str, String)>) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.options.brokers);
        config.set("client.id", "cap");
        config.set("allow.auto.create.topics", "false");
        // A broker that comes back is found within a second; librdkafka would wait for up to ten.
        config.set("reconnect.backoff.max.ms", "1000");
        let setup = self.connect_timeout().clamp(Duration::from_secs(1), Duration::from_secs(30));
        config.set("socket.connection.setup.timeout.ms", setup.as_millis().to_string());
        config.set("api.version.request.timeout.ms", setup.as_millis().to_string());
        config.set("security.protocol", self.options.protocol());
        for (_, setting, path) in self.options.tls_files() {
            config.set(setting, path.to_string_lossy());
        }
        let has_authorities = |name: &String| name.starts_with("ssl.ca.");
        if self.uses_tls() && self.options.ca_file.is_none() && !self.options.settings.keys().any(has_authorities) {
            // An OpenSSL that was built with this crate does not know where the system's certificates are.
            config.set("ssl.ca.location", "probe");
        }
        for (name, value) in own.drain(..) {
            config.set(name, value);
        }
        for (name, value) in &self.options.settings {
            config.set(name, value);
        }
        // Logs are filtered where they are given to `tracing`.
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// A client that sends: each message once, in order, and acknowledged by all replicas.
    pub(crate) fn producer(&self) -> ClientConfig {
        self.client(vec![
            ("enable.idempotence", "true".into()),
            ("acks", "all".into()),
            ("message.timeout.ms", self.confirm_timeout().as_millis().to_string()),
            ("message.max.bytes", (self.max_body() + HEADER_ROOM).max(1_000_000).to_string()),
            // What is let in is bounded before (see `traffic`): these are a little beyond.
            ("queue.buffering.max.messages", (self.options.window + 1).to_string()),
            ("queue.buffering.max.kbytes", self.queue_kib().to_string()),
            // A refusal that may pass is told after some three seconds, so that the topic waits and not its messages here.
            ("retries", RETRIES.into()),
            // What is sent together leaves together, and a single message hardly waits.
            ("linger.ms", "1".into()),
            // A topic that was deleted is told of soon; one that was just made is known by then.
            ("topic.metadata.propagation.max.ms", "5000".into()),
        ])
    }

    /// A client that sends each message in a request of its own.
    pub(crate) fn lone_producer(&self) -> ClientConfig {
        let mut config = self.producer();
        config.set("batch.num.messages", "1");
        config
    }

    /// A client that makes topics.
    pub(crate) fn admin(&self) -> ClientConfig {
        self.client(Vec::new())
    }

    /// A member of a group.
    pub(crate) fn consumer(&self, wanted: &Subscription) -> ClientConfig {
        let share = fetched(wanted.prefetch_bytes);
        // The least that librdkafka can be told.
        let at_once = share.max(1_000);
        let mut config = self.client(vec![
            ("group.id", wanted.group.as_str().into()),
            ("enable.auto.commit", "false".into()),
            ("enable.auto.offset.store", "false".into()),
            ("partition.assignment.strategy", "cooperative-sticky".into()),
            // A member that is gone is noticed sooner than the node that it was on, and a rebalance within a second.
            ("session.timeout.ms", "10000".into()),
            ("heartbeat.interval.ms", "1000".into()),
            ("topic.metadata.refresh.interval.ms", self.options.topic_refresh.as_millis().to_string()),
            ("topic.blacklist", NEVER_CONSUMED.join(",")),
            // What is fetched ahead is a part of what may be in this process.
            ("queued.max.messages.kbytes", (share / 1024).max(1).to_string()),
            ("queued.min.messages", wanted.prefetch.saturating_mul(2).clamp(10_000, 100_000).to_string()),
            ("fetch.max.bytes", at_once.to_string()),
            ("fetch.message.max.bytes", share.clamp(1_000, 1024 * 1024).to_string()),
            // On a consumer this bounds `fetch.max.bytes` from below, and nothing else: a larger message comes all the same.
            ("message.max.bytes", at_once.min(1_000_000).to_string()),
            // A consumer that has as many as it may hold goes on as soon as some are taken.
            ("fetch.queue.backoff.ms", "20".into()),
        ]);
        // Where a group begins is decided here (see `context`), and never in silence.
        config.set("auto.offset.reset", "error");
        config
    }

    /// A client that reads single records for a group, and is no member of it.
    pub(crate) fn auditor(&self, wanted: &Subscription) -> ClientConfig {
        let mut config = self.client(vec![
            // Only for its rights.
            ("group.id", wanted.group.as_str().into()),
            ("enable.auto.commit", "false".into()),
            ("enable.auto.offset.store", "false".into()),
            ("queued.min.messages", "1".into()),
            ("fetch.message.max.bytes", "65536".into()),
        ]);
        config.set("auto.offset.reset", "error");
        config
    }

    /// How much a consumer may hold.
    pub(crate) fn budget(&self, wanted: &Subscription) -> Budget {
        let fetched = fetched(wanted.prefetch_bytes).saturating_mul(FETCHED);
        let asked = wanted.prefetch_bytes.saturating_sub(fetched);
        Budget { messages: wanted.prefetch, bytes: wanted.prefetch_bytes, asked }
    }

    /// Whether the user wants a group to begin with what comes, and not with the oldest message.
    pub(crate) fn begins_at_end(&self) -> bool {
        let value = self.options.settings.get("auto.offset.reset").map_or("", String::as_str);
        ["latest", "largest", "end"].contains(&value)
    }

    /// Whether members have a name that outlives their process.
    pub(crate) fn has_static_name(&self) -> bool {
        self.options.settings.contains_key(STATIC_NAME)
    }

    pub(crate) fn uses_tls(&self) -> bool {
        self.options.protocol().ends_with("ssl")
    }

    pub(crate) fn create_topics(&self) -> CreateTopics {
        self.options.create_topics
    }

    /// For a topic that is made here; -1 is the broker's default.
    pub(crate) fn partitions(&self) -> i32 {
        self.options.partitions.unwrap_or(-1)
    }

    /// For a topic that is made here; -1 is the broker's default.
    pub(crate) fn replicas(&self) -> i32 {
        self.options.replicas.unwrap_or(-1)
    }

    /// What may be on its way.
    pub(crate) fn window(&self) -> Load {
        Load { messages: self.options.window, bytes: self.options.window_bytes }
    }

    /// Twice the window of bytes and one message of the largest size, at most as much as librdkafka can be told.
    fn queue_kib(&self) -> usize {
        let bytes = self.options.window_bytes.saturating_mul(2).saturating_add(self.max_body() + HEADER_ROOM);
        (bytes / 1024 + 1).min(MAX_QUEUE_KIB)
    }

    /// How long a topic may confirm nothing before somebody asks what is wrong with it.
    pub(crate) fn slow(&self) -> Duration {
        (self.confirm_timeout() / 3).min(Duration::from_secs(1))
    }

    /// How long a sender waits for a topic that confirms nothing and has no room.
    pub(crate) fn room_patience(&self) -> Duration {
        (self.confirm_timeout() / 3).min(Duration::from_secs(5))
    }

    pub(crate) fn max_body(&self) -> usize {
        self.options.max_body
    }

    pub(crate) fn confirm_timeout(&self) -> Duration {
        self.options.confirm_timeout
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.options.connect_timeout
    }

    /// How long a member that has lost its place in the group may take to get one again: a rebalance waits for others,
    /// so it is some times what a new one may take.
    pub(crate) fn rejoin_timeout(&self) -> Duration {
        self.options.connect_timeout * 3
    }

    pub(crate) fn commit_interval(&self) -> Duration {
        self.options.commit_interval
    }

    /// How often it is looked whether logs are still the same.
    pub(crate) fn audit_interval(&self) -> Duration {
        self.options.topic_refresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(prefetch: usize, prefetch_bytes: usize) -> Subscription {
        let topics = vec!["orders".try_into().unwrap()];
        Subscription { group: "billing.v1".parse().unwrap(), topics, prefetch, prefetch_bytes }
    }

    #[test]
    fn what_is_fetched_ahead_and_what_is_asked_for_fit_into_the_budget_together() {
        let settings = KafkaOptions::default().check().unwrap();
        for bytes in [0, 1, 20_000, 1 << 20, 64 << 20, 10 << 30, usize::MAX] {
            let (wanted, budget) = (wanted(1_000, bytes), settings.budget(&wanted(1_000, bytes)));
            let config = settings.consumer(&wanted);
            config.create_native_config().unwrap();
            assert!(budget.asked >= bytes / 4 * 3, "{bytes}: {budget:?}");
            let number = |name: &str| config.get(name).unwrap().parse::<usize>().unwrap();
            if bytes >= 16 * 1024 {
                let ahead = number("queued.max.messages.kbytes") * 1024 + 3 * number("fetch.max.bytes");
                assert!(ahead <= bytes - budget.asked, "{bytes}: {ahead} with {budget:?}");
            }
        }
    }

    fn refusal(options: KafkaOptions) -> String {
        let error = options.check().err().expect("a refusal");
        assert_eq!(error.kind(), cap_core::ErrorKind::Invalid);
        format!("{error} {error:?}")
    }

    #[test]
    fn the_place_is_told() {
        let place = |brokers: &str| KafkaOptions::new(brokers).check().unwrap().place;
        assert_eq!(place("broker-1:9092"), "kafka broker-1:9092");
        assert_eq!(place("a:1, b:2,[::1]:3"), "kafka a:1,b:2,[::1]:3");
    }

    #[test]
    fn every_fault_is_named() {
        let options = KafkaOptions::new("broker").window(0).partitions(0).set("acks", "1").set("no.such", "x");
        let error = refusal(options.connect_timeout(Duration::ZERO).set("linger.ms", "soon"));
        for name in ["brokers", "window", "partitions", "connect_timeout", "`acks`", "no.such", "linger.ms"] {
            assert!(error.contains(name), "{name} is not in: {error}");
        }
    }

    #[test]
    fn files_for_tls_make_it_be_spoken_and_go_together() {
        let protocol =
            |options: KafkaOptions| options.check().unwrap().producer().get("security.protocol").unwrap().to_owned();
        let mutual = || KafkaOptions::default().certificate_file("c.pem").key_file("k.pem");
        assert_eq!(protocol(KafkaOptions::default()), "plaintext");
        assert_eq!(protocol(KafkaOptions::default().ca_file("ca.pem")), "ssl");
        assert_eq!(protocol(mutual().set("sasl.mechanism", "PLAIN")), "sasl_ssl");
        let config = mutual().check().unwrap().auditor(&wanted(1, 1));
        assert_eq!(config.get("ssl.certificate.location"), Some("c.pem"));
        assert_eq!((config.get("ssl.key.location"), config.get("ssl.ca.location")), (Some("k.pem"), Some("probe")));
        assert!(refusal(KafkaOptions::default().certificate_file("c.pem")).contains("key_file"));
        assert!(refusal(mutual().set("security.protocol", "sasl_plaintext")).contains("certificate_file, key_file"));
        assert!(refusal(mutual().set("ssl.key.location", "other.pem")).contains("`ssl.key.location`"));
    }

    #[test]
    fn the_value_of_a_secret_is_never_quoted() {
        let error = refusal(KafkaOptions::default().set("no.such.password", "s3cret"));
        assert!(error.contains("no.such.password") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn the_users_settings_win_over_ours() {
        let settings = KafkaOptions::default().set("linger.ms", "20").set("client.id", "x").check().unwrap();
        assert_eq!(settings.producer().get("linger.ms"), Some("20"));
        assert_eq!(settings.consumer(&wanted(1_000, 64 << 20)).get("client.id"), Some("x"));
    }

    #[test]
    fn librdkafka_never_decides_where_a_group_goes_on() {
        let settings = KafkaOptions::default().set("auto.offset.reset", "latest").check().unwrap();
        assert!(settings.begins_at_end());
        for config in [settings.consumer(&wanted(10, 1 << 20)), settings.auditor(&wanted(10, 1 << 20))] {
            assert_eq!(config.get("auto.offset.reset"), Some("error"));
        }
    }

    #[test]
    fn each_kind_of_client_is_one_that_librdkafka_knows() {
        let settings = KafkaOptions::default().check().unwrap();
        for config in [
            settings.producer(),
            settings.lone_producer(),
            settings.admin(),
            settings.consumer(&wanted(10, 1 << 20)),
            settings.auditor(&wanted(10, 1 << 20)),
        ] {
            config.create_native_config().unwrap();
        }
    }
}
