//! A group's side of the inbox: claims its due records and hands them to the queues of its subscriptions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cap_core::lifecycle::{Outcome, Rules};
use cap_core::storage::{Claim, Claimed};
use cap_core::{ErrorKind, Group as Name, Message, Result, Timestamp, Topic, TopicPattern, lifecycle};
use tokio::sync::Notify;

use crate::engine::Engine;
use crate::engine::arrival::Arrival;
use crate::engine::held::Held;
use crate::engine::node::Epoch;
use crate::engine::queue::Queue;
use crate::engine::scheduler::suspects_of;
use crate::engine::share::{BATCH, Share};
use crate::engine::slots::{Room, Slot, Slots};
use crate::engine::unhandled::Unhandled;
use crate::handler::HandlerService;

/// When a message is due again for which there is no room here.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// One group that this engine serves.
pub(crate) struct Group {
    pub(crate) name: Name,
    /// Its place among the scheduler's lanes; that of its suspects follows.
    pub(crate) lane: usize,
    /// Exact topics first, then patterns in the order of their declaration.
    pub(crate) subscriptions: Vec<Arc<Subscription>>,
    /// What bounds its memory.
    pub(crate) slots: Arc<Slots>,
    /// Told when a subscription that was full has room again.
    pub(crate) opened: Arc<Notify>,
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
    pub(crate) share: Share,
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
}

/// What a group may claim now.
pub(crate) struct Claimable<'a> {
    /// The subscriptions that have room.
    pub(crate) open: Vec<&'a Subscription>,
    /// What those that have none wait for.
    pub(crate) except: Vec<Topic>,
    /// At most so many records.
    pub(crate) limit: usize,
    /// At most so many bytes.
    pub(crate) bytes: usize,
}

impl Claimable<'_> {
    /// How many records the subscriptions that have room may have in flight together.
    pub(crate) fn room_of_open(&self) -> usize {
        self.open.iter().map(|subscription| subscription.share.slots.capacity()).sum()
    }
}

impl Group {
    /// The subscription that handles `topic`: the exact one, else the first pattern that matches.
    pub(crate) fn subscription(&self, topic: &Topic) -> Option<&Arc<Subscription>> {
        self.handler(topic).map(|index| &self.subscriptions[index])
    }

    /// Its place among the group's.
    pub(crate) fn handler(&self, topic: &Topic) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| subscription.pattern.matches(topic))
    }

    /// What may be claimed for the subscriptions that have room.
    pub(crate) fn claimable(&self) -> Claimable<'_> {
        let mut claimable = Claimable { open: Vec::new(), except: Vec::new(), limit: 0, bytes: usize::MAX };
        let mut most = BATCH;
        for subscription in &self.subscriptions {
            let Subscription { share, pattern, .. } = subscription.as_ref();
            if share.is_full() {
                claimable.except.extend(share.waiting_topics(pattern));
                continue;
            }
            most = most.min(share.allowance());
            claimable.limit += share.slots.left();
            claimable.bytes = claimable.bytes.min(share.slots.bytes_left());
            claimable.open.push(subscription);
        }
        claimable.limit = claimable.limit.min(most);
        claimable
    }

    /// Whether a claim is to look for a delivery that did not begin at once. While its subscription is full none is; it
    /// is made when there is room again.
    pub(crate) fn is_claimed_for(&self, arrival: &Arrival) -> bool {
        let Some(subscription) = arrival.begins().map(|place| &self.subscriptions[place]) else { return true };
        if !subscription.share.is_full() {
            return true;
        }
        subscription.share.note(&subscription.pattern, &arrival.record.topic);
        false
    }

    /// No handler can begin here at present, or they can again: what waits for one goes back, for other nodes.
    pub(crate) fn shut(&self, engine: &Engine, is_shut: bool) {
        for subscription in &self.subscriptions {
            subscription.share.shut(is_shut);
            if is_shut {
                subscription.give_back_all(engine);
            }
        }
        if !is_shut {
            self.opened.notify_one();
        }
    }

    /// Waits until a subscription has room.
    async fn wait_for_room(&self, engine: &Engine) {
        while self.subscriptions.iter().all(|subscription| subscription.share.is_full()) {
            self.opened(engine).await;
        }
    }

    /// Waits until a subscription that was full has room again, and tells the suspects.
    async fn opened(&self, engine: &Engine) {
        self.opened.notified().await;
        engine.scheduler.wake(suspects_of(self.lane));
    }

    /// Hands records that were taken to their subscriptions' queues. What no subscription matches goes back, for another
    /// node, and is left alone from now on; after its time limit it is dead.
    pub(crate) fn dispatch(&self, engine: &Arc<Engine>, epoch: &Epoch, taken: impl IntoIterator<Item = Taken>) {
        for Taken { mut held, message, added, place } in taken {
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
            if held.share.is_none() {
                held.share = Some(subscription.occupy(&held));
            }
            if place.is_none() && subscription.share.is_flooded() {
                let outcome = Outcome::GivenBack(NO_ROOM_PAUSE);
                let state = lifecycle::settle(&held.begun, outcome, &subscription.rules, 0.0);
                engine.inbox_settler.settle(held, state);
                continue;
            }
            subscription.push(engine, Job { held, place, message, epoch: epoch.clone() });
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
            () = self.opened(engine) => {}
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

impl Subscription {
    /// Takes a slot of its share for a record that was claimed.
    fn occupy(&self, held: &Held) -> Slot {
        let slot = self.share.slots.occupy(held.slot.bytes());
        if self.share.slots.is_over() {
            self.share.note(&self.pattern, &held.topic);
        }
        slot
    }
}

/// The group's claims: runs until the engine takes no new work.
pub(crate) async fn run(engine: Arc<Engine>, group: Arc<Group>) -> Result<()> {
    let quiesce = &engine.stop.quiesce;
    let name = format!("group {}", group.name);
    loop {
        let ready = async {
            let epoch = engine.node.joined().await;
            group.wait_for_room(&engine).await;
            (epoch, group.slots.take_many(BATCH).await)
        };
        let (epoch, mut room) = tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            ready = ready => ready,
        };
        let mut claimable = group.claimable();
        room.truncate(claimable.limit);
        let limit = room.len();
        if limit == 0 {
            continue;
        }
        if !group.unhandled.is_look_due() {
            claimable.except.extend(group.unhandled.topics());
        }
        let bytes = claimable.bytes.min(room.bytes_left());
        let (claim, claimed) = match engine.claim(group.lane, &epoch, limit, bytes, claimable.except).await {
            Ok(answer) => answer,
            // The node goes on under a new id.
            Err(error) if error.kind() == ErrorKind::LeaseLost => continue,
            Err(error) => return Err(error),
        };
        let full = claimed.records.len() == limit;
        group.take(&engine, &epoch, claim, claimed, room);
        claimable.open.iter().for_each(|subscription| subscription.share.learn());
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
