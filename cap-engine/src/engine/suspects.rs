//! Suspects: records whose attempts ended with their process. One of them may be what kills; the others were only in
//! flight beside it. They have a lane of their own, so that they delay nobody, and are worked on at first one at a time,
//! then twice as many in each round, since each that comes to an end shows that it was innocent: n innocents cost log n
//! rounds, and each crash halves the company of the guilty. Those that were in one crash more than the others are closer to
//! what kills: they begin with one again, while the others go on ([`Suspects::level`]). One that was in too many crashes is
//! tried with no other suspect beside it, which is written down first; if the process dies twice so, it is given up
//! ([`lifecycle::begin`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::lifecycle::{Begin, Outcome, State};
use cap_core::storage::{Claim, Record, Settled, Settlement};
use cap_core::{ErrorKind, Result, Table, lifecycle};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::engine::Engine;
use crate::engine::group::{Carried, Group, Taken};
use crate::engine::held::Held;
use crate::engine::node::Epoch;
use crate::engine::scheduler::suspects_of;
use crate::engine::slots::{Room, Slot, Slots};

/// At most so many suspects in one claim.
const BATCH: usize = 128;
/// Those with more crashes than this are all one level.
const LEVELS: u32 = 32;

/// What all lanes of suspects of one engine share.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// By the highest number of crashes: how many may be worked on at once.
    levels: Mutex<BTreeMap<u32, Arc<Slots>>>,
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
    /// Waits until no suspect is worked on, and keeps the others from it.
    pub(crate) async fn alone(&self) -> Company {
        Company::Alone { _guard: Arc::clone(&self.company).write_owned().await }
    }

    /// For one that is worked on beside others; nothing while one is tried alone, or waits for that.
    pub(crate) fn try_among(&self) -> Option<Company> {
        let company = Arc::clone(&self.company).try_read_owned().ok()?;
        Some(Company::Among { _guard: company })
    }

    async fn among(&self) -> Company {
        Company::Among { _guard: Arc::clone(&self.company).read_owned().await }
    }

    fn levels(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Slots>>> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The places of suspects with so many crashes. More crashes than any before had make a level of their own, which
    /// begins with one place: who was in flight at the last crash, too, is closer to what kills than who was not.
    fn level(&self, crashes: u32) -> Arc<Slots> {
        let crashes = crashes.min(LEVELS);
        let mut levels = self.levels();
        if let Some((_, slots)) = levels.range(crashes..).next() {
            return Arc::clone(slots);
        }
        Arc::clone(levels.entry(crashes).or_insert_with(Slots::growing))
    }

    /// The places of those with the most crashes; none if there are no suspects yet.
    fn highest(&self) -> Option<Arc<Slots>> {
        self.levels().last_key_value().map(|(_, slots)| Arc::clone(slots))
    }

    /// A lane was empty: what comes now is of another crash, and begins with one again.
    fn forget(&self) {
        self.levels().retain(|_, slots| slots.used() > 0);
    }
}

