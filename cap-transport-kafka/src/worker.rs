//! A consumer's thread: it polls librdkafka, whatever the engine does, so that the group never takes this member for dead.
//!
//! Fetched messages wait in the ledger, at most as many and as large as the subscription allows. When it is full, nothing more is polled for a
//! moment; if it stays full, the partitions are paused and polling goes on. (Pausing at once would throw away what
//! librdkafka has fetched ahead, each time the engine is a little slower than the broker.)
//!
//! Offsets are committed by us and not by librdkafka, because what is committed is more than an offset (see `progress`):
//! at most each `commit_interval`, and before a partition or the consumer goes.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use cap_core::transport::{Delivery, DeliveryTag, Subscription};
use cap_core::{Error, ErrorKind, Group, Result, Topic};
use futures_core::Stream;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::stream_consumer::MessageStream;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::client::{Fault, log};
use crate::error::{creation, ended, unavailable, words};
use crate::ledger::{Beginning, Ledger, Place, Position};
use crate::settings::Settings;
use crate::{pattern, wire};

/// How long the engine may be slow before the partitions are paused.
const FULL: Duration = Duration::from_millis(500);
/// How long a partition that is to go waits for what is out of it to be acknowledged.
const HAND_OVER: Duration = Duration::from_millis(500);
/// How long the broker may take to tell where a group has got to in a partition.
const ASK: Duration = Duration::from_secs(5);

/// Where the engine's side and the thread of a consumer meet.
pub(crate) struct Post {
    place: String,
    group: Group,
    state: Mutex<State>,
    /// Wakes who waits to receive.
    arrived: Notify,
    /// Wakes the thread.
    bell: Notify,
    /// Wakes the thread when it waits for acknowledgements before partitions go.
    acknowledged: Condvar,
    /// Whether the group has given the consumer its partitions, be they none.
    joined: watch::Sender<bool>,
}

struct State {
    ledger: Ledger,
    /// Where to fetch from once more.
    seeks: Vec<Position>,
    /// Why the consumer is over.
    over: Option<Error>,
    /// What librdkafka reported last.
    fault: Option<Fault>,
    ending: bool,
    /// Whether a commit is on its way, and of what.
    committing: Option<Vec<Position>>,
    /// Partitions were assigned since the thread looked.
    is_changed: bool,
    /// Since when it has lost its place in the group, and has not been given one again.
    placeless: Option<Instant>,
}

/// What the thread has to do.
struct Orders {
    seeks: Vec<Position>,
    room: usize,
    is_half_free: bool,
    ends: bool,
    may_commit: bool,
    is_changed: bool,
    placeless: Option<Instant>,
}

