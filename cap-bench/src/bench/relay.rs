//! Waiting messages, from the outbox to the broker, confirmed and settled.

use std::time::Instant;

use cap_engine::{Cap, Step};

use crate::backend::{Broker, Database, Fallible, within};
use crate::bench::load::{Countdown, fill_outbox};
use crate::bench::{Settings, in_turn, limit, rate};
use crate::counting::Counting;
use crate::report::{self, Comparison};
use crate::twin;

/// Runs it.
pub(crate) async fn run<D: Database, B: Broker>(settings: &Settings) -> Fallible<Comparison> {
    in_turn(settings, async || ours::<D, B>(settings).await, async || raw::<D, B>(settings).await).await
}

async fn ours<D: Database, B: Broker>(settings: &Settings) -> Fallible<f64> {
    let (database, broker, messages) = (D::fresh().await?, B::fresh().await?, settings.messages());
    let storage = database.storage().await?;
    fill_outbox(&storage, broker.names(), messages, settings.bytes).await?;
    broker.sink().await?;
    let storage = Counting::new(storage);
    let calls = storage.calls();
    let countdown = Countdown::new(Step::OutboxSettled, messages);
    let begun = Instant::now();
    let cap = Cap::builder()
        .storage(storage)
        .transport(broker.transport().await?)
        .options(settings.options())
        .on_step(countdown.listener())
        .start()
        .await?;
    let done = within(limit(messages), "relaying", countdown.wait()).await;
    let took = begun.elapsed();
    report::progress(format_args!("calls of the storage: {}", calls.summary()));
    cap.stop().await;
    done.map_err(|error| format!("{error}; {} are left; {:?}", countdown.left(), cap.health()))?;
    broker.discard().await?;
    database.discard().await?;
    Ok(rate(messages, took))
}

async fn raw<D: Database, B: Broker>(settings: &Settings) -> Fallible<f64> {
    let (database, broker, messages) = (D::fresh().await?, B::fresh().await?, settings.messages());
    fill_outbox(&database.storage().await?, broker.names(), messages, settings.bytes).await?;
    broker.sink().await?;
    let begun = Instant::now();
    within(limit(messages), "relaying by hand", twin::relay::relay(&database, &broker, messages)).await??;
    let took = begun.elapsed();
    broker.discard().await?;
    database.discard().await?;
    Ok(rate(messages, took))
}