/// A group's claims of suspects: runs until the engine takes no new work.
pub(crate) async fn run(engine: Arc<Engine>, group: Arc<Group>) -> Result<()> {
    let quiesce = &engine.stop.quiesce;
    let lane = suspects_of(group.lane);
    // What the last of a claim is, the next one most likely brings more of: it takes as many as there are places for.
    let mut level: Option<Arc<Slots>> = None;
    loop {
        let ready = async {
            let epoch = engine.node.joined().await;
            loop {
                let places = match level.clone().or_else(|| engine.suspects.highest()) {
                    Some(level) => Some(level.take_many(BATCH).await),
                    None => None,
                };
                let claimable = group.claimable();
                // Half of the room at the most: the others go on beside them.
                let most = places.as_ref().map_or(1, Room::len);
                let room = group.slots.take(most.min(claimable.room_of_open().div_ceil(2)));
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
        let (epoch, places, room, mut except) = tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            ready = ready => ready,
        };
        let limit = room.len();
        except.extend(group.unhandled.topics());
        let (claim, claimed) = match engine.claim(lane, &epoch, limit, room.bytes_left(), except).await {
            Ok(answer) => answer,
            // The node goes on under a new id.
            Err(error) if error.kind() == ErrorKind::LeaseLost => continue,
            Err(error) => return Err(error),
        };
        if claimed.records.is_empty() {
            drop((places, room));
            engine.health.well(&name(&group));
            tokio::select! {
                biased;
                () = quiesce.cancelled() => return Ok(()),
                () = engine.scheduler.woken(lane) => {}
            }
            engine.suspects.forget();
            level = None;
            continue;
        }
        tracing::warn!(messaging.consumer.group.name = %group.name.shown(), cap.suspects = claimed.records.len(), "attempts ended with their process: worked on apart");
        level = claimed.records.last().map(|last| engine.suspects.level(last.crashes));
        let sorted = sort(&engine, &group, claim, claimed.records, room, places);
        give_back(&engine, &group, sorted.surplus).await;
        begin(&engine, &group, &epoch, sorted.begun).await;
        engine.health.well(&name(&group));
    }
}

pub(crate) fn name(group: &Group) -> String {
    format!("suspects {}", group.name)
}

/// A claim's suspects, sorted by what is done with them. Those that are given up are handed in already.
struct Sorted {
    /// Each with what to write first, if it is to be tried alone.
    begun: Vec<(Taken, Option<State>)>,
    /// Closer to what kills than what was claimed before, and more than there are places for.
    surplus: Vec<Held>,
}

fn sort(
    engine: &Engine,
    group: &Group,
    claim: Claim,
    records: Vec<Record>,
    mut room: Room,
    mut places: Option<Room>,
) -> Sorted {
    let mut sorted = Sorted { begun: Vec::new(), surplus: Vec::new() };
    for record in records {
        let Some(slot) = room.next() else { return sorted };
        let added = record.added;
        let held = Held::new(&record, claim, group.lane, slot);
        let rules = group.subscription(&held.topic).map_or(&group.rules, |subscription| &subscription.rules);
        let alone = match lifecycle::begin(&held.begun, rules) {
            Begin::Run => None,
            Begin::Alone(state) => Some(state),
            Begin::Exhausted(state) => {
                engine.inbox_settler.settle(held, state);
                continue;
            }
        };
        match place(&engine.suspects.level(held.begun.crashes), &mut places) {
            None => sorted.surplus.push(held),
            place => {
                sorted.begun.push((Taken { held, message: Carried::Stored(record.content), added, place }, alone));
            }
        }
    }
    sorted
}

/// A place of the level: one of those that were taken for the claim, if they are its own, or another.
fn place(level: &Arc<Slots>, taken: &mut Option<Room>) -> Option<Slot> {
    let taken = taken.as_mut().filter(|taken| taken.is_of(level));
    taken.and_then(Room::next).or_else(|| level.take(1).next())
}

/// Gives back what there is no place for, before the others of its level begin: what is in flight when one of these kills
/// the process is a suspect as close as it.
async fn give_back(engine: &Engine, group: &Group, surplus: Vec<Held>) {
    if surplus.is_empty() {
        return;
    }
    let states: Vec<State> = surplus
        .iter()
        .map(|held| lifecycle::settle(&held.begun, Outcome::GivenBack(Duration::ZERO), &group.rules, 0.0))
        .collect();
    let settlements = surplus.iter().zip(&states);
    let settlements = settlements.map(|(held, state)| {
        let state = state.clone();
        Settlement { record: held.record, token: held.token, state }
    });
    let answers = match engine.storage.settle(Table::Inbox, settlements.collect()).await {
        Ok(answers) => answers,
        Err(error) => {
            tracing::debug!(error.message = %error, "could not give suspects back yet");
            Vec::new()
        }
    };
    let answers = answers.into_iter().map(Some).chain(std::iter::repeat(None));
    for ((held, state), answer) in surplus.into_iter().zip(states).zip(answers) {
        // Whether or not it was written before: the token makes the second one harmless.
        if !matches!(answer, Some(Settled::Written | Settled::Lost)) {
            engine.inbox_settler.settle(held, state);
        }
    }
}

/// Hands suspects to their handlers: those that are to be tried alone after the others, one by one.
async fn begin(engine: &Arc<Engine>, group: &Group, epoch: &Epoch, begun: Vec<(Taken, Option<State>)>) {
    let mut alone = Vec::new();
    for (mut taken, state) in begun {
        match state {
            Some(state) => alone.push((taken, state)),
            None => {
                taken.held.company = Some(engine.suspects.among().await);
                group.dispatch(engine, epoch, [taken]);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_crashes_than_any_before_begin_with_one_and_fewer_go_on_as_wide_as_they_are() {
        let suspects = Suspects::default();
        assert!(suspects.highest().is_none());
        let far = suspects.level(3);
        (0..40).for_each(|_| far.take(1).next().unwrap().acquit());
        let close = suspects.level(4);
        assert_eq!((far.left(), close.left()), (41, 1));
        for (crashes, level) in [(1, &far), (3, &far), (4, &close)] {
            assert!(Arc::ptr_eq(&suspects.level(crashes), level), "{crashes}");
        }
        assert!(Arc::ptr_eq(&suspects.level(u32::MAX), &suspects.level(LEVELS)));
    }

    #[test]
    fn once_a_lane_was_empty_what_is_not_worked_on_is_forgotten() {
        let suspects = Suspects::default();
        let (done, running) = (suspects.level(1), suspects.level(2));
        done.take(1).next().unwrap().acquit();
        let place = running.take(1).next();
        suspects.forget();
        assert!(Arc::ptr_eq(&suspects.level(2), &running));
        drop(place);
        suspects.forget();
        assert_eq!(suspects.level(1).left(), 1);
    }
}
