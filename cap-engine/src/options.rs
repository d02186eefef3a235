//! Everything about an engine that is a number or a name.

use std::collections::BTreeMap;
use std::time::Duration;

use cap_core::lifecycle::Rules;
use cap_core::time::FAR;
use cap_core::{
    Backoff, Error, Group, Limit, Result, RetryPolicy, StoredForm, Topic, TopicPattern, Unroutable, Version,
};
use serde::{Deserialize, Serialize};

use crate::unroutable::UnroutableRules;

/// Options of an engine. Reads from a config file, with durations written as `30s`; what is left out has its default.
///
/// ```
/// let options: cap_engine::Options = serde_json::from_str(r#"{ "lease": "10s", "heartbeat": "3s", "retry": { "limit": 10 } }"#)?;
/// assert_eq!(options.relay_batch, 500);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Separates engines that share a store: an engine claims, counts and takes over only records of its own version.
    /// Expired ones are deleted whosever they are. It also ends each group's name, so each version of a group has a queue of
    /// its own. Default `v1`.
    ///
    /// It separates nothing at a broker: the versions share topics, and a group gets what any of them publishes. To
    /// separate them there, too, as .NET CAP does on RabbitMQ, give RabbitMQ the same `version` (an exchange for each),
    /// each version a [`topic_prefix`](Self::topic_prefix) of its own on Kafka, or a transport of its own in one process.
    pub version: Version,
    /// The name of this service beside which ids of its own choice ([`Publish::id`](crate::Publish::id)) mean something: two
    /// services may choose the same. Default: the program's name in lower case.
    pub service: String,
    /// The group of subscriptions that name none. Default: `cap.queue.` and the program's name in lower case.
    pub default_group: String,
    /// Goes before each group, with a dot. Default: none.
    pub group_prefix: Option<String>,
    /// Goes before each topic that is published or subscribed, with a dot. Default: none.
    pub topic_prefix: Option<String>,
    /// When failed messages are tried again, in the outbox and by subscriptions without a policy of their own. Default:
    /// 50 attempts; 3 at once with short jitter, then after pauses drawn evenly from zero to a bound that grows from 1 s to
    /// 60 s. What always fails is dead after some 21 minutes.
    pub retry: RetryPolicy,
    /// How long succeeded records are kept; those of the inbox for [`dedupe_window`](Self::dedupe_window), if that is
    /// longer. Default 24 h.
    #[serde(with = "humantime_serde")]
    pub keep_succeeded: Duration,
    /// For how long at least the inbox keeps what was handled, or is dead, and so recognises a second delivery of it: what
    /// comes again after that is handled again. Default 24 h.
    #[serde(with = "humantime_serde")]
    pub dedupe_window: Duration,
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
    /// How long a stop takes at the most, whatever hangs. Default 25 s: less than the 30 s after which orchestrators kill.
    /// A third of it, and at most 5 s, is kept for winding up: until then what is in flight may come to its end; then
    /// handlers are told to give up, servers that do not answer are waited for no longer, and the node is signed off.
    /// What could not be given back in time is taken over by another node when the lease is over. With less than a
    /// second that may be so although nothing hangs.
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
    /// Routing keys, exact or patterns, under which operators or shovels bring messages that were published to other topics,
    /// such as the name of a group's queue (`billing.v1`): for these the header `cap-msg-name` says the topic. Whole
    /// names, as they are on the broker. Whoever may publish under one of them may publish to any topic of the group.
    ///
    /// Default: none. A header that says another topic than the broker does is then a fault of the message, which is parked,
    /// but for what the broker itself has moved: a message that came by no topic that was subscribed, and of which
    /// RabbitMQ says (`x-death`) that it had been published to the topic that the header says, is of that topic.
    pub moved_topics: Vec<TopicPattern>,
    /// Whether the header `cap-msg-name` says the topic of every delivery, whatever it was published to. The broker's rights
    /// are void then: who may publish anything to a group may have any of its handlers called. Default false.
    pub header_names_topic: bool,
    /// Topics, exact or patterns such as `reply.#`, that replies may be published to when a message asks for one
    /// (`cap-callback-name`). Whole names, as they are on the broker. Default: none but those that the service
    /// [publishes](crate::CapBuilder::publishes) or subscribes by their exact names, which are always allowed. A message
    /// that asks for a reply elsewhere is dead before a handler that may reply gets it; `#` allows all.
    pub reply_topics: Vec<TopicPattern>,
    /// The form in which contents are stored. Both are read, whichever is written. Default: our own.
    pub stored_form: StoredForm,
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
            service: program_name(),
            default_group: format!("cap.queue.{}", program_name()),
            group_prefix: None,
            topic_prefix: None,
            retry: RetryPolicy::default(),
            keep_succeeded: Duration::from_secs(24 * 3600),
            keep_dead: Duration::from_secs(15 * 24 * 3600),
            dedupe_window: Duration::from_secs(24 * 3600),
            lease: Duration::from_secs(15),
            heartbeat: Duration::from_secs(5),
            relay_batch: 500,
            relay_in_flight: 2000,
            collect_every: Duration::from_secs(300),
            collect_batch: 1000,
            poll: Duration::from_secs(1),
            payload_limit: 4 * 1024 * 1024,
            drain: Duration::from_secs(25),
            prefetch: 1000,
            in_flight_bytes: 64 * 1024 * 1024,
            unhandled_limit: Duration::from_secs(7 * 24 * 3600),
            require_routes: false,
            moved_topics: Vec::new(),
            header_names_topic: false,
            reply_topics: Vec::new(),
            stored_form: StoredForm::default(),
            unroutable: Unroutable::default(),
            unroutable_topics: BTreeMap::new(),
        }
    }
}

