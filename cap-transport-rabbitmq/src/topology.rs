//! The exchange, the queues and the bindings, as CAP makes them.

use cap_core::transport::Subscription;
use cap_core::{Error, ErrorKind, Result};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use crate::config::{QueueType, Topology};
use crate::connection::Link;
use crate::error::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, call, reply};
use crate::settings::{MAX_SHORT_STRING, Settings};

const OTHER_EXCHANGE: &str = "delete it, or name another with the option `exchange`";
const OTHER_QUEUE: &str = "give the options it was made with (`queue_type`, `message_ttl`, `delivery_limit`, or \
                           `cap_compatible` for a queue of .NET CAP), or delete it when it is empty";

const UNPROTECTED: &str = "the queue was declared without `x-delivery-limit` = -1: RabbitMQ from 4.0 on throws a message away after \
                           20 redeliveries. Set a policy with `delivery-limit: -1` for it, or delete it when it is empty";
const NARROW: &str = "where the broker's operators make the topology, set the option `topology` to `check`";
const OF_OPERATORS: &str = "with the option `topology` = `check` the broker's operators make it";
/// The limit of redeliveries that means *none*, from RabbitMQ 4.0 on.
const NO_LIMIT: i32 = -1;

/// Makes what consuming needs, or looks whether it is there, and answers a channel for it.
pub(crate) async fn prepare(link: &Link, settings: &Settings, wanted: &Subscription) -> Result<Channel> {
    let subject = || format!("queue `{}` on {}", wanted.group, settings.place);
    let failed = |cause| call("subscribe to", subject(), cause, "");
    let channel = link.channel().await.map_err(failed)?;
    if settings.topology() == Topology::Check {
        find_queue(&channel, settings, wanted).await?;
        return Ok(channel);
    }
    declare_exchange(&channel, settings).await?;
    let limit = settings.delivery_limit().or_else(|| link.version().filter(|v| v.knows_no_limit()).map(|_| NO_LIMIT));
    let channel = match declare_queue(&channel, settings, wanted, limit).await {
        Ok(()) => channel,
        Err(cause) if limit == Some(NO_LIMIT) && is_about_limit(&cause) => {
            tracing::warn!(queue = wanted.group.as_str(), place = settings.place, "{UNPROTECTED}");
            // The refusal has ended the first one.
            let channel = link.channel().await.map_err(failed)?;
            declare_queue(&channel, settings, wanted, None).await.map_err(|cause| not_declared(subject(), cause))?;
            channel
        }
        Err(cause) => return Err(not_declared(subject(), cause)),
    };
    bind_queue(&channel, settings, wanted).await?;
    Ok(channel)
}

/// Declares CAP's exchange, topic and durable, or looks whether it is there.
pub(crate) async fn declare_exchange(channel: &Channel, settings: &Settings) -> Result<()> {
    let passive = settings.topology() == Topology::Check;
    let options = ExchangeDeclareOptions { durable: true, passive, ..ExchangeDeclareOptions::default() };
    let name = settings.exchange.as_str().into();
    let declared = channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default()).await;
    declared.map_err(|cause| {
        let subject = format!("topic exchange `{}` on {}", settings.exchange, settings.place);
        if passive { not_found(subject, cause) } else { refused("declare", subject, cause, OTHER_EXCHANGE) }
    })
}

async fn find_queue(channel: &Channel, settings: &Settings, wanted: &Subscription) -> Result<()> {
    let queue = wanted.group.as_str();
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
    found.map(drop).map_err(|cause| not_found(format!("queue `{queue}` on {}", settings.place), cause))
}

async fn declare_queue(
    channel: &Channel,
    settings: &Settings,
    wanted: &Subscription,
    limit: Option<i32>,
) -> lapin::Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(wanted.group.as_str().into(), options, arguments(settings, limit)).await;
    declared.map(drop)
}

/// Binds the group's queue to each of its topics. A binding that is there already stays.
pub(crate) async fn bind_queue(channel: &Channel, settings: &Settings, wanted: &Subscription) -> Result<()> {
    let queue = wanted.group.as_str();
    for topic in &wanted.topics {
        let (exchange, key) = (settings.exchange.as_str().into(), topic.as_str().into());
        channel
            .queue_bind(queue.into(), exchange, key, QueueBindOptions::default(), FieldTable::default())
            .await
            .map_err(|cause| {
                let subject = format!("queue `{queue}` on {} to topic `{topic}`", settings.place);
                refused("bind", subject, cause, "")
            })?;
    }
    Ok(())
}

