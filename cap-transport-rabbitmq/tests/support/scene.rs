//! One test's part of the broker, and the calls that all tests make.

use std::time::Duration;

use bytes::Bytes;
use cap_core::transport::{Confirm, Consumer, Delivery, Outgoing, Subscription};
use cap_core::{Error, ErrorKind, Group, Message, MessageId, Result, Topic, Transport, headers};
use cap_transport_rabbitmq::{QueueType, RabbitMq, RabbitMqOptions};
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::oneshot;

use super::{Names, Raw};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One test's part of the broker.
pub(crate) struct Scene {
    pub(crate) names: Names,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { names: Names::new() }
    }

    pub(crate) fn options(&self) -> RabbitMqOptions {
        self.names.options(&super::url()).queue_type(QueueType::Classic)
    }

    pub(crate) async fn open(&self, options: RabbitMqOptions) -> RabbitMq {
        let transport = RabbitMq::with_options(options).expect("options");
        Transport::connect(&transport).await.expect("connected");
        transport
    }

    pub(crate) fn topic(&self, name: &str) -> Topic {
        self.names.unique(name).parse().expect("a name")
    }

    pub(crate) fn group(&self) -> Group {
        self.names.unique("billing").parse().expect("a name")
    }

    pub(crate) fn wants(&self, topics: &[&Topic]) -> Subscription {
        let topics = topics.iter().map(|topic| topic.as_str().try_into().expect("a pattern")).collect();
        Subscription { group: self.group(), topics, prefetch: 1_000, prefetch_bytes: 64 * 1024 * 1024 }
    }

    /// A queue as .NET CAP declares it, on its exchange.
    pub(crate) async fn declare_as_dotnet(&self, raw: &Raw) {
        let exchange = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (name, table) = (self.names.exchange(), FieldTable::default());
        raw.channel.exchange_declare(name.into(), ExchangeKind::Topic, exchange, table).await.expect("declared");
        let queue = QueueDeclareOptions { durable: true, ..Default::default() };
        let mut table = FieldTable::default();
        table.insert("x-message-ttl".into(), AMQPValue::LongInt(864_000_000));
        raw.channel.queue_declare(self.group().as_str().into(), queue, table).await.expect("declared");
    }
}

pub(crate) fn message(topic: &Topic, more: &[(&str, &str)]) -> Message {
    let id = MessageId::generate();
    let own = [(headers::MESSAGE_ID, id.as_str()), (headers::MESSAGE_NAME, topic.as_str())];
    let headers = own.into_iter().chain(more.iter().copied()).collect();
    Message { id, topic: topic.clone(), headers, payload: Bytes::from_static(br#"{"total":12}"#) }
}

/// Sends, and gives each message's outcome.
pub(crate) async fn send(transport: &RabbitMq, messages: Vec<Message>) -> Vec<Result<()>> {
    let mut outcomes = Vec::new();
    let outgoing = messages.into_iter().map(|message| {
        let (report, outcome) = oneshot::channel();
        outcomes.push(outcome);
        Outgoing { message, confirm: Confirm::new(move |result| drop(report.send(result))) }
    });
    transport.send(outgoing.collect()).await;
    let mut reported = Vec::new();
    for outcome in outcomes {
        reported.push(tokio::time::timeout(PATIENCE, outcome).await.expect("an outcome in time").expect("an outcome"));
    }
    reported
}

pub(crate) async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut received = Vec::new();
    while received.len() < count {
        let some = tokio::time::timeout(PATIENCE, consumer.receive(count - received.len())).await;
        received.extend(some.expect("a delivery in time").expect("a delivery"));
    }
    received
}

pub(crate) fn refused<T>(answer: Result<T>, kind: ErrorKind, words: &[&str]) -> Error {
    let error = answer.err().expect("a refusal");
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
    error
}
