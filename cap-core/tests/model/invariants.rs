//! The promises, as pure functions of a world. The numbers are those of the design's list of promises.

use cap_core::lifecycle::Status;

use super::enabled::records;
use super::setup::{Kind, Setup};
use super::state::{Record, Row, Slot, Transaction, Witness, World};

/// A promise that holds in every world.
pub(crate) struct Invariant {
    pub(crate) name: &'static str,
    pub(crate) holds: fn(&World, &Setup) -> bool,
}

macro_rules! invariants {
    ($($name:ident),+ $(,)?) => { [$(Invariant { name: stringify!($name), holds: $name }),+] };
}

pub(crate) const ALL: [Invariant; 16] = invariants![
    every_record_is_lawful,
    only_terminal_records_disappear,
    what_is_not_committed_is_neither_claimed_nor_sent,
    what_succeeded_in_the_outbox_was_confirmed,
    what_succeeded_in_the_outbox_is_in_every_queue_or_inbox,
    what_is_acknowledged_is_in_the_inbox,
    a_message_is_once_in_the_inbox_of_a_group,
    no_second_execution_without_an_interruption,
    a_transactional_effect_and_its_success_are_one,
    a_live_node_works_only_on_what_it_holds,
    only_the_holder_writes,
    attempts_stay_within_the_limit,
    nobody_but_a_killer_is_given_up,
    nothing_is_dead_before_its_time,
    what_failed_too_often_is_dead,
    a_killer_is_not_tried_for_ever,
];

/// The name of the first promise that is broken.
pub(crate) fn broken(world: &World, setup: &Setup) -> Option<&'static str> {
    ALL.iter().find(|invariant| !(invariant.holds)(world, setup)).map(|invariant| invariant.name)
}

/// Promises 1 and 7: nothing is left to do. Every committed message is sent or dead, and what was sent has succeeded or
/// is dead in every group.
pub(crate) fn all_is_done(world: &World, setup: &Setup) -> bool {
    let is_done = |record| match world.slot(record) {
        Slot::Absent => false,
        Slot::Collected(_) => true,
        Slot::Stored(row) => row.is_terminal(),
    };
    messages(setup).all(|(message, _)| match world.transaction(message) {
        Transaction::Open => false,
        Transaction::RolledBack => true,
        Transaction::Committed => {
            let outbox = Record::Outbox(message);
            let was_sent = world.slot(outbox).has_succeeded();
            is_done(outbox) && (!was_sent || (0..setup.groups).all(|group| is_done(Record::Inbox(message, group))))
        }
    })
}

/// The rules of `State::check`, for the columns that a storage keeps; and every state that core computed kept them.
fn every_record_is_lawful(world: &World, setup: &Setup) -> bool {
    !world.witness.unlawful
        && rows(world, setup).all(|(_, row)| {
            let waits = matches!(row.status, Status::Scheduled | Status::Delayed);
            let is_over = matches!(row.status, Status::Queued | Status::Succeeded);
            row.is_terminal() == row.expires
                && !(row.due.is_some() && is_over)
                && !(row.due.is_none() && waits)
                && (row.status == Status::Queued) == row.holder.is_some()
                && !(row.status == Status::Queued && row.attempts == 0)
                && !(row.status == Status::Succeeded && row.crashes > 0)
        })
}

/// "Terminal records expire and are collected; no other ever is."
fn only_terminal_records_disappear(world: &World, setup: &Setup) -> bool {
    messages(setup).all(|(message, _)| {
        world.transaction(message) != Transaction::Committed || *world.slot(Record::Outbox(message)) != Slot::Absent
    }) && !world.witness.collected_early
}

/// Promise 2.
fn what_is_not_committed_is_neither_claimed_nor_sent(world: &World, setup: &Setup) -> bool {
    let untouched = |message: u8| {
        let is_held = world.row(Record::Outbox(message)).is_some_and(|row| row.holder.is_some());
        let reached =
            |group| world.copies(message, group) > 0 || *world.slot(Record::Inbox(message, group)) != Slot::Absent;
        !is_held && !(0..setup.groups).any(reached)
    };
    messages(setup).all(|(message, _)| world.transaction(message) == Transaction::Committed || untouched(message))
}

/// Promise 3.
fn what_succeeded_in_the_outbox_was_confirmed(world: &World, setup: &Setup) -> bool {
    messages(setup).all(|(message, _)| {
        !world.slot(Record::Outbox(message)).has_succeeded() || world.messages[usize::from(message)].confirmed
    })
}

/// Promises 1 and 3.
fn what_succeeded_in_the_outbox_is_in_every_queue_or_inbox(world: &World, setup: &Setup) -> bool {
    let arrived =
        |message, group| world.copies(message, group) > 0 || *world.slot(Record::Inbox(message, group)) != Slot::Absent;
    messages(setup).all(|(message, _)| {
        !world.slot(Record::Outbox(message)).has_succeeded() || (0..setup.groups).all(|group| arrived(message, group))
    })
}

/// Promise 4.
fn what_is_acknowledged_is_in_the_inbox(world: &World, setup: &Setup) -> bool {
    inboxes(setup).all(|(message, group)| {
        !world.group(message, group).acked || *world.slot(Record::Inbox(message, group)) != Slot::Absent
    })
}

