//! A group's side of the inbox: claims its due records and hands them to the queues of its subscriptions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::engine::node::Epoch;
use crate::engine::slots::{Held, Slot, Slots};
use crate::engine::{Engine, execute};
use crate::error::{ErrorKind, Result};
use crate::handler::HandlerService;
use crate::lifecycle::{self, Outcome, Rules};
use crate::name::{Group as Name, Topic};
use crate::pattern::TopicPattern;
use crate::storage::{Claim, Record};

/// At most so many records in one claim.
const BATCH: usize = 500;
/// When a suspect is due again that finds another one being worked on.
const APART: Duration = Duration::from_millis(20);

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

/// One subscription, with its queue. The queue is bounded by the slots that its items hold.
pub(crate) struct Subscription {
    pub(crate) pattern: TopicPattern,
    pub(crate) service: HandlerService,
    pub(crate) rules: Rules,
    pub(crate) timeout: Option<Duration>,
    pub(crate) running: Arc<Semaphore>,
    pub(crate) queue: mpsc::UnboundedSender<Job>,
    pub(crate) queued: Mutex<mpsc::UnboundedReceiver<Job>>,
}

/// A claimed record on its way to a handler.
pub(crate) struct Job {
    pub(crate) held: Held,
    /// If it is a suspect: no other is worked on as long as this is held.
    pub(crate) suspect: Option<OwnedSemaphorePermit>,
    pub(crate) content: Arc<str>,
    pub(crate) epoch: Epoch,
    pub(crate) slots: Arc<Slots>,
}

impl Group {
    /// The subscription that handles `topic`: the exact one, else the first pattern that matches.
    pub(crate) fn subscription(&self, topic: &Topic) -> Option<&Arc<Subscription>> {
        self.subscriptions.iter().find(|subscription| subscription.pattern.matches(topic))
    }

    /// Hands claimed records to their subscriptions' queues.
    pub(crate) fn dispatch(&self, engine: &Engine, epoch: &Epoch, claim: Claim, records: Vec<(Record, Slot)>) {
        for (record, slot) in records {
            let held = Held::new(&record, claim, self.lane, slot);
            let Some(subscription) = self.subscription(&record.topic) else {
                let reason = format!("no subscription of group `{}` matches topic `{}`", self.name, record.topic);
                let state = lifecycle::settle(held.attempts, Outcome::Hopeless(reason), &self.rules, 0.0);
                engine.inbox_settler.settle(held, state);
                continue;
            };
            let Some(suspect) = apart(engine, &record) else {
                let state = lifecycle::settle(held.attempts, Outcome::GivenBack(APART), &self.rules, 0.0);
                engine.inbox_settler.settle(held, state);
                continue;
            };
            let (content, epoch, slots) = (record.content, epoch.clone(), Arc::clone(&self.slots));
            let job = Job { held, suspect, content, epoch, slots };
            if let Err(mpsc::error::SendError(job)) = subscription.queue.send(job) {
                give_back(engine, job, subscription);
            }
        }
    }
}

/// What a record must hold to be worked on: nothing, or for a suspect the place that there is one of in each engine.
/// `None` if another suspect has it.
fn apart(engine: &Engine, record: &Record) -> Option<Option<OwnedSemaphorePermit>> {
    if !lifecycle::is_suspect(record.attempts, record.reason.as_deref()) {
        return Some(None);
    }
    let place = Arc::clone(&engine.suspect).try_acquire_owned().ok()?;
    tracing::warn!(message = %record.message_id, attempts = record.attempts, "its attempts vanish: worked on apart");
    Some(Some(place))
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
        let (epoch, slots) = tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            ready = ready => ready,
        };
        let limit = slots.len();
        let (claim, claimed) = match engine.claim(group.lane, &epoch, limit).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::LeaseLost => {
                engine.node.lost(&epoch);
                continue;
            }
            Err(error) => return Err(error),
        };
        let full = claimed.records.len() == limit;
        group.dispatch(&engine, &epoch, claim, claimed.records.into_iter().zip(slots).collect());
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

/// A subscription's queue: begins its jobs in order, as many at once as it may. On a stop it gives back what has not
/// begun.
pub(crate) async fn run_queue(engine: Arc<Engine>, subscription: Arc<Subscription>) -> Result<()> {
    let mut queue = subscription.queued.lock().await;
    let quiesce = &engine.stop.quiesce;
    loop {
        let job = tokio::select! {
            biased;
            () = quiesce.cancelled() => break,
            job = queue.recv() => job,
        };
        let Some(job) = job else { return Ok(()) };
        let permit = tokio::select! {
            biased;
            () = quiesce.cancelled() => None,
            permit = Arc::clone(&subscription.running).acquire_owned() => permit.ok(),
        };
        let Some(permit) = permit else {
            give_back(&engine, job, &subscription);
            break;
        };
        engine.tasks.spawn(execute::execute(Arc::clone(&engine), Arc::clone(&subscription), job, permit));
    }
    queue.close();
    while let Some(job) = queue.recv().await {
        give_back(&engine, job, &subscription);
    }
    Ok(())
}

fn give_back(engine: &Engine, job: Job, subscription: &Subscription) {
    let outcome = Outcome::GivenBack(Duration::ZERO);
    let state = lifecycle::settle(job.held.attempts, outcome, &subscription.rules, 0.0);
    engine.inbox_settler.settle(job.held, state);
}
