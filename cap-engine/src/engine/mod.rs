//! The running engine: relay, consumers, groups, scheduler, collector and the node's keeper, each a supervised loop.
//!
//! ```text
//! publish ─► outbox ─► relay ─► transport ─► consumer ─► inbox ─► group ─► handler
//!               ▲         │                                 ▲        │
//!               └─ settle ┘                                 └ settle ┘
//! ```

mod arrival;
mod backoff;
mod builder;
mod cap;
mod collector;
mod commits;
mod consumer;
mod errand;
mod execute;
mod failures;
mod group;
mod health;
mod held;
mod keeper;
mod node;
mod origin;
mod pulse;
mod queue;
mod refusal;
mod relay;
mod replies;
mod routes;
mod scheduler;
mod settler;
mod share;
mod signs;
mod slots;
mod step;
mod stop;
mod storing;
mod subscribe;
mod supervise;
mod suspects;
mod topics;
mod twins;
mod unhandled;

pub use builder::{CapBuilder, NoStorage};
pub use cap::{Cap, PublishedIn};
pub use health::{Health, LoopHealth, Waiting};
pub use step::Step;
pub use subscribe::Subscribe;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cap_core::lifecycle::{Rules, State};
use cap_core::storage::{Claim, ClaimRequest, Claimed, NewRecord};
use cap_core::{Due, Error, ErrorKind, Group as GroupName, MessageId, Result, Storage, Table, Topic, Transport, shown};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::engine::failures::Failures;
use crate::engine::group::Group;
use crate::engine::health::HealthBoard;
use crate::engine::held::Held;
use crate::engine::node::{Epoch, Node};
use crate::engine::pulse::Pulse;
use crate::engine::refusal::is_in_doubt;
use crate::engine::relay::Relay;
use crate::engine::replies::Replies;
use crate::engine::scheduler::{OUTBOX, Scheduler};
use crate::engine::settler::Settler;
use crate::engine::slots::Slots;
use crate::engine::step::Steps;
use crate::engine::stop::Stop;
use crate::engine::suspects::Suspects;
use crate::handler::Services;
use crate::options::Options;
use crate::publish::Batcher;

/// When a record is tried again that was due and locked.
const LOCKED_PAUSE: Duration = Duration::from_millis(10);

/// What all loops of one engine share.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) options: Options,
    /// What governs outbox records.
    pub(crate) outbox_rules: Rules,
    /// What handlers ask for.
    pub(crate) services: Arc<Services>,
    /// The topics that the service says it publishes, each once.
    pub(crate) published: Vec<Topic>,
    /// Where replies may go.
    pub(crate) replies: Replies,
    pub(crate) node: Node,
    pub(crate) scheduler: Scheduler,
    pub(crate) groups: Vec<Arc<Group>>,
    pub(crate) suspects: Suspects,
    /// The user's runtime, on which everything runs but the keeper of the lease and, if they have one, the handlers.
    pub(crate) runtime: Handle,
    /// The handlers' own runtime.
    pub(crate) handlers_runtime: Option<Handle>,
    pub(crate) pulse: Pulse,
    pub(crate) relay: Relay,
    pub(crate) relay_slots: Arc<Slots>,
    pub(crate) outbox_settler: Settler,
    pub(crate) inbox_settler: Settler,
    pub(crate) batcher: Batcher,
    pub(crate) health: HealthBoard,
    pub(crate) steps: Steps,
    pub(crate) on_dead: Option<OnDead>,
    pub(crate) stop: Stop,
    /// The supervised loops and the handlers.
    pub(crate) tasks: TaskTracker,
    pub(crate) activity: Activity,
    /// Failed attempts of late.
    pub(crate) failures: Failures,
}

/// A message that nobody will try again without being told to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Which table the record is in.
    pub table: Table,
    /// The message.
    pub message_id: MessageId,
    /// Its topic.
    pub topic: Topic,
    /// The effective group, in the inbox.
    pub group: Option<GroupName>,
    /// How many attempts were begun.
    pub attempts: u32,
    /// Why it is dead.
    pub reason: String,
}

/// What the builder's `on_dead` was given.
#[derive(Clone)]
pub(crate) struct OnDead(pub(crate) Arc<dyn Fn(DeadLetter) + Send + Sync>);

impl fmt::Debug for OnDead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDead")
    }
}

/// Counts what moves, so that `wait_idle` notices that nothing does.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    moves: AtomicU64,
    pub(crate) moved: Notify,
}

impl Activity {
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    pub(crate) fn record(&self) {
        self.moves.fetch_add(1, Ordering::AcqRel);
        self.moved.notify_waiters();
    }
}

impl Engine {
    /// Claims for a lane. If the answer does not arrive the claim is undone, so that no record stays in flight with
    /// nobody working on it.
    pub(crate) async fn claim(
        &self,
        lane: usize,
        epoch: &Epoch,
        limit: usize,
        bytes: usize,
        except: Vec<Topic>,
    ) -> Result<(Claim, Claimed)> {
        let claim = Claim::by(epoch.id);
        let request = ClaimRequest {
            lane: self.scheduler.lane(lane).clone(),
            version: self.options.version.clone(),
            claim,
            limit,
            bytes,
            except,
        };
        let table = request.lane.table();
        match self.storage.claim(request).await {
            Ok(claimed) => {
                match claimed.next_due {
                    // It was due and is locked: by another node's claim, or by somebody else for as long as they like.
                    Some(Duration::ZERO) if claimed.records.is_empty() => self.scheduler.wake_in(lane, LOCKED_PAUSE),
                    Some(next_due) => self.scheduler.wake_in(lane, next_due),
                    None => {}
                }
                Ok((claim, claimed))
            }
            Err(error) => {
                self.forget_claim(table, claim, epoch, &error).await;
                Err(error)
            }
        }
    }

