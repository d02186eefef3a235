//! A group's side of the broker: deliveries become inbox records in batches, and are acknowledged only then.

use std::sync::{Arc, Mutex, PoisonError};

use crate::content;
use crate::engine::Engine;
use crate::engine::backoff::Pause;
use crate::engine::group::Group;
use crate::engine::node::Epoch;
use crate::engine::slots::Slot;
use crate::engine::step::Step;
use crate::error::{ErrorKind, Result};
use crate::headers;
use crate::id::MessageId;
use crate::lifecycle;
use crate::message::Message;
use crate::name::Topic;
use crate::storage::{Claim, Inserted, NewRecord, Record, Table};
use crate::time::Timestamp;
use crate::transport::{Consumer, Delivery, DeliveryTag, Subscription};

/// At most so many deliveries in one insert.
const BATCH: usize = 500;

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
    loop {
        let deliveries = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            deliveries = consumer.receive(BATCH.min(engine.options.prefetch)) => deliveries?,
        };
        take_over(&engine, &group, consumer.as_mut(), deliveries).await?;
    }
}

/// Stores deliveries and acknowledges them. While the storage is away they are kept, unacknowledged, and nothing more
/// is received.
async fn take_over(
    engine: &Arc<Engine>,
    group: &Arc<Group>,
    consumer: &mut dyn Consumer,
    deliveries: Vec<Delivery>,
) -> Result<()> {
    engine.activity.record();
    let tags: Vec<DeliveryTag> = deliveries.iter().map(|delivery| delivery.tag).collect();
    let records: Vec<NewRecord> = deliveries.into_iter().map(|delivery| record(engine, group, delivery)).collect();
    engine.steps.tell_all(Step::Received, records.iter().map(|record| &record.message_id));

    let mut pause = Pause::quick();
    loop {
        match store(engine, group, &records).await {
            Ok(stored) => {
                engine.steps.tell_all(Step::Stored, records.iter().map(|record| &record.message_id));
                let acknowledged = consumer.ack(tags).await;
                engine.steps.tell_all(Step::Acknowledged, records.iter().map(|record| &record.message_id));
                // What was claimed goes on, acknowledged or not: it is in the inbox, held by this node.
                stored.proceed(engine, group);
                engine.activity.record();
                return acknowledged;
            }
            Err(error) if records.len() > 1 && !error.is_retryable() => {
                engine.health.ill(&name(group), error);
                return one_by_one(engine, group, consumer, tags, records).await;
            }
            Err(error) => engine.health.ill(&name(group), error),
        }
        tokio::select! {
            () = pause.wait() => {}
            () = engine.stop.consumers.cancelled() => return consumer.release(tags).await,
        }
    }
}

/// The storage refuses something in a batch: the others must not suffer for it. What it refuses stays with the broker,
/// unacknowledged, and is delivered again after the next reconnect; health says why.
async fn one_by_one(
    engine: &Arc<Engine>,
    group: &Arc<Group>,
    consumer: &mut dyn Consumer,
    tags: Vec<DeliveryTag>,
    records: Vec<NewRecord>,
) -> Result<()> {
    for (tag, record) in tags.into_iter().zip(records) {
        match store(engine, group, std::slice::from_ref(&record)).await {
            Ok(stored) => {
                let acknowledged = consumer.ack(vec![tag]).await;
                stored.proceed(engine, group);
                acknowledged?;
            }
            Err(error) => {
                tracing::error!(message = %record.message_id, topic = %record.topic, %error, "the inbox refuses a delivery");
                engine.health.ill(&name(group), error);
            }
        }
    }
    Ok(())
}

fn name(group: &Group) -> String {
    format!("consumer {}", group.name)
}

/// What an insert left to do, once the deliveries are acknowledged.
struct Stored {
    begun: Vec<(Record, Slot)>,
    claim: Option<(Epoch, Claim)>,
    some_wait: bool,
}

impl Stored {
    fn proceed(self, engine: &Engine, group: &Group) {
        engine.health.well(&name(group));
        if let Some((epoch, claim)) = self.claim {
            group.dispatch(engine, &epoch, claim, self.begun);
        }
        if self.some_wait {
            engine.scheduler.wake(group.lane);
        }
    }
}

