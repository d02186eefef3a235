//! A group's side of the broker: deliveries become inbox records in batches, and are acknowledged only then.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::storage::{Claim, Inserted};
use cap_core::transport::{Consumer, Delivery, DeliveryTag, Subscription};
use cap_core::{Error, Result, Table, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::engine::Engine;
use crate::engine::arrival::{Arrival, arrival};
use crate::engine::backoff::Pause;
use crate::engine::group::{Carried, Group, Taken};
use crate::engine::held::Held;
use crate::engine::node::Epoch;
use crate::engine::refusal::{DOUBT, Refusal};
use crate::engine::slots::{Room, Slot};
use crate::engine::step::Step;
use crate::engine::storing::Storing;
use crate::engine::twins;

/// At most so many deliveries in one insert.
const BATCH: usize = 500;
/// So many inserts are on their way at once: one waits for its commit while the next is carried out. The second begins
/// when half a batch is there.
const STORES: usize = 2;
/// While others are being stored, deliveries are looked for no more often than this: they wait in any case, and to be
/// woken for each of them costs more than the rest.
const LOOK: Duration = Duration::from_millis(1);
/// At most so many bytes in one insert, but for a single delivery that is larger.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// After so long deliveries that the storage refuses go back to the broker, while others pass.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// A group's consumer, made when the engine starts, for the first run of its loop.
pub(crate) type FirstConsumer = Arc<Mutex<Option<Box<dyn Consumer>>>>;

/// Begins to consume for a group.
pub(crate) async fn subscribe(engine: &Engine, group: &Group) -> Result<Box<dyn Consumer>> {
    let subscription = Subscription {
        group: group.name.clone(),
        topics: group.subscriptions.iter().map(|subscription| subscription.pattern.clone()).collect(),
        prefetch: engine.options.prefetch,
        // Each is there twice until it is stored, as it came and as it is written; the other half is for what is being
        // handled.
        prefetch_bytes: (engine.options.in_flight_bytes / 4).max(1),
    };
    engine.transport.subscribe(subscription).await
}

/// Consumes until the engine stops consuming, or the connection is lost. While nothing can be stored it takes nothing: what
/// it had goes to others that can.
pub(crate) async fn run(engine: Arc<Engine>, group: Arc<Group>, first: FirstConsumer) -> Result<()> {
    let stop = &engine.stop.consumers;
    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (mut pause, mut is_trial) = (Pause::of_probes(), false);
    while !stop.is_cancelled() {
        let consumer = match first.take() {
            Some(consumer) => consumer,
            None => subscribe(&engine, &group).await?,
        };
        let storing = Arc::new(Storing::new(is_trial));
        match consume(&engine, &group, consumer, &storing).await {
            End::Over(ended) => return ended,
            End::GaveBack(error) => engine.health.ill(&name(&group), error),
        }
        if storing.has_succeeded() {
            pause.reset();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            ((), ()) = async { tokio::join!(engine.node.next_sign(), pause.wait()) } => is_trial = true,
        }
    }
    Ok(())
}

/// Why a consumer ended.
enum End {
    /// It is to stop, or the connection is lost.
    Over(Result<()>),
    /// Nothing could be stored for too long: what it had not stored went back to the broker.
    GaveBack(Error),
}

async fn consume(
    engine: &Arc<Engine>,
    group: &Arc<Group>,
    mut consumer: Box<dyn Consumer>,
    progress: &Arc<Storing>,
) -> End {
    let mut storing: VecDeque<JoinHandle<TakenOver>> = VecDeque::new();
    // Received and read while others are being stored.
    let mut waiting: Vec<Arrival> = Vec::new();
    let most = BATCH.min(engine.options.prefetch);
    let mut looked = Instant::now();
    let mut is_told = false;
    let began = Instant::now();
    let mut ended = loop {
        let room = most - waiting.len();
        let is_early = !storing.is_empty() && looked.elapsed() < LOOK;
        let stored = tokio::select! {
            biased;
            () = engine.stop.consumers.cancelled() => break Ok(()),
            stored = next(&mut storing) => Some(stored),
            error = progress.is_over(), if !storing.is_empty() => {
                give_back(engine, group, consumer, storing);
                return End::GaveBack(error);
            }
            () = tokio::time::sleep_until(began + progress.quiet()), if !is_told && storing.is_empty() => {
                is_told = true;
                engine.health.well(&name(group));
                None
            }
            () = tokio::time::sleep_until(looked + LOOK), if is_early && room > 0 => None,
            received = consumer.receive(room), if !is_early && room > 0 => match received {
                Ok(deliveries) => {
                    looked = Instant::now();
                    waiting.extend(arrivals(engine, group, deliveries));
                    None
                }
                Err(error) => break Err(error),
            },
        };
        let mut over = None;
        let enough = if storing.is_empty() { 1 } else { most.div_ceil(2) };
        if storing.len() < STORES && waiting.len() >= enough {
            match what_is_there(consumer.as_mut(), most - waiting.len()).await {
                Ok(deliveries) => waiting.extend(arrivals(engine, group, deliveries)),
                Err(error) => over = Some(error),
            }
            if storing.is_empty() {
                progress.begins();
            }
            let (arrivals, progress) = (std::mem::take(&mut waiting), Arc::clone(progress));
            storing.push_back(tokio::spawn(take_over(Arc::clone(engine), Arc::clone(group), arrivals, progress)));
        }
        if let Some(stored) = stored
            && let Err(error) = finish(engine, group, consumer.as_mut(), stored).await
        {
            break Err(error);
        }
        if let Some(error) = over {
            break Err(error);
        }
        if progress.given_back.is_cancelled() {
            // Nobody tries any longer to store what has just ended, and it may have been the last.
            give_back(engine, group, consumer, storing);
            return End::GaveBack(progress.is_over().await);
        }
    };
    // What is being stored is not given up half-way. What still waits was not acknowledged, and goes back.
    while !storing.is_empty() {
        let stored = next(&mut storing).await;
        ended = ended.and(finish(engine, group, consumer.as_mut(), stored).await);
    }
    End::Over(ended)
}

/// Gives back all that is not acknowledged. What turns out to be stored all the same is handled, and its second delivery is
/// a duplicate.
fn give_back(
    engine: &Arc<Engine>,
    group: &Arc<Group>,
    consumer: Box<dyn Consumer>,
    mut storing: VecDeque<JoinHandle<TakenOver>>,
) {
    drop(consumer);
    let (doing, group) = (Arc::clone(engine), Arc::clone(group));
    engine.tasks.spawn(async move {
        while !storing.is_empty() {
            for (stored, arrivals) in next(&mut storing).await.stored {
                stored.proceed(&doing, &group, arrivals);
            }
        }
    });
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
#[derive(Default)]
struct TakenOver {
    /// In the inbox.
    stored: Vec<(Stored, Vec<Arrival>)>,
    /// To be given back: a stop has come, or the storage has been refusing these for too long.
    not_stored: Vec<DeliveryTag>,
}

/// Acknowledges what is stored, and lets its handlers begin.
async fn finish(engine: &Arc<Engine>, group: &Arc<Group>, consumer: &mut dyn Consumer, taken: TakenOver) -> Result<()> {
    let tags: Vec<_> = taken.stored.iter().flat_map(|(_, arrivals)| arrivals).map(|arrival| arrival.tag).collect();
    let mut ended = if tags.is_empty() { Ok(()) } else { consumer.ack(tags).await };
    if ended.is_ok() && !taken.not_stored.is_empty() {
        ended = consumer.release(taken.not_stored).await;
    }
    for (stored, arrivals) in taken.stored {
        tell(engine, Step::Acknowledged, &arrivals);
        // What was claimed goes on, acknowledged or not: it is in the inbox, held by this node.
        stored.proceed(engine, group, arrivals);
    }
    engine.activity.record();
    ended
}

/// Stores deliveries. What the storage refuses is looked for by halves, so that its neighbours do not suffer, and parked.
/// While the storage refuses everything they are kept, unacknowledged, until this consumer is over.
async fn take_over(
    engine: Arc<Engine>,
    group: Arc<Group>,
    arrivals: Vec<Arrival>,
    progress: Arc<Storing>,
) -> TakenOver {
    let mut taken = TakenOver::default();
    let mut parts = parts(arrivals);
    let (mut pause, mut tries) = (Pause::quick(), 0);
    let began = Instant::now();
    while let Some(mut arrivals) = parts.pop() {
        let error = match store(&engine, &group, &arrivals).await {
            Ok(mut stored) => {
                progress.succeeds();
                let (again, failed) = twins::look(&engine, &group, &mut arrivals, &stored.duplicates).await;
                let again = stored.take_out(&mut arrivals, &again);
                tell(&engine, Step::Stored, &arrivals);
                taken.stored.push((stored, arrivals));
                let Some(error) = failed else {
                    tries = 0;
                    engine.health.well(&name(&group));
                    parts.extend((!again.is_empty()).then_some(again));
                    continue;
                };
                arrivals = again;
                error
            }
            Err(error) => error,
        };
        tries += 1;
        let waiting = arrivals.len() + parts.iter().map(Vec::len).sum::<usize>();
        let error = Error::new(
            error.kind(),
            "store",
            format!("{waiting} deliveries of group `{}`, which stay with the broker meanwhile", group.name),
            error.reason(),
        );
        let refusal = Refusal::of(&error, tries, !taken.stored.is_empty());
        engine.health.ill(&name(&group), error.clone());
        if refusal == Refusal::OfSomething {
            if arrivals.len() > 1 {
                let half = arrivals.split_off(arrivals.len() / 2);
                parts.push(half);
                parts.push(arrivals);
                continue;
            }
            if refusal.is_certain(&error)
                && arrivals.iter_mut().all(|arrival| arrival.give_way(&engine, &group, &error))
            {
                parts.push(arrivals);
                continue;
            }
        }
        // In doubt the others come first: if they pass, it is known not to be everything.
        let place = if tries >= DOUBT { 0 } else { parts.len() };
        parts.insert(place, arrivals);
        // Others pass: only these go back.
        if !taken.stored.is_empty() && began.elapsed() >= GIVE_BACK {
            return taken.with_rest(parts);
        }
        progress.fails(error);
        tokio::select! {
            biased;
            () = progress.given_back.cancelled() => return taken,
            () = engine.stop.consumers.cancelled() => return taken.with_rest(parts),
            () = pause.wait() => {}
        }
    }
    taken
}

impl TakenOver {
    fn with_rest(mut self, rest: Vec<Vec<Arrival>>) -> Self {
        self.not_stored = rest.into_iter().flatten().map(|arrival| arrival.tag).collect();
        self
    }
}

/// In parts that one statement takes, the last one first.
fn parts(arrivals: Vec<Arrival>) -> Vec<Vec<Arrival>> {
    let mut parts: Vec<Vec<Arrival>> = Vec::new();
    let mut bytes = 0_usize;
    for arrival in arrivals {
        let size = arrival.record.content.len();
        bytes = bytes.saturating_add(size);
        match parts.last_mut().filter(|_| bytes <= BATCH_BYTES) {
            Some(part) => part.push(arrival),
            None => {
                bytes = size;
                parts.push(vec![arrival]);
            }
        }
    }
    parts.reverse();
    parts
}

fn name(group: &Group) -> String {
    format!("consumer {}", group.name)
}

/// What an insert left to do, once the deliveries are acknowledged.
struct Stored {
    /// For each arrival what is held of it, if its handler is to begin.
    begun: Vec<Option<Held>>,
    epoch: Option<Epoch>,
    some_wait: bool,
    /// The places of those that are in the inbox already.
    duplicates: Vec<usize>,
}

impl Stored {
    /// Takes those at `places` out, which are in order: they are to be stored after all.
    fn take_out(&mut self, arrivals: &mut Vec<Arrival>, places: &[usize]) -> Vec<Arrival> {
        let taken = places.iter().rev().map(|place| {
            self.begun.remove(*place);
            arrivals.remove(*place)
        });
        taken.collect()
    }

    fn proceed(self, engine: &Arc<Engine>, group: &Group, arrivals: Vec<Arrival>) {
        engine.health.well(&name(group));
        if let Some(epoch) = self.epoch {
            let begun = self.begun.into_iter().zip(arrivals).filter_map(|(held, arrival)| {
                let added = Timestamp::now();
                held.map(|held| Taken { held, message: Carried::Arrived(arrival.message), added, place: None })
            });
            group.dispatch(engine, &epoch, begun);
        }
        if self.some_wait {
            engine.scheduler.wake(group.lane);
        }
    }
}

/// The slots for what begins at once: of the group, and of its subscriptions.
struct Rooms {
    group: Room,
    shares: Vec<Option<Room>>,
}

impl Rooms {
    async fn take(group: &Group, arrivals: &[Arrival]) -> Self {
        let mut wanted = vec![0_usize; group.subscriptions.len()];
        let may_begin = |place: &usize| !group.subscriptions[*place].share.is_shut();
        arrivals.iter().filter_map(Arrival::begins).filter(may_begin).for_each(|place| wanted[place] += 1);
        let mut shares = Vec::with_capacity(wanted.len());
        for (subscription, wanted) in group.subscriptions.iter().zip(wanted) {
            let share = if wanted > 0 { Some(subscription.share.slots.take_soon(wanted).await) } else { None };
            shares.push(share);
        }
        let all = shares.iter().flatten().map(Room::len).sum();
        Self { group: group.slots.take(all), shares }
    }

    fn none(group: &Group) -> Self {
        Self { group: group.slots.take(0), shares: Vec::new() }
    }

    /// A slot of the group's and one of the subscription's.
    fn next(&mut self, place: usize) -> Option<(Slot, Slot)> {
        let share = self.shares.get_mut(place)?.as_mut()?;
        if share.len() == 0 {
            return None;
        }
        Some((self.group.next()?, share.next()?))
    }
}

/// Inserts records into the inbox. As many as there is room for are claimed with the same statement and go on at
/// once; the others wait in the inbox for a claim, by this node or another.
async fn store(engine: &Arc<Engine>, group: &Group, arrivals: &[Arrival]) -> Result<Stored> {
    // On a stop nothing new begins here; another node can.
    let epoch = engine.node.current().filter(|_| !engine.stop.quiesce.is_cancelled());
    let mut rooms = match epoch {
        Some(_) => Rooms::take(group, arrivals).await,
        None => Rooms::none(group),
    };
    let mut slots: Vec<Option<(Slot, Slot)>> =
        arrivals.iter().map(|arrival| arrival.begins().and_then(|place| rooms.next(place))).collect();
    drop(rooms);
    let epoch = epoch.filter(|_| slots.iter().any(Option::is_some));
    let claim = epoch.as_ref().map(|epoch| Claim::by(epoch.id));

    let records = arrivals.iter().zip(&slots).map(|(arrival, slot)| arrival.record_to_store(slot.is_some())).collect();
    let inserted = match engine.storage.insert(Table::Inbox, records, claim).await {
        Ok(inserted) => inserted,
        Err(error) => {
            if let (Some(epoch), Some(claim)) = (epoch, claim) {
                // Nobody waits for the release: what failed is told at once, and inserted again it is a duplicate.
                let (engine, error) = (Arc::clone(engine), error.clone());
                let tasks = engine.tasks.clone();
                tasks.spawn(async move { engine.forget_claim(Table::Inbox, claim, &epoch, &error).await });
            }
            return Err(error);
        }
    };
    let (begun, duplicates) = (Vec::with_capacity(arrivals.len()), Vec::new());
    let mut stored = Stored { begun, epoch, some_wait: false, duplicates };
    for (place, ((arrival, outcome), slots)) in arrivals.iter().zip(inserted).zip(&mut slots).enumerate() {
        let record = &arrival.record;
        let begun = match (outcome, claim, slots.take()) {
            (Inserted::Stored(id), Some(claim), Some((slot, share))) => {
                Some(Held::fresh(id, record, claim, group.lane, slot, share))
            }
            (Inserted::Stored(_), _, _) => {
                stored.some_wait |= arrival.is_due() && group.is_claimed_for(arrival);
                engine.notice_parked(record);
                None
            }
            (Inserted::Duplicate, _, _) => {
                tracing::debug!(messaging.message.id = %record.message_id.shown(), messaging.consumer.group.name = %group.name.shown(), "delivered again: it is in the inbox already");
                stored.duplicates.push(place);
                None
            }
        };
        stored.begun.push(begun);
    }
    Ok(stored)
}
