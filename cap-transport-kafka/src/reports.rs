//! What librdkafka tells of messages: each one's outcome, whatever happened to those that were sent with it.
//!
//! Kafka answers for a batch: one record that the topic does not take (it is too large, the broker's validation refuses it)
//! makes it refuse all that were sent together. So what was refused for what it may be is sent once more in a request of
//! its own, by a second producer, while the first one goes on: what is refused then is the culprit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cap_core::{ErrorKind, Topic};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseRecord, DeliveryResult, NoCustomPartitioner, ProducerContext, ThreadedProducer};

use crate::client::{Fault, Watch, log};
use crate::error::{is_of_the_batch, lost};
use crate::settings::Settings;
use crate::topics::Topics;
use crate::traffic::{Failure, Traffic};

pub(crate) type Producer = ThreadedProducer<Reports>;
pub(crate) type Record<'a> = BaseRecord<'a, str, [u8], Box<Sent>>;

/// A message on its way, as librdkafka carries it.
pub(crate) struct Sent {
    pub(crate) topic: Topic,
    pub(crate) ticket: u64,
}

/// What a producer reports to.
pub(crate) struct Reports {
    pub(crate) settings: Arc<Settings>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) traffic: Arc<Traffic>,
    /// Set when the producer is of no more use.
    pub(crate) retired: Arc<AtomicBool>,
    /// Sends what was refused with others; none for the one that does.
    pub(crate) lone: Option<OnceLock<Producer>>,
}

impl Reports {
    /// Sends a message once more, alone. What cannot be is given back.
    fn send_alone(&self, record: &BorrowedMessage<'_>, sent: Box<Sent>) -> std::result::Result<(), Box<Sent>> {
        let Some(lone) = &self.lone else {
            return Err(sent);
        };
        if lone.get().is_none() {
            let reports = Reports {
                settings: Arc::clone(&self.settings),
                topics: Arc::clone(&self.topics),
                watch: Arc::clone(&self.watch),
                retired: Arc::clone(&self.retired),
                traffic: Arc::clone(&self.traffic),
                lone: None,
            };
            match self.settings.lone_producer().create_with_context::<_, Producer>(reports) {
                Ok(made) => drop(lone.set(made)),
                Err(error) => tracing::error!(error.message = %error, "no producer for messages that are sent alone"),
            }
        }
        let Some(lone) = lone.get() else {
            return Err(sent);
        };
        let topic = sent.topic.clone();
        let mut again: Record<'_> = BaseRecord::with_opaque_to(topic.as_str(), sent);
        again.key = record.key_view::<str>().and_then(std::result::Result::ok);
        again.payload = Some(record.payload().unwrap_or_default());
        again.headers = record.headers().map(rdkafka::message::BorrowedHeaders::detach);
        lone.send(again).map_err(|(_, again)| again.delivery_opaque)
    }
}

impl Reports {
    /// A message was not delivered, whoever it was sent with.
    fn failed(&self, Sent { topic, ticket }: Sent, code: Code) {
        let since = self.traffic.since(&topic, ticket);
        let is_alive = since.is_some_and(|since| self.traffic.is_alive_since(since));
        let failure = lost(code, &self.settings, is_alive);
        let now = Instant::now();
        match failure.kind {
            // It was sent alone. If its topic takes others, it is this one's fault, whatever the broker calls it.
            ErrorKind::Environment if is_of_the_batch(code) => {
                let takes_others = since.is_some_and(|since| self.traffic.took_since(&topic, since));
                let is_its_own = takes_others && code != Code::InvalidTimestamp;
                let kind = if is_its_own { ErrorKind::Rejected } else { ErrorKind::Environment };
                self.traffic.failed(&topic, ticket, now, Failure { kind, ..failure });
            }
            ErrorKind::Environment => self.traffic.refused_by_topic(&topic, ticket, now, failure),
            _ => self.traffic.failed(&topic, ticket, now, failure),
        }
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let is_error = matches!(
            level,
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Emerg
        );
        if facility == "FAIL" && !is_error {
            // A connection that the other side ended is in the log, and is no error.
            self.watch.note(Fault { code: Code::BrokerTransportFailure, reason: text.to_owned() });
        }
        log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let fault = Fault::new(&error, reason);
        if fault.code == Code::Fatal {
            tracing::error!(error.message = reason, "the producer has failed for good, and is replaced");
            self.retired.store(true, Ordering::Relaxed);
        }
        self.watch.note(fault);
    }
}

impl ProducerContext<NoCustomPartitioner> for Reports {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let (code, record) = match result {
            Ok(_) => return self.traffic.confirmed(&sent.topic, sent.ticket, Instant::now()),
            Err((error, record)) => (error.rdkafka_error_code().unwrap_or(Code::Unknown), record),
        };
        if is_of_the_batch(code) && self.lone.is_some() {
            if let Err(Sent { topic, ticket }) = self.send_alone(record, sent).map_err(|sent| *sent) {
                let reason = format!("it was refused with others, and cannot be sent alone now: {code}");
                let failure = Failure { kind: ErrorKind::Environment, reason };
                self.traffic.failed(&topic, ticket, Instant::now(), failure);
            }
            return;
        }
        match code {
            Code::Fatal => self.retired.store(true, Ordering::Relaxed),
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::UnknownTopicId => {
                self.topics.forget(sent.topic.as_str());
            }
            _ => {}
        }
        self.failed(*sent, code);
    }
}
