//! The options of a transport.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use cap_core::Version;
use serde::Deserialize;

use crate::address::Address;

/// How long a message stays in a queue that .NET CAP makes.
const DOTNET_MESSAGE_TTL: Duration = Duration::from_secs(864_000);

/// The kind of queue that a group gets. A queue that exists with another kind is refused, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueType {
    /// Replicated and fsynced: what is confirmed survives the loss of a minority of the cluster.
    #[default]
    Quorum,
    /// On one node.
    Classic,
    /// Whatever the broker makes when nothing is asked for, as .NET CAP does unless it is told otherwise.
    BrokerDefault,
}

/// Who makes the exchange, the queues and the bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// The transport declares what is missing. Its user needs the right to configure the exchange and the groups' queues.
    #[default]
    Declare,
    /// The broker's operators: nothing is ever declared or bound, only looked whether the exchange is there (to send) and
    /// the group's queue (to consume). That needs no right beyond sending, and reading the queue. Whether the queue is
    /// *bound* AMQP does not tell.
    Check,
}

/// Where the broker is and how it is used. All but the URL have defaults that suit production; durations are written as
/// `30s` in a configuration file.
///
/// ```
/// use std::time::Duration;
/// use cap_transport_rabbitmq::{RabbitMq, RabbitMqOptions};
///
/// let options = RabbitMqOptions::new("amqp://orders:s3cret@broker-1:5672/shop").connect_timeout(Duration::from_secs(3));
/// assert!(!format!("{options:?}").contains("s3cret"));
/// let transport = RabbitMq::with_options(options)?;
/// # Ok::<(), cap_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RabbitMqOptions {
    pub(crate) url: String,
    pub(crate) exchange: Option<String>,
    pub(crate) version: Version,
    pub(crate) queue_type: QueueType,
    #[serde(with = "humantime_serde")]
    pub(crate) message_ttl: Option<Duration>,
    pub(crate) delivery_limit: Option<i32>,
    pub(crate) topology: Topology,
    pub(crate) publish_channels: usize,
    pub(crate) window: usize,
    pub(crate) max_body: usize,
    #[serde(with = "humantime_serde")]
    pub(crate) confirm_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) connect_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) bind_every: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) heartbeat: Duration,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) certificate_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) driver_logs: bool,
    pub(crate) management_url: Option<String>,
}

impl Default for RabbitMqOptions {
    /// A broker on this machine, with RabbitMQ's own user and virtual host.
    fn default() -> Self {
        Self {
            url: "amqp://localhost:5672/%2f".into(),
            exchange: None,
            version: Version::default(),
            queue_type: QueueType::default(),
            message_ttl: None,
            delivery_limit: None,
            topology: Topology::default(),
            publish_channels: 1,
            window: 2_000,
            max_body: 16 * 1024 * 1024,
            confirm_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            bind_every: Duration::from_secs(30),
            heartbeat: Duration::from_secs(20),
            ca_file: None,
            certificate_file: None,
            key_file: None,
            driver_logs: false,
            management_url: None,
        }
    }
}

impl RabbitMqOptions {
    /// Default options for the broker at `url`: `amqp://user:password@host:port/vhost`, or `amqps://…` for TLS. What
    /// has a meaning in a URL is percent-encoded; a missing or empty virtual host is `/`.
    ///
    /// Several hosts of a cluster are written as `amqp://user:password@one,two:5673/vhost`: each connection goes to the one
    /// that was reached last, or else to the next. Each gets its share of the connect timeout.
    ///
    /// Parameters that are known: `heartbeat` (seconds), `connection_timeout` (milliseconds), `frame_max`, `channel_max`,
    /// `auth_mechanism` (`plain`, `external`, …), `cacertfile`, `certfile`, `keyfile`, `verify=verify_peer`. They win over
    /// the options; all others are refused.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// The topic exchange. Default: CAP's, `cap.default.router`, with the version after it unless that is `v1`.
    #[must_use]
    pub fn exchange(mut self, name: impl Into<String>) -> Self {
        self.exchange = Some(name.into());
        self
    }

    /// The version of the engines, which the default exchange is named after. Default: `v1`.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// The kind of queue that a group gets. Default: quorum.
    #[must_use]
    pub fn queue_type(mut self, queue_type: QueueType) -> Self {
        self.queue_type = queue_type;
        self
    }

    /// How long a message may wait in a queue before the broker throws it away. Default: for ever.
    #[must_use]
    pub fn message_ttl(mut self, ttl: Duration) -> Self {
        self.message_ttl = Some(ttl);
        self
    }

    /// Declares queues exactly as .NET CAP does with its defaults, so that services of both kinds can share a group:
    /// no queue type, and messages expire after ten days. In a configuration file: `queue_type = "broker_default"`,
    /// `message_ttl = "10days"`.
    #[must_use]
    pub fn cap_compatible(self) -> Self {
        self.queue_type(QueueType::BrokerDefault).message_ttl(DOTNET_MESSAGE_TTL)
    }

