//! One attempt of a handler: from the stored content to the outcome.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use cap_core::lifecycle::Outcome;
use cap_core::storage::Settlement;
use cap_core::{Table, content, lifecycle, shown};
use tower::{Service as _, ServiceExt as _};
use tracing::Instrument as _;

use crate::engine::Engine;
use crate::engine::group::{Carried, Job, Subscription};
use crate::engine::held::Held;
use crate::engine::node::Epoch;
use crate::engine::pulse::Polled;
use crate::engine::scheduler::OUTBOX;
use crate::engine::step::Step;
use crate::engine::stop::grace;
use crate::engine::supervise::panic_text;
use crate::handler::{Call, Handled, HandlerError, HandlerService, Outbox, Shared};

/// When a record is due again whose handler could not be ended because of the storage.
const STORAGE_PAUSE: Duration = Duration::from_secs(1);

/// How an attempt ended, as far as its record is concerned.
enum End {
    /// To be settled so.
    Outcome(Outcome),
    /// The handler settled it in its own transaction.
    Settled {
        /// Whether messages were committed with it.
        published: bool,
    },
    /// It is another's by now.
    Lost,
}

/// Runs a handler on a claimed record and hands in the outcome.
///
/// The service goes from job to job; after a failure the next job gets a new one.
pub(crate) async fn execute(
    engine: &Arc<Engine>,
    subscription: &Subscription,
    service: &mut HandlerService,
    polled: &Polled,
    mut job: Job,
) {
    let held = &job.held;
    let span = tracing::info_span!(
        "process",
        otel.kind = "consumer",
        messaging.message.id = %held.message_id.shown(),
        messaging.destination.name = %held.topic.shown(),
        messaging.consumer.group.name = held.group.as_ref().map(|group| tracing::field::display(group.shown())),
        cap.attempt = held.begun.attempts,
    );
    let began = tokio::time::Instant::now();
    engine.steps.tell(Step::HandlerBegins, &held.message_id);
    let end = attempt(engine, subscription, service, polled, &job.held, &job.epoch, job.message).instrument(span).await;
    engine.steps.tell(Step::HandlerEnded, &job.held.message_id);
    if let Some(place) = job.place.take() {
        place.acquit();
    }
    subscription.share.slots.learn(began.elapsed());
    engine.activity.record();
    match end {
        End::Outcome(outcome) => {
            let failed = matches!(outcome, Outcome::Failed(_));
            let state = lifecycle::settle(&job.held.begun, outcome, &subscription.rules, fastrand::f64());
            if failed && !state.is_dead() {
                engine.failures.note(Table::Inbox, &job.held, state.reason().unwrap_or_default());
            }
            tracing::debug!(
                messaging.message.id = %job.held.message_id.shown(),
                cap.attempt = job.held.begun.attempts,
                cap.status = %state.status(),
                cap.reason = state.reason().map(|reason| tracing::field::display(shown(reason))),
                "handled"
            );
            engine.inbox_settler.settle(job.held, state);
        }
        End::Settled { published } => {
            engine.steps.tell(Step::InboxSettled, &job.held.message_id);
            if published {
                engine.scheduler.wake(OUTBOX);
            }
        }
        End::Lost => {
            tracing::warn!(messaging.message.id = %job.held.message_id.shown(), "the record was lost to another node: this attempt was ended, and nothing of it is written");
        }
    }
}

async fn attempt(
    engine: &Arc<Engine>,
    subscription: &Subscription,
    service: &mut HandlerService,
    polled: &Polled,
    held: &Held,
    epoch: &Epoch,
    message: Carried,
) -> End {
    let message = match message {
        Carried::Arrived(message) => message,
        Carried::Stored(content) => match content::unwrap(&content, &held.topic, &held.message_id) {
            Ok(message) => message,
            Err(error) => return End::Outcome(Outcome::Hopeless(error.to_string())),
        },
    };
    if let Some(fault) = engine.replies.fault(&message).filter(|_| subscription.replies) {
        return End::Outcome(Outcome::Hopeless(fault));
    }
    let Some(group) = held.group.clone() else {
        return End::Outcome(Outcome::Hopeless("the inbox record names no group".into()));
    };
    let success = Settlement {
        record: held.record,
        token: held.token,
        state: lifecycle::settle(&held.begun, Outcome::Succeeded, &subscription.rules, 0.0),
    };
    let (services, fenced) = (Arc::clone(&engine.services), Arc::clone(&epoch.fenced));
    let shared = Shared::new(message, held.message_id.clone(), group, held.begun.attempts, success, services, fenced);
    let call = Call::new(&shared);
    let handler = async { service.ready().await?.call(call).await };
    let handled = run_to_end(engine, subscription, polled, held, handler, &shared).await;
    if handled.is_err() {
        *service = subscription.service.clone();
    }
    match handled {
        Ok(Handled::Done(reply)) => succeed(engine, held, &Outbox::new(&shared), reply).await,
        Ok(Handled::Settled) => End::Settled { published: Outbox::new(&shared).was_taken() },
        Ok(Handled::Lost) => End::Lost,
        Err(outcome) => End::Outcome(outcome),
    }
}

