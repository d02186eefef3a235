//! Everything about an engine that is a number or a name.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::lifecycle::{RetryPolicy, Rules, Unroutable, UnroutableRules};
use crate::name::{Group, Topic, Version};
use crate::time::FAR;

/// Options of an engine. Reads from a config file, with durations written as `30s`; what is left out has its default.
///
/// ```
/// let options: cap_core::Options = serde_json::from_str(r#"{ "lease": "10s", "heartbeat": "3s", "retry": { "limit": 10 } }"#)?;
/// assert_eq!(options.relay_batch, 500);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Isolates engines that share a store or a broker. Default `v1`.
    pub version: Version,
    /// The group of subscriptions that name none. Default: `cap.queue.` and the program's name in lower case.
    pub default_group: String,
    /// Goes before each group, with a dot. Default: none.
    pub group_prefix: Option<String>,
    /// Goes before each topic that is published or subscribed, with a dot. Default: none.
    pub topic_prefix: Option<String>,
    /// When failed messages are tried again, in the outbox and by subscriptions without a policy of their own. Default:
    /// 50 attempts; 3 at once with short jitter, then exponential from 1 s to 60 s.
    pub retry: RetryPolicy,
    /// How long succeeded records are kept, and so how long duplicates of them are recognised. Default 24 h.
    #[serde(with = "humantime_serde")]
    pub keep_succeeded: Duration,
    /// How long dead records are kept. Default 15 days.
    #[serde(with = "humantime_serde")]
    pub keep_dead: Duration,
    /// How long a node that gives no sign keeps what it holds. Default 15 s.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How often a node gives a sign. Default 5 s; at most a third of the lease.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How many outbox records are claimed at once. Default 500.
    pub relay_batch: usize,
    /// How many outbox records may be claimed and not yet settled: waiting to be sent, on their way, or confirmed. Fewer
    /// if they are large: together at most `in_flight_bytes`. Default 2000; at least `relay_batch`.
    pub relay_in_flight: usize,
    /// How often expired records are deleted, by one node for all. Default 5 min.
    #[serde(with = "humantime_serde")]
    pub collect_every: Duration,
    /// How many of them at once. Default 1000.
    pub collect_batch: usize,
    /// How often the storage is asked for due records that no wake-up told of. Default 1 s.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// The largest payload that may be published, in bytes. Default 4 MiB.
    pub payload_limit: usize,
    /// How long a stop waits for what is in flight before it gives it back. Default 30 s. If servers hang, it ends at the
    /// latest some ten seconds after that.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// How many deliveries a group takes from the broker before it has acknowledged them. Default 1000: two batches, one
    /// on its way while the other is being stored.
    pub prefetch: usize,
    /// How many bytes of contents may be in memory in one direction: of the outbox, or of one group; there half of it is for
    /// what is received and not yet stored, of which each message counts twice, as it came and as it is written, and half
    /// for what is being handled. A single message may be larger. Default 64 MiB.
    pub in_flight_bytes: usize,
    /// How long a message waits in the inbox while no node of its group has a subscription for its topic, before it is
    /// dead: a node that has one may come, in a deployment or after a rollback. Counted from its arrival, looked at every
    /// ten minutes at the most. Default 7 days.
    #[serde(with = "humantime_serde")]
    pub unhandled_limit: Duration,
    /// Whether the engine refuses to start when a topic that it [publishes](crate::CapBuilder::publishes) has no queue,
    /// and when the transport cannot tell. Default false: such topics are logged.
    pub require_routes: bool,
    /// What becomes of a message that no group wants at present, on any transport. Default `wait`: it stays in the
    /// outbox and is sent within about a second of its queue's appearing.
    pub unroutable: Unroutable,
    /// The same for single topics or patterns, such as `{"metrics.#": "drop"}`; of several that match, `wait` comes before
    /// `dead` and that before `drop`. The topic prefix goes before each. Default: none.
    pub unroutable_topics: BTreeMap<String, Unroutable>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: Version::default(),
            default_group: format!("cap.queue.{}", program_name()),
            group_prefix: None,
            topic_prefix: None,
            retry: RetryPolicy::default(),
            keep_succeeded: Duration::from_secs(24 * 3600),
            keep_dead: Duration::from_secs(15 * 24 * 3600),
            lease: Duration::from_secs(15),
            heartbeat: Duration::from_secs(5),
            relay_batch: 500,
            relay_in_flight: 2000,
            collect_every: Duration::from_secs(300),
            collect_batch: 1000,
            poll: Duration::from_secs(1),
            payload_limit: 4 * 1024 * 1024,
            drain: Duration::from_secs(30),
            prefetch: 1000,
            in_flight_bytes: 64 * 1024 * 1024,
            unhandled_limit: Duration::from_secs(7 * 24 * 3600),
            require_routes: false,
            unroutable: Unroutable::default(),
            unroutable_topics: BTreeMap::new(),
        }
    }
}

