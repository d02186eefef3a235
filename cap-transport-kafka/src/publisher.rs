//! Sending: one idempotent producer, a window over what is on its way, and an outcome for each message.
//!
//! A batch that is over a topic's `max.message.bytes` is refused as a whole, and librdkafka gives its outcome to all in it.
//! So what is refused for its size is sent once more in a request of its own, by a second producer: what is refused then
//! is too large itself.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cap_core::transport::{Confirm, Outgoing};
use cap_core::{MessageId, Result, Topic};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::client::{Fault, Watch, log};
use crate::error::{connect, creation, lost, unavailable};
use crate::settings::Settings;
use crate::topics::{Listing, Topics};
use crate::wire;

pub(crate) type Producer = ThreadedProducer<Reports>;
type Record<'a> = BaseRecord<'a, str, [u8], Box<Sent>>;

/// How long a producer that is closed may take to report what it gave up.
const FAREWELL: Duration = Duration::from_secs(5);
/// When librdkafka is asked again whether it has room, if nothing tells so before.
const ROOM_PAUSE: Duration = Duration::from_millis(50);
const CLOSED: &str = "the transport is closed";

/// A message on its way.
pub(crate) struct Sent {
    id: MessageId,
    topic: Topic,
    /// In a mutex because librdkafka's threads share it by type, though never in fact.
    confirm: Mutex<Confirm>,
    /// Its place in the window.
    room: OwnedSemaphorePermit,
}

impl Sent {
    fn subject(&self) -> String {
        subject(&self.id, &self.topic)
    }

    fn report(self, outcome: Result<()>) {
        drop(self.room);
        self.confirm.into_inner().unwrap_or_else(PoisonError::into_inner).report(outcome);
    }
}

fn subject(id: &MessageId, topic: &Topic) -> String {
    format!("message {id} to topic `{topic}`")
}

/// What a producer reports to.
pub(crate) struct Reports {
    settings: Arc<Settings>,
    topics: Arc<Topics>,
    watch: Arc<Watch>,
    /// Set when the producer is of no more use.
    retired: Arc<AtomicBool>,
    /// Told when librdkafka has settled something.
    settled: Arc<Notify>,
    /// Sends what was refused with others; none for the one that does.
    lone: Option<OnceLock<Producer>>,
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
                settled: Arc::clone(&self.settled),
                lone: None,
            };
            match self.settings.lone_producer().create_with_context::<_, Producer>(reports) {
                Ok(made) => drop(lone.set(made)),
                Err(error) => tracing::error!(%error, "no producer for messages that are sent alone"),
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
            tracing::error!(reason, "the producer has failed for good, and is replaced");
            self.retired.store(true, Ordering::Relaxed);
        }
        self.watch.note(fault);
    }
}

impl ProducerContext<NoCustomPartitioner> for Reports {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let (code, record) = match result {
            Ok(_) => {
                sent.report(Ok(()));
                self.settled.notify_waiters();
                return;
            }
            Err((error, record)) => (error.rdkafka_error_code().unwrap_or(Code::Unknown), record),
        };
        let sent = match code {
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => match self.send_alone(record, sent) {
                Ok(()) => return,
                Err(sent) => sent,
            },
            _ => sent,
        };
        match code {
            Code::Fatal => self.retired.store(true, Ordering::Relaxed),
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::UnknownTopicId => {
                self.topics.forget(sent.topic.as_str());
            }
            _ => {}
        }
        let error = lost(sent.subject(), code, &self.settings);
        sent.report(Err(error));
        self.settled.notify_waiters();
    }
}

/// A producer. When it is dropped, what is on its way comes to its end; then it is closed.
pub(crate) struct Publisher {
    producer: Arc<Producer>,
    watch: Arc<Watch>,
    settings: Arc<Settings>,
    window: Arc<Semaphore>,
    settled: Arc<Notify>,
    retired: Arc<AtomicBool>,
    ended: AtomicBool,
}

