//! The relay: claims due outbox records, sends them with many confirms outstanding, and hands each outcome to be
//! settled as it comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::Instrument as _;

use crate::content;
use crate::engine::Engine;
use crate::engine::backoff::Breaker;
use crate::engine::scheduler::OUTBOX;
use crate::engine::slots::{Held, Room, Slot};
use crate::engine::step::Step;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::{self, Begin, Outcome};
use crate::storage::{Claim, Record};
use crate::transport::{Confirm, Outgoing};

/// How many records try whether the broker is back.
const PROBE: usize = 8;
/// After which a message is due again that the broker could not be asked to take.
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(200);

/// What outlives a restart of the loop.
#[derive(Debug)]
pub(crate) struct Relay {
    breaker: Breaker,
}

impl Relay {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { breaker: Breaker::new() })
    }
}

/// Runs until the engine takes no new work. While one batch is being handed to the transport the next is being claimed.
pub(crate) async fn run(engine: Arc<Engine>, relay: Arc<Relay>) -> Result<()> {
    let mut batch = None;
    loop {
        let (claimed, ()) = tokio::join!(claim(&engine, &relay), send(&engine, &relay, batch.take()));
        let Some(claimed) = claimed? else { return Ok(()) };
        let probing = claimed.probing;
        if claimed.is_full {
            batch = Some(claimed);
            continue;
        }
        send(&engine, &relay, Some(claimed)).await;
        if !probing {
            engine.health.well("relay");
        }
        tokio::select! {
            biased;
            () = engine.stop.quiesce.cancelled() => return Ok(()),
            () = engine.scheduler.woken(OUTBOX) => {}
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
    /// They try whether the broker is back.
    probing: bool,
}

/// Waits for a life, for room, and for the breaker, and claims; nothing when the engine takes no new work.
async fn claim(engine: &Engine, relay: &Relay) -> Result<Option<Claimed>> {
    loop {
        let ready = async {
            let epoch = engine.node.joined().await;
            let room = engine.relay_slots.take_many(engine.options.relay_batch).await;
            let open_until = relay.breaker.open_until();
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
        if probing {
            room.truncate(PROBE);
        }
        match engine.claim(OUTBOX, &epoch, room.len()).await {
            Ok((claim, claimed)) => {
                engine.relay_slots.learn_sizes(claimed.records.iter().map(|record| record.content.len()));
                let is_full = claimed.records.len() == room.len();
                // Slots that are not needed are free again at once.
                room.truncate(claimed.records.len());
                return Ok(Some(Claimed { claim, records: claimed.records, room, is_full, probing }));
            }
            Err(error) if error.kind() == ErrorKind::LeaseLost => engine.node.lost(&epoch),
            Err(error) => return Err(error),
        }
    }
}

/// What the outcomes of one batch have in common.
#[derive(Debug)]
struct Batch {
    engine: Arc<Engine>,
    relay: Arc<Relay>,
    some_sent: AtomicBool,
    unavailable: Mutex<Option<Error>>,
}

impl Batch {
    /// Why the broker could not be asked to take a message of this batch, if so.
    fn unavailable(&self) -> MutexGuard<'_, Option<Error>> {
        self.unavailable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Batch {
    /// All outcomes are in. A batch of which nothing came through opens the breaker: the broker is away.
    fn drop(&mut self) {
        if self.some_sent.load(Ordering::Relaxed) {
            if self.relay.breaker.close() {
                self.engine.health.well("relay");
            }
        } else if let Some(error) = self.unavailable().take() {
            self.engine.health.ill("relay", error);
            self.relay.breaker.open();
        }
    }
}

/// Hands a batch to the transport. It returns when all are on their way.
async fn send(engine: &Arc<Engine>, relay: &Arc<Relay>, claimed: Option<Claimed>) {
    let Some(Claimed { claim, records, mut room, .. }) = claimed else { return };
    let outgoing: Vec<Outgoing> = {
        let batch = Arc::new(Batch {
            engine: Arc::clone(engine),
            relay: Arc::clone(relay),
            some_sent: AtomicBool::new(false),
            unavailable: Mutex::new(None),
        });
        let held = records.into_iter().zip(std::iter::from_fn(|| room.next()));
        held.filter_map(|(record, slot)| outgoing(&batch, claim, &record, slot)).collect()
    };
    if outgoing.is_empty() {
        return;
    }
    let ids: Vec<_> = match engine.steps.0 {
        Some(_) => outgoing.iter().map(|outgoing| outgoing.message.id.clone()).collect(),
        None => Vec::new(),
    };
    let span = tracing::debug_span!("send", messages = outgoing.len());
    engine.transport.send(outgoing).instrument(span).await;
    engine.steps.tell_all(Step::Sent, &ids);
}

/// The message of a record, with where its outcome goes; nothing if it was settled without being sent.
fn outgoing(batch: &Arc<Batch>, claim: Claim, record: &Record, slot: Slot) -> Option<Outgoing> {
    let engine = &batch.engine;
    let held = Held::new(record, claim, OUTBOX, slot);
    engine.steps.tell(Step::Claimed, &held.message_id);
    if let Begin::Exhausted(state) = lifecycle::begin(record.attempts, &engine.outbox_rules) {
        engine.outbox_settler.settle(held, state);
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

fn confirmed(batch: &Batch, held: Held, outcome: Result<()>) {
    let engine = &batch.engine;
    engine.activity.record();
    let outcome = match outcome {
        Ok(()) => {
            batch.some_sent.store(true, Ordering::Relaxed);
            tracing::debug!(message = %held.message_id, topic = %held.topic, attempt = held.attempts, "confirmed");
            engine.steps.tell(Step::Confirmed, &held.message_id);
            Outcome::Succeeded
        }
        Err(error) => {
            tracing::debug!(message = %held.message_id, topic = %held.topic, attempt = held.attempts, %error, "not sent");
            not_sent(batch, error)
        }
    };
    settle(engine, held, outcome);
}

/// An absent broker is no failure of the message: the attempt does not count, however long it is away.
fn not_sent(batch: &Batch, error: Error) -> Outcome {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Stopped | ErrorKind::LeaseLost => {
            *batch.unavailable() = Some(error);
            Outcome::GivenBack(UNAVAILABLE_PAUSE)
        }
        ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Corrupt => Outcome::Hopeless(error.to_string()),
        _ => Outcome::Failed(error.to_string()),
    }
}

fn settle(engine: &Engine, held: Held, outcome: Outcome) {
    let state = lifecycle::settle(held.attempts, outcome, &engine.outbox_rules, fastrand::f64());
    engine.outbox_settler.settle(held, state);
}
