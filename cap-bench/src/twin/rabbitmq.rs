//! RabbitMQ by hand: mandatory persistent messages with confirms, and a consumer that acknowledges a batch at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use crate::backend::{Arrived, Claimed, Fallible, Names, Wire};
use crate::broker::rabbitmq::open;
use crate::twin::rows;

pub(crate) const EXCHANGE: &str = "cap.default.router";
const MESSAGE_ID: &str = "cap-msg-id";
const PERSISTENT: u8 = 2;

/// The twin's connection, with one channel.
pub(crate) struct RabbitMqWire {
    _connection: Connection,
    channel: Channel,
    names: Names,
    deliveries: Option<lapin::Consumer>,
}

impl RabbitMqWire {
    pub(crate) async fn open(url: &str, names: Names) -> Fallible<Self> {
        let connection = open(url).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel, names, deliveries: None })
    }
}

impl Wire for RabbitMqWire {
    type Confirm = Pin<Box<dyn Future<Output = Fallible> + Send>>;

    async fn publish(&mut self, row: Claimed) -> Fallible<Self::Confirm> {
        let opened = rows::opened(&row.content)?;
        let mut headers = FieldTable::default();
        for (name, value) in &opened.headers {
            headers.insert((*name).into(), AMQPValue::LongString(value.as_ref().into()));
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(row.message_id.as_str().into())
            .with_content_type("application/json".into())
            .with_headers(headers);
        let body = opened.content.get().as_bytes();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key) = (EXCHANGE.into(), self.names.topic.as_str().into());
        let confirm = self.channel.basic_publish(exchange, key, options, body, properties).await?;
        Ok(Box::pin(async move {
            match confirm.await? {
                Confirmation::Ack(None) => Ok(()),
                other => Err(format!("not confirmed: {other:?}").into()),
            }
        }))
    }

    async fn consume(&mut self, prefetch: usize) -> Fallible {
        // One batch on its way while another is being worked on.
        self.channel.basic_qos(u16::try_from(2 * prefetch)?, BasicQosOptions::default()).await?;
        let queue = self.names.queue();
        let options = BasicConsumeOptions::default();
        self.deliveries =
            Some(self.channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default()).await?);
        Ok(())
    }

    async fn receive(&mut self, most: usize) -> Fallible<Vec<Arrived>> {
        let deliveries = self.deliveries.as_mut().ok_or("nothing is consumed")?;
        let mut arrived = Vec::new();
        while arrived.len() < most {
            let next = match arrived.is_empty() {
                true => deliveries.next().await,
                false => match deliveries.next().now_or_never() {
                    Some(next) => next,
                    None => break,
                },
            };
            let delivery = next.ok_or("the consumer has ended")??;
            let mut headers = BTreeMap::new();
            for (name, value) in delivery.properties.headers().iter().flatten() {
                let AMQPValue::LongString(value) = value else { return Err("a header that is no text".into()) };
                headers.insert(name.to_string(), value.to_string());
            }
            let message_id = headers.get(MESSAGE_ID).ok_or("a message without an id")?.clone();
            arrived.push(Arrived { tag: delivery.delivery_tag, message_id, headers, body: delivery.data });
        }
        Ok(arrived)
    }

    async fn ack(&mut self, tags: Vec<u64>) -> Fallible {
        let Some(last) = tags.into_iter().max() else { return Ok(()) };
        Ok(self.channel.basic_ack(last, BasicAckOptions { multiple: true }).await?)
    }
}
