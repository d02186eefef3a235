//! A stop drains: it takes no new work, finishes or gives back what is in flight, and signs the node off.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{Engine, node};

/// Of the drain time so much at the most is kept for winding up: for ending handlers, the transport, and the node.
const WINDING_UP: Duration = Duration::from_secs(5);

/// The part of the drain time that is kept for winding up.
fn winding_up(drain: Duration) -> Duration {
    (drain / 3).min(WINDING_UP)
}

/// How long handlers that are told to give up are left to do so.
pub(crate) fn grace(drain: Duration) -> Duration {
    winding_up(drain) / 5
}

/// Until when each part of a stop may take. Whatever hangs costs its own part of the time and no other's.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// What is in flight comes to its end.
    work: Instant,
    /// Handlers that were told to give up are gone, and what became of them is written.
    handlers: Instant,
    /// The transport is closed, and what it had not confirmed is given back.
    transport: Instant,
    /// No more heartbeats.
    keeper: Instant,
    /// The node is signed off.
    node: Instant,
    /// No loop is left. The rest is a margin, in which [`limit`] need not step in.
    tasks: Instant,
}

impl Limits {
    fn of(drain: Duration) -> Self {
        let winding_up = winding_up(drain);
        let work = Instant::now() + (drain - winding_up);
        let after = |twentieths: u32| work + winding_up * twentieths / 20;
        Self { work, handlers: after(8), transport: after(12), keeper: after(14), node: after(18), tasks: after(19) }
    }
}

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

/// Ends a stop when its time is over, whatever hangs. It runs beside the user's runtime, whose threads may all be blocked.
pub(crate) async fn limit(engine: &Engine) {
    let stop = &engine.stop;
    stop.requested.cancelled().await;
    tokio::select! {
        biased;
        () = stop.done.cancelled() => return,
        () = tokio::time::sleep(engine.options.drain) => {}
    }
    engine.node.fence();
    for token in [&stop.quiesce, &stop.consumers, &stop.abort, &stop.keeper, &stop.finish, &stop.done] {
        token.cancel();
    }
    tracing::error!(cap.drain = ?engine.options.drain, "the stop was ended when its time was over: {LEFT}");
}

/// What becomes of what a stop could not give back.
const LEFT: &str = "what this node still holds is taken over by another when its lease is over";

async fn drain(engine: &Arc<Engine>) {
    let stop = &engine.stop;
    let limits = Limits::of(engine.options.drain);
    stop.quiesce.cancel();
    let subscriptions = engine.groups.iter().flat_map(|group| &group.subscriptions);
    subscriptions.for_each(|subscription| subscription.give_back_all(engine));

    // While confirms come in the consumers go on: on an in-process transport it is they who confirm.
    until(limits.work, engine.relay_slots.wait_idle()).await;
    stop.consumers.cancel();
    stop.consumer_tasks.close();
    until(limits.work, received_is_done(engine)).await;
    stop.abort.cancel();
    until(limits.handlers, received_is_done(engine)).await;

    // What the broker has not confirmed by now is reported as unavailable, and given back.
    let transport = Arc::clone(&engine.transport);
    let closing = tokio::spawn(async move {
        if let Err(error) = transport.close().await {
            tracing::warn!(error.message = %error, "the transport did not close cleanly");
        }
    });
    until(limits.transport, closing).await;
    until(limits.transport, engine.relay_slots.wait_idle()).await;

    stop.keeper.cancel();
    stop.keeper_tasks.close();
    until(limits.keeper, stop.keeper_tasks.wait()).await;
    sign_off(engine, limits.node).await;
    engine.node.fence();

    stop.finish.cancel();
    engine.tasks.close();
    until(limits.tasks, engine.tasks.wait()).await;
}

/// Nothing more is received, and no handler runs whose outcome is not written.
async fn received_is_done(engine: &Engine) {
    engine.stop.consumer_tasks.wait().await;
    for group in &engine.groups {
        group.slots.wait_idle().await;
    }
}

/// Signs the node off, unless a handler goes on in spite of everything: its record is nobody else's while it runs.
async fn sign_off(engine: &Arc<Engine>, limit: Instant) {
    let running = engine.pulse.polled_for(grace(engine.options.drain) / 2);
    if !running.is_empty() {
        let handlers = running.join(", ");
        tracing::warn!(
            cap.handlers = handlers,
            "handlers block their threads and cannot be ended, so the node is not signed off: {LEFT}"
        );
        return;
    }
    let left = tokio::spawn(node::leave(Arc::clone(engine)));
    if timeout_at(limit, left).await.is_err() {
        tracing::warn!("the node could not be signed off in time: {LEFT}");
    }
}

async fn until<T>(limit: Instant, work: impl Future<Output = T>) {
    let _ = timeout_at(limit, work).await;
}
