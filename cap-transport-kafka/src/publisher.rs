//! Sending: one idempotent producer, a bound on what is on its way, and an outcome for each message.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cap_core::transport::Outgoing;
use cap_core::{ErrorKind, Result, Topic};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig};
use tokio::time::Instant;

use crate::client::Watch;
use crate::error::{connect, creation, lost, unavailable};
use crate::reports::{Producer, Record, Reports, Sent};
use crate::sentry;
use crate::settings::Settings;
use crate::topics::{Listing, Topics};
use crate::traffic::{CLOSED, Failure, Refusal, Traffic, subject};
use crate::wire;

/// How long a producer that is closed may take to report what it gave up.
const FAREWELL: Duration = Duration::from_secs(5);
/// When somebody who waits for room looks again, if nothing tells so before.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// A producer. When it is dropped, what is on its way comes to its end; then it is closed.
pub(crate) struct Publisher {
    producer: Arc<Producer>,
    watch: Arc<Watch>,
    settings: Arc<Settings>,
    traffic: Arc<Traffic>,
    retired: Arc<AtomicBool>,
    ended: AtomicBool,
}

impl Publisher {
    /// Connects within the connect time limit, and learns which topics there are.
    pub(crate) async fn open(settings: &Arc<Settings>, topics: &Arc<Topics>) -> Result<Self> {
        let (retired, watch) = (Arc::new(AtomicBool::new(false)), Watch::new());
        let traffic = Arc::new(Traffic::new(settings.window()));
        let reports = Reports {
            settings: Arc::clone(settings),
            topics: Arc::clone(topics),
            watch: Arc::clone(&watch),
            traffic: Arc::clone(&traffic),
            retired: Arc::clone(&retired),
            lone: Some(OnceLock::new()),
        };
        let config = settings.producer();
        let making = tokio::task::spawn_blocking(move || config.create_with_context::<_, Producer>(reports));
        let made = making.await.map_err(|panic| unavailable("connect to", &settings.place, panic.to_string()))?;
        let producer = Arc::new(made.map_err(|cause| creation(settings, cause))?);
        let ended = AtomicBool::new(false);
        let publisher = Self { producer, watch, settings: Arc::clone(settings), traffic, retired, ended };
        topics.note(&publisher.ask("connect to").await?);
        let producer = Arc::downgrade(&publisher.producer);
        sentry::start(producer, Arc::clone(&publisher.traffic), Arc::clone(topics), settings)?;
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

    /// Hands messages to librdkafka. Those to topics that are known go first: to find or to make another may take a while.
    pub(crate) async fn send(&self, topics: &Topics, settings: &Arc<Settings>, messages: Vec<Outgoing>) {
        let mut sound = Vec::with_capacity(messages.len());
        for Outgoing { message, confirm } in messages {
            match wire::check(&message, self.settings.max_body()) {
                Ok(()) => sound.push(Outgoing { message, confirm }),
                Err(error) => confirm.report(Err(error)),
            }
        }
        let unknown: HashSet<String> = {
            let all: HashSet<&str> = sound.iter().map(|outgoing| outgoing.message.topic.as_str()).collect();
            topics.unknown(all).into_iter().map(str::to_owned).collect()
        };
        let (known, later): (Vec<_>, Vec<_>) =
            sound.into_iter().partition(|outgoing| !unknown.contains(outgoing.message.topic.as_str()));
        self.hand_over(known).await;
        if later.is_empty() {
            return;
        }
        let missing = topics.route(self, settings, unknown.iter().map(String::as_str).collect()).await;
        let mut found = Vec::with_capacity(later.len());
        for outgoing in later {
            match missing.get(outgoing.message.topic.as_str()) {
                Some(error) => outgoing.confirm.report(Err(error.clone())),
                None => found.push(outgoing),
            }
        }
        self.hand_over(found).await;
    }

    /// Hands over what has room. What has none waits as long as its topic moves, and at most as long as a confirm may take.
    async fn hand_over(&self, messages: Vec<Outgoing>) {
        let deadline = Instant::now() + self.settings.confirm_timeout();
        let mut place: HashMap<Topic, usize> = HashMap::new();
        let mut queues: Vec<VecDeque<Outgoing>> = Vec::new();
        for outgoing in messages {
            let new = queues.len();
            let place = *place.entry(outgoing.message.topic.clone()).or_insert(new);
            if place == new {
                queues.push(VecDeque::new());
            }
            queues[place].push_back(outgoing);
        }
        loop {
            let room = self.traffic.room().notified();
            tokio::pin!(room);
            room.as_mut().enable();
            for queue in &mut queues {
                self.hand_over_queue(queue, deadline).await;
            }
            queues.retain(|queue| !queue.is_empty());
            if queues.is_empty() {
                return;
            }
            let _ = tokio::time::timeout(ROOM_PAUSE, room).await;
        }
    }

    /// Hands over messages of one topic until one has no room.
    async fn hand_over_queue(&self, queue: &mut VecDeque<Outgoing>, deadline: Instant) {
        while let Some(outgoing) = queue.pop_front() {
            let Err((outgoing, moved)) = self.hand_over_one(outgoing, deadline).await else { continue };
            let now = Instant::now();
            queue.push_front(outgoing);
            if now < deadline && now.into_std() < moved + self.settings.room_patience() {
                return;
            }
            let is_alive = self.traffic.is_alive_since(moved);
            let kind = if is_alive { ErrorKind::Environment } else { ErrorKind::Unavailable };
            let reason =
                "those before it are not confirmed, and there is no room for more (options `window`, `window_bytes`)";
            for Outgoing { message, confirm } in queue.drain(..) {
                let subject = subject(&message.id, &message.topic);
                confirm.report(Err(cap_core::Error::new(kind, "send", subject, reason)));
            }
        }
    }

    /// Hands a message over, unless there is no room: then it comes back, with when its topic moved last.
    async fn hand_over_one(
        &self,
        Outgoing { message, confirm }: Outgoing,
        deadline: Instant,
    ) -> std::result::Result<(), (Outgoing, std::time::Instant)> {
        let now = std::time::Instant::now();
        let entered = self.traffic.enter((&message.id, &message.topic), wire::size(&message), confirm, now);
        let ticket = match entered {
            Ok(ticket) => ticket,
            Err((Refusal::Full(moved), Some(confirm))) => return Err((Outgoing { message, confirm }, moved)),
            Err(_) => return Ok(()),
        };
        let sent = Box::new(Sent { topic: message.topic.clone(), ticket });
        let mut record: Record<'_> = BaseRecord::with_opaque_to(message.topic.as_str(), sent);
        record.key = Some(wire::key(&message));
        record.payload = Some(&message.payload);
        record.headers = Some(wire::headers_out(&message));
        loop {
            let (code, refused) = if self.ended.load(Ordering::Relaxed) {
                (Code::PurgeQueue, record)
            } else {
                match self.producer.send(record) {
                    Ok(()) => return Ok(()),
                    Err((error, refused)) => (error.rdkafka_error_code().unwrap_or(Code::Unknown), refused),
                }
            };
            if code == Code::QueueFull && Instant::now() < deadline {
                record = refused;
                tokio::time::sleep(ROOM_PAUSE).await;
                continue;
            }
            if code == Code::Fatal {
                self.retired.store(true, Ordering::Relaxed);
            }
            let failure = match code {
                Code::QueueFull => {
                    Failure { kind: ErrorKind::Unavailable, reason: "librdkafka's queue stayed full".into() }
                }
                Code::PurgeQueue => Failure { kind: ErrorKind::Unavailable, reason: CLOSED.into() },
                code => lost(code, &self.settings, false),
            };
            let Sent { topic, ticket } = *refused.delivery_opaque;
            let now = std::time::Instant::now();
            match failure.kind {
                ErrorKind::Environment => self.traffic.refused_by_topic(&topic, ticket, now, failure),
                _ => self.traffic.failed(&topic, ticket, now, failure),
            }
            return Ok(());
        }
    }

    /// Gives up what is on its way, and reports it.
    pub(crate) async fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.traffic.close();
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
        self.traffic.retire();
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
        tracing::warn!(error.message = %error, "no thread for closing a producer: it is closed here, and what is on its way given up");
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