impl Post {
    pub(crate) fn new(settings: &Settings, wanted: &Subscription) -> Arc<Self> {
        let state = State {
            ledger: Ledger::new(settings.budget(wanted)),
            seeks: Vec::new(),
            over: None,
            fault: None,
            ending: false,
            committing: None,
            is_changed: false,
            placeless: None,
        };
        Arc::new(Self {
            place: settings.place.clone(),
            group: wanted.group.clone(),
            state: Mutex::new(state),
            arrived: Notify::new(),
            bell: Notify::new(),
            acknowledged: Condvar::new(),
            joined: watch::Sender::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subject(&self) -> String {
        format!("group `{}` on {}", self.group, self.place)
    }

    pub(crate) fn arrived(&self) -> &Notify {
        &self.arrived
    }

    pub(crate) fn out(&self) -> usize {
        self.lock().ledger.out()
    }

    pub(crate) fn joined(&self) -> watch::Receiver<bool> {
        self.joined.subscribe()
    }

    pub(crate) fn over(&self) -> Option<Error> {
        self.lock().over.clone()
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        self.lock().fault.clone()
    }

    /// What waits, as much as may be handed out.
    pub(crate) fn take(&self, max: usize) -> Result<Vec<Delivery>> {
        let mut state = self.lock();
        match &state.over {
            Some(error) => Err(error.clone()),
            None => Ok(state.ledger.take(max)),
        }
    }

    pub(crate) fn ack(&self, tags: &[DeliveryTag]) -> Result<()> {
        let mut state = self.lock();
        self.check(&state, "acknowledge to", tags)?;
        state.ledger.ack(tags);
        drop(state);
        self.acknowledged.notify_all();
        self.bell.notify_one();
        Ok(())
    }

    pub(crate) fn release(&self, tags: &[DeliveryTag]) -> Result<()> {
        let mut state = self.lock();
        self.check(&state, "give back to", tags)?;
        let seeks = state.ledger.release(tags);
        state.seeks.extend(seeks);
        drop(state);
        self.bell.notify_one();
        Ok(())
    }

    fn check(&self, state: &State, operation: &'static str, tags: &[DeliveryTag]) -> Result<()> {
        if let Some(error) = &state.over {
            return Err(error.clone());
        }
        match state.ledger.unknown(tags) {
            None => Ok(()),
            Some((first, count)) => {
                let reason = format!("{count} of the tags are not out with this consumer");
                Err(Error::new(ErrorKind::Invalid, operation, format!("delivery {first}"), reason))
            }
        }
    }

    /// Asks the thread to commit and to leave the group.
    pub(crate) fn end(&self) {
        self.lock().ending = true;
        self.acknowledged.notify_all();
        self.bell.notify_one();
    }

    /// The consumer is over, unless it was already.
    fn give_up(&self, error: Error) {
        let mut state = self.lock();
        if state.over.is_none() && !state.ending {
            tracing::debug!(%error, "a consumer is over");
            state.over = Some(error);
        }
        drop(state);
        self.arrived.notify_one();
        self.bell.notify_one();
        self.joined.send_modify(|_| {});
    }

    fn orders(&self) -> Orders {
        let mut state = self.lock();
        Orders {
            seeks: std::mem::take(&mut state.seeks),
            room: state.ledger.room(),
            is_half_free: state.ledger.is_half_free(),
            ends: state.ending || state.over.is_some(),
            may_commit: state.ledger.is_dirty() && state.committing.is_none(),
            is_changed: std::mem::take(&mut state.is_changed),
            placeless: state.placeless,
        }
    }

    /// Before partitions go: nothing more of them is handed out, and what is out has a moment to be acknowledged.
    fn hand_over(&self, places: &[Place]) {
        let mut state = self.lock();
        state.ledger.withhold(places);
        let waits = |state: &mut State| !state.ending && state.over.is_none() && state.ledger.is_out(places);
        let waited = self.acknowledged.wait_timeout_while(state, HAND_OVER, waits);
        drop(waited);
    }
}

/// The thread of a consumer.
pub(crate) struct Worker {
    pub(crate) post: Arc<Post>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) wanted: Subscription,
    pub(crate) closed: watch::Receiver<bool>,
    /// Counts the threads there are.
    pub(crate) count: watch::Sender<usize>,
}

/// Says that a thread has ended, however it did.
struct Ended(Arc<Post>, watch::Sender<usize>);

impl Drop for Ended {
    fn drop(&mut self) {
        let reason = "its thread has ended";
        self.0.give_up(Error::new(ErrorKind::Internal, "receive from", self.0.subject(), reason));
        self.1.send_modify(|count| *count -= 1);
    }
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(self) -> Result<()> {
        let name = format!("cap-kafka {}", self.post.group);
        let subject = self.post.subject();
        self.count.send_modify(|count| *count += 1);
        let ended = Ended(Arc::clone(&self.post), self.count.clone());
        let started = std::thread::Builder::new().name(name).spawn(move || {
            let _ended = ended;
            self.run();
        });
        started.map(drop).map_err(|cause| {
            let reason = format!("no thread could be started: {cause}");
            unavailable("subscribe to", subject, reason).because(cause)
        })
    }

    fn run(self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(cause) => {
                let reason = format!("no runtime could be started: {cause}");
                return self.post.give_up(unavailable("subscribe to", self.post.subject(), reason).because(cause));
            }
        };
        let guard = runtime.enter();
        match self.subscribe() {
            Ok(consumer) => {
                runtime.block_on(self.drive(&consumer));
                self.leave(&consumer);
                // Leaves the group, in good order if the broker answers.
                drop(consumer);
            }
            Err(error) => self.post.give_up(error),
        }
        drop(guard);
    }

    fn subscribe(&self) -> Result<StreamConsumer<Context>> {
        let context =
            Context { post: Arc::clone(&self.post), settings: Arc::clone(&self.settings), wanted: self.wanted.clone() };
        let config = self.settings.consumer(&self.wanted);
        let consumer: StreamConsumer<Context> =
            config.create_with_context(context).map_err(|cause| creation(&self.settings, cause))?;
        let topics: BTreeSet<String> = self.wanted.topics.iter().map(pattern::subscribed).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let refused = |cause| {
            let subject = self.post.subject();
            Error::new(ErrorKind::Invalid, "subscribe to", subject, words(&cause)).because(cause)
        };
        consumer.subscribe(&topics).map_err(refused)?;
        Ok(consumer)
    }

    async fn drive(&self, consumer: &StreamConsumer<Context>) {
        let mut closed = self.closed.clone();
        let mut messages = consumer.stream();
        let mut flow = Flow::Open;
        let mut next_commit = Instant::now();
        loop {
            let orders = self.post.orders();
            if orders.ends {
                return;
            }
            if let Err(error) = self.seek(consumer, &orders.seeks) {
                return self.post.give_up(error);
            }
            flow = self.regulate(consumer, flow, &orders);
            let now = Instant::now();
            let patience = self.settings.rejoin_timeout();
            let too_late = orders.placeless.map(|since| since + patience);
            if too_late.is_some_and(|end| now >= end) {
                return self.post.give_up(self.placeless(patience));
            }
            if orders.may_commit && now >= next_commit {
                self.commit(consumer);
                next_commit = now + self.settings.commit_interval();
            }
            let wake = match flow {
                Flow::Full(since) => Some(since + FULL),
                _ => None,
            };
            let commit = (orders.may_commit && now < next_commit).then_some(next_commit);
            let timer = wake.into_iter().chain(commit).chain(too_late).min();
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => return,
                () = self.post.bell.notified() => {}
                () = sleep_until(timer) => {}
                () = self.pull(&mut messages, orders.room), if !matches!(flow, Flow::Full(_)) => {}
            }
        }
    }

