//! A group's side of the inbox: claims its due records and hands them to the queues of its subscriptions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::engine::Engine;
use crate::engine::node::Epoch;
use crate::engine::queue::Queue;
use crate::engine::slots::{Held, Slots};
use crate::error::{ErrorKind, Result};
use crate::handler::HandlerService;
use crate::lifecycle::{self, Outcome, Rules};
use crate::message::Message;
use crate::name::{Group as Name, Topic};
use crate::pattern::TopicPattern;

/// At most so many records in one claim.
const BATCH: usize = 500;
/// When a suspect is due again that finds another one being worked on; each further one of a claim that much later, so
/// that many of them do not come back all at once, again and again.
const APART: Duration = Duration::from_millis(20);
const FURTHER_APART: Duration = Duration::from_millis(4);

/// One group that this engine serves.
pub(crate) struct Group {
    pub(crate) name: Name,
    /// Its place among the scheduler's lanes.
    pub(crate) lane: usize,
    /// Exact topics first, then patterns in the order of their declaration.
    pub(crate) subscriptions: Vec<Arc<Subscription>>,
    pub(crate) slots: Arc<Slots>,
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
    /// Whether it may be what kills its processes ([`lifecycle::is_suspect`]).
    pub(crate) is_suspect: bool,
}

/// A taken record on its way to a handler.
pub(crate) struct Job {
    pub(crate) held: Held,
    /// If it is a suspect: no other is worked on as long as this is held.
    pub(crate) suspect: Option<OwnedSemaphorePermit>,
    pub(crate) message: Carried,
    pub(crate) epoch: Epoch,
    pub(crate) slots: Arc<Slots>,
}

impl Group {
    /// The subscription that handles `topic`: the exact one, else the first pattern that matches.
    pub(crate) fn subscription(&self, topic: &Topic) -> Option<&Arc<Subscription>> {
        self.subscriptions.iter().find(|subscription| subscription.pattern.matches(topic))
    }

    /// Hands records that were taken to their subscriptions' queues.
    pub(crate) fn dispatch(&self, engine: &Arc<Engine>, epoch: &Epoch, taken: impl IntoIterator<Item = Taken>) {
        let mut pause = APART;
        for Taken { held, message, is_suspect } in taken {
            let Some(subscription) = self.subscription(&held.topic) else {
                let reason = format!("no subscription of group `{}` matches topic `{}`", self.name, held.topic);
                let state = lifecycle::settle(held.attempts, Outcome::Hopeless(reason), &self.rules, 0.0);
                engine.inbox_settler.settle(held, state);
                continue;
            };
            let mut suspect = None;
            if is_suspect {
                suspect = apart(engine, &held);
                if suspect.is_none() {
                    let state = lifecycle::settle(held.attempts, Outcome::GivenBack(pause), &self.rules, 0.0);
                    pause += FURTHER_APART;
                    engine.inbox_settler.settle(held, state);
                    continue;
                }
            }
            let job = Job { held, suspect, message, epoch: epoch.clone(), slots: Arc::clone(&self.slots) };
            subscription.push(engine, job);
        }
    }
}

/// The place that a suspect needs to be worked on, and that there is one of in each engine; none if another suspect has
/// it.
fn apart(engine: &Engine, held: &Held) -> Option<OwnedSemaphorePermit> {
    let place = Arc::clone(&engine.suspect).try_acquire_owned().ok()?;
    tracing::warn!(message = %held.message_id, attempts = held.attempts, "its attempts vanish: worked on apart");
    Some(place)
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
        let (epoch, mut room) = tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            ready = ready => ready,
        };
        let limit = room.len();
        let (claim, claimed) = match engine.claim(group.lane, &epoch, limit).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::LeaseLost => {
                engine.node.lost(&epoch);
                continue;
            }
            Err(error) => return Err(error),
        };
        let full = claimed.records.len() == limit;
        group.slots.learn_sizes(claimed.records.iter().map(|record| record.content.len()));
        let taken = claimed.records.into_iter().zip(std::iter::from_fn(|| room.next())).map(|(record, slot)| Taken {
            held: Held::new(&record, claim, group.lane, slot),
            is_suspect: lifecycle::is_suspect(record.attempts, record.reason.as_deref()),
            message: Carried::Stored(record.content),
        });
        group.dispatch(&engine, &epoch, taken);
        // Slots that are not needed are free again before the wait below.
        drop(room);
        engine.health.well(&name);
        if full {
            continue;
        }
        tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            () = engine.scheduler.woken(group.lane) => {}
        }
    }
}