fn not_declared(subject: String, cause: lapin::Error) -> Error {
    refused("declare", subject, cause, OTHER_QUEUE)
}

/// As [`call`], with advice for who has not the right.
fn refused(operation: &'static str, subject: String, cause: lapin::Error, advice: &str) -> Error {
    let lacks_right = reply(&cause).is_some_and(|(code, _)| code == ACCESS_REFUSED);
    let error = call(operation, subject.clone(), cause, advice);
    match lacks_right {
        true => Error::new(error.kind(), operation, subject, format!("{}; {NARROW}", error.reason())).because(error),
        false => error,
    }
}

/// As [`call`], with the words for what is not there and is not to be declared.
fn not_found(subject: String, cause: lapin::Error) -> Error {
    match reply(&cause) {
        Some((NOT_FOUND, text)) => {
            let reason = format!("it is not there: {text}; {OF_OPERATORS}");
            Error::new(ErrorKind::Rejected, "find", subject, reason).because(cause)
        }
        _ => call("find", subject, cause, ""),
    }
}

/// Whether a queue is there that was declared with another limit of redeliveries, or with none.
fn is_about_limit(cause: &lapin::Error) -> bool {
    reply(cause).is_some_and(|(code, text)| code == PRECONDITION_FAILED && text.contains("'x-delivery-limit'"))
}

/// What the queue is declared with.
fn arguments(settings: &Settings, limit: Option<i32>) -> FieldTable {
    let mut arguments = FieldTable::default();
    let queue_type = match settings.queue_type() {
        QueueType::Quorum => Some("quorum"),
        QueueType::Classic => Some("classic"),
        QueueType::BrokerDefault => None,
    };
    if let Some(queue_type) = queue_type {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue_type.into()));
    }
    if let Some(ttl) = settings.message_ttl().and_then(|ttl| i32::try_from(ttl.as_millis()).ok()) {
        arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(ttl));
    }
    if let Some(limit) = limit {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(limit));
    }
    arguments
}

/// Refuses what the driver could not write.
pub(crate) fn check(wanted: &Subscription) -> Result<()> {
    let subject = || format!("a subscription of group `{}`", wanted.group);
    if wanted.prefetch == 0 {
        return Err(Error::invalid(subject(), "its prefetch is 0"));
    }
    if wanted.prefetch_bytes == 0 {
        return Err(Error::invalid(subject(), "its prefetch is 0 bytes"));
    }
    if wanted.group.as_str().len() > MAX_SHORT_STRING {
        return Err(Error::invalid(subject(), format!("its name has more than {MAX_SHORT_STRING} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RabbitMqOptions;

    fn argument(options: RabbitMqOptions, name: &str) -> Option<AMQPValue> {
        let settings = options.check().unwrap();
        let limit = settings.delivery_limit();
        arguments(&settings, limit).inner().get(name).cloned()
    }

    #[test]
    fn queues_are_quorum_queues_unless_asked_otherwise() {
        let options = RabbitMqOptions::default();
        let expected = |name: &str| Some(AMQPValue::LongString(name.into()));
        assert_eq!(argument(options.clone(), "x-queue-type"), expected("quorum"));
        assert_eq!(argument(options.clone().queue_type(QueueType::Classic), "x-queue-type"), expected("classic"));
        assert_eq!(argument(options.clone(), "x-message-ttl"), None);
        assert_eq!(argument(options.clone(), "x-delivery-limit"), None);
        assert_eq!(argument(options.clone().delivery_limit(-1), "x-delivery-limit"), None);
        assert_eq!(argument(options.delivery_limit(7), "x-delivery-limit"), Some(AMQPValue::LongInt(7)));
    }

    #[test]
    fn a_compatible_queue_has_the_arguments_of_dotnet_cap() {
        let options = RabbitMqOptions::default().cap_compatible();
        assert_eq!(argument(options.clone(), "x-message-ttl"), Some(AMQPValue::LongInt(864_000_000)));
        assert_eq!(argument(options, "x-queue-type"), None);
    }
}
