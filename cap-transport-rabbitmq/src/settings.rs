//! What the options come to when they are checked: the URL's parts, the exchange's name.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cap_core::{Error, Result, Version};
use lapin::uri::AMQPUri;

use crate::address::{Address, Files};
use crate::config::{QueueType, RabbitMqOptions, Topology};
use crate::management::Management;

/// CAP's exchange for engines of version `v1`.
const DEFAULT_EXCHANGE: &str = "cap.default.router";
/// The longest name of an exchange or queue, in bytes (an AMQP short string).
pub(crate) const MAX_SHORT_STRING: usize = 255;
/// RabbitMQ's own limit of channels on a connection.
const MAX_CHANNELS: usize = 2047;

impl RabbitMqOptions {
    /// Checks everything and names all that is wrong.
    pub(crate) fn check(mut self) -> Result<Settings> {
        let mut address = Address::parse(&self.url)?;
        self.take_over(&mut address);
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
        require(
            self.certificate_file.is_some() == self.key_file.is_some(),
            "certificate_file, key_file: one of them is nothing without the other".into(),
        );
        let needs_tls = self.certificate_file.is_some() && !address.uses_tls();
        require(!needs_tls, "certificate_file: it is of no use without TLS (amqps://)".into());
        let limit_is_sensible = self.delivery_limit.is_none_or(|limit| limit >= -1);
        require(limit_is_sensible, "delivery_limit: it is a number of redeliveries, or -1 for no limit".into());
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
        let checked = |url| Management::check(url, &self, &address.uris[0], &exchange).map(Arc::new);
        let management = self.management_url.as_deref().map(checked).transpose();
        if let Err(fault) = &management {
            require(false, format!("management_url: {fault}"));
        }
        let (true, Ok(management)) = (faults.is_empty(), management) else {
            return Err(Error::invalid("the RabbitMQ options", faults.join("; ")));
        };
        for uri in &mut address.uris {
            uri.query.heartbeat = uri.query.heartbeat.or(u16::try_from(heartbeat).ok());
        }
        let first = AtomicUsize::new(0);
        Ok(Settings { place: address.place(), address, first, exchange, management, options: self })
    }

    /// What the URL says wins.
    fn take_over(&mut self, address: &mut Address) {
        let Files { ca, certificate, key } = std::mem::take(&mut address.files);
        self.ca_file = ca.or(self.ca_file.take());
        self.certificate_file = certificate.or(self.certificate_file.take());
        self.key_file = key.or(self.key_file.take());
        self.connect_timeout = address.connect_timeout.unwrap_or(self.connect_timeout);
    }
}

fn default_exchange(version: &Version) -> String {
    if *version == Version::default() {
        return DEFAULT_EXCHANGE.into();
    }
    format!("{DEFAULT_EXCHANGE}.{version}")
}

/// Options that were checked.
pub(crate) struct Settings {
    /// Kind and place, for people.
    pub(crate) place: String,
    address: Address,
    /// The host that was reached last.
    first: AtomicUsize,
    pub(crate) exchange: String,
    /// The management API, if it is to be asked.
    pub(crate) management: Option<Arc<Management>>,
    options: RabbitMqOptions,
}

impl Settings {
    pub(crate) fn uses_tls(&self) -> bool {
        self.address.uses_tls()
    }

    /// The hosts in the order in which they are to be tried, each with its place for [`Self::reached`].
    pub(crate) fn hosts(&self) -> Vec<(usize, AMQPUri)> {
        let (first, count) = (self.first.load(Ordering::Relaxed), self.address.uris.len());
        (first..first + count).map(|place| (place % count, self.address.uris[place % count].clone())).collect()
    }

    /// The host at this place is the first to be tried from now on.
    pub(crate) fn reached(&self, place: usize) {
        self.first.store(place, Ordering::Relaxed);
    }

    pub(crate) fn queue_type(&self) -> QueueType {
        self.options.queue_type
    }

    pub(crate) fn message_ttl(&self) -> Option<Duration> {
        self.options.message_ttl
    }

    /// None: never.
    pub(crate) fn delivery_limit(&self) -> Option<i32> {
        self.options.delivery_limit.filter(|limit| *limit >= 0)
    }

    /// Whether what is declared depends on the broker's version.
    pub(crate) fn asks_version(&self) -> bool {
        let is_declared = self.options.topology == Topology::Declare;
        is_declared && self.options.queue_type == QueueType::Quorum && self.delivery_limit().is_none()
    }

    pub(crate) fn topology(&self) -> Topology {
        self.options.topology
    }

    pub(crate) fn driver_logs(&self) -> bool {
        self.options.driver_logs
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

    /// The client's certificate and its key.
    pub(crate) fn identity_files(&self) -> Option<(&PathBuf, &PathBuf)> {
        self.options.certificate_file.as_ref().zip(self.options.key_file.as_ref())
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
    fn what_the_url_says_wins() {
        let url = "amqps://h?certfile=/c.pem&keyfile=/k.pem&connection_timeout=1500";
        let settings = RabbitMqOptions::new(url).certificate_file("/other.pem").ca_file("/ca.pem").check().unwrap();
        assert_eq!(settings.identity_files(), Some((&PathBuf::from("/c.pem"), &PathBuf::from("/k.pem"))));
        assert_eq!(settings.ca_file(), Some(&PathBuf::from("/ca.pem")));
        assert_eq!(settings.connect_timeout(), Duration::from_millis(1500));
    }

    #[test]
    fn the_host_that_was_reached_last_is_tried_first() {
        let settings = RabbitMqOptions::new("amqp://a,b,c").check().unwrap();
        let order = || settings.hosts().into_iter().map(|(_, uri)| uri.authority.host).collect::<Vec<_>>();
        assert_eq!(order(), ["a", "b", "c"]);
        settings.reached(1);
        assert_eq!(order(), ["b", "c", "a"]);
    }

    #[test]
    fn every_fault_is_named() {
        let options = RabbitMqOptions::default().publish_channels(0).window(0).heartbeat(Duration::ZERO);
        let options = options.key_file("k.pem").delivery_limit(-2);
        let error = options.check().err().unwrap().to_string();
        for name in ["publish_channels", "window", "heartbeat", "key_file", "delivery_limit"] {
            assert!(error.contains(name), "{error}");
        }
    }
}