/// Runs the handler until it ends, or to its timeout, or until a stop tells it to give up and a little longer, or until the
/// node has lost its lease. When this answers the handler is gone: it must not run on after its outcome is written, nor
/// while another node works on the message.
async fn run_to_end(
    engine: &Engine,
    subscription: &Subscription,
    polled: &Polled,
    held: &Held,
    handler: impl Future<Output = Result<Handled, HandlerError>>,
    shared: &Shared,
) -> Result<Handled, Outcome> {
    let timeout = subscription.timeout;
    let timed_out = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let mut handler = pin!(Some(handler));
    let mut ended = poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| polled.while_polling(|| poll(handler.as_mut(), context)))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(handled))) => Poll::Ready(Ok(handled)),
            Ok(Poll::Ready(Err(error))) => Poll::Ready(Err(failed(engine, held, &error))),
            Err(panic) => Poll::Ready(Err(panicked(panic.as_ref()))),
        }
    });
    let mut fenced = pin!(shared.fenced());
    let ended = tokio::select! {
        biased;
        ended = &mut ended => ended,
        () = &mut fenced => Ok(Handled::Lost),
        () = timed_out => {
            shared.cancel();
            Err(Outcome::Failed(format!("it took longer than its timeout of {:?}", timeout.unwrap_or_default())))
        }
        () = engine.stop.abort.cancelled() => {
            shared.cancel();
            tokio::select! {
                ended = tokio::time::timeout(grace(engine.options.drain), &mut ended) => {
                    ended.unwrap_or(Err(Outcome::GivenBack(Duration::ZERO)))
                }
                () = &mut fenced => Ok(Handled::Lost),
            }
        }
    };
    // What it holds may panic, too, when it is let go.
    match catch_unwind(AssertUnwindSafe(|| handler.set(None))) {
        Ok(()) => ended,
        Err(panic) => ended.map_err(|_| panicked(panic.as_ref())),
    }
}

fn poll<F: Future>(future: Pin<&mut Option<F>>, context: &mut task::Context<'_>) -> Poll<F::Output> {
    future.as_pin_mut().map_or(Poll::Pending, |future| future.poll(context))
}

fn failed(engine: &Engine, held: &Held, error: &HandlerError) -> Outcome {
    if error.is_the_storages() {
        engine.failures.note(Table::Inbox, held, error.reason());
        return Outcome::GivenBack(STORAGE_PAUSE);
    }
    if error.is_permanent() {
        return Outcome::Hopeless(error.reason().to_owned());
    }
    Outcome::Failed(error.reason().to_owned())
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Outcome {
    Outcome::Failed(format!("the handler panicked: {}", panic_text(panic)))
}

/// What a successful handler publishes is committed before its record is settled, under ids that a second run repeats.
async fn succeed(engine: &Engine, held: &Held, outbox: &Outbox, reply: Option<bytes::Bytes>) -> End {
    let records = match outbox.take_with_reply(reply) {
        Ok(records) => records,
        Err(error) => return End::Outcome(Outcome::Hopeless(error.to_string())),
    };
    if records.is_empty() {
        return End::Outcome(Outcome::Succeeded);
    }
    match engine.storage.insert(Table::Outbox, records.clone(), None).await {
        Ok(_) => {
            engine.published(&records);
            End::Outcome(Outcome::Succeeded)
        }
        // No fault of the message: it is handled again once the storage takes what it publishes.
        Err(error) if error.is_retryable() => {
            engine.failures.note(Table::Inbox, held, &format!("it succeeded, but {error}"));
            End::Outcome(Outcome::GivenBack(STORAGE_PAUSE))
        }
        Err(error) => End::Outcome(Outcome::Failed(format!("it succeeded, but {error}"))),
    }
}
