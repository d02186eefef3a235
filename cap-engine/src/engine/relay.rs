//! The relay: claims due outbox records, sends them with many confirms outstanding, and hands each outcome to be
//! settled as it comes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::lifecycle::{Begin, Outcome, State};
use cap_core::storage::{Claim, Record};
use cap_core::transport::{Confirm, Outgoing};
use cap_core::{Error, ErrorKind, Result, Table, Topic, Unroutable, content, lifecycle};
use tracing::Instrument as _;

use crate::engine::backoff::Breaker;
use crate::engine::held::Held;
use crate::engine::scheduler::OUTBOX;
use crate::engine::slots::{Room, Slot};
use crate::engine::step::Step;
use crate::engine::topics::{Admission, Topics};
use crate::engine::{Engine, suspects};
use crate::unroutable::UnroutableRules;

/// How the loop is called in [`crate::Health`], and how the broker is, as far as sending goes.
pub(crate) const RELAY: &str = "relay";
pub(crate) const BROKER: &str = "broker";

/// How many records try whether the broker is back, or a topic takes some.
const PROBE: usize = 8;
/// After which a message is due again that the broker could not be asked to take.
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(200);
/// After which a suspect is due again that would have been sent beside one that is tried alone.
const COMPANY_PAUSE: Duration = Duration::from_millis(200);
/// After so many batches in a row of which the topics took nothing, it is told as an illness.
const FRUITLESS: usize = 2;

/// What outlives a restart of the loop.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    /// Of the broker as a whole.
    breaker: Breaker,
    /// Of each topic.
    topics: Topics,
    /// How many batches in a row brought nothing through because of their topics.
    fruitless: AtomicUsize,
    /// What becomes of messages that no group wants.
    unroutable: UnroutableRules,
}

impl Relay {
    pub(crate) fn new(unroutable: UnroutableRules) -> Self {
        Self { unroutable, ..Self::default() }
    }

    /// The topics that take nothing at present.
    pub(crate) fn topics(&self) -> &Topics {
        &self.topics
    }
}

/// Runs until the engine takes no new work. While one batch is being handed to the transport the next is being claimed.
pub(crate) async fn run(engine: Arc<Engine>) -> Result<()> {
    let mut batch = None;
    loop {
        let (claimed, ()) = tokio::join!(claim(&engine), send(&engine, batch.take()));
        let Some(claimed) = claimed? else { return Ok(()) };
        engine.health.well(RELAY);
        if claimed.is_full {
            batch = Some(claimed);
            continue;
        }
        send(&engine, Some(claimed)).await;
        let probe = async {
            match engine.relay.topics.next_probe() {
                Some(moment) => tokio::time::sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = engine.stop.quiesce.cancelled() => return Ok(()),
            () = engine.scheduler.woken(OUTBOX) => {}
            () = probe => {}
        }
    }
}

/// A claim's records, and the slots that they take.
struct Claimed {
    claim: Claim,
    records: Vec<Record>,
    room: Room,
    /// As many as were asked for: there may be more.
    is_full: bool,
}

/// Waits for a life, for room, and for the breaker, and claims; nothing when the engine takes no new work.
async fn claim(engine: &Engine) -> Result<Option<Claimed>> {
    loop {
        let ready = async {
            let epoch = engine.node.joined().await;
            let room = engine.relay_slots.take_many(engine.options.relay_batch).await;
            let open_until = engine.relay.breaker.open_until();
            if let Some(until) = open_until {
                tokio::time::sleep_until(until).await;
            }
            (epoch, room, open_until.is_some())
        };
        let (epoch, mut room, probing) = tokio::select! {
            biased;
            () = engine.stop.quiesce.cancelled() => return Ok(None),
            ready = ready => ready,
        };
        let open = engine.relay.topics.open();
        if probing || open.some_are_tried {
            room.truncate(PROBE);
        }
        match engine.claim(OUTBOX, &epoch, room.len(), room.bytes_left(), open.topics).await {
            Ok((claim, claimed)) => {
                engine.scheduler.claimed(claimed.records.iter().map(|record| &record.message_id));
                engine.relay_slots.learn_sizes(claimed.records.iter().map(|record| record.content.len()));
                let is_full = claimed.records.len() == room.len();
                // Slots that are not needed are free again at once.
                room.truncate(claimed.records.len());
                return Ok(Some(Claimed { claim, records: claimed.records, room, is_full }));
            }
            // The node goes on under a new id.
            Err(error) if error.kind() == ErrorKind::LeaseLost => {}
            Err(error) => return Err(error),
        }
    }
}

/// What the outcomes of one batch have in common.
#[derive(Debug)]
struct Batch {
    engine: Arc<Engine>,
    some_sent: AtomicBool,
    unavailable: Mutex<Option<Error>>,
    refused: Mutex<Option<Error>>,
}

impl Batch {
    fn new(engine: &Arc<Engine>) -> Arc<Self> {
        let (unavailable, refused) = (Mutex::default(), Mutex::default());
        Arc::new(Self { engine: Arc::clone(engine), some_sent: AtomicBool::new(false), unavailable, refused })
    }
}

fn set(place: &Mutex<Option<Error>>, error: Error) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
}