/// Inserts records into the inbox. As many as the group has room for are claimed with the same statement and go on at
/// once; the others wait in the inbox for a claim, by this node or another.
async fn store(engine: &Engine, group: &Group, records: &[NewRecord]) -> Result<Stored> {
    let claimable = records.iter().filter(|record| record.state.due().is_some()).count();
    // On a stop nothing new begins here; another node can.
    let epoch = engine.node.current().filter(|_| !engine.stop.quiesce.is_cancelled());
    let slots = if epoch.is_some() { group.slots.take(claimable) } else { Vec::new() };
    let claim = epoch.filter(|_| !slots.is_empty()).map(|epoch| {
        let claim = Claim::by(epoch.id);
        (epoch, claim)
    });

    let mut free = slots.len();
    let mut to_insert = records.to_vec();
    for record in to_insert.iter_mut().filter(|record| record.state.due().is_some()) {
        if free == 0 {
            break;
        }
        free -= 1;
        record.state = lifecycle::received(true);
    }
    let inserted = match engine.storage.insert(Table::Inbox, to_insert.clone(), claim.as_ref().map(|c| c.1)).await {
        Ok(inserted) => inserted,
        Err(error) => {
            if let Some((epoch, claim)) = &claim {
                if error.kind() == ErrorKind::LeaseLost {
                    engine.node.lost(epoch);
                } else {
                    // It may have been committed all the same, with nobody to work on it.
                    engine.undo_claim(Table::Inbox, *claim, epoch).await;
                }
            }
            return Err(error);
        }
    };
    let mut slots = slots.into_iter();
    let mut stored = Stored { begun: Vec::new(), claim, some_wait: false };
    for (record, outcome) in to_insert.into_iter().zip(inserted) {
        let begins = record.state.due().is_none() && !record.state.is_terminal();
        let slot = if begins { slots.next() } else { None };
        match (outcome, slot) {
            (Inserted::Stored(id), Some(slot)) => stored.begun.push((begun(id, record), slot)),
            (Inserted::Stored(_), None) if record.state.is_dead() => engine.notice_parked(&record),
            (Inserted::Stored(_), None) => stored.some_wait = true,
            (Inserted::Duplicate, _) => {
                tracing::debug!(message = %record.message_id, group = %group.name, "delivered again: it is in the inbox already");
            }
        }
    }
    Ok(stored)
}

/// The record as a claim would have answered it.
fn begun(id: crate::RecordId, record: NewRecord) -> Record {
    Record {
        id,
        message_id: record.message_id,
        version: record.version,
        topic: record.topic,
        group: record.group,
        content: record.content,
        status: record.state.status(),
        attempts: record.state.attempts(),
        added: Timestamp::now(),
        due: None,
        expires: None,
        owner: None,
        reason: None,
    }
}

/// The inbox record of a delivery, be it ours or foreign. What can never be handled is parked with the reason.
fn record(engine: &Engine, group: &Group, delivery: Delivery) -> NewRecord {
    let (message, fault) = message(group, delivery);
    let fault = fault.or_else(|| match group.subscription(&message.topic) {
        Some(_) => None,
        None => Some(format!("no subscription of group `{}` matches topic `{}`", group.name, message.topic)),
    });
    NewRecord {
        content: Arc::from(content::wrap(&message, Timestamp::now())),
        version: engine.options.version.clone(),
        group: Some(group.name.clone()),
        state: match fault {
            None => lifecycle::received(false),
            Some(reason) => lifecycle::parked(reason, &group.rules),
        },
        message_id: message.id,
        topic: message.topic,
    }
}

fn message(group: &Group, delivery: Delivery) -> (Message, Option<String>) {
    let mut headers = delivery.headers;
    let id = message_id(group, headers.get(headers::MESSAGE_ID), &delivery.topic, delivery.origin.as_deref());
    let (topic, fault) = match topic(headers.get(headers::MESSAGE_NAME), &delivery.topic) {
        Ok(topic) => (topic, None),
        Err(error) => (Topic::from_stored("invalid"), Some(error.to_string())),
    };
    headers.set(headers::MESSAGE_GROUP, group.name.as_str());
    headers.set(headers::MESSAGE_ID, id.as_str());
    headers.set(headers::MESSAGE_NAME, topic.as_str());
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
