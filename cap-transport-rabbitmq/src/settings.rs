//! What the options come to when they are checked: the URL's parts, the exchange's name.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cap_core::{Error, Result, Version};
use lapin::uri::{AMQPScheme, AMQPUri};

use crate::config::{QueueType, RabbitMqOptions, Unroutable};
use crate::management::Management;

/// CAP's exchange for engines of version `v1`.
const DEFAULT_EXCHANGE: &str = "cap.default.router";
/// The longest name of an exchange or queue, in bytes (an AMQP short string).
pub(crate) const MAX_SHORT_STRING: usize = 255;
/// RabbitMQ's own limit of channels on a connection.
const MAX_CHANNELS: usize = 2047;

impl RabbitMqOptions {
    /// Checks everything and names all that is wrong.
    pub(crate) fn check(self) -> Result<Settings> {
        let uri = parse(&self.url)?;
        let mut faults = Vec::new();
        let mut require = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let exchange = self.exchange.clone().unwrap_or_else(|| default_exchange(&self.version));
        require(
            !exchange.is_empty() && exchange.len() <= MAX_SHORT_STRING,
            format!("exchange: its name has {} bytes, 1 to {MAX_SHORT_STRING} are allowed", exchange.len()),
        );
        require(
            (1..=MAX_CHANNELS).contains(&self.publish_channels),
            format!("publish_channels: {} is not between 1 and {MAX_CHANNELS}", self.publish_channels),
        );
        require(self.window >= 1, "window: it must be at least 1".into());
        let ttl_fits = self.message_ttl.is_none_or(|ttl| i32::try_from(ttl.as_millis()).is_ok());
        require(ttl_fits, "message_ttl: the broker takes at most 2147483647 milliseconds".into());
        let durations = [
            ("confirm_timeout", self.confirm_timeout),
            ("connect_timeout", self.connect_timeout),
            ("bind_every", self.bind_every),
        ];
        for (name, duration) in durations {
            let sensible = !duration.is_zero() && duration <= Duration::from_secs(24 * 3600);
            require(sensible, format!("{name}: {duration:?} is not between 0 and 24 h"));
        }
        let heartbeat = self.heartbeat.as_secs();
        require((1..=3600).contains(&heartbeat), format!("heartbeat: {:?} is not between 1s and 1h", self.heartbeat));
        let checked = |url| Management::check(url, &self, &uri, &exchange).map(Arc::new);
        let management = self.management_url.as_deref().map(checked).transpose();
        if let Err(fault) = &management {
            require(false, format!("management_url: {fault}"));
        }
        let (true, Ok(management)) = (faults.is_empty(), management) else {
            return Err(Error::invalid("the RabbitMQ options", faults.join("; ")));
        };
        let mut uri = uri;
        uri.query.heartbeat = uri.query.heartbeat.or(u16::try_from(heartbeat).ok());
        Ok(Settings { place: place(&uri), uri, exchange, management, options: self })
    }
}

fn default_exchange(version: &Version) -> String {
    if *version == Version::default() {
        return DEFAULT_EXCHANGE.into();
    }
    format!("{DEFAULT_EXCHANGE}.{version}")
}

/// The URL's parts. Errors never quote it, because it holds the password.
fn parse(url: &str) -> Result<AMQPUri> {
    let subject = "the RabbitMQ URL";
    let mut uri: AMQPUri = url.parse().map_err(|reason: String| {
        let reason = if reason.contains(url) { "it is incomplete" } else { &reason };
        Error::invalid(subject, format!("{reason}; it is written as amqp://user:password@host:port/vhost"))
    })?;
    if let Some(host) = ipv6_host(url) {
        uri.authority.host = host.into();
    }
    if uri.authority.host.is_empty() {
        return Err(Error::invalid(subject, "it names no host"));
    }
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    Ok(uri)
}

/// The host if it is written as `[…]`, which the parser takes for none.
fn ipv6_host(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(host, _)| host)
}

/// Kind and place, for people.
fn place(uri: &AMQPUri) -> String {
    let vhost = if uri.vhost == "/" { "" } else { &uri.vhost };
    format!("rabbitmq {}:{}/{vhost}", uri.authority.host, uri.authority.port)
}

/// The place that a URL names, for `Debug` of options that were not checked.
pub(crate) fn place_of(url: &str) -> String {
    parse(url).map_or_else(|_| "not a URL".into(), |uri| place(&uri))
}

/// Options that were checked.
pub(crate) struct Settings {
    /// Kind and place, for people.
    pub(crate) place: String,
    pub(crate) uri: AMQPUri,
    pub(crate) exchange: String,
    /// The management API, if it is to be asked.
    pub(crate) management: Option<Arc<Management>>,
    options: RabbitMqOptions,
}

impl Settings {
    pub(crate) fn uses_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    pub(crate) fn queue_type(&self) -> QueueType {
        self.options.queue_type
    }

    pub(crate) fn message_ttl(&self) -> Option<Duration> {
        self.options.message_ttl
    }

    pub(crate) fn delivery_limit(&self) -> Option<i32> {
        self.options.delivery_limit
    }

    pub(crate) fn unroutable(&self) -> Unroutable {
        self.options.unroutable
    }

    pub(crate) fn publish_channels(&self) -> usize {
        self.options.publish_channels
    }

    pub(crate) fn window(&self) -> usize {
        self.options.window
    }

    pub(crate) fn max_body(&self) -> usize {
        self.options.max_body
    }

    pub(crate) fn confirm_timeout(&self) -> Duration {
        self.options.confirm_timeout
    }

    pub(crate) fn bind_every(&self) -> Duration {
        self.options.bind_every
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.options.connect_timeout
    }

    pub(crate) fn ca_file(&self) -> Option<&PathBuf> {
        self.options.ca_file.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exchange_is_named_after_a_version_other_than_v1() {
        let exchange = |version: &str| {
            let options = RabbitMqOptions::default().version(version.parse().unwrap());
            options.check().unwrap().exchange
        };
        assert_eq!(exchange("v1"), "cap.default.router");
        assert_eq!(exchange("v2"), "cap.default.router.v2");
    }

    #[test]
    fn a_url_is_taken_apart_and_described_without_secrets() {
        let place = |url: &str| RabbitMqOptions::new(url).check().unwrap().place;
        assert_eq!(place("amqp://u:s3cret@broker-1:5673/orders"), "rabbitmq broker-1:5673/orders");
        assert_eq!(place("amqp://u:s3cret@broker-1"), "rabbitmq broker-1:5672/");
        assert_eq!(place("amqps://u:s3cret@broker-1/"), "rabbitmq broker-1:5671/");
        assert_eq!(place("amqp://u:s3cret@[::1]:5673/%2f"), "rabbitmq ::1:5673/");
    }

    #[test]
    fn what_is_no_url_is_refused_without_quoting_it() {
        for bad in ["amqp:s3cret", "http://u:s3cret@host", "amqp://u:s3cret@host:99999/", "s3cret"] {
            let error = RabbitMqOptions::new(bad).check().err().expect(bad);
            assert_eq!(error.kind(), cap_core::ErrorKind::Invalid);
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn every_fault_is_named() {
        let options = RabbitMqOptions::default().publish_channels(0).window(0).heartbeat(Duration::ZERO);
        let error = options.check().err().unwrap().to_string();
        for name in ["publish_channels", "window", "heartbeat"] {
            assert!(error.contains(name), "{error}");
        }
    }
}