fn take(place: &Mutex<Option<Error>>) -> Option<Error> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Drop for Batch {
    /// All outcomes are in. A batch of which nothing came through since the broker is away opens the breaker. If nothing
    /// comes through again and again because of the topics, the relay is ill, too.
    fn drop(&mut self) {
        let relay = &self.engine.relay;
        if self.some_sent.load(Ordering::Relaxed) {
            let were_fruitless = relay.fruitless.swap(0, Ordering::Relaxed) > 0;
            if relay.breaker.close() || were_fruitless {
                self.engine.health.well(BROKER);
            }
            return;
        }
        if let Some(error) = take(&self.unavailable) {
            self.engine.health.ill(BROKER, error);
            relay.breaker.open();
        } else if let Some(error) = take(&self.refused)
            && relay.fruitless.fetch_add(1, Ordering::Relaxed) >= FRUITLESS
        {
            self.engine.health.ill(BROKER, error);
        }
    }
}

/// Hands a batch to the transport. It returns when all are on their way.
async fn send(engine: &Arc<Engine>, claimed: Option<Claimed>) {
    let Some(Claimed { claim, records, mut room, .. }) = claimed else { return };
    let outgoing: Vec<Outgoing> = {
        let batch = Batch::new(engine);
        let held = records.into_iter().zip(std::iter::from_fn(|| room.next()));
        held.filter_map(|(record, slot)| outgoing(&batch, claim, record, slot)).collect()
    };
    if outgoing.is_empty() {
        return;
    }
    let ids: Vec<_> = match engine.steps.0 {
        Some(_) => outgoing.iter().map(|outgoing| outgoing.message.id.clone()).collect(),
        None => Vec::new(),
    };
    let span = tracing::info_span!("send", otel.kind = "producer", messaging.batch.message_count = outgoing.len());
    engine.transport.send(outgoing).instrument(span).await;
    engine.steps.tell_all(Step::Sent, &ids);
}

/// The message of a record, with where its outcome goes; nothing if it is not sent now.
fn outgoing(batch: &Arc<Batch>, claim: Claim, record: Record, slot: Slot) -> Option<Outgoing> {
    let engine = &batch.engine;
    let mut held = Held::new(&record, claim, OUTBOX, slot);
    engine.steps.tell(Step::Claimed, &held.message_id);
    match lifecycle::begin(&held.begun, &engine.outbox_rules) {
        Begin::Run if held.begun.crashes == 0 => {}
        Begin::Run => {
            held.company = engine.suspects.try_among();
            if held.company.is_none() {
                settle(engine, held, Outcome::GivenBack(COMPANY_PAUSE));
                return None;
            }
        }
        Begin::Exhausted(state) => {
            engine.outbox_settler.settle(held, state);
            return None;
        }
        Begin::Alone(state) => {
            engine.tasks.spawn(send_alone(Arc::clone(engine), record, held, state));
            return None;
        }
    }
    if let Admission::Wait(pause) = engine.relay.topics.admit(&held.topic) {
        settle(engine, held, Outcome::GivenBack(pause));
        return None;
    }
    let message = match content::unwrap(&record.content, &record.topic, &record.message_id) {
        Ok(message) => message,
        Err(error) => {
            settle(engine, held, Outcome::Hopeless(error.to_string()));
            return None;
        }
    };
    let batch = Arc::clone(batch);
    let confirm = Confirm::new(move |outcome| confirmed(&batch, held, outcome));
    Some(Outgoing { message, confirm })
}

