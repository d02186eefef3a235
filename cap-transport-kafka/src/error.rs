//! What Kafka and librdkafka say, as errors that a person can act on.

use cap_core::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::client::Fault;
use crate::settings::Settings;
use crate::traffic::{CLOSED, Failure};

pub(crate) fn unavailable(operation: &'static str, subject: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, operation, subject, reason)
}

pub(crate) fn stopped(operation: &'static str, subject: impl Into<String>) -> Error {
    Error::new(ErrorKind::Stopped, operation, subject, "the transport is closed")
}

/// Why a client could not be made: settings that each are right, and do not go together. librdkafka's words may quote
/// values, but none that is secret.
pub(crate) fn creation(settings: &Settings, cause: KafkaError) -> Error {
    let reason = format!("librdkafka refuses the settings: {}", words(&cause));
    Error::new(ErrorKind::Invalid, "connect to", &settings.place, reason).because(cause)
}

/// What went wrong in a call.
pub(crate) fn words(cause: &KafkaError) -> String {
    match cause {
        KafkaError::ClientConfig(_, words, _, _) => words.clone(),
        KafkaError::ClientCreation(words) => words.clone(),
        KafkaError::AdminOp(code) => code.to_string(),
        other => other.rdkafka_error_code().map_or_else(|| other.to_string(), |code| code.to_string()),
    }
}

/// Why connecting failed, told apart by what librdkafka reported last.
pub(crate) fn connect(settings: &Settings, fault: &Fault) -> Error {
    let said = &fault.reason;
    let (kind, reason) = match fault.code {
        Code::Authentication | Code::SaslAuthenticationFailed | Code::IllegalSASLState => (
            ErrorKind::Rejected,
            format!("user and password do not belong together, or the mechanism is another: {said}"),
        ),
        Code::UnsupportedSASLMechanism => {
            (ErrorKind::Rejected, format!("it does not offer this `sasl.mechanism`: {said}"))
        }
        _ if asks_for_a_certificate(said) => {
            let advice =
                "it wants a certificate of the client's, or another one (options `certificate_file`, `key_file`)";
            (ErrorKind::Rejected, format!("{advice}: {said}"))
        }
        Code::SSL if fault.is_about_a_certificate() => {
            (ErrorKind::Rejected, format!("its certificate is not trusted (setting `ssl.ca.location`): {said}"))
        }
        _ if fault.code == Code::SSL || said.contains("SSL handshake failed") || said.contains("SSL_HANDSHAKE") => {
            (ErrorKind::Unavailable, format!("the TLS handshake failed, is this a TLS port? {said}"))
        }
        Code::Resolve => (ErrorKind::Unavailable, format!("the host name does not resolve: {said}")),
        Code::BrokerTransportFailure if said.contains("Connect to") => {
            (ErrorKind::Unavailable, format!("the host is not reachable, or nothing listens there: {said}"))
        }
        _ => {
            let hint = "is it Kafka, and is `security.protocol` what it expects?";
            (ErrorKind::Unavailable, format!("it ended the connection: {hint} {said}"))
        }
    };
    Error::new(kind, "connect to", &settings.place, reason)
}

/// Whether the other side has ended a TLS connection because of our certificate: `bad_certificate` and its like, and in TLS
/// 1.3 `certificate_required`.
fn asks_for_a_certificate(said: &str) -> bool {
    said.contains("alert") && ["certificate", "unknown ca"].iter().any(|word| said.contains(word))
}

/// Whether an error is one of a batch, in which another message may be the culprit. What is known to lie elsewhere is not.
pub(crate) fn is_of_the_batch(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::MessageBatchTooLarge
            | Code::InvalidRecord
            | Code::InvalidDifferentRecord
            | Code::InvalidTimestamp
            | Code::InvalidMessage
            | Code::PolicyViolation
            | Code::UnsupportedForMessageFormat
            | Code::UnsupportedCompressionType
            | Code::InvalidRequest
            | Code::Unknown
    )
}