impl Options {
    /// The same with no time longer than means anything ([`FAR`]): what is added to a clock never overflows.
    #[must_use]
    pub(crate) fn bounded(mut self) -> Self {
        let times = [
            &mut self.keep_succeeded,
            &mut self.keep_dead,
            &mut self.lease,
            &mut self.heartbeat,
            &mut self.collect_every,
            &mut self.poll,
            &mut self.drain,
            &mut self.unhandled_limit,
        ];
        times.into_iter().for_each(|time| *time = (*time).min(FAR));
        self
    }

    /// Checks all options and names everything that is wrong.
    ///
    /// # Errors
    /// `Invalid`, listing every fault.
    pub fn validate(&self) -> Result<()> {
        let mut faults = self.retry.faults();
        let mut require = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        require(!self.lease.is_zero(), "lease: it must be above zero".into());
        require(
            !self.heartbeat.is_zero() && self.heartbeat.saturating_mul(3) <= self.lease,
            format!(
                "heartbeat: {:?} must be above zero and at most a third of the lease, {:?}",
                self.heartbeat, self.lease
            ),
        );
        for (name, value) in [
            ("relay_batch", self.relay_batch),
            ("collect_batch", self.collect_batch),
            ("payload_limit", self.payload_limit),
            ("prefetch", self.prefetch),
            ("in_flight_bytes", self.in_flight_bytes),
        ] {
            require(value > 0, format!("{name}: it must be at least 1"));
        }
        require(
            self.relay_in_flight >= self.relay_batch && self.relay_in_flight <= u32::MAX as usize,
            format!("relay_in_flight: {} must be at least relay_batch, {}", self.relay_in_flight, self.relay_batch),
        );
        require(!self.collect_every.is_zero(), "collect_every: it must be above zero".into());
        require(self.poll >= Duration::from_millis(1), "poll: it must be at least 1ms".into());
        for prefix in [&self.group_prefix, &self.topic_prefix].into_iter().flatten() {
            if let Err(error) = Topic::try_from(prefix.as_str()) {
                require(false, format!("prefix: {error}"));
            }
        }
        if let Err(error) = self.group(&self.default_group) {
            require(false, format!("default_group: {error}"));
        }
        if let Err(error) = self.unroutable_rules() {
            require(false, format!("unroutable_topics: {error}"));
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::invalid("the options", faults.join("; ")))
    }

    /// The effective name of a group: `[prefix.]name.version`.
    ///
    /// # Errors
    /// `Invalid` when the name or the whole is no group name.
    pub fn group(&self, name: &str) -> Result<Group> {
        Group::try_from(name)?;
        match &self.group_prefix {
            Some(prefix) => Group::effective(&format!("{prefix}.{name}"), &self.version),
            None => Group::effective(name, &self.version),
        }
    }

    /// What becomes of messages that no group wants.
    pub(crate) fn unroutable_rules(&self) -> Result<UnroutableRules> {
        UnroutableRules::new(self.unroutable, &self.unroutable_topics, self.topic_prefix.as_deref())
    }

    /// What governs records with this retry policy.
    pub fn rules(&self, retry: RetryPolicy) -> Rules {
        Rules { retry, keep_succeeded: self.keep_succeeded, keep_dead: self.keep_dead }
    }
}

fn program_name() -> String {
    std::env::current_exe()
        .ok()
        .and_then(|path| path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()))
        .filter(|name| !name.is_empty() && name.len() <= 150 && !name.chars().any(char::is_control))
        .unwrap_or_else(|| "program".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_are_the_documented_ones() {
        let options = Options::default();
        options.validate().unwrap();
        assert_eq!(options.version.as_str(), "v1");
        assert!(options.default_group.starts_with("cap.queue."));
        assert_eq!((options.relay_batch, options.relay_in_flight), (500, 2000));
        assert_eq!((options.lease, options.heartbeat), (Duration::from_secs(15), Duration::from_secs(5)));
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let options = Options {
            lease: Duration::ZERO,
            relay_batch: 0,
            default_group: String::new(),
            retry: RetryPolicy { limit: crate::Limit::Attempts(0), ..RetryPolicy::default() },
            ..Options::default()
        };
        let error = options.validate().unwrap_err().to_string();
        for part in ["lease", "heartbeat", "relay_batch", "default_group", "retry limit"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn the_longest_times_are_as_good_as_long_ones() {
        let longest = Duration::MAX;
        let options =
            Options { lease: longest, heartbeat: longest, poll: longest, drain: longest, ..Options::default() };
        let short = Options { lease: Duration::from_secs(1), ..options.clone() };
        let error = short.validate().unwrap_err().to_string();
        assert!(error.contains("heartbeat"), "{error}");
        let bounded = Options { heartbeat: Duration::from_secs(5), ..options }.bounded();
        bounded.validate().unwrap();
        assert_eq!((bounded.lease, bounded.drain), (FAR, FAR));
    }

    #[test]
    fn an_unknown_option_in_a_config_file_is_an_error() {
        let error = serde_json::from_str::<Options>(r#"{"leese":"10s"}"#).unwrap_err().to_string();
        assert!(error.contains("leese"), "{error}");
    }

    #[test]
    fn groups_get_prefix_and_version() {
        let options = Options { group_prefix: Some("shop".into()), ..Options::default() };
        assert_eq!(options.group("billing").unwrap().as_str(), "shop.billing.v1");
    }
}
