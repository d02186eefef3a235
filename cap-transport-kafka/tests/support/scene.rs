//! One test's part of the broker, and the calls that all tests make.

use std::time::Duration;

use bytes::Bytes;
use cap_core::transport::{Confirm, Consumer, Delivery, Outgoing, Subscription};
use cap_core::{Error, ErrorKind, Group, Message, MessageId, Result, Topic, Transport, headers};
use cap_transport_kafka::{Kafka, KafkaOptions};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::oneshot;

use super::Names;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One test's part of the broker.
pub(crate) struct Scene {
    pub(crate) names: Names,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { names: Names::new() }
    }

    pub(crate) fn options(&self) -> KafkaOptions {
        self.names.options(&super::url()).partitions(1)
    }

    pub(crate) async fn open(&self, options: KafkaOptions) -> Kafka {
        let transport = Kafka::with_options(options).expect("options");
        Transport::connect(&transport).await.expect("connected");
        transport
    }

    pub(crate) fn topic(&self, name: &str) -> Topic {
        self.names.unique(name).parse().expect("a name")
    }

    pub(crate) fn group(&self) -> Group {
        self.names.unique("billing").parse().expect("a name")
    }

    pub(crate) fn wants(&self, topics: &[&str]) -> Subscription {
        let topics = topics.iter().map(|topic| (*topic).try_into().expect("a pattern")).collect();
        Subscription { group: self.group(), topics, prefetch: 1_000, prefetch_bytes: 64 * 1024 * 1024 }
    }
}

pub(crate) fn message(topic: &Topic, more: &[(&str, &str)]) -> Message {
    let id = MessageId::generate();
    let own = [(headers::MESSAGE_ID, id.as_str()), (headers::MESSAGE_NAME, topic.as_str())];
    let headers = own.into_iter().chain(more.iter().copied()).collect();
    Message { id, topic: topic.clone(), headers, payload: Bytes::from_static(br#"{"total":12}"#) }
}

pub(crate) fn with_body(message: Message, bytes: usize) -> Message {
    Message { payload: vec![b'7'; bytes].into(), ..message }
}

/// Sends, and gives each message's outcome.
pub(crate) async fn send(transport: &Kafka, messages: Vec<Message>) -> Vec<Result<()>> {
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

/// Sends what must be confirmed.
pub(crate) async fn confirmed(transport: &Kafka, messages: Vec<Message>) {
    for outcome in send(transport, messages).await {
        outcome.expect("it is confirmed");
    }
}

/// What a foreign producer sends.
pub(crate) async fn send_raw(topic: &Topic, payload: Option<&[u8]>, headers: OwnedHeaders) {
    let producer: FutureProducer = super::raw().create().expect("a producer");
    let mut record = FutureRecord::<str, [u8]>::to(topic.as_str()).headers(headers);
    record.payload = payload;
    producer.send(record, PATIENCE).await.expect("sent");
}

pub(crate) async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut received = Vec::new();
    while received.len() < count {
        let some = tokio::time::timeout(PATIENCE, consumer.receive(count - received.len())).await;
        received.extend(some.expect("a delivery in time").expect("a delivery"));
    }
    received
}

/// Receives and acknowledges.
pub(crate) async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let received = receive(consumer, count).await;
    consumer.ack(received.iter().map(|delivery| delivery.tag).collect()).await.expect("acknowledged");
    received
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.headers.get(headers::MESSAGE_ID).unwrap_or("none")).collect()
}

pub(crate) fn refused<T>(answer: Result<T>, kind: ErrorKind, words: &[&str]) -> Error {
    let error = answer.err().expect("a refusal");
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
    error
}
