//! The exchange, the queues and the bindings, as CAP makes them.

use std::sync::Arc;

use cap_core::transport::Subscription;
use cap_core::{Error, Result};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use crate::config::QueueType;
use crate::connection::Link;
use crate::error::call;
use crate::settings::{MAX_SHORT_STRING, Settings};

const OTHER_EXCHANGE: &str = "delete it, or name another with the option `exchange`";
const OTHER_QUEUE: &str = "give the options it was made with (`queue_type`, `message_ttl`, `delivery_limit`, or \
                           `cap_compatible` for a queue of .NET CAP), or delete it when it is empty";

/// Declares CAP's exchange: topic, durable.
pub(crate) async fn declare_exchange(channel: &Channel, settings: &Settings) -> Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let name = settings.exchange.as_str().into();
    let declared = channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default()).await;
    declared.map_err(|cause| {
        let subject = format!("topic exchange `{}` on {}", settings.exchange, settings.place);
        call("declare", subject, cause, OTHER_EXCHANGE)
    })
}

/// Declares the group's queue.
pub(crate) async fn declare_queue(channel: &Channel, settings: &Settings, wanted: &Subscription) -> Result<()> {
    let queue = wanted.group.as_str();
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let subject = || format!("queue `{queue}` on {}", settings.place);
    channel
        .queue_declare(queue.into(), options, arguments(settings))
        .await
        .map(drop)
        .map_err(|cause| call("declare", subject(), cause, OTHER_QUEUE))
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
                call("bind", subject, cause, "")
            })?;
    }
    Ok(())
}

/// Makes the bindings of a consumer again and again, for as long as this is not aborted: one that somebody takes away costs
/// the group what is published until then, and nobody would tell it. It has channels of its own, since a refusal ends one.
pub(crate) async fn keep_bound(link: Arc<Link>, settings: Arc<Settings>, wanted: Subscription) {
    loop {
        tokio::time::sleep(settings.bind_every()).await;
        let bound = async {
            let subject = || format!("queue `{}` on {}", wanted.group, settings.place);
            let channel = link.channel().await.map_err(|cause| call("bind", subject(), cause, ""))?;
            let bound = match declare_exchange(&channel, &settings).await {
                Ok(()) => bind_queue(&channel, &settings, &wanted).await,
                refused => refused,
            };
            link.end_channel(channel);
            bound
        };
        if let Err(error) = bound.await {
            tracing::warn!(%error, "cannot tell whether the group's bindings are there");
        }
    }
}

/// What the queue is declared with.
fn arguments(settings: &Settings) -> FieldTable {
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
    if let Some(limit) = settings.delivery_limit() {
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
        arguments(&options.check().unwrap()).inner().get(name).cloned()
    }

    #[test]
    fn queues_are_quorum_queues_unless_asked_otherwise() {
        let options = RabbitMqOptions::default();
        let expected = |name: &str| Some(AMQPValue::LongString(name.into()));
        assert_eq!(argument(options.clone(), "x-queue-type"), expected("quorum"));
        assert_eq!(argument(options.clone().queue_type(QueueType::Classic), "x-queue-type"), expected("classic"));
        assert_eq!(argument(options.clone(), "x-message-ttl"), None);
        assert_eq!(argument(options.clone(), "x-delivery-limit"), None);
        assert_eq!(argument(options.delivery_limit(-1), "x-delivery-limit"), Some(AMQPValue::LongInt(-1)));
    }

    #[test]
    fn a_compatible_queue_has_the_arguments_of_dotnet_cap() {
        let options = RabbitMqOptions::default().cap_compatible();
        assert_eq!(argument(options.clone(), "x-message-ttl"), Some(AMQPValue::LongInt(864_000_000)));
        assert_eq!(argument(options, "x-queue-type"), None);
    }
}
