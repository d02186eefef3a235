//! Suspects: records whose attempts ended with their process. One of them may be what kills; the others were only in
//! flight beside it. They have a lane of their own, so that they delay nobody, and are worked on at first one at a time,
//! then twice as many in each round, since each that comes to an end shows that it was innocent: n innocents cost log n
//! rounds, and each crash halves the company of the guilty. One that was in too many crashes is tried with no other
//! suspect beside it, which is written down first; if the process dies then, it is given up
//! ([`lifecycle::begin`]).

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::engine::Engine;
use crate::engine::group::{Carried, Group, Taken};
use crate::engine::held::Held;
use crate::engine::node::Epoch;
use crate::engine::scheduler::suspects_of;
use crate::engine::slots::{Room, Slots};
use crate::error::{ErrorKind, Result};
use crate::lifecycle::{self, Begin, Outcome, State};
use crate::storage::{Claim, Record, Settled, Settlement, Table};

/// At most so many suspects in one claim.
const BATCH: usize = 128;

/// What all lanes of suspects of one engine share.
#[derive(Debug)]
pub(crate) struct Suspects {
    slots: Arc<Slots>,
    /// Shared by suspects that are worked on beside others, and held by one that is tried alone.
    company: Arc<RwLock<()>>,
}

/// What a suspect holds from when it is worked on until its outcome is written.
#[derive(Debug)]
pub(crate) enum Company {
    /// Others may be worked on, too.
    Among { _guard: OwnedRwLockReadGuard<()> },
    /// No other is.
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

impl Suspects {
    pub(crate) fn new() -> Self {
        Self { slots: Slots::growing(), company: Arc::default() }
    }

    /// A suspect's attempt has come to its end, however: this process lives.
    pub(crate) fn acquitted(&self) {
        self.slots.grow();
    }

    /// Waits until no suspect is worked on, and keeps the others from it.
    pub(crate) async fn alone(&self) -> Company {
        Company::Alone { _guard: Arc::clone(&self.company).write_owned().await }
    }

    async fn among(&self) -> Company {
        Company::Among { _guard: Arc::clone(&self.company).read_owned().await }
    }
}

/// A group's claims of suspects: runs until the engine takes no new work.
pub(crate) async fn run(engine: Arc<Engine>, group: Arc<Group>) -> Result<()> {
    let quiesce = &engine.stop.quiesce;
    let lane = suspects_of(group.lane);
    loop {
        let ready = async {
            let epoch = engine.node.joined().await;
            loop {
                let places = engine.suspects.slots.take_many(BATCH).await;
                let claimable = group.claimable();
                // Half of the room at the most: the others go on beside them.
                let room = group.slots.take(places.len().min(claimable.room_of_open().div_ceil(2)));
                if room.len() > 0 {
                    return (epoch, places, room, claimable.except);
                }
                // Another group's suspects need not wait for this one's handlers.
                drop(places);
                if claimable.open.is_empty() {
                    engine.scheduler.woken(lane).await;
                } else {
                    drop(group.slots.take_many(1).await);
                }
            }
        };
        let (epoch, mut places, room, mut except) = tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            ready = ready => ready,
        };
        let limit = room.len();
        except.extend(group.unhandled.topics());
        let (claim, claimed) = match engine.claim(lane, &epoch, limit, room.bytes_left(), except).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::LeaseLost => {
                engine.node.lost(&epoch);
                continue;
            }
            Err(error) => return Err(error),
        };
        places.truncate(claimed.records.len());
        let is_over = claimed.records.is_empty();
        if !is_over {
            tracing::warn!(messaging.consumer.group.name = %group.name.shown(), cap.suspects = claimed.records.len(), "attempts ended with their process: worked on apart");
        }
        work_on(&engine, &group, &epoch, claim, claimed.records, room, places).await;
        engine.health.well(&name(&group));
        if !is_over {
            continue;
        }
        tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            () = engine.scheduler.woken(lane) => {}
        }
    }
}

pub(crate) fn name(group: &Group) -> String {
    format!("suspects {}", group.name)
}

/// Hands suspects to their handlers: those that are to be tried alone after the others, one by one.
async fn work_on(
    engine: &Arc<Engine>,
    group: &Group,
    epoch: &Epoch,
    claim: Claim,
    records: Vec<Record>,
    mut room: Room,
    mut places: Room,
) {
    let mut alone = Vec::new();
    for record in records {
        let (Some(slot), Some(place)) = (room.next(), places.next()) else { return };
        let added = record.added;
        let mut held = Held::new(&record, claim, group.lane, slot);
        let rules = group.subscription(&held.topic).map_or(&group.rules, |subscription| &subscription.rules);
        match lifecycle::begin(&held.begun, rules) {
            Begin::Run => {
                held.company = Some(engine.suspects.among().await);
                let message = Carried::Stored(record.content);
                group.dispatch(engine, epoch, [Taken { held, message, added, place: Some(place) }]);
            }
            Begin::Alone(state) => {
                let taken = Taken { held, message: Carried::Stored(record.content), added, place: Some(place) };
                alone.push((taken, state));
            }
            Begin::Exhausted(state) => engine.inbox_settler.settle(held, state),
        }
    }
    // Slots that are not needed are free again.
    drop((room, places));
    for (mut taken, state) in alone {
        taken.held.company = tokio::select! {
            biased;
            () = engine.stop.quiesce.cancelled() => None,
            company = engine.suspects.alone() => Some(company),
        };
        if taken.held.company.is_some() && mark(engine, Table::Inbox, &taken.held, state).await {
            group.dispatch(engine, epoch, [taken]);
            continue;
        }
        let outcome = Outcome::GivenBack(super::LOCKED_PAUSE);
        let state = lifecycle::settle(&taken.held.begun, outcome, &group.rules, 0.0);
        engine.inbox_settler.settle(taken.held, state);
    }
}

/// Writes down that a record is now tried alone; answers whether it is written.
pub(crate) async fn mark(engine: &Engine, table: Table, held: &Held, state: State) -> bool {
    tracing::warn!(messaging.message.id = %held.message_id.shown(), messaging.destination.name = %held.topic.shown(), cap.crashes = held.begun.crashes, "tried alone");
    let settlement = Settlement { record: held.record, token: held.token, state };
    match engine.storage.settle(table, vec![settlement]).await {
        Ok(answers) => answers.first() == Some(&Settled::Written),
        Err(error) => {
            tracing::warn!(messaging.message.id = %held.message_id.shown(), error.message = %error, "could not write down that it is tried alone");
            false
        }
    }
}