impl Publisher {
    /// Connects within the connect time limit, and learns which topics there are.
    pub(crate) async fn open(settings: &Arc<Settings>, topics: &Arc<Topics>) -> Result<Self> {
        let (retired, settled) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let watch = Watch::new();
        let reports = Reports {
            settings: Arc::clone(settings),
            topics: Arc::clone(topics),
            watch: Arc::clone(&watch),
            retired: Arc::clone(&retired),
            settled: Arc::clone(&settled),
            lone: Some(OnceLock::new()),
        };
        let config = settings.producer();
        let making = tokio::task::spawn_blocking(move || config.create_with_context::<_, Producer>(reports));
        let made = making.await.map_err(|panic| unavailable("connect to", &settings.place, panic.to_string()))?;
        let producer = Arc::new(made.map_err(|cause| creation(settings, cause))?);
        let window = Arc::new(Semaphore::new(settings.window()));
        let (settings, ended) = (Arc::clone(settings), AtomicBool::new(false));
        let publisher = Self { producer, watch, settings, window, settled, retired, ended };
        topics.note(&publisher.ask("connect to").await?);
        Ok(publisher)
    }

    /// Whether more may be sent with it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed)
    }

    /// The topics that there are, asked of a broker within the connect time limit.
    pub(crate) async fn list(&self, operation: &'static str) -> Result<Listing> {
        self.watch.forget_outage();
        self.ask(operation).await
    }

    async fn ask(&self, operation: &'static str) -> Result<Listing> {
        let limit = self.settings.connect_timeout();
        let given_up = Arc::new(AtomicBool::new(false));
        let (producer, stop) = (Arc::clone(&self.producer), Arc::clone(&given_up));
        let asking = tokio::task::spawn_blocking(move || fetch_topics(&producer, limit, &stop));
        let answer = tokio::select! {
            biased;
            answer = asking => answer,
            fault = self.watch.hopeless() => {
                given_up.store(true, Ordering::Relaxed);
                return Err(connect(&self.settings, &fault));
            }
        };
        let failed = |reason: String| unavailable(operation, &self.settings.place, reason);
        match answer {
            Ok(Ok(names)) => {
                self.watch.is_well();
                Ok(Listing::new(names))
            }
            Ok(Err(Code::OperationTimedOut | Code::BrokerTransportFailure)) => Err(match self.watch.last() {
                Some(fault) => connect(&self.settings, &fault),
                None => failed(format!("it did not answer within {limit:?}: is it Kafka?")),
            }),
            Ok(Err(code)) => Err(failed(code.to_string())),
            Err(ended) => Err(failed(ended.to_string())),
        }
    }

    /// Hands messages to librdkafka, waiting for room in the window at most as long as a confirm may take.
    pub(crate) async fn send(&self, topics: &Topics, settings: &Arc<Settings>, messages: Vec<Outgoing>) {
        let deadline = Instant::now() + self.settings.confirm_timeout();
        let mut sound = Vec::with_capacity(messages.len());
        for Outgoing { message, confirm } in messages {
            match wire::check(&message, self.settings.max_body()) {
                Ok(()) => sound.push(Outgoing { message, confirm }),
                Err(error) => confirm.report(Err(error)),
            }
        }
        let wanted: HashSet<&str> = sound.iter().map(|outgoing| outgoing.message.topic.as_str()).collect();
        let missing = topics.route(self, settings, wanted).await;
        for outgoing in sound {
            match missing.get(outgoing.message.topic.as_str()) {
                Some(error) => outgoing.confirm.report(Err(error.clone())),
                None => self.send_one(outgoing, deadline).await,
            }
        }
    }

    async fn send_one(&self, Outgoing { message, confirm }: Outgoing, deadline: Instant) {
        let refuse = |confirm: Confirm, reason: String| {
            confirm.report(Err(unavailable("send", subject(&message.id, &message.topic), reason)));
        };
        let room = match tokio::time::timeout_at(deadline, Arc::clone(&self.window).acquire_owned()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return refuse(confirm, CLOSED.into()),
            Err(_) => {
                let window = self.settings.window();
                return refuse(confirm, format!("{window} messages before it are unconfirmed"));
            }
        };
        let sent =
            Box::new(Sent { id: message.id.clone(), topic: message.topic.clone(), confirm: Mutex::new(confirm), room });
        let mut record: Record<'_> = BaseRecord::with_opaque_to(message.topic.as_str(), sent);
        record.key = Some(wire::key(&message));
        record.payload = Some(&message.payload);
        record.headers = Some(wire::headers_out(&message));
        loop {
            if self.ended.load(Ordering::Relaxed) {
                let sent = record.delivery_opaque;
                let error = unavailable("send", sent.subject(), CLOSED);
                return sent.report(Err(error));
            }
            let settled = self.settled.notified();
            let (error, refused) = match self.producer.send(record) {
                Ok(()) => return,
                Err(refused) => refused,
            };
            let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
            let has_time = Instant::now() < deadline;
            if code == Code::QueueFull && has_time {
                record = refused;
                let _ = tokio::time::timeout(ROOM_PAUSE, settled).await;
                continue;
            }
            if code == Code::Fatal {
                self.retired.store(true, Ordering::Relaxed);
            }
            let sent = refused.delivery_opaque;
            let error = match code {
                Code::QueueFull => unavailable("send", sent.subject(), "librdkafka's queue stayed full"),
                code => lost(sent.subject(), code, &self.settings),
            };
            return sent.report(Err(error));
        }
    }

    /// Gives up what is on its way, and reports it.
    pub(crate) async fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.window.close();
        let producer = Arc::clone(&self.producer);
        let ending = tokio::task::spawn_blocking(move || purge(&producer));
        let _ = ending.await;
    }
}