/// Why a message was not delivered. `is_alive`: the brokers have answered while it was on its way, so that what is wrong is
/// wrong with its topic.
pub(crate) fn lost(code: Code, settings: &Settings, is_alive: bool) -> Failure {
    let (kind, reason) = match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            let advice = "the topic takes no message of this size, headers included (its `max.message.bytes`)";
            (ErrorKind::Invalid, format!("{advice}: {code}"))
        }
        Code::InvalidRecord => (ErrorKind::Invalid, format!("the topic takes no such message: {code}")),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::UnknownTopicId => {
            (ErrorKind::Unroutable, format!("the topic does not exist any more: {code}"))
        }
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            (ErrorKind::Environment, format!("the user has not the right to: {code}"))
        }
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            (ErrorKind::Environment, format!("too few replicas are in sync (`min.insync.replicas`): {code}"))
        }
        // The broker stamps or the client's clock does: a message has no time of its own.
        Code::InvalidTimestamp => {
            let advice = "the topic does not take the time, do the clocks agree (`message.timestamp.*.max.ms`)?";
            (ErrorKind::Environment, format!("{advice} {code}"))
        }
        Code::MessageTimedOut => {
            let limit = settings.confirm_timeout();
            let (kind, reason) = match is_alive {
                true => (ErrorKind::Environment, "the topic's partition has no leader, or one that is not reached"),
                false => (ErrorKind::Unavailable, "no broker answers"),
            };
            (kind, format!("not confirmed within {limit:?}; {reason}"))
        }
        Code::PurgeQueue | Code::PurgeInflight => (ErrorKind::Unavailable, CLOSED.into()),
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::OperationTimedOut
        | Code::NetworkException
        | Code::RequestTimedOut
        | Code::Resolve
        | Code::SSL
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::Fatal
        | Code::Fenced
        | Code::BrokerDestroy => (ErrorKind::Unavailable, code.to_string()),
        _ => (ErrorKind::Environment, format!("the topic or its broker does not take it now: {code}")),
    };
    Failure { kind, reason }
}

/// Why a topic could not be made.
pub(crate) fn create(topic: &str, code: Code, settings: &Settings) -> Error {
    let (kind, reason) = match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            (ErrorKind::Environment, format!("the user has not the right to: {code}"))
        }
        Code::InvalidReplicationFactor => {
            (ErrorKind::Environment, format!("there are not as many brokers as `replicas` asks for: {code}"))
        }
        Code::InvalidTopic => {
            let collision = "another topic differs from it only in `.` and `_`, which Kafka does not allow";
            (ErrorKind::Rejected, format!("{collision}: {code}"))
        }
        Code::InvalidPartitions | Code::InvalidConfig | Code::PolicyViolation | Code::InvalidRequest => {
            (ErrorKind::Environment, format!("the broker refused it: {code}"))
        }
        _ => (ErrorKind::Unavailable, code.to_string()),
    };
    Error::new(kind, "create", format!("topic `{topic}` on {}", settings.place), reason)
}

