//! Kafka by hand: an idempotent producer with all replicas' acknowledgement, and a consumer that commits the offsets of a
//! batch at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use futures_util::FutureExt as _;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::backend::{Arrived, Claimed, Fallible, Names, Wire};
use crate::twin::rows;

const MESSAGE_ID: &str = "cap-msg-id";
/// A tag holds the offset, and above it the partition.
const OFFSET_BITS: u32 = 48;

/// The twin's producer, and its consumer once it consumes.
pub(crate) struct KafkaWire {
    settings: ClientConfig,
    producer: FutureProducer,
    names: Names,
    consumer: Option<StreamConsumer>,
}

impl KafkaWire {
    pub(crate) fn open(settings: ClientConfig, names: Names) -> Fallible<Self> {
        let mut own = settings.clone();
        own.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "1");
        Ok(Self { producer: own.create()?, settings, names, consumer: None })
    }

    fn arrived(record: &BorrowedMessage<'_>) -> Fallible<Arrived> {
        let mut headers = BTreeMap::new();
        for header in record.headers().into_iter().flat_map(|headers| headers.iter()) {
            let value = std::str::from_utf8(header.value.unwrap_or_default())?;
            headers.insert(header.key.to_owned(), value.to_owned());
        }
        let message_id = headers.get(MESSAGE_ID).ok_or("a message without an id")?.clone();
        let tag = u64::try_from(record.partition())? << OFFSET_BITS | u64::try_from(record.offset())?;
        Ok(Arrived { tag, message_id, headers, body: record.payload().unwrap_or_default().to_vec() })
    }
}

impl Wire for KafkaWire {
    type Confirm = Pin<Box<dyn Future<Output = Fallible> + Send>>;

    async fn publish(&mut self, row: Claimed) -> Fallible<Self::Confirm> {
        let opened = rows::opened(&row.content)?;
        let mut headers = OwnedHeaders::new_with_capacity(opened.headers.len());
        for (name, value) in &opened.headers {
            headers = headers.insert(Header { key: name, value: Some(value.as_ref()) });
        }
        let record = FutureRecord::to(&self.names.topic)
            .key(row.message_id.as_str())
            .payload(opened.content.get().as_bytes())
            .headers(headers);
        let confirm = self.producer.send_result(record).map_err(|(error, _)| error)?;
        Ok(Box::pin(async move { confirm.await?.map(drop).map_err(|(error, _)| error.into()) }))
    }

    async fn consume(&mut self, _: usize) -> Fallible {
        let mut settings = self.settings.clone();
        settings
            .set("group.id", self.names.queue())
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "cooperative-sticky");
        let consumer: StreamConsumer = settings.create()?;
        consumer.subscribe(&[&self.names.topic])?;
        self.consumer = Some(consumer);
        Ok(())
    }

    async fn receive(&mut self, most: usize) -> Fallible<Vec<Arrived>> {
        let consumer = self.consumer.as_ref().ok_or("nothing is consumed")?;
        let mut arrived = Vec::new();
        while arrived.len() < most {
            let next = match arrived.is_empty() {
                true => consumer.recv().await,
                false => match consumer.recv().now_or_never() {
                    Some(next) => next,
                    None => break,
                },
            };
            arrived.push(Self::arrived(&next?)?);
        }
        Ok(arrived)
    }

    async fn ack(&mut self, tags: Vec<u64>) -> Fallible {
        let consumer = self.consumer.as_ref().ok_or("nothing is consumed")?;
        let mut last: BTreeMap<i32, i64> = BTreeMap::new();
        for tag in tags {
            let (partition, offset) = (i32::try_from(tag >> OFFSET_BITS)?, tag & ((1 << OFFSET_BITS) - 1));
            let latest = last.entry(partition).or_default();
            *latest = (*latest).max(i64::try_from(offset)? + 1);
        }
        let mut offsets = TopicPartitionList::with_capacity(last.len());
        for (partition, offset) in last {
            offsets.add_partition_offset(&self.names.topic, partition, Offset::Offset(offset))?;
        }
        Ok(consumer.commit(&offsets, CommitMode::Async)?)
    }
}