/// Sends a message whose attempts ended with their process so often that it is tried with no other suspect beside it.
async fn send_alone(engine: Arc<Engine>, record: Record, mut held: Held, state: State) {
    held.company = tokio::select! {
        biased;
        () = engine.stop.quiesce.cancelled() => return settle(&engine, held, Outcome::GivenBack(Duration::ZERO)),
        company = engine.suspects.alone() => Some(company),
    };
    if !suspects::mark(&engine, Table::Outbox, &held, state).await {
        return settle(&engine, held, Outcome::GivenBack(UNAVAILABLE_PAUSE));
    }
    let message = match content::unwrap(&record.content, &record.topic, &record.message_id) {
        Ok(message) => message,
        Err(error) => return settle(&engine, held, Outcome::Hopeless(error.to_string())),
    };
    let batch = Batch::new(&engine);
    let confirm = Confirm::new(move |outcome| confirmed(&batch, held, outcome));
    engine.transport.send(vec![Outgoing { message, confirm }]).await;
}

fn confirmed(batch: &Batch, held: Held, outcome: Result<()>) {
    let engine = &batch.engine;
    engine.activity.record();
    let outcome = match outcome {
        Ok(()) => {
            batch.some_sent.store(true, Ordering::Relaxed);
            tracing::debug!(
                messaging.message.id = %held.message_id.shown(),
                messaging.destination.name = %held.topic.shown(),
                cap.attempt = held.begun.attempts,
                "confirmed"
            );
            engine.steps.tell(Step::Confirmed, &held.message_id);
            if engine.relay.topics.accepted(&held.topic) {
                engine.scheduler.wake(OUTBOX);
            }
            Outcome::Succeeded
        }
        Err(error) => {
            tracing::debug!(
                messaging.message.id = %held.message_id.shown(),
                messaging.destination.name = %held.topic.shown(),
                cap.attempt = held.begun.attempts,
                error.message = %error,
                "not sent"
            );
            not_sent(batch, &held, error)
        }
    };
    settle(engine, held, outcome);
}

/// What is not the message's fault does not count, however long it lasts: an absent broker concerns all messages, a full
/// or missing queue those of its topic.
fn not_sent(batch: &Batch, held: &Held, error: Error) -> Outcome {
    match error.kind() {
        ErrorKind::Unroutable => unroutable(batch, held, error),
        ErrorKind::Unavailable | ErrorKind::Stopped | ErrorKind::LeaseLost => {
            set(&batch.unavailable, error);
            Outcome::GivenBack(UNAVAILABLE_PAUSE)
        }
        ErrorKind::Environment => waits(batch, &held.topic, error),
        ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Corrupt => Outcome::Hopeless(error.to_string()),
        _ => {
            let reason = error.to_string();
            batch.engine.failures.note(Table::Outbox, held, &reason);
            Outcome::Failed(reason)
        }
    }
}

/// It waits for its topic.
fn waits(batch: &Batch, topic: &Topic, error: Error) -> Outcome {
    set(&batch.refused, error.clone());
    let reason = error.to_string();
    Outcome::Waits(batch.engine.relay.topics.refused(topic, error), reason)
}

/// No group wants it: what becomes of it is the user's choice.
fn unroutable(batch: &Batch, held: &Held, error: Error) -> Outcome {
    match batch.engine.relay.unroutable.choice(&held.topic) {
        Unroutable::Wait => waits(batch, &held.topic, error),
        Unroutable::Dead => {
            batch.some_sent.store(true, Ordering::Relaxed);
            Outcome::Hopeless(error.to_string())
        }
        Unroutable::Drop => {
            batch.some_sent.store(true, Ordering::Relaxed);
            tracing::info!(messaging.message.id = %held.message_id.shown(), messaging.destination.name = %held.topic.shown(), "dropped: no group wants it");
            Outcome::Succeeded
        }
    }
}

fn settle(engine: &Engine, held: Held, outcome: Outcome) {
    let state = lifecycle::settle(&held.begun, outcome, &engine.outbox_rules, fastrand::f64());
    engine.outbox_settler.settle(held, state);
}
