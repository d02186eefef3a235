//! A group's side of the broker: deliveries become inbox records in batches, and are acknowledged only then.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::content;
use crate::engine::Engine;
use crate::engine::backoff::Pause;
use crate::engine::group::{Carried, Group, Taken};
use crate::engine::node::Epoch;
use crate::engine::slots::Held;
use crate::engine::step::Step;
use crate::error::{ErrorKind, Result};
use crate::headers;
use crate::id::MessageId;
use crate::lifecycle::{self, Status};
use crate::message::Message;
use crate::name::Topic;
use crate::storage::{Claim, Inserted, NewRecord, Table};
use crate::time::Timestamp;
use crate::transport::{Consumer, Delivery, DeliveryTag, Subscription};

/// At most so many deliveries in one insert.
const BATCH: usize = 500;
/// So many inserts are on their way at once: one waits for its commit while the next is carried out. The second begins
/// when half a batch is there.
const STORES: usize = 2;
/// While others are being stored, deliveries are looked for no more often than this: they wait in any case, and to be
/// woken for each of them costs more than the rest.
const LOOK: Duration = Duration::from_millis(1);

/// A group's consumer, made when the engine starts, for the first run of its loop.
pub(crate) type FirstConsumer = Arc<Mutex<Option<Box<dyn Consumer>>>>;

/// Begins to consume for a group.
pub(crate) async fn subscribe(engine: &Engine, group: &Group) -> Result<Box<dyn Consumer>> {
    let subscription = Subscription {
        group: group.name.clone(),
        topics: group.subscriptions.iter().map(|subscription| subscription.pattern.clone()).collect(),
        prefetch: engine.options.prefetch,
    };
    engine.transport.subscribe(subscription).await
}

/// Consumes until the engine stops consuming, or the connection is lost.
pub(crate) async fn run(engine: Arc<Engine>, group: Arc<Group>, first: FirstConsumer) -> Result<()> {
    let stop = &engine.stop.consumers;
    if stop.is_cancelled() {
        return Ok(());
    }
    let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut consumer = match first {
        Some(consumer) => consumer,
        None => subscribe(&engine, &group).await?,
    };
    engine.health.well(&name(&group));
    let mut storing: VecDeque<JoinHandle<TakenOver>> = VecDeque::new();
    // Received and read while others are being stored.
    let mut waiting: Vec<Arrival> = Vec::new();
    let most = BATCH.min(engine.options.prefetch);
    let mut looked = Instant::now();
    let mut ended = loop {
        let room = most - waiting.len();
        let is_early = !storing.is_empty() && looked.elapsed() < LOOK;
        let stored = tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            stored = next(&mut storing) => Some(stored),
            () = tokio::time::sleep_until(looked + LOOK), if is_early && room > 0 => None,
            received = consumer.receive(room), if !is_early && room > 0 => match received {
                Ok(deliveries) => {
                    looked = Instant::now();
                    waiting.extend(arrivals(&engine, &group, deliveries));
                    None
                }
                Err(error) => break Err(error),
            },
        };
        let mut over = None;
        let enough = if storing.is_empty() { 1 } else { most.div_ceil(2) };
        if storing.len() < STORES && waiting.len() >= enough {
            match what_is_there(consumer.as_mut(), most - waiting.len()).await {
                Ok(deliveries) => waiting.extend(arrivals(&engine, &group, deliveries)),
                Err(error) => over = Some(error),
            }
            let arrivals = std::mem::take(&mut waiting);
            storing.push_back(tokio::spawn(take_over(Arc::clone(&engine), Arc::clone(&group), arrivals)));
        }
        if let Some(stored) = stored
            && let Err(error) = finish(&engine, &group, consumer.as_mut(), stored).await
        {
            break Err(error);
        }
        if let Some(error) = over {
            break Err(error);
        }
    };
    // What is being stored is not given up half-way. What still waits was not acknowledged, and goes back.
    while !storing.is_empty() {
        let stored = next(&mut storing).await;
        ended = ended.and(finish(&engine, &group, consumer.as_mut(), stored).await);
    }
    ended
}

/// What came since the last look, without waiting.
async fn what_is_there(consumer: &mut dyn Consumer, most: usize) -> Result<Vec<Delivery>> {
    if most == 0 {
        return Ok(Vec::new());
    }
    tokio::select! {
        biased;
        received = consumer.receive(most) => received,
        () = std::future::ready(()) => Ok(Vec::new()),
    }
}

/// The end of the oldest that is being stored.
async fn next(storing: &mut VecDeque<JoinHandle<TakenOver>>) -> TakenOver {
    let Some(oldest) = storing.front_mut() else { return std::future::pending().await };
    let ended = oldest.await;
    storing.pop_front();
    match ended {
        Ok(stored) => stored,
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        // Nobody aborts it: the runtime is at its end.
        Err(_) => std::future::pending().await,
    }
}

