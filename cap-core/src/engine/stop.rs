//! A stop drains: it takes no new work, finishes or gives back what is in flight, and signs the node off.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{Engine, node};

/// For what should end at once, but talks to a server: all of it together after the drain time, and the signing off.
const PROMPT: Duration = Duration::from_secs(5);
/// For each part of it, when that is over: something hangs.
const MOMENT: Duration = Duration::from_secs(1);

/// The phases of a stop, each a token that the loops concerned wait for.
#[derive(Debug)]
pub(crate) struct Stop {
    /// Somebody wants it.
    pub(crate) requested: CancellationToken,
    /// No new claims, publishes and handlers.
    pub(crate) quiesce: CancellationToken,
    /// No more deliveries.
    pub(crate) consumers: CancellationToken,
    /// Handlers that still run are cut off.
    pub(crate) abort: CancellationToken,
    /// No more heartbeats.
    pub(crate) keeper: CancellationToken,
    /// Nothing more at all.
    pub(crate) finish: CancellationToken,
    /// It is done.
    pub(crate) done: CancellationToken,
    pub(crate) consumer_tasks: TaskTracker,
    pub(crate) keeper_tasks: TaskTracker,
}

impl Stop {
    pub(crate) fn new() -> Self {
        Self {
            requested: CancellationToken::new(),
            quiesce: CancellationToken::new(),
            consumers: CancellationToken::new(),
            abort: CancellationToken::new(),
            keeper: CancellationToken::new(),
            finish: CancellationToken::new(),
            done: CancellationToken::new(),
            consumer_tasks: TaskTracker::new(),
            keeper_tasks: TaskTracker::new(),
        }
    }
}

/// Waits until a stop is wanted, and carries it out.
pub(crate) async fn run(engine: Arc<Engine>) {
    engine.stop.requested.cancelled().await;
    tracing::info!("stopping");
    drain(&engine).await;
    engine.stop.done.cancel();
    tracing::info!("stopped");
}

async fn drain(engine: &Arc<Engine>) {
    let stop = &engine.stop;
    let deadline = Instant::now() + engine.options.drain;
    let last = deadline + PROMPT;
    stop.quiesce.cancel();
    let subscriptions = engine.groups.iter().flat_map(|group| &group.subscriptions);
    subscriptions.for_each(|subscription| subscription.give_back_all(engine));

    // While confirms come in the consumers go on: on an in-process transport it is they who confirm.
    until(deadline, engine.relay_slots.wait_idle()).await;
    stop.consumers.cancel();
    stop.consumer_tasks.close();
    promptly(last, stop.consumer_tasks.wait()).await;

    until(deadline, handlers_idle(engine)).await;
    stop.abort.cancel();
    promptly(last, handlers_idle(engine)).await;

    // What the broker has not confirmed by now is reported as unavailable, and given back.
    let transport = Arc::clone(&engine.transport);
    let closing = tokio::spawn(async move {
        if let Err(error) = transport.close().await {
            tracing::warn!(%error, "the transport did not close cleanly");
        }
    });
    promptly(last, closing).await;
    promptly(last, engine.relay_slots.wait_idle()).await;

    stop.keeper.cancel();
    stop.keeper_tasks.close();
    promptly(last, stop.keeper_tasks.wait()).await;
    until(Instant::now() + PROMPT, tokio::spawn(node::leave(Arc::clone(engine)))).await;
    engine.node.fence();

    stop.finish.cancel();
    engine.tasks.close();
    promptly(last, engine.tasks.wait()).await;
}

async fn handlers_idle(engine: &Engine) {
    for group in &engine.groups {
        group.slots.wait_idle().await;
    }
}

async fn until<T>(deadline: Instant, work: impl Future<Output = T>) {
    let _ = timeout_at(deadline, work).await;
}

/// Until `last`; a moment is left for it in any case.
async fn promptly<T>(last: Instant, work: impl Future<Output = T>) {
    until(last.max(Instant::now() + MOMENT), work).await;
}
