//! The broker's management API: the one question that AMQP does not answer, asked over HTTP.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cap_core::{Error, ErrorKind, Result};
use lapin::uri::AMQPUri;
use percent_encoding::percent_decode_str;
use rustls::crypto::{CryptoProvider, ring};
use serde::Deserialize;
use ureq::http::{HeaderValue, Response, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};
use url::Url;

use crate::config::RabbitMqOptions;
use crate::routes::Binding;

const OPERATION: &str = "list the bindings of";
/// Some 600,000 bindings. What is longer is refused, so that memory stays bounded.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// So much of an answer that is no list of bindings is looked at.
const MAX_EXCERPT: u64 = 4096;

/// Where the management API is, and who asks.
pub(crate) struct Management {
    /// The exchange's bindings; without user and password.
    url: Url,
    user: String,
    authorization: HeaderValue,
    /// How long an answer may take.
    limit: Duration,
    ca_file: Option<PathBuf>,
    /// What is asked about, for people.
    subject: String,
}

impl Management {
    /// Takes the URL apart. The faults do not quote it, because it holds the password.
    pub(crate) fn check(text: &str, options: &RabbitMqOptions, amqp: &AMQPUri, exchange: &str) -> Result<Self, String> {
        let form = "it is written as http://user:password@host:15672";
        let mut url = Url::parse(text).map_err(|error| format!("{error}; {form}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("it begins with neither http:// nor https://; {form}"));
        }
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (user, password) = match (url.username(), url.password()) {
            ("", None) => (amqp.authority.userinfo.username.clone(), amqp.authority.userinfo.password.clone()),
            (user, password) => (decode(user), decode(password.unwrap_or_default())),
        };
        let no_host = |()| "it has no host".to_owned();
        url.set_username("").and_then(|()| url.set_password(None)).map_err(no_host)?;
        url.set_query(None);
        url.set_fragment(None);
        let subject = format!("exchange `{exchange}` by the management API at {url}");
        let segments = ["api", "exchanges", &amqp.vhost, exchange, "bindings", "source"];
        url.path_segments_mut().map_err(no_host)?.pop_if_empty().extend(segments);
        url.set_query(Some("columns=destination_type,destination,routing_key"));
        let credentials = BASE64_STANDARD.encode(format!("{user}:{password}"));
        let mut authorization = HeaderValue::try_from(format!("Basic {credentials}")).map_err(|bad| bad.to_string())?;
        authorization.set_sensitive(true);
        let (limit, ca_file) = (options.connect_timeout, options.ca_file.clone());
        Ok(Self { url, user, authorization, limit, ca_file, subject })
    }

    /// The exchange's bindings; none if there is no such exchange. Blocks, for as long as connecting may take.
    pub(crate) fn bindings(&self) -> Result<Vec<Binding>> {
        let agent = self.agent()?;
        let asked = agent.get(self.url.as_str()).header(header::AUTHORIZATION, self.authorization.clone()).call();
        let mut answer = asked.map_err(|cause| self.unanswered(cause))?;
        if answer.status() != StatusCode::OK {
            return self.refusal(&mut answer);
        }
        let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let body = body.map_err(|cause| self.unanswered(cause))?;
        serde_json::from_slice(&body).map_err(|cause| {
            let reason = format!("what came is no list of bindings ({cause}): is this the management API of RabbitMQ?");
            self.error(ErrorKind::Rejected, reason).because(cause)
        })
    }

    fn agent(&self) -> Result<Agent> {
        let mut config = Agent::config_builder()
            .timeout_global(Some(self.limit))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("cap-transport-rabbitmq/", env!("CARGO_PKG_VERSION")));
        if self.url.scheme() == "https" {
            config = config.tls_config(self.tls_config()?);
        }
        Ok(config.build().new_agent())
    }

