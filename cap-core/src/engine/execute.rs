//! One attempt of a handler: from the stored content to the outcome.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::Instrument as _;

use crate::content;
use crate::engine::Engine;
use crate::engine::group::{Job, Subscription};
use crate::engine::step::Step;
use crate::engine::supervise::panic_text;
use crate::handler::{Call, Context, Handled, HandlerError, Outbox};
use crate::lifecycle::{self, Begin, Outcome};
use crate::storage::Settlement;

/// After its drain time is over a handler is told, and aborted this much later.
const GRACE: Duration = Duration::from_secs(1);

/// How an attempt ended, as far as its record is concerned.
enum End {
    /// To be settled so.
    Outcome(Outcome),
    /// The handler settled it in its own transaction.
    Settled,
    /// It is another's by now.
    Lost,
}

/// Runs a handler on a claimed record and hands in the outcome.
pub(crate) async fn execute(
    engine: Arc<Engine>,
    subscription: Arc<Subscription>,
    mut job: Job,
    _running: OwnedSemaphorePermit,
) {
    let held = &job.held;
    if let Begin::Exhausted(state) = lifecycle::begin(held.attempts, &subscription.rules) {
        return engine.inbox_settler.settle(job.held, state);
    }
    let group = held.group.as_ref().map(tracing::field::display);
    let span =
        tracing::debug_span!("handle", message = %held.message_id, topic = %held.topic, group, attempt = held.attempts);
    let began = tokio::time::Instant::now();
    engine.steps.tell(Step::HandlerBegins, &held.message_id);
    let end = attempt(&engine, &subscription, &job).instrument(span).await;
    engine.steps.tell(Step::HandlerEnded, &job.held.message_id);
    drop(job.suspect.take());
    job.slots.learn(began.elapsed());
    engine.activity.record();
    match end {
        End::Outcome(outcome) => {
            tracing::debug!(message = %job.held.message_id, attempt = job.held.attempts, ?outcome, "handled");
            let state = lifecycle::settle(job.held.attempts, outcome, &subscription.rules, fastrand::f64());
            engine.inbox_settler.settle(job.held, state);
        }
        End::Settled => {
            engine.steps.tell(Step::InboxSettled, &job.held.message_id);
            // What it published is committed with it.
            engine.scheduler.wake(crate::engine::scheduler::OUTBOX);
        }
        End::Lost => {
            tracing::warn!(message = %job.held.message_id, "another node has the record: nothing of this attempt is left");
        }
    }
}

async fn attempt(engine: &Arc<Engine>, subscription: &Subscription, job: &Job) -> End {
    let held = &job.held;
    let message = match content::unwrap(&job.content, &held.topic, &held.message_id) {
        Ok(message) => Arc::new(message),
        Err(error) => return End::Outcome(Outcome::Hopeless(error.to_string())),
    };
    let Some(group) = held.group.clone() else {
        return End::Outcome(Outcome::Hopeless("the inbox record names no group".into()));
    };
    let outbox = Outbox::new(Arc::clone(&engine.preparer), Arc::clone(&message), group.clone());
    let cancelled = job.epoch.fenced.child_token();
    let call = Call {
        context: Context {
            id: message.id.clone(),
            topic: message.topic.clone(),
            group,
            attempt: held.attempts,
            cancelled: cancelled.clone(),
        },
        message,
        outbox: outbox.clone(),
        success: Settlement {
            record: held.record,
            token: held.token,
            state: lifecycle::settle(held.attempts, Outcome::Succeeded, &subscription.rules, 0.0),
        },
        states: Arc::clone(&engine.states),
        storage: Arc::clone(&engine.any_storage),
        slot: Arc::default(),
    };
    let handler = tokio::spawn(subscription.service.clone().oneshot(call).in_current_span());
    match run_to_end(engine, subscription, handler, &cancelled).await {
        Ok(Handled::Done(reply)) => succeed(engine, &outbox, reply).await,
        Ok(Handled::Settled) => End::Settled,
        Ok(Handled::Lost) => End::Lost,
        Err(outcome) => End::Outcome(outcome),
    }
}

/// Waits for the handler, for its timeout, or for the end of the drain time. A handler that is aborted is waited for:
/// it must not run on after its outcome is written.
async fn run_to_end(
    engine: &Engine,
    subscription: &Subscription,
    mut handler: JoinHandle<Result<Handled, HandlerError>>,
    cancelled: &CancellationToken,
) -> Result<Handled, Outcome> {
    let timeout = subscription.timeout;
    let timed_out = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let too_late = tokio::select! {
        ended = &mut handler => return outcome(ended),
        () = timed_out => Outcome::Failed(format!("it took longer than its timeout of {:?}", timeout.unwrap_or_default())),
        () = engine.stop.abort.cancelled() => {
            cancelled.cancel();
            if let Ok(ended) = tokio::time::timeout(GRACE, &mut handler).await {
                return outcome(ended);
            }
            Outcome::GivenBack(Duration::ZERO)
        }
    };
    cancelled.cancel();
    handler.abort();
    match handler.await {
        // It ended in the very last moment, and may have settled its record.
        Ok(Ok(handled)) => Ok(handled),
        _ => Err(too_late),
    }
}

fn outcome(ended: Result<Result<Handled, HandlerError>, tokio::task::JoinError>) -> Result<Handled, Outcome> {
    match ended {
        Ok(Ok(handled)) => Ok(handled),
        Ok(Err(error)) if error.is_permanent() => Err(Outcome::Hopeless(error.reason().to_owned())),
        Ok(Err(error)) => Err(Outcome::Failed(error.reason().to_owned())),
        Err(join) if join.is_panic() => {
            let panic = join.into_panic();
            Err(Outcome::Failed(format!("the handler panicked: {}", panic_text(panic.as_ref()))))
        }
        // Cut off by the runtime's end: never a success.
        Err(_) => Err(Outcome::GivenBack(Duration::ZERO)),
    }
}

/// What a successful handler publishes is committed before its record is settled, under ids that a second run repeats.
async fn succeed(engine: &Engine, outbox: &Outbox, reply: Option<bytes::Bytes>) -> End {
    let records = match outbox.take_with_reply(reply) {
        Ok(records) => records,
        Err(error) => return End::Outcome(Outcome::Hopeless(error.to_string())),
    };
    if records.is_empty() {
        return End::Outcome(Outcome::Succeeded);
    }
    match engine.storage.insert(crate::storage::Table::Outbox, records.clone(), None).await {
        Ok(_) => {
            engine.published(&records);
            End::Outcome(Outcome::Succeeded)
        }
        Err(error) => End::Outcome(Outcome::Failed(format!("it succeeded, but {error}"))),
    }
}
