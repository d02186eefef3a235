//! RabbitMQ: topics and queues of their own for each round, on the broker that `CAP_TEST_RABBITMQ_URL` names.

use cap_core::transport::Transport as _;
use cap_transport_rabbitmq::RabbitMq;
use lapin::ConnectionProperties;
use lapin::options::{ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};

use crate::backend::{Broker, Fallible, FullQueue, Names};
use crate::crash::roles::GROUPS;
use crate::crash::trouble::topics_of;
use crate::twin::rabbitmq::{EXCHANGE, RabbitMqWire};

/// Names the broker.
pub(crate) const URL: &str = "CAP_TEST_RABBITMQ_URL";

/// One broker, with names of its own.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct RabbitMqBroker {
    pub(crate) url: String,
    names: Names,
}

pub(crate) async fn open(url: &str) -> Fallible<lapin::Connection> {
    Ok(lapin::Connection::connect(url, ConnectionProperties::default()).await?)
}

impl RabbitMqBroker {
    /// Subscribes as an engine does, which declares and binds the queue, and goes away again.
    async fn declare(&self, queue: &str, topics: &[&str]) -> Fallible {
        let transport = self.transport().await?;
        transport.connect().await?;
        drop(transport.subscribe(self.names.subscription(queue, topics)?).await?);
        Ok(transport.close().await?)
    }
}

impl Broker for RabbitMqBroker {
    type Transport = RabbitMq;
    type Wire = RabbitMqWire;

    async fn fresh() -> Fallible<Self> {
        let url = std::env::var(URL).map_err(|_| format!("{URL} is not set: eval \"$(scripts/backends env)\""))?;
        Ok(Self { url, names: Names::fresh() })
    }

    fn at(place: &str) -> Fallible<Self> {
        Ok(serde_json::from_str(place)?)
    }

    fn place(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    fn names(&self) -> &Names {
        &self.names
    }

    async fn transport(&self) -> Fallible<RabbitMq> {
        Ok(RabbitMq::new(&self.url)?)
    }

    async fn wire(&self) -> Fallible<RabbitMqWire> {
        RabbitMqWire::open(&self.url, self.names.clone()).await
    }

    async fn prepare(&self) -> Fallible {
        self.sink().await
    }

    async fn declare_groups(&self) -> Fallible {
        for group in GROUPS {
            self.declare(&self.names.queue_of(group), topics_of(group)).await?;
        }
        Ok(())
    }

    async fn sink(&self) -> Fallible {
        self.declare(&self.names.queue(), &[""]).await
    }

    /// A queue of its own connection.
    async fn full_queue(&self, topic: &str) -> Fallible<Option<FullQueue>> {
        const LENGTH: i32 = 10;
        let connection = open(&self.url).await?;
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), LENGTH.into());
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let (queue, none) = (format!("{topic}.full"), FieldTable::default());
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments).await?;
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.as_str().into(), EXCHANGE.into(), topic.into(), options, none).await?;
        Ok(Some(Box::new((connection, channel))))
    }

    const HAS_BINDINGS: bool = true;

    async fn unbind(&self, group: &str, topic: &str) -> Fallible {
        let connection = open(&self.url).await?;
        let channel = connection.create_channel().await?;
        let queue = self.names.queue_of(group);
        channel.queue_unbind(queue.as_str().into(), EXCHANGE.into(), topic.into(), FieldTable::default()).await?;
        Ok(connection.close(200, "done".into()).await?)
    }

    async fn unbind_all(&self) -> Fallible {
        let connection = open(&self.url).await?;
        let channel = connection.create_channel().await?;
        channel.exchange_delete(EXCHANGE.into(), ExchangeDeleteOptions::default()).await?;
        Ok(connection.close(200, "done".into()).await?)
    }

    async fn discard(self) -> Fallible {
        let connection = open(&self.url).await?;
        let channel = connection.create_channel().await?;
        let of_crash = GROUPS.iter().map(|group| self.names.queue_of(group));
        for queue in of_crash.chain([self.names.queue()]) {
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    }
}
