//! Messages that wait in the broker, through the inbox to an empty handler, settled.

use std::time::Instant;

use cap_core::transport::Transport as _;
use cap_engine::{Cap, Step, Subscribe};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::backend::{Broker, Database, Fallible, within};
use crate::bench::load::{Countdown, fill_broker};
use crate::bench::{Settings, in_turn, limit, rate};
use crate::counting::Counting;
use crate::report::{self, Comparison};
use crate::twin;

/// How many messages wait in the broker, unless it is said: they are handled fast, and to connect should not count much.
const MESSAGES: usize = 50_000;

/// How many messages are handled at once.
const CONCURRENCY: usize = 16;

/// Runs it.
pub(crate) async fn run<D: Database, B: Broker>(settings: &Settings) -> Fallible<Comparison> {
    let settings = &Settings { messages: settings.messages.or(Some(MESSAGES)), ..settings.clone() };
    in_turn(settings, async || ours::<D, B>(settings).await, async || raw::<D, B>(settings).await).await
}

/// Declares the queue and fills it, before anyone consumes where the broker keeps messages, and at the same time
/// otherwise: then the sender waits for `go`.
async fn filled<B: Broker>(broker: &B, settings: &Settings) -> Fallible<(oneshot::Sender<()>, JoinHandle<Fallible>)> {
    let (go, gone) = oneshot::channel();
    let transport = broker.transport().await?;
    transport.connect().await?;
    let (names, messages, bytes) = (broker.names().clone(), settings.messages(), settings.bytes);
    if transport.capabilities().keeps_backlog {
        broker.sink().await?;
        fill_broker(&transport, &names, messages, bytes).await?;
        transport.close().await?;
        return Ok((go, tokio::spawn(async { Ok(()) })));
    }
    let filling = tokio::spawn(async move {
        gone.await?;
        fill_broker(&transport, &names, messages, bytes).await
    });
    Ok((go, filling))
}

async fn ours<D: Database, B: Broker>(settings: &Settings) -> Fallible<f64> {
    let (database, broker, messages) = (D::fresh().await?, B::fresh().await?, settings.messages());
    let (go, filling) = filled(&broker, settings).await?;
    let storage = Counting::new(database.storage().await?);
    let calls = storage.calls();
    let countdown = Countdown::new(Step::InboxSettled, messages);
    let names = broker.names();
    let begun = Instant::now();
    let cap = Cap::builder()
        .storage(storage)
        .transport(broker.transport().await?)
        .options(settings.options())
        .subscription(Subscribe::to(&names.topic, async || {}).group(&names.group).concurrency(CONCURRENCY))
        .on_step(countdown.listener())
        .start()
        .await?;
    let _ = go.send(());
    let done = within(limit(messages), "consuming", countdown.wait()).await;
    let took = begun.elapsed();
    report::progress(format_args!("calls of the storage: {}", calls.summary()));
    cap.stop().await;
    done.map_err(|error| format!("{error}; {} are left; {:?}", countdown.left(), cap.health()))?;
    filling.await??;
    broker.discard().await?;
    database.discard().await?;
    Ok(rate(messages, took))
}

async fn raw<D: Database, B: Broker>(settings: &Settings) -> Fallible<f64> {
    let (database, broker, messages) = (D::fresh().await?, B::fresh().await?, settings.messages());
    let (go, filling) = filled(&broker, settings).await?;
    let begun = Instant::now();
    let ready = || _ = go.send(());
    let consuming = twin::consume::consume(&database, &broker, messages, ready);
    within(limit(messages), "consuming by hand", consuming).await??;
    let took = begun.elapsed();
    filling.await??;
    broker.discard().await?;
    database.discard().await?;
    Ok(rate(messages, took))
}