fn arrivals(engine: &Engine, group: &Group, deliveries: Vec<Delivery>) -> Vec<Arrival> {
    engine.activity.record();
    let arrivals: Vec<Arrival> = deliveries.into_iter().map(|delivery| arrival(engine, group, delivery)).collect();
    group.slots.learn_sizes(arrivals.iter().map(|arrival| arrival.record.content.len()));
    tell(engine, Step::Received, &arrivals);
    arrivals
}

fn tell(engine: &Engine, step: Step, arrivals: &[Arrival]) {
    engine.steps.tell_all(step, arrivals.iter().map(|arrival| &arrival.record.message_id));
}

/// What became of deliveries.
struct TakenOver {
    /// In the inbox.
    stored: Vec<(Stored, Vec<Arrival>)>,
    /// To be given back, if nothing was stored.
    not_stored: Vec<DeliveryTag>,
}

/// Acknowledges what is stored, and lets its handlers begin.
async fn finish(engine: &Arc<Engine>, group: &Arc<Group>, consumer: &mut dyn Consumer, taken: TakenOver) -> Result<()> {
    let tags: Vec<_> = taken.stored.iter().flat_map(|(_, arrivals)| arrivals).map(|arrival| arrival.tag).collect();
    let acknowledged = match (tags.is_empty(), taken.not_stored.is_empty()) {
        (false, _) => consumer.ack(tags).await,
        (true, false) => consumer.release(taken.not_stored).await,
        (true, true) => Ok(()),
    };
    for (stored, arrivals) in taken.stored {
        tell(engine, Step::Acknowledged, &arrivals);
        // What was claimed goes on, acknowledged or not: it is in the inbox, held by this node.
        stored.proceed(engine, group, arrivals);
    }
    engine.activity.record();
    acknowledged
}

/// Stores deliveries. While the storage is away they are kept, unacknowledged.
async fn take_over(engine: Arc<Engine>, group: Arc<Group>, arrivals: Vec<Arrival>) -> TakenOver {
    let mut pause = Pause::quick();
    loop {
        match store(&engine, &group, &arrivals).await {
            Ok(stored) => {
                tell(&engine, Step::Stored, &arrivals);
                return TakenOver { stored: vec![(stored, arrivals)], not_stored: Vec::new() };
            }
            Err(error) if arrivals.len() > 1 && !error.is_retryable() => {
                engine.health.ill(&name(&group), error);
                return one_by_one(&engine, &group, arrivals).await;
            }
            Err(error) => engine.health.ill(&name(&group), error),
        }
        tokio::select! {
            () = pause.wait() => {}
            () = engine.stop.consumers.cancelled() => {
                let not_stored = arrivals.into_iter().map(|arrival| arrival.tag).collect();
                return TakenOver { stored: Vec::new(), not_stored };
            }
        }
    }
}

/// The storage refuses something in a batch: the others must not suffer for it. What it refuses stays with the broker,
/// unacknowledged, and is delivered again after the next reconnect; health says why.
async fn one_by_one(engine: &Engine, group: &Group, arrivals: Vec<Arrival>) -> TakenOver {
    let mut taken = TakenOver { stored: Vec::with_capacity(arrivals.len()), not_stored: Vec::new() };
    for arrival in arrivals {
        match store(engine, group, std::slice::from_ref(&arrival)).await {
            Ok(stored) => taken.stored.push((stored, vec![arrival])),
            Err(error) => {
                let record = &arrival.record;
                tracing::error!(message = %record.message_id, topic = %record.topic, %error, "the inbox refuses a delivery");
                engine.health.ill(&name(group), error);
            }
        }
    }
    taken
}

fn name(group: &Group) -> String {
    format!("consumer {}", group.name)
}

/// A delivery as a message, and as the record that is to be stored for it.
struct Arrival {
    tag: DeliveryTag,
    record: NewRecord,
    message: Message,
}

impl Arrival {
    /// Whether it is to be handled, and not parked.
    fn is_due(&self) -> bool {
        self.record.state.due().is_some()
    }
}

/// What an insert left to do, once the deliveries are acknowledged.
struct Stored {
    /// For each arrival what is held of it, if its handler is to begin.
    begun: Vec<Option<Held>>,
    epoch: Option<Epoch>,
    some_wait: bool,
}

impl Stored {
    fn proceed(self, engine: &Arc<Engine>, group: &Group, arrivals: Vec<Arrival>) {
        engine.health.well(&name(group));
        if let Some(epoch) = self.epoch {
            let begun = self.begun.into_iter().zip(arrivals).filter_map(|(held, arrival)| {
                held.map(|held| Taken { held, message: Carried::Arrived(arrival.message), is_suspect: false })
            });
            group.dispatch(engine, &epoch, begun);
        }
        if self.some_wait {
            engine.scheduler.wake(group.lane);
        }
    }
}

