//! The URL's parts: hosts, user, virtual host, and parameters.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use cap_core::{Error, Result};
use lapin::uri::{AMQPScheme, AMQPUri};
use percent_encoding::percent_decode_str;

const SUBJECT: &str = "the RabbitMQ URL";
const FORM: &str = "it is written as amqp://user:password@host:port,host:port/vhost";

/// What a URL names.
#[derive(Clone)]
pub(crate) struct Address {
    /// One for each host, in the order written; at least one. They differ in nothing else.
    pub(crate) uris: Vec<AMQPUri>,
    pub(crate) files: Files,
    pub(crate) connect_timeout: Option<Duration>,
}

/// Files that TLS needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

impl Address {
    /// Takes a URL apart. Errors never quote it, because it holds the password; of parameters only the names.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let refuse = |reason: String| Error::invalid(SUBJECT, reason);
        let (scheme, rest) = url.split_once("://").ok_or_else(|| refuse(format!("it has no scheme; {FORM}")))?;
        if rest.contains('#') {
            return Err(refuse(format!("a `#` is written as %23; {FORM}")));
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let parameters = Parameters::parse(query).map_err(refuse)?;
        let driver = &parameters.driver;
        let uri = |host: &str| uri(&format!("{scheme}://{user}{host}{path}?{driver}"), host);
        let uris = hosts.split(',').map(uri).collect::<Result<Vec<_>>>()?;
        let Parameters { files, connect_timeout, .. } = parameters;
        Ok(Self { uris, files, connect_timeout })
    }

    pub(crate) fn uses_tls(&self) -> bool {
        self.uris[0].scheme == AMQPScheme::AMQPS
    }

    /// Kind and place, for people.
    pub(crate) fn place(&self) -> String {
        let hosts: Vec<String> = self.uris.iter().map(host_of).collect();
        let vhost = if self.uris[0].vhost == "/" { "" } else { &self.uris[0].vhost };
        format!("rabbitmq {}/{vhost}", hosts.join(","))
    }
}

impl fmt::Debug for Address {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("place", &self.place()).field("files", &self.files).finish_non_exhaustive()
    }
}

/// Host and port, for people.
pub(crate) fn host_of(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

fn uri(url: &str, host: &str) -> Result<AMQPUri> {
    if host.is_empty() {
        return Err(Error::invalid(SUBJECT, format!("it names no host, or an empty one in a list; {FORM}")));
    }
    let mut uri: AMQPUri = url.parse().map_err(|reason: String| {
        let reason = if reason.contains(url) { "it is incomplete" } else { &reason };
        Error::invalid(SUBJECT, format!("{reason}; {FORM}"))
    })?;
    // What is written as `[…]` the parser takes for none.
    if let Some((address, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        uri.authority.host = address.into();
    }
    if uri.authority.host.is_empty() {
        return Err(Error::invalid(SUBJECT, "it names no host"));
    }
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    Ok(uri)
}

/// What comes after the `?`.
#[derive(Default)]
struct Parameters {
    files: Files,
    connect_timeout: Option<Duration>,
    /// What the driver reads, as it was written.
    driver: String,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if seen.contains(&name) {
                return Err(format!("the parameter `{name:.40}` is there twice"));
            }
            seen.push(name);
            parsed.take(name, value)?;
        }
        Ok(parsed)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let file = || Some(PathBuf::from(percent_decode_str(value).decode_utf8_lossy().into_owned()));
        match name {
            "heartbeat" | "frame_max" | "channel_max" | "auth_mechanism" => {
                let joint = if self.driver.is_empty() { "" } else { "&" };
                self.driver.push_str(&format!("{joint}{name}={value}"));
            }
            "connection_timeout" => {
                let milliseconds = value.parse().map_err(|_| format!("`{name}` is no number of milliseconds"))?;
                self.connect_timeout = Some(Duration::from_millis(milliseconds));
            }
            "cacertfile" => self.files.ca = file(),
            "certfile" => self.files.certificate = file(),
            "keyfile" => self.files.key = file(),
            "verify" if value == "verify_peer" => {}
            "verify" => {
                return Err("`verify` cannot be other than `verify_peer`: certificates are always checked".into());
            }
            unknown => {
                let known = "heartbeat, frame_max, channel_max, auth_mechanism, connection_timeout, cacertfile, certfile, \
                             keyfile, verify";
                return Err(format!("there is no parameter `{unknown:.40}`; there are: {known}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> String {
        Address::parse(url).unwrap().place()
    }

    #[test]
    fn a_url_is_taken_apart_and_described_without_secrets() {
        assert_eq!(place("amqp://u:s3cret@broker-1:5673/orders"), "rabbitmq broker-1:5673/orders");
        let shown = format!("{:?}", Address::parse("amqp://u:s3cret@broker-1").unwrap());
        assert!(shown.contains("broker-1") && !shown.contains("s3cret"), "{shown}");
        assert_eq!(place("amqp://u:s3cret@broker-1"), "rabbitmq broker-1:5672/");
        assert_eq!(place("amqps://u:s3cret@broker-1/"), "rabbitmq broker-1:5671/");
        assert_eq!(place("amqp://u:s3cret@[::1]:5673/%2f"), "rabbitmq ::1:5673/");
    }

    #[test]
    fn a_url_may_name_several_hosts() {
        let address = Address::parse("amqp://u:a,b@one,two:5673,[::1]:5674/shop?heartbeat=7").unwrap();
        assert_eq!(address.place(), "rabbitmq one:5672,two:5673,::1:5674/shop");
        for uri in &address.uris {
            let user = &uri.authority.userinfo;
            assert_eq!((&*user.username, &*user.password, &*uri.vhost), ("u", "a,b", "shop"));
            assert_eq!(uri.query.heartbeat, Some(7));
        }
        assert!(Address::parse("amqp://one,,two").is_err());
    }

    #[test]
    fn what_is_no_url_is_refused_without_quoting_it() {
        let bad =
            ["amqp:s3cret", "http://u:s3cret@host", "amqp://u:s3cret@host:99999/", "s3cret", "amqp://u:p#s3cret@h"];
        for bad in bad {
            let error = Address::parse(bad).expect_err(bad);
            assert_eq!(error.kind(), cap_core::ErrorKind::Invalid);
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_parameter_that_is_not_known_is_refused_by_name() {
        let refused = |query: &str| Address::parse(&format!("amqp://h?{query}")).expect_err(query).to_string();
        assert!(refused("hartbeat=s3cret").contains("`hartbeat`"));
        assert!(!refused("hartbeat=s3cret").contains("s3cret"));
        assert!(refused("verify=verify_none").contains("verify_peer"));
        assert!(refused("heartbeat=1&heartbeat=2").contains("twice"));
        assert!(refused("connection_timeout=soon").contains("connection_timeout"));
        assert!(refused("heartbeat=soon").contains("digit"));
    }

    #[test]
    fn what_is_known_is_heeded() {
        let all = "amqps://h?certfile=/a%20b.pem&keyfile=/k.pem&cacertfile=/ca.pem&verify=verify_peer&\
                   connection_timeout=1500&channel_max=9&frame_max=8192&auth_mechanism=external";
        let Address { uris, files, connect_timeout } = Address::parse(all).unwrap();
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(files, Files { ca: path("/ca.pem"), certificate: path("/a b.pem"), key: path("/k.pem") });
        assert_eq!(connect_timeout, Some(Duration::from_millis(1500)));
        assert_eq!((uris[0].query.channel_max, uris[0].query.frame_max), (Some(9), Some(8192)));
        assert!(uris[0].query.auth_mechanism.is_some());
    }
}