/// What an error that librdkafka reports means for a consumer: that it is over, or nothing, because librdkafka goes on by
/// itself.
pub(crate) fn ended(subject: String, fault: &Fault) -> Option<Error> {
    let said = &fault.reason;
    let (kind, reason) = match fault.code {
        Code::AllBrokersDown => (ErrorKind::Unavailable, format!("the connections were lost: {said}")),
        // Said of a pattern, it only means that no topic matches it yet.
        Code::UnknownTopic | Code::UnknownTopicOrPartition if said.contains("not available: ^") => return None,
        Code::UnknownTopic | Code::UnknownTopicOrPartition => {
            (ErrorKind::Unavailable, format!("a topic of it was deleted: {said}"))
        }
        Code::InconsistentGroupProtocol | Code::UnsupportedAssignor => {
            let advice = "its members use another protocol or another `partition.assignment.strategy` \
                          (this one: the classic protocol and `cooperative-sticky`); stop them, or take another group";
            (ErrorKind::Rejected, format!("{advice}: {said}"))
        }
        Code::GroupAuthorizationFailed | Code::TopicAuthorizationFailed => {
            (ErrorKind::Environment, format!("the user has not the right to: {said}"))
        }
        Code::Authentication | Code::SaslAuthenticationFailed => {
            (ErrorKind::Rejected, format!("the broker refused the user: {said}"))
        }
        Code::GroupMaxSizeReached | Code::InvalidSessionTimeout | Code::InvalidGroupId | Code::FencedInstanceId => {
            (ErrorKind::Rejected, format!("the broker refused the member: {said}"))
        }
        Code::AutoOffsetReset => {
            let what = "a log does not have what is to be received next: it was cut off, deleted or made again, or the \
                        topic's retention went past the group";
            (ErrorKind::Unavailable, format!("{what}: {said}"))
        }
        Code::PollExceeded | Code::Fatal => (ErrorKind::Unavailable, said.clone()),
        _ => return None,
    };
    Some(Error::new(kind, "receive from", subject, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KafkaOptions;

    fn fault(code: Code, reason: &str) -> Fault {
        Fault { code, reason: reason.into() }
    }

    #[test]
    fn connect_errors_are_told_apart() {
        let settings = KafkaOptions::new("b:1").check().unwrap();
        let certificate = "ssl://b:1/bootstrap: SSL handshake failed: certificate verify failed: broker certificate";
        let cases = [
            (Code::Resolve, "Failed to resolve 'b:1'", ErrorKind::Unavailable, "resolve"),
            (Code::BrokerTransportFailure, "Connect to ipv4#b:1 failed", ErrorKind::Unavailable, "listens"),
            (Code::BrokerTransportFailure, "Disconnected", ErrorKind::Unavailable, "is it Kafka"),
            (Code::SSL, certificate, ErrorKind::Rejected, "ssl.ca.location"),
            (
                Code::BrokerTransportFailure,
                "ssl/tls alert bad certificate: SSL alert number 42",
                ErrorKind::Rejected,
                "key_file",
            ),
            (Code::SSL, "tlsv13 alert certificate required", ErrorKind::Rejected, "certificate_file"),
            (Code::SSL, "SSL handshake failed: x", ErrorKind::Unavailable, "TLS port"),
            (Code::BrokerTransportFailure, "SSL handshake failed: Disconnected", ErrorKind::Unavailable, "TLS port"),
            (Code::BrokerTransportFailure, "Disconnected (in state SSL_HANDSHAKE)", ErrorKind::Unavailable, "TLS port"),
            (Code::Authentication, "Authentication failed", ErrorKind::Rejected, "password"),
            (Code::UnsupportedSASLMechanism, "x", ErrorKind::Rejected, "sasl.mechanism"),
        ];
        for (code, said, kind, word) in cases {
            let error = connect(&settings, &fault(code, said));
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.reason().contains(word) && error.reason().contains(said), "{error}");
        }
    }

    #[test]
    fn only_what_is_the_messages_own_fault_is_held_against_it() {
        let settings = KafkaOptions::default().check().unwrap();
        let kind = |code| lost(code, &settings, false).kind;
        assert_eq!(
            (kind(Code::MessageSizeTooLarge), kind(Code::InvalidRecord)),
            (ErrorKind::Invalid, ErrorKind::Invalid)
        );
        assert_eq!(kind(Code::UnknownTopicOrPartition), ErrorKind::Unroutable);
        for code in [
            Code::TopicAuthorizationFailed,
            Code::NotEnoughReplicas,
            Code::LeaderNotAvailable,
            Code::NotLeaderForPartition,
            Code::KafkaStorageError,
            Code::ThrottlingQuotaExceeded,
            Code::InvalidTimestamp,
            Code::PolicyViolation,
            Code::Unknown,
        ] {
            assert_eq!(kind(code), ErrorKind::Environment, "{code}");
        }
        for code in [Code::BrokerTransportFailure, Code::PurgeInflight, Code::Fatal, Code::RequestTimedOut] {
            assert_eq!(kind(code), ErrorKind::Unavailable, "{code}");
        }
    }

    #[test]
    fn a_message_that_is_not_confirmed_in_time_is_its_topics_affair_if_the_brokers_answer() {
        let settings = KafkaOptions::default().check().unwrap();
        let kind = |is_alive| lost(Code::MessageTimedOut, &settings, is_alive).kind;
        assert_eq!((kind(true), kind(false)), (ErrorKind::Environment, ErrorKind::Unavailable));
    }

    #[test]
    fn a_consumer_outlives_what_librdkafka_mends_itself() {
        let outlives = |code| ended("g".into(), &fault(code, "x")).is_none();
        assert!(outlives(Code::BrokerTransportFailure) && outlives(Code::RebalanceInProgress));
        let unmatched =
            fault(Code::UnknownTopicOrPartition, "Subscribed topic not available: ^order\\.[^.]*$: Broker: Unknown");
        assert!(ended("g".into(), &unmatched).is_none());
        assert!(!outlives(Code::UnknownTopicOrPartition));
        assert!(!outlives(Code::AutoOffsetReset), "librdkafka does not decide where to go on");
        assert!(!outlives(Code::AllBrokersDown) && !outlives(Code::InconsistentGroupProtocol));
    }
}