/// Inserts records into the inbox. As many as the group has room for are claimed with the same statement and go on at
/// once; the others wait in the inbox for a claim, by this node or another.
async fn store(engine: &Engine, group: &Group, arrivals: &[Arrival]) -> Result<Stored> {
    // On a stop nothing new begins here; another node can.
    let epoch = engine.node.current().filter(|_| !engine.stop.quiesce.is_cancelled());
    let due = arrivals.iter().filter(|arrival| arrival.is_due()).count();
    let mut room = match epoch {
        Some(_) => group.slots.take_soon(due).await,
        None => group.slots.take(0),
    };
    let epoch = epoch.filter(|_| room.len() > 0);
    let claim = epoch.as_ref().map(|epoch| Claim::by(epoch.id));

    let mut free = room.len();
    let mut records = Vec::with_capacity(arrivals.len());
    for arrival in arrivals {
        let mut record = arrival.record.clone();
        if arrival.is_due() && free > 0 {
            free -= 1;
            record.state = lifecycle::received(true);
        }
        records.push(record);
    }
    let begins: Vec<bool> = records.iter().map(|record| record.state.status() == Status::Queued).collect();
    let inserted = match engine.storage.insert(Table::Inbox, records, claim).await {
        Ok(inserted) => inserted,
        Err(error) => {
            if let (Some(epoch), Some(claim)) = (&epoch, claim) {
                if error.kind() == ErrorKind::LeaseLost {
                    engine.node.lost(epoch);
                } else {
                    // It may have been committed all the same, with nobody to work on it.
                    engine.undo_claim(Table::Inbox, claim, epoch).await;
                }
            }
            return Err(error);
        }
    };
    let mut stored = Stored { begun: Vec::with_capacity(arrivals.len()), epoch, some_wait: false };
    for ((arrival, outcome), begins) in arrivals.iter().zip(inserted).zip(begins) {
        let record = &arrival.record;
        let begun = match (outcome, claim) {
            (Inserted::Stored(id), Some(claim)) if begins => {
                room.next().map(|slot| Held::fresh(id, record, claim, group.lane, slot))
            }
            (Inserted::Stored(_), _) => {
                stored.some_wait |= arrival.is_due();
                engine.notice_parked(record);
                None
            }
            (Inserted::Duplicate, _) => {
                tracing::debug!(message = %record.message_id, group = %group.name, "delivered again: it is in the inbox already");
                None
            }
        };
        stored.begun.push(begun);
    }
    Ok(stored)
}

/// The inbox record of a delivery, be it ours or foreign. What can never be handled is parked with the reason.
fn arrival(engine: &Engine, group: &Group, delivery: Delivery) -> Arrival {
    let tag = delivery.tag;
    let (message, fault) = message(group, delivery);
    let fault = fault.or_else(|| match group.subscription(&message.topic) {
        Some(_) => None,
        None => Some(format!("no subscription of group `{}` matches topic `{}`", group.name, message.topic)),
    });
    let record = NewRecord {
        content: Arc::from(content::wrap(&message, Timestamp::now())),
        version: engine.options.version.clone(),
        group: Some(group.name.clone()),
        state: match fault {
            None => lifecycle::received(false),
            Some(reason) => lifecycle::parked(reason, &group.rules),
        },
        message_id: message.id.clone(),
        topic: message.topic.clone(),
    };
    Arrival { tag, record, message }
}

fn message(group: &Group, delivery: Delivery) -> (Message, Option<String>) {
    let mut headers = delivery.headers;
    let id = message_id(group, headers.get(headers::MESSAGE_ID), &delivery.topic, delivery.origin.as_deref());
    let (topic, fault) = match topic(headers.get(headers::MESSAGE_NAME), &delivery.topic) {
        Ok(topic) => (topic, None),
        Err(error) => (Topic::from_stored("invalid"), Some(error.to_string())),
    };
    headers.set(headers::MESSAGE_GROUP, group.name.as_str());
    for (name, value) in [(headers::MESSAGE_ID, id.as_str()), (headers::MESSAGE_NAME, topic.as_str())] {
        if headers.get(name) != Some(value) {
            headers.set(name, value);
        }
    }
    (Message { id, topic, headers, payload: delivery.body }, fault)
}

/// A foreign message has no id: the broker's own identity of it gives one that a redelivery repeats. Without either a
/// redelivery cannot be told from a second message, and is handled again rather than lost.
fn message_id(group: &Group, header: Option<&str>, topic: &str, origin: Option<&str>) -> MessageId {
    if let Some(id) = header.and_then(|id| MessageId::try_from(id).ok()) {
        return id;
    }
    match origin {
        Some(origin) => {
            MessageId::derive(&[b"origin", topic.as_bytes(), group.name.as_str().as_bytes(), origin.as_bytes()])
        }
        None => MessageId::generate(),
    }
}

fn topic(header: Option<&str>, routed: &str) -> Result<Topic> {
    match header.map(Topic::try_from) {
        Some(Ok(topic)) => Ok(topic),
        _ => Topic::try_from(routed),
    }
}