    /// Trusts what connections to the broker trust: the system's certificates, and those of the file.
    fn tls_config(&self) -> Result<TlsConfig> {
        let system = rustls_native_certs::load_native_certs();
        let mut trusted: Vec<Certificate<'static>> =
            system.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
        if let Some(path) = &self.ca_file {
            let unreadable = |cause: &dyn std::fmt::Display| {
                let reason = format!("the `ca_file` {} cannot be read: {cause}", path.display());
                self.error(ErrorKind::Rejected, reason)
            };
            let pem = std::fs::read(path).map_err(|cause| unreadable(&cause).because(cause))?;
            for item in parse_pem(&pem) {
                if let PemItem::Certificate(certificate) = item.map_err(|cause| unreadable(&cause))? {
                    trusted.push(certificate);
                }
            }
        }
        let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
        let roots = RootCerts::Specific(Arc::new(trusted));
        Ok(TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider).build())
    }

    /// What an answer means that is not the list.
    fn refusal(&self, answer: &mut Response<Body>) -> Result<Vec<Binding>> {
        /// RabbitMQ's own errors.
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Refusal {
            error: String,
            reason: String,
        }
        let body = answer.body_mut().with_config().limit(MAX_EXCERPT).read_to_vec().unwrap_or_default();
        let Refusal { error, reason } = serde_json::from_slice(&body).unwrap_or_default();
        let status = answer.status();
        let user = &self.user;
        let refused = match status {
            // Some versions list no bindings of an exchange that does not exist, others say that it does not.
            StatusCode::NOT_FOUND if error == "Object Not Found" => {
                tracing::warn!("there is no {}", self.subject);
                return Ok(Vec::new());
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let rights = "its password, its tag `management` and its rights in the virtual host are needed";
                self.error(ErrorKind::Rejected, format!("user `{user}` is refused ({status}: {reason}): {rights}"))
            }
            _ if status.is_server_error() => {
                self.error(ErrorKind::Unavailable, format!("it failed: {status} {reason}"))
            }
            _ => {
                let question = "is this the address of the management API of RabbitMQ?";
                self.error(ErrorKind::Rejected, format!("it answered {status} {reason}: {question}"))
            }
        };
        Err(refused)
    }

    /// What no answer means.
    fn unanswered(&self, cause: ureq::Error) -> Error {
        let advice = "is the plugin `rabbitmq_management` enabled, and is this its port?";
        let text = cause.to_string();
        let of_certificate = text.contains("certificate") || text.contains("UnknownIssuer");
        let (kind, reason) = match &cause {
            ureq::Error::Timeout(_) => (ErrorKind::Unavailable, format!("it did not answer within {:?}", self.limit)),
            ureq::Error::Io(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                (ErrorKind::Unavailable, format!("nothing listens there: {advice}"))
            }
            ureq::Error::BodyExceedsLimit(_) => {
                (ErrorKind::Rejected, format!("its list is longer than {MAX_ANSWER} bytes"))
            }
            ureq::Error::Protocol(_) | ureq::Error::Http(_) | ureq::Error::LargeResponseHeader(..) => {
                (ErrorKind::Rejected, format!("what answers there does not speak HTTP ({text}): {advice}"))
            }
            _ if self.url.scheme() == "https" && of_certificate => {
                (ErrorKind::Rejected, format!("its certificate is not trusted (option `ca_file`): {text}"))
            }
            _ => (ErrorKind::Unavailable, format!("it cannot be reached ({text}): {advice}")),
        };
        self.error(kind, reason).because(cause)
    }

    fn error(&self, kind: ErrorKind, reason: String) -> Error {
        Error::new(kind, OPERATION, &self.subject, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(amqp: &str, url: &str) -> Result<Management, String> {
        let options = RabbitMqOptions::new(amqp).exchange("a/b c").management_url(url);
        let checked = options.check().map_err(|error| format!("{error} {error:?}"))?;
        Ok(Arc::into_inner(checked.management.expect("it was set")).expect("nobody else has it"))
    }

    fn credentials(management: &Management) -> String {
        let encoded = management.authorization.to_str().unwrap().strip_prefix("Basic ").unwrap();
        String::from_utf8(BASE64_STANDARD.decode(encoded).unwrap()).unwrap()
    }

    #[test]
    fn names_are_encoded_and_a_path_before_the_api_is_kept() {
        let list = "bindings/source?columns=destination_type,destination,routing_key";
        let url = |amqp: &str, url: &str| check(amqp, url).unwrap().url.to_string();
        assert_eq!(url("amqp://b", "http://m:15672"), format!("http://m:15672/api/exchanges/%2F/a%2Fb%20c/{list}"));
        let behind = "https://u:p@m/rabbit/?x=1#y";
        assert_eq!(url("amqp://b/50%25", behind), format!("https://m/rabbit/api/exchanges/50%25/a%2Fb%20c/{list}"));
    }

    #[test]
    fn who_asks_is_the_user_of_the_url_or_else_of_amqp() {
        let who = |url: &str| credentials(&check("amqp://amqp:p%40ss@b", url).unwrap());
        assert_eq!(who("http://m:15672"), "amqp:p@ss");
        assert_eq!(who("http://m%C3%BCller:s%3A%2F@m:15672"), "müller:s:/");
        assert_eq!(who("http://reader@m:15672"), "reader:");
    }

    #[test]
    fn secrets_are_in_no_description_and_no_fault() {
        let management = check("amqp://b", "http://u:s3cret@m:15672/?token=s3cret").unwrap();
        assert!(!management.error(ErrorKind::Rejected, String::new()).to_string().contains("s3cret"));
        assert!(!format!("{:?}", management.authorization).contains(&BASE64_STANDARD.encode("u:s3cret")));
        for bad in
            ["m:s3cret", "amqp://u:s3cret@m", "http://u:s3cret@", "http://u:s3/cret@m", "http://u:s3cret@m:99999"]
        {
            let fault = check("amqp://b", bad).err().expect(bad);
            assert!(fault.contains("management_url") && !fault.contains("s3"), "{fault}");
        }
        let options = RabbitMqOptions::new("amqp://b").management_url("http://u:s3cret@m");
        assert!(!format!("{options:?}").contains("s3cret"));
    }
}