    /// Why a consumer that lost its place is over. A new one joins under another id, and if the group does not take it
    /// either, `subscribe` says so.
    fn placeless(&self, patience: Duration) -> Error {
        let fault = self.post.fault().map(|fault| format!("; last: {}", fault.reason)).unwrap_or_default();
        let reason = format!("it lost its partitions, and the group has given it none again for {patience:?}{fault}");
        unavailable("receive from", self.post.subject(), reason)
    }

    /// Polls: hands events to the context, and messages to the ledger, as many as it has room for.
    async fn pull(&self, messages: &mut MessageStream<'_, Context>, room: usize) {
        std::future::poll_fn(|cx| {
            let (mut seen, mut arrived) = (0, 0);
            while seen < room.max(1) {
                match Pin::new(&mut *messages).poll_next(cx) {
                    Poll::Ready(Some(Ok(record))) => {
                        let key = (record.offset(), wire::born(&record));
                        let mut state = self.post.lock();
                        let delivery = || wire::delivery(&record);
                        arrived += usize::from(state.ledger.arrive(record.topic(), record.partition(), key, delivery));
                        if state.ledger.room() == 0 {
                            seen = room;
                        }
                    }
                    // The context was told, with the reason.
                    Poll::Ready(Some(Err(_))) => {}
                    Poll::Ready(None) | Poll::Pending => break,
                }
                seen += 1;
            }
            if arrived > 0 {
                self.post.arrived.notify_one();
            }
            if seen > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Fetches once more from where deliveries were given back.
    fn seek(&self, consumer: &StreamConsumer<Context>, seeks: &[Position]) -> Result<()> {
        for position in seeks {
            let Place { topic, partition } = &position.place;
            let sought = consumer.seek(topic, *partition, Offset::Offset(position.offset), Duration::ZERO);
            if let Err(cause) = sought {
                // They come again to the next consumer.
                let reason = format!("deliveries of `{topic}` were given back, and cannot be fetched again: {cause}");
                return Err(unavailable("receive from", self.post.subject(), reason).because(cause));
            }
        }
        Ok(())
    }

    /// Pauses when the engine is slow, and goes on when half of what it may hold is free again.
    fn regulate(&self, consumer: &StreamConsumer<Context>, flow: Flow, orders: &Orders) -> Flow {
        let paused = |outcome: KafkaResult<()>| {
            if let Err(error) = outcome {
                tracing::warn!(%error, group = %self.post.group, "partitions could not be paused or resumed");
            }
        };
        let assigned = || consumer.assignment().unwrap_or_default();
        match flow {
            Flow::Open | Flow::Full(_) if orders.room > 0 => Flow::Open,
            Flow::Open => Flow::Full(Instant::now()),
            Flow::Full(since) if since.elapsed() < FULL => flow,
            Flow::Full(_) => {
                paused(consumer.pause(&assigned()));
                Flow::Paused
            }
            Flow::Paused if orders.is_half_free => {
                paused(consumer.resume(&assigned()));
                Flow::Open
            }
            Flow::Paused => {
                if orders.is_changed {
                    paused(consumer.pause(&assigned()));
                }
                Flow::Paused
            }
        }
    }

    fn commit(&self, consumer: &StreamConsumer<Context>) {
        let mut state = self.post.lock();
        let positions = state.ledger.commit();
        if positions.is_empty() {
            return;
        }
        state.committing = Some(positions.clone());
        drop(state);
        if let Err(error) = consumer.commit(&offsets(&positions), CommitMode::Async) {
            tracing::debug!(%error, group = %self.post.group, "offsets could not be committed; they will be");
            let mut state = self.post.lock();
            if let Some(positions) = state.committing.take() {
                state.ledger.uncommit(positions);
            }
        }
    }

    /// Commits what is acknowledged, for good.
    fn leave(&self, consumer: &StreamConsumer<Context>) {
        let mut state = self.post.lock();
        // One that is still on its way is confirmed by this one.
        if let Some(positions) = state.committing.take() {
            state.ledger.uncommit(positions);
        }
        let positions = state.ledger.commit();
        drop(state);
        commit_now(consumer, &self.post, &positions);
    }
}

fn commit_now(consumer: &impl rdkafka::consumer::Consumer<Context>, post: &Post, positions: &[Position]) {
    if positions.is_empty() {
        return;
    }
    if let Err(error) = consumer.commit(&offsets(positions), CommitMode::Sync) {
        // Nothing is lost: what is not committed comes again, and the inbox knows it.
        tracing::info!(%error, group = %post.group, "offsets could not be committed at the end");
    }
}

fn offsets(positions: &[Position]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for Position { place, offset, metadata } in positions {
        let mut entry = list.add_partition(&place.topic, place.partition);
        if let Err(error) = entry.set_offset(Offset::Offset(*offset)) {
            tracing::error!(%error, offset, "not an offset");
        }
        entry.set_metadata(metadata);
    }
    list
}

#[derive(Debug, Clone, Copy)]
enum Flow {
    Open,
    /// There is no room since then.
    Full(Instant),
    Paused,
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What librdkafka calls from the thread that polls.
struct Context {
    post: Arc<Post>,
    settings: Arc<Settings>,
    wanted: Subscription,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let fault = Fault::new(&error, reason);
        let has_joined = *self.post.joined.borrow();
        tracing::debug!(target: "librdkafka", group = %self.post.group, %error, "{reason}");
        let end = ended(self.post.subject(), &fault);
        let is_outage = fault.code == rdkafka::error::RDKafkaErrorCode::AllBrokersDown;
        if !is_outage {
            self.post.lock().fault = Some(fault);
        }
        // Before it has joined, nothing is out that others might have by now: librdkafka goes on trying.
        if let Some(end) = end.filter(|_| has_joined || !is_outage) {
            self.post.give_up(end);
        }
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => self.assigned(consumer, partitions),
            Rebalance::Revoke(partitions) => self.revoked(consumer, partitions),
            Rebalance::Error(error) => tracing::warn!(%error, group = %self.post.group, "a rebalance failed"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        let mut state = self.post.lock();
        let Some(positions) = state.committing.take() else {
            return;
        };
        if let Err(error) = result {
            tracing::debug!(%error, group = %self.post.group, "offsets were not committed; they will be");
            state.ledger.uncommit(positions);
        }
    }
}

impl Context {
    /// Learns how far the group is in partitions that it gets. Where it has not begun, it begins now, and what is sent
    /// from now on is its own, whenever it is here.
    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let mut committed = match partitions.count() {
            0 => None,
            _ => consumer.committed_offsets(partitions.clone(), ASK).ok(),
        };
        let (mut begun, mut first) = (Vec::new(), Vec::new());
        for partition in partitions.elements() {
            let (topic, number) = (partition.topic(), partition.partition());
            let place = Place { topic: topic.into(), partition: number };
            // If the broker does not tell, whatever comes may have been delivered before.
            let mut beginning =
                Beginning { delivered_before: i64::MAX, is_wanted: self.wants(topic), ..Beginning::default() };
            let range = committed.as_ref().and_then(|_| consumer.fetch_watermarks(topic, number, ASK).ok());
            if committed.is_some() && range.is_none() {
                // A broker that is away costs one time limit, not one for each partition.
                committed = None;
            }
            let stored = committed.as_ref().and_then(|list| list.find_partition(topic, number));
            match (stored.map(|stored| (stored.offset(), stored.metadata().to_owned())), range) {
                (Some((Offset::Offset(offset), metadata)), Some((low, high))) => {
                    if offset < low {
                        let lost = low - offset;
                        tracing::error!(topic, partition = number, group = %self.post.group, lost,
                            "the broker has deleted records that the group had not received (the topic's retention)");
                    }
                    beginning.start = Some(offset);
                    beginning.metadata = metadata;
                    beginning.delivered_before = high;
                }
                (Some((Offset::Invalid, _)), Some((low, high))) => {
                    let offset = if self.settings.begins_at_end() { high } else { low };
                    beginning.start = Some(offset);
                    beginning.delivered_before = i64::MIN;
                    first.push(Position { place: place.clone(), offset, metadata: String::new() });
                }
                _ => tracing::warn!(topic, partition = number, "the broker does not tell how far the group is"),
            }
            begun.push((place, beginning));
        }
        let mut state = self.post.lock();
        for (place, beginning) in begun {
            state.ledger.assign(place, beginning);
        }
        state.is_changed = true;
        state.placeless = None;
        drop(state);
        commit_now(consumer, &self.post, &first);
        tracing::debug!(group = %self.post.group, partitions = partitions.count(), "partitions were assigned");
        self.post.joined.send_replace(true);
        self.post.bell.notify_one();
    }

    /// Commits what is done of partitions that go to other members.
    fn revoked(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let places: Vec<Place> = partitions
            .elements()
            .iter()
            .map(|partition| Place { topic: partition.topic().into(), partition: partition.partition() })
            .collect();
        let is_lost = consumer.assignment_lost();
        if !is_lost {
            self.post.hand_over(&places);
        }
        // A partition that goes while it is paused would be paused when it comes back.
        if let Err(error) = consumer.resume(partitions) {
            tracing::debug!(%error, group = %self.post.group, "partitions that go could not be resumed");
        }
        let mut state = self.post.lock();
        let positions = state.ledger.commit_of(&places);
        state.ledger.revoke(&places);
        if is_lost {
            state.placeless.get_or_insert_with(Instant::now);
        }
        drop(state);
        self.post.bell.notify_one();
        if !is_lost {
            commit_now(consumer, &self.post, &positions);
        }
        tracing::debug!(group = %self.post.group, partitions = places.len(), is_lost, "partitions were revoked");
    }

    fn wants(&self, topic: &str) -> bool {
        let topic = Topic::from_stored(topic);
        !pattern::is_internal(topic.as_str()) && self.wanted.topics.iter().any(|pattern| pattern.matches(&topic))
    }
}
