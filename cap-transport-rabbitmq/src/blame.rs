//! Whose fault it is that the broker broke off, as far as its words tell.

use cap_core::{Error, ErrorKind, Topic};
use lapin::ErrorKind as Cause;
use lapin::protocol::AMQPErrorKind;

use crate::error::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, reply, unavailable};
use crate::parcel::Parcel;
use crate::settings::Settings;

const CONTENT_TOO_LARGE: u16 = 311;
const CONNECTION_FORCED: u16 = 320;
const RESOURCE_LOCKED: u16 = 405;

/// What the broker broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The channel, because of something that was sent on it. The connection lives.
    Channel,
    /// The connection, because of something that was sent on it.
    Connection,
    /// The connection was lost, or somebody closed it; nothing that was sent had to do with it.
    Lost,
}

pub(crate) fn broken(cause: Option<&lapin::Error>) -> Broken {
    match cause.map(lapin::Error::kind) {
        Some(Cause::ProtocolError(error)) if error.get_id() == CONNECTION_FORCED => Broken::Lost,
        Some(Cause::ProtocolError(error)) => match error.kind() {
            AMQPErrorKind::Soft(_) => Broken::Channel,
            AMQPErrorKind::Hard(_) => Broken::Connection,
        },
        _ => Broken::Lost,
    }
}

/// Whether the exchange is missing: then it is declared again, and no message is at fault.
pub(crate) fn lacks_exchange(cause: &lapin::Error) -> bool {
    reply(cause).is_some_and(|(code, _)| code == NOT_FOUND)
}

/// What may not be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Forbidden {
    Topic,
    Exchange,
}

/// Whether the broker's words are of this topic, or of all.
pub(crate) fn forbidden(cause: &lapin::Error, exchange: &str, topic: &Topic) -> Option<Forbidden> {
    let (_, text) = reply(cause).filter(|(code, _)| *code == ACCESS_REFUSED)?;
    if text.contains(" topic '") {
        return text.contains(&format!(" topic '{topic}'")).then_some(Forbidden::Topic);
    }
    text.contains(&format!(" exchange '{exchange}'")).then_some(Forbidden::Exchange)
}

/// Whether the broker's words fit this message, if they fit any.
pub(crate) fn is_named(cause: &lapin::Error, settings: &Settings, parcel: &Parcel) -> bool {
    let too_large = |text: &str| text.contains(&format!("message size {} is larger", parcel.message.payload.len()));
    reply(cause).is_some_and(|(code, text)| code == PRECONDITION_FAILED && too_large(text))
        || forbidden(cause, &settings.exchange, &parcel.message.topic).is_some()
}

/// The outcome of the message for which the broker broke off with `cause`.
pub(crate) fn outcome(cause: &lapin::Error, parcel: &Parcel) -> Error {
    let Some((code, text)) = reply(cause) else {
        return unavailable("send", parcel.subject(), cause.to_string()).because(cause.clone());
    };
    let (kind, reason) = match code {
        ACCESS_REFUSED => (ErrorKind::Environment, format!("the user has not the right to: {text}")),
        NOT_FOUND | RESOURCE_LOCKED => (ErrorKind::Environment, format!("the broker cannot take it: {code} {text}")),
        CONNECTION_FORCED => (ErrorKind::Unavailable, format!("the broker closed the connection: {text}")),
        CONTENT_TOO_LARGE => (ErrorKind::Invalid, format!("it is too large for the broker: {text}")),
        PRECONDITION_FAILED if text.contains("message size") => {
            (ErrorKind::Invalid, format!("the broker takes no body of {} bytes: {text}", parcel.message.payload.len()))
        }
        _ => (ErrorKind::Rejected, format!("the broker breaks off when it gets it, also alone: {code} {text}")),
    };
    Error::new(kind, "send", parcel.subject(), reason).because(cause.clone())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use cap_core::transport::Confirm;
    use cap_core::{Message, MessageId};
    use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};

    use super::*;
    use crate::config::RabbitMqOptions;

    fn closed(kind: impl Into<AMQPErrorKind>, text: &str) -> lapin::Error {
        Cause::ProtocolError(AMQPError::new(kind.into(), text.into())).into()
    }

    fn parcel(topic: &str, bytes: usize) -> Parcel {
        let (id, headers, payload) = (MessageId::generate(), Default::default(), vec![b'1'; bytes].into());
        let message = Message { id, topic: topic.parse().unwrap(), headers, payload };
        Parcel::new(message, Confirm::new(|_| {}), Instant::now())
    }

    #[test]
    fn a_message_is_named_by_its_size_its_topic_or_the_exchange() {
        let settings = RabbitMqOptions::default().exchange("e").check().unwrap();
        let named = |cause: &lapin::Error, parcel: &Parcel| is_named(cause, &settings, parcel);
        let large = closed(AMQPSoftError::PRECONDITIONFAILED, "PRECONDITION_FAILED - message size 9 is larger than 8");
        assert!(named(&large, &parcel("a", 9)) && !named(&large, &parcel("a", 5)));
        assert_eq!(outcome(&large, &parcel("a", 9)).kind(), ErrorKind::Invalid);
        let text = "ACCESS_REFUSED - write access to topic 'a' in exchange 'e' in vhost '/' refused for user 'u'";
        let topic = closed(AMQPSoftError::ACCESSREFUSED, text);
        assert!(named(&topic, &parcel("a", 1)) && !named(&topic, &parcel("b", 1)));
        let text = "ACCESS_REFUSED - access to exchange 'e' in vhost '/' refused for user 'u'";
        let exchange = closed(AMQPSoftError::ACCESSREFUSED, text);
        assert!(named(&exchange, &parcel("a", 1)) && named(&exchange, &parcel("b", 1)));
        assert_eq!(outcome(&exchange, &parcel("a", 1)).kind(), ErrorKind::Environment);
        let header = closed(AMQPSoftError::PRECONDITIONFAILED, "PRECONDITION_FAILED - invalid header");
        assert!(!named(&header, &parcel("a", 1)));
        assert_eq!(outcome(&header, &parcel("a", 1)).kind(), ErrorKind::Rejected);
    }

    #[test]
    fn only_what_a_message_can_cause_makes_suspects() {
        let kind = |cause: &lapin::Error| broken(Some(cause));
        assert_eq!(kind(&closed(AMQPSoftError::PRECONDITIONFAILED, "x")), Broken::Channel);
        assert_eq!(kind(&closed(AMQPHardError::FRAMEERROR, "x")), Broken::Connection);
        assert_eq!(kind(&closed(AMQPHardError::CONNECTIONFORCED, "x")), Broken::Lost);
        assert_eq!(kind(&std::io::Error::other("reset").into()), Broken::Lost);
        assert_eq!(broken(None), Broken::Lost);
    }
}
