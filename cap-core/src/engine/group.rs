//! A group's side of the inbox: claims its due records and hands them to the queues of its subscriptions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::engine::node::Epoch;
use crate::engine::queue::Queue;
use crate::engine::slots::{Held, Room, Slot, Slots};
use crate::engine::unhandled::Unhandled;
use crate::error::{ErrorKind, Result};
use crate::handler::HandlerService;
use crate::lifecycle::{self, Outcome, Rules};
use crate::message::Message;
use crate::name::{Group as Name, Topic};
use crate::pattern::TopicPattern;
use crate::storage::{Claim, Claimed};
use crate::time::Timestamp;

/// At most so many records in one claim.
const BATCH: usize = 500;

/// One group that this engine serves.
pub(crate) struct Group {
    pub(crate) name: Name,
    /// Its place among the scheduler's lanes; that of its suspects follows.
    pub(crate) lane: usize,
    /// Exact topics first, then patterns in the order of their declaration.
    pub(crate) subscriptions: Vec<Arc<Subscription>>,
    pub(crate) slots: Arc<Slots>,
    /// Topics that no subscription matches.
    pub(crate) unhandled: Unhandled,
    /// What governs records that no subscription of the group matches.
    pub(crate) rules: Rules,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Group").field(&self.name).finish()
    }
}

/// One subscription, with its queue.
pub(crate) struct Subscription {
    pub(crate) pattern: TopicPattern,
    pub(crate) service: HandlerService,
    pub(crate) rules: Rules,
    pub(crate) timeout: Option<Duration>,
    /// Whether the handler may reply.
    pub(crate) replies: bool,
    pub(crate) queue: Queue,
}

/// A message as the inbox has it, or as it arrived a moment ago and needs not be read again.
pub(crate) enum Carried {
    Stored(Arc<str>),
    Arrived(Message),
}

/// A record of the inbox that this node has just taken.
pub(crate) struct Taken {
    pub(crate) held: Held,
    pub(crate) message: Carried,
    pub(crate) added: Timestamp,
    /// A suspect's place.
    pub(crate) place: Option<Slot>,
}

/// A taken record on its way to a handler.
pub(crate) struct Job {
    pub(crate) held: Held,
    /// A suspect's, until its attempt ends.
    pub(crate) place: Option<Slot>,
    pub(crate) message: Carried,
    pub(crate) epoch: Epoch,
    pub(crate) slots: Arc<Slots>,
}

impl Group {
    /// The subscription that handles `topic`: the exact one, else the first pattern that matches.
    pub(crate) fn subscription(&self, topic: &Topic) -> Option<&Arc<Subscription>> {
        self.subscriptions.iter().find(|subscription| subscription.pattern.matches(topic))
    }

    /// Hands records that were taken to their subscriptions' queues. What no subscription matches goes back, for another
    /// node, and is left alone from now on; after its time limit it is dead.
    pub(crate) fn dispatch(&self, engine: &Arc<Engine>, epoch: &Epoch, taken: impl IntoIterator<Item = Taken>) {
        for Taken { held, message, added, place } in taken {
            let Some(subscription) = self.subscription(&held.topic) else {
                self.unhandled.note(&self.name, &held.topic);
                let outcome = match self.unhandled.is_over(&self.name, &held.topic, added) {
                    Some(reason) => Outcome::Hopeless(reason),
                    None => Outcome::GivenBack(self.unhandled.pause()),
                };
                let state = lifecycle::settle(&held.begun, outcome, &self.rules, 0.0);
                engine.inbox_settler.settle(held, state);
                continue;
            };
            let job = Job { held, place, message, epoch: epoch.clone(), slots: Arc::clone(&self.slots) };
            subscription.push(engine, job);
        }
    }

    /// Waits until the lane is woken, or messages without a handler are to be looked at.
    async fn woken(&self, engine: &Engine) {
        let look = async {
            match self.unhandled.next_look() {
                Some(moment) => tokio::time::sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = engine.scheduler.woken(self.lane) => {}
            () = look => {}
        }
    }

    fn take(&self, engine: &Arc<Engine>, epoch: &Epoch, claim: Claim, claimed: Claimed, mut room: Room) {
        self.slots.learn_sizes(claimed.records.iter().map(|record| record.content.len()));
        let records = claimed.records.into_iter().zip(std::iter::from_fn(|| room.next()));
        let taken = records.map(|(record, slot)| Taken {
            held: Held::new(&record, claim, self.lane, slot),
            added: record.added,
            place: None,
            message: Carried::Stored(record.content),
        });
        self.dispatch(engine, epoch, taken);
    }
}

/// The group's claims: runs until the engine takes no new work.
pub(crate) async fn run(engine: Arc<Engine>, group: Arc<Group>) -> Result<()> {
    let quiesce = &engine.stop.quiesce;
    let name = format!("group {}", group.name);
    loop {
        let ready = async {
            let epoch = engine.node.joined().await;
            (epoch, group.slots.take_many(BATCH).await)
        };
        let (epoch, room) = tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            ready = ready => ready,
        };
        let except = if group.unhandled.is_look_due() { Vec::new() } else { group.unhandled.topics() };
        let limit = room.len();
        let (claim, claimed) = match engine.claim(group.lane, &epoch, limit, room.bytes_left(), except).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::LeaseLost => {
                engine.node.lost(&epoch);
                continue;
            }
            Err(error) => return Err(error),
        };
        let full = claimed.records.len() == limit;
        group.take(&engine, &epoch, claim, claimed, room);
        engine.health.well(&name);
        if full {
            continue;
        }
        tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            () = group.woken(&engine) => {}
        }
    }
}
