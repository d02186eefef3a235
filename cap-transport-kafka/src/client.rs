//! What the clients of librdkafka have in common: where their logs and errors go.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tokio::sync::watch;

/// How long a client may go on trying after all brokers refused it: a host name may have a second address, which is tried
/// next.
const SECOND_ADDRESS: Duration = Duration::from_secs(1);

/// Under which librdkafka tells in its log that offsets which nobody waits for were not committed.
pub(crate) const COMMIT_FAILED: &str = "COMMITFAIL";

/// Hands a line of librdkafka's log to `tracing`.
pub(crate) fn log(level: Level, facility: &str, text: &str) {
    match (level, facility) {
        // Settings of the user go to clients of every kind, and concern some.
        // What is not committed will be.
        (_, "CONFWARN" | COMMIT_FAILED) | (Level::Debug, _) => {
            tracing::debug!(target: "librdkafka", facility, "{text}")
        }
        (Level::Info | Level::Notice, _) => tracing::info!(target: "librdkafka", facility, "{text}"),
        (Level::Warning, _) => tracing::warn!(target: "librdkafka", facility, "{text}"),
        _ => tracing::error!(target: "librdkafka", facility, "{text}"),
    }
}

/// Something that librdkafka reports beside the results of calls.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(error: &KafkaError, reason: &str) -> Self {
        Self { code: error.rdkafka_error_code().unwrap_or(Code::Unknown), reason: reason.to_owned() }
    }

    pub(crate) fn is_about_a_certificate(&self) -> bool {
        self.code == Code::SSL && self.reason.contains("certificate")
    }

    /// Whether trying again, or another broker, would be of no use.
    fn is_final(&self) -> bool {
        matches!(self.code, Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism)
            || self.is_about_a_certificate()
    }
}

#[derive(Debug, Clone, Default)]
struct Faults {
    /// The last one that says why.
    last: Option<Fault>,
    all_down: bool,
}

/// Watches what a client reports.
#[derive(Debug)]
pub(crate) struct Watch(watch::Sender<Faults>);

impl Watch {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::default()))
    }

    pub(crate) fn note(&self, fault: Fault) {
        self.0.send_modify(|faults| match fault.code {
            Code::AllBrokersDown => faults.all_down = true,
            // That a certificate is not trusted says more than that the connection is then gone.
            _ if faults.last.as_ref().is_some_and(Fault::is_final) => {}
            _ => faults.last = Some(fault),
        });
    }

    /// What was reported of an earlier outage counts no longer.
    pub(crate) fn forget_outage(&self) {
        self.0.send_modify(|faults| faults.all_down = false);
    }

    /// The brokers answer.
    pub(crate) fn is_well(&self) {
        self.0.send_replace(Faults::default());
    }

    /// The last fault that says why something does not work.
    pub(crate) fn last(&self) -> Option<Fault> {
        self.0.borrow().last.clone()
    }

    /// Waits until there is no hope to connect.
    pub(crate) async fn hopeless(&self) -> Fault {
        let mut faults = self.0.subscribe();
        let is_final = |faults: &Faults| faults.last.as_ref().is_some_and(Fault::is_final);
        let found = faults.wait_for(|faults| is_final(faults) || faults.all_down && faults.last.is_some()).await;
        if found.is_ok_and(|faults| !is_final(&faults)) {
            let _ = tokio::time::timeout(SECOND_ADDRESS, faults.wait_for(is_final)).await;
        }
        match self.last() {
            Some(fault) => fault,
            None => std::future::pending().await,
        }
    }
}

/// For clients that have nothing else to tell.
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: Level, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", { error.message = %error }, "{reason}");
    }
}

impl ConsumerContext for Quiet {}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: Code, reason: &str) -> Fault {
        Fault { code, reason: reason.into() }
    }

    #[tokio::test]
    async fn wrong_credentials_are_hopeless_at_once_and_a_refused_connection_after_a_second_address() {
        let watch = Watch::new();
        watch.note(fault(Code::BrokerTransportFailure, "Connect to ipv6#[::1]:1 failed"));
        let waited = tokio::time::timeout(Duration::from_millis(20), watch.hopeless()).await;
        assert!(waited.is_err(), "one broker of several");
        watch.note(fault(Code::AllBrokersDown, "1/1 brokers are down"));
        watch.note(fault(Code::BrokerTransportFailure, "Connect to ipv4#127.0.0.1:1 failed"));
        assert!(watch.hopeless().await.reason.contains("ipv4"));
        watch.note(fault(Code::Authentication, "wrong password"));
        watch.note(fault(Code::BrokerTransportFailure, "Disconnected"));
        assert_eq!(watch.hopeless().await.code, Code::Authentication);
    }
}