    /// After how many redeliveries a quorum queue throws a message away. Default: never, which is also what `-1` says; the
    /// broker is asked for its version, since from 4.0 on that has to be declared, and before it must not be. A queue that
    /// is there without it is used as it is, with a warning.
    #[must_use]
    pub fn delivery_limit(mut self, limit: i32) -> Self {
        self.delivery_limit = Some(limit);
        self
    }

    /// Who makes the exchange, the queues and the bindings. Default: the transport.
    #[must_use]
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Over how many channels messages are sent. With one, all messages of a handle keep their order; with several, only
    /// those of one topic do, which always go over the same. Default: 1.
    #[must_use]
    pub fn publish_channels(mut self, channels: usize) -> Self {
        self.publish_channels = channels;
        self
    }

    /// How many messages may be on their way to the broker, unconfirmed. A full window makes senders wait.
    /// Default: 2000.
    #[must_use]
    pub fn window(mut self, messages: usize) -> Self {
        self.window = messages;
        self
    }

    /// The largest body, in bytes; a larger one is `Invalid`. Not above `max_message_size` of the broker. Default:
    /// 16 MiB, which is RabbitMQ's own limit from 4.0 on.
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// How long a message may wait for room in the window and for the broker's confirm, both together, before it is
    /// reported as `Unavailable`. Default: 30 s.
    #[must_use]
    pub fn confirm_timeout(mut self, timeout: Duration) -> Self {
        self.confirm_timeout = timeout;
        self
    }

    /// How often a consumer makes its queue's bindings again, should somebody have taken one away. A message of a topic of
    /// its own that comes back makes it do so at once. Default: 30 s.
    #[must_use]
    pub fn bind_every(mut self, pause: Duration) -> Self {
        self.bind_every = pause;
        self
    }

    /// How long connecting, or declaring and subscribing, or a question to the management API, may take. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long the broker may be silent before the connection counts as lost, in whole seconds; the broker may ask for
    /// less. A `heartbeat=` in the URL wins. Default: 20 s.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// A file of certificates in PEM form that are trusted beside those of the system, for `amqps://` and for a
    /// management API at `https://`. Read on each connect. Default: none.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// The client's own certificate with its chain, in PEM form, for a broker at `amqps://` that asks for one; with
    /// [`RabbitMqOptions::key_file`]. Read on each connect. To log in by it and without a password, add
    /// `?auth_mechanism=external` to the URL. Default: none.
    #[must_use]
    pub fn certificate_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.certificate_file = Some(path.into());
        self
    }

    /// The private key of the client's certificate, in PEM form and not encrypted. Default: none.
    #[must_use]
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key_file = Some(path.into());
        self
    }

    /// Whether the driver writes its own log, in which **returned messages are shown whole**, and at TRACE the password.
    /// Default: no.
    #[must_use]
    pub fn driver_logs(mut self, are_written: bool) -> Self {
        self.driver_logs = are_written;
        self
    }

    /// Where the broker's management API is, so that [`Transport::unrouted`](cap_core::Transport::unrouted) can tell which
    /// topics have no queue: `http://user:password@host:15672`, or `https://…`. What has a meaning in a URL is
    /// percent-encoded; without a user it is the one of the AMQP URL, who needs the tag `management`. Nothing but the
    /// list of the exchange's bindings is ever asked for, and no proxy is used. Default: none.
    ///
    /// It needs the feature `management` of this crate (`rabbitmq-management` of `cap`); in a build without it, setting
    /// it is `Invalid`.
    #[must_use]
    pub fn management_url(mut self, url: impl Into<String>) -> Self {
        self.management_url = Some(url.into());
        self
    }
}

impl fmt::Debug for RabbitMqOptions {
    /// Without the URLs' users and passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqOptions")
            .field("place", &Address::parse(&self.url).map_or_else(|_| "not a URL".into(), |address| address.place()))
            .field("exchange", &self.exchange)
            .field("version", &self.version)
            .field("queue_type", &self.queue_type)
            .field("message_ttl", &self.message_ttl)
            .field("delivery_limit", &self.delivery_limit)
            .field("topology", &self.topology)
            .field("publish_channels", &self.publish_channels)
            .field("window", &self.window)
            .field("max_body", &self.max_body)
            .field("confirm_timeout", &self.confirm_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("bind_every", &self.bind_every)
            .field("heartbeat", &self.heartbeat)
            .field("ca_file", &self.ca_file)
            .field("certificate_file", &self.certificate_file)
            .field("key_file", &self.key_file)
            .field("driver_logs", &self.driver_logs)
            .field("management_url", &self.management_url.as_ref().map(|_| format_args!("set")))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_deserialize_with_defaults_and_readable_durations() {
        let text = r#"{"url": "amqp://b/%2f", "queue_type": "broker_default", "message_ttl": "10days"}"#;
        let options: RabbitMqOptions = serde_json::from_str(text).unwrap();
        assert_eq!(options, RabbitMqOptions::new("amqp://b/%2f").cap_compatible());
        assert!(serde_json::from_str::<RabbitMqOptions>(r#"{"confirm_timout": "1s"}"#).is_err());
    }
}