fn purge(producer: &Producer) {
    let all = || PurgeConfig::default().queue().inflight();
    producer.purge(all());
    if let Some(lone) = producer.context().lone.as_ref().and_then(OnceLock::get) {
        lone.purge(all());
        let _ = lone.flush(FAREWELL);
    }
    let _ = producer.flush(FAREWELL);
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let (producer, limit) = (Arc::clone(&self.producer), self.settings.confirm_timeout());
        if producer.in_flight_count() == 0 || self.ended.load(Ordering::Relaxed) {
            // Closing a producer joins threads, which is no work for this one.
            spawn("cap-kafka close", move || drop(producer));
            return;
        }
        spawn("cap-kafka flush", move || {
            let _ = producer.flush(limit + FAREWELL);
            if let Some(lone) = producer.context().lone.as_ref().and_then(OnceLock::get) {
                let _ = lone.flush(limit + FAREWELL);
            }
        });
    }
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("{name} {}", NUMBER.fetch_add(1, Ordering::Relaxed));
    if let Err(error) = std::thread::Builder::new().name(name).spawn(work) {
        tracing::warn!(%error, "no thread for closing a producer: it is closed here, and what is on its way given up");
    }
}

/// Asks until a broker answers. An attempt that takes long may still be answered, so each waits longer than the last.
fn fetch_topics(producer: &Producer, limit: Duration, given_up: &AtomicBool) -> std::result::Result<Vec<String>, Code> {
    let deadline = std::time::Instant::now() + limit;
    let mut patience = Duration::from_millis(500);
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let cause = match producer.client().fetch_metadata(None, patience.min(left)) {
            Ok(listed) => {
                let exists = listed.topics().iter().filter(|topic| !topic.partitions().is_empty());
                return Ok(exists.map(|topic| topic.name().to_owned()).collect());
            }
            Err(cause) => cause.rdkafka_error_code().unwrap_or(Code::Unknown),
        };
        let may_pass = matches!(cause, Code::OperationTimedOut | Code::BrokerTransportFailure);
        if !may_pass || patience >= left || given_up.load(Ordering::Relaxed) {
            return Err(cause);
        }
        patience *= 2;
    }
}