    /// A claim, or an insert with one, has failed: what it may have taken all the same, with nobody to work on it, is released.
    /// After a refusal there is nothing to release, and no doubt that would end the life of the node.
    pub(crate) async fn forget_claim(&self, table: Table, claim: Claim, epoch: &Epoch, error: &Error) {
        if error.kind() == ErrorKind::LeaseLost {
            self.node.lost(epoch);
        }
        if is_in_doubt(error) {
            self.undo_claim(table, claim, epoch).await;
        }
    }

    /// Releases whatever is held under a token that was given up. Ends when it is done or the life is over, in which
    /// case all of it is taken over.
    async fn undo_claim(&self, table: Table, claim: Claim, epoch: &Epoch) {
        self.node.doubt(table, claim);
        let mut pause = backoff::Pause::quick();
        while !epoch.fenced.is_cancelled() && !self.stop.finish.is_cancelled() {
            match self.storage.release(table, claim).await {
                Ok(0) => return,
                Ok(released) => {
                    tracing::info!(cap.table = %table, cap.released = released, "released a claim whose answer never came");
                    return self.scheduler.wake_table(table);
                }
                Err(error) if error.kind() == ErrorKind::LeaseLost => return,
                Err(error) => {
                    tracing::debug!(cap.table = %table, error.message = %error, "could not release a claim yet")
                }
            }
            pause.wait().await;
        }
    }

    /// How many records of the table this engine holds.
    pub(crate) fn held(&self, table: Table) -> usize {
        match table {
            Table::Outbox => self.relay_slots.used(),
            Table::Inbox => self.groups.iter().map(|group| group.slots.used()).sum(),
        }
    }

    fn settler(&self, table: Table) -> &Settler {
        match table {
            Table::Outbox => &self.outbox_settler,
            Table::Inbox => &self.inbox_settler,
        }
    }

    /// Tells of a record that is now dead.
    pub(crate) fn notice_dead(&self, table: Table, held: &Held, state: &State) {
        self.tell_if_dead(table, &held.message_id, &held.topic, held.group.as_ref(), state);
    }

    /// Tells of a delivery that was parked.
    pub(crate) fn notice_parked(&self, record: &NewRecord) {
        self.tell_if_dead(Table::Inbox, &record.message_id, &record.topic, record.group.as_ref(), &record.state);
    }

    fn tell_if_dead(&self, table: Table, id: &MessageId, topic: &Topic, group: Option<&GroupName>, state: &State) {
        if !state.is_dead() {
            return;
        }
        let reason = state.reason().unwrap_or_default();
        tracing::error!(
            messaging.message.id = %id.shown(),
            messaging.destination.name = %topic.shown(),
            messaging.consumer.group.name = group.map(|group| tracing::field::display(group.shown())),
            cap.attempts = state.attempts(),
            cap.reason = %shown(reason),
            "dead: it waits in the {table} for a person"
        );
        if let Some(OnDead(notify)) = &self.on_dead {
            let letter = DeadLetter {
                table,
                message_id: id.clone(),
                topic: topic.clone(),
                group: group.cloned(),
                attempts: state.attempts(),
                reason: reason.to_owned(),
            };
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| notify(letter)));
            if told.is_err() {
                tracing::error!(messaging.message.id = %id.shown(), "the function that is told of dead messages panicked");
            }
        }
    }

    /// Outbox records that are due so were inserted in a transaction of the caller's, which may commit soon. What is for
    /// later is looked for at its time.
    pub(crate) fn enlisted(&self, messages: Vec<(MessageId, Due)>) {
        let (mut expects, mut soon) = (false, Vec::new());
        for (message, due) in messages {
            match due {
                Due::Now => soon.push(message),
                Due::In(delay) if delay.is_zero() => soon.push(message),
                Due::In(delay) => self.scheduler.wake_in(OUTBOX, delay),
                // A moment that the user named, which may be over.
                Due::At(_) => expects = true,
            }
        }
        if expects || !soon.is_empty() {
            self.scheduler.expect_commit(soon);
        }
    }

    /// Outbox records of this engine were committed: those that are due go out, the others at their time.
    pub(crate) fn published(&self, records: &[NewRecord]) {
        self.steps.tell_all(Step::Published, records.iter().map(|record| &record.message_id));
        self.activity.record();
        for record in records {
            match record.state.due() {
                Some(Due::In(delay)) => self.scheduler.wake_in(OUTBOX, delay),
                // A moment that the user named: the relay's next claim learns how far it is, by the database's clock.
                _ => self.scheduler.wake(OUTBOX),
            }
        }
    }
}

/// The error of everything that needs a running engine.
pub(crate) fn stopped(operation: &'static str) -> Error {
    Error::new(ErrorKind::Stopped, operation, "the engine", "it is stopped")
}