impl Options {
    /// The defaults of .NET CAP 10, as far as options of ours can restore them without giving up a promise; what differs
    /// all the same is in `docs/from-cap.md`.
    ///
    /// ```
    /// let options = cap_engine::Options { drain: std::time::Duration::from_secs(25), ..cap_engine::Options::like_cap() };
    /// options.validate()?;
    /// # Ok::<(), cap_core::Error>(())
    /// ```
    pub fn like_cap() -> Self {
        Self {
            // `FailedRetryInterval`, and no jitter.
            retry: RetryPolicy { backoff: Backoff::Fixed { delay: Duration::from_secs(60) }, ..RetryPolicy::default() },
            prefetch: 1,
            // None; a number that a signed one can hold, for configuration files.
            payload_limit: isize::MAX.unsigned_abs(),
            // A message that no handler wants is dead when it comes.
            unhandled_limit: Duration::ZERO,
            // Ten seconds for its loops, and two for its consumers.
            drain: Duration::from_secs(12),
            stored_form: StoredForm::NetCap,
            ..Self::default()
        }
    }

    /// The same with no time longer than means anything ([`FAR`]): what is added to a clock never overflows.
    #[must_use]
    pub(crate) fn bounded(mut self) -> Self {
        let times = [
            &mut self.keep_succeeded,
            &mut self.keep_dead,
            &mut self.dedupe_window,
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
        let mut faults = retry_faults(&self.retry);
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
        if let Err(error) = Topic::try_from(self.service.as_str()) {
            require(false, format!("service: {error}"));
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

    /// What governs records of the outbox with this retry policy.
    pub fn rules(&self, retry: RetryPolicy) -> Rules {
        Rules { retry, keep_succeeded: self.keep_succeeded, keep_dead: self.keep_dead }
    }

    /// The same for the inbox, where what is kept is recognised when it comes again.
    pub fn inbox_rules(&self, retry: RetryPolicy) -> Rules {
        let (succeeded, dead) = (self.keep_succeeded.max(self.dedupe_window), self.keep_dead.max(self.dedupe_window));
        Rules { retry, keep_succeeded: succeeded, keep_dead: dead }
    }
}

/// What is wrong with a retry policy, if anything.
pub(crate) fn retry_faults(policy: &RetryPolicy) -> Vec<String> {
    let mut faults = Vec::new();
    if policy.limit == Limit::Attempts(0) {
        faults.push("retry limit 0: a message needs at least one attempt".to_owned());
    }
    if let Backoff::Exponential { base, max } = policy.backoff
        && (base.is_zero() || base > max)
    {
        faults.push(format!("retry backoff: the base {base:?} must be above zero and not above the maximum {max:?}"));
    }
    faults
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
            retry: RetryPolicy { limit: Limit::Attempts(0), ..RetryPolicy::default() },
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
    fn the_inbox_keeps_what_it_has_to_recognise() {
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        let options = Options { keep_succeeded: hour, keep_dead: hour, ..Options::default() };
        let kept = |rules: Rules| (rules.keep_succeeded, rules.keep_dead);
        assert_eq!(kept(options.rules(RetryPolicy::default())), (hour, hour));
        assert_eq!(kept(options.inbox_rules(RetryPolicy::default())), (day, day));
        let longer = Options { keep_succeeded: day * 2, keep_dead: day * 3, ..Options::default() };
        assert_eq!(kept(longer.inbox_rules(RetryPolicy::default())), (day * 2, day * 3));
    }

    #[test]
    fn caps_defaults_are_valid_and_can_be_written_to_a_configuration_file() {
        let options = Options::like_cap();
        options.validate().unwrap();
        assert!(i64::try_from(options.payload_limit).is_ok());
        let text = serde_json::to_string(&options).unwrap();
        assert!(text.contains(r#""stored_form":"net_cap""#), "{text}");
        assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
        // `FailedRetryCount` and `FailedRetryInterval`: three at once, then 47 with a minute between.
        let pauses: Duration = (3..50).map(|attempts| options.retry.delay_after(attempts, 0.5)).sum();
        assert_eq!((pauses, options.retry.allows_another(50)), (Duration::from_secs(47 * 60), false));
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