/// Promise 4.
fn a_message_is_once_in_the_inbox_of_a_group(world: &World, setup: &Setup) -> bool {
    inboxes(setup).all(|(message, group)| world.group(message, group).inserted <= 1)
}

/// Promise 4: a second delivery makes no second execution. Only what cut the first one short does.
fn no_second_execution_without_an_interruption(world: &World, setup: &Setup) -> bool {
    let Witness { cut_short, left, requeued, .. } = world.witness;
    inboxes(setup).all(|(message, group)| world.group(message, group).effects <= 1 + cut_short + left + requeued)
}

/// Promise 5.
fn a_transactional_effect_and_its_success_are_one(world: &World, setup: &Setup) -> bool {
    inboxes(setup).filter(|&(message, _)| kind(message, setup) == Kind::Transactional).all(|(message, group)| {
        let record = Record::Inbox(message, group);
        let effects = world.group(message, group).effects;
        effects == u8::from(world.slot(record).has_succeeded())
    })
}

/// Promises 6 and 7: while its lease lives, whatever a node works on is its own. So no two such nodes work on one
/// record, however long they take.
fn a_live_node_works_only_on_what_it_holds(world: &World, _: &Setup) -> bool {
    world.nodes.iter().enumerate().filter(|(_, node)| node.lives()).all(|(number, node)| {
        node.tasks.iter().filter(|task| !task.former && !task.repeats).all(|task| {
            world.row(task.record).is_some_and(|row| row.is_held_under(task.token) && row.is_held_by(number))
        })
    })
}

/// Promise 6: fencing.
fn only_the_holder_writes(world: &World, _: &Setup) -> bool {
    !world.witness.foreign_write
}

/// Attempts grow beyond the limit only by claims that find it reached, and those repeat only when they are cut short.
/// What waits after a failure has an attempt left.
fn attempts_stay_within_the_limit(world: &World, setup: &Setup) -> bool {
    rows(world, setup).all(|(_, row)| {
        let most = match (row.status, row.due) {
            (Status::Failed, Some(_)) => setup.limit - 1,
            (Status::Queued, _) => setup.limit + 1 + u32::from(world.witness.cut_short),
            _ => setup.limit + u32::from(world.witness.cut_short),
        };
        u32::from(row.attempts) <= most
    })
}

/// A record is dead when its last attempt failed and none is left, or when its process ended once more than often enough
/// to be tried alone; or it was refused for good. What was given back counts for nothing.
fn nothing_is_dead_before_its_time(world: &World, setup: &Setup) -> bool {
    let Witness { failed, cut_short, refused, .. } = world.witness;
    let is_parked = |record| matches!(record, Record::Inbox(message, _) if kind(message, setup) == Kind::Unreadable);
    rows(world, setup).filter(|(_, row)| row.is_dead()).all(|(record, row)| {
        let is_used_up = failed > 0 && u32::from(row.attempts) >= setup.limit;
        let is_given_up = u32::from(row.crashes) > setup.rules.retry.crashes.max(2) && cut_short >= row.crashes;
        is_used_up || is_given_up || refused || is_parked(record)
    })
}

/// "A record is dead after so many attempts", of which those that failed are some.
fn what_failed_too_often_is_dead(world: &World, setup: &Setup) -> bool {
    let lives = 1 + u32::from(world.witness.requeued);
    inboxes(setup).all(|(message, group)| {
        let is_over = world.row(Record::Inbox(message, group)).is_none_or(Row::is_terminal);
        is_over || u32::from(world.group(message, group).failed) < setup.limit * lives
    })
}

/// "The killer is buried, nobody else": crashes alone condemn no innocent, however many it was in flight at, and neither
/// does one crash in its trial. A killer that is no suspect yet can strike a trial once. Dead with crashes is what was given
/// up for them.
fn nobody_but_a_killer_is_given_up(world: &World, setup: &Setup) -> bool {
    let is_killer = |record| matches!(record, Record::Inbox(message, _) if kind(message, setup) == Kind::Killer);
    world.witness.unlucky > 1
        || rows(world, setup).all(|(record, row)| is_killer(record) || !row.is_dead() || row.crashes == 0)
}

/// A message that takes its process down does so as often as it takes to be tried alone again, and once more: in each of the
/// lives that a person gives it, and after each attempt that came to an end in spite of it.
fn a_killer_is_not_tried_for_ever(world: &World, setup: &Setup) -> bool {
    let mut killers = inboxes(setup).filter(|&(message, _)| kind(message, setup) == Kind::Killer);
    let Witness { requeued, failed, .. } = world.witness;
    let most = (setup.rules.retry.crashes.max(2) + 1) * (1 + u32::from(requeued) + u32::from(failed));
    killers.all(|(message, group)| u32::from(world.group(message, group).effects) <= most)
}

fn kind(message: u8, setup: &Setup) -> Kind {
    setup.messages[usize::from(message)]
}

fn messages(setup: &Setup) -> impl Iterator<Item = (u8, Kind)> {
    (0..).zip(setup.messages.iter().copied())
}

fn inboxes(setup: &Setup) -> impl Iterator<Item = (u8, u8)> {
    messages(setup).flat_map(|(message, _)| (0..setup.groups).map(move |group| (message, group)))
}

fn rows<'a>(world: &'a World, setup: &Setup) -> impl Iterator<Item = (Record, &'a Row)> {
    records(setup).filter_map(|record| world.row(record).map(|row| (record, row)))
}
