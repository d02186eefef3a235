//! Whether a large backlog drains as fast as a small one, and how much memory that takes.

use std::time::{Duration, Instant};

use cap_engine::{Cap, Step};
use tokio_util::sync::CancellationToken;

use crate::backend::{Broker, Database, Fallible, within};
use crate::bench::load::{Countdown, fill_outbox};
use crate::bench::resident::resident;
use crate::bench::{Settings, limit, rate};
use crate::report::{self, Comparison};

/// How often the resident memory is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The small backlog's rates take the twin's place.
pub(crate) async fn run<D: Database, B: Broker>(settings: &Settings) -> Fallible<(Comparison, f64)> {
    let mut comparison = Comparison::default();
    let mut memory: f64 = 0.0;
    for round in 1..=settings.rounds.unwrap_or(1).max(1) {
        let (small, _) = drained::<D, B>(settings.small, settings.bytes).await?;
        let (large, grown) = drained::<D, B>(settings.large, settings.bytes).await?;
        memory = memory.max(grown);
        report::progress(format_args!(
            "round {round}: {} drain at {large:.0}/s, {} at {small:.0}/s, ratio {:.2}; {grown:.1} MiB above start",
            settings.large,
            settings.small,
            large / small,
        ));
        comparison.add(large, small);
    }
    Ok((comparison, memory))
}

/// The rate, and by how many MiB the resident memory grew at most.
async fn drained<D: Database, B: Broker>(messages: usize, bytes: usize) -> Fallible<(f64, f64)> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let storage = database.storage().await?;
    report::progress(format_args!("filling an outbox with {messages}"));
    fill_outbox(&storage, broker.names(), messages, bytes).await?;
    broker.sink().await?;
    let countdown = Countdown::new(Step::OutboxSettled, messages);
    let before = resident()?;
    let stop = CancellationToken::new();
    let watching = tokio::spawn(highest(stop.clone()));
    let begun = Instant::now();
    let cap = Cap::builder()
        .storage(storage)
        .transport(broker.transport().await?)
        .on_step(countdown.listener())
        .start()
        .await?;
    let done = within(limit(messages), "draining", countdown.wait()).await;
    let took = begun.elapsed();
    stop.cancel();
    let highest = watching.await??;
    cap.stop().await;
    done.map_err(|error| format!("{error}; {} are left; {:?}", countdown.left(), cap.health()))?;
    broker.discard().await?;
    database.discard().await?;
    Ok((rate(messages, took), (highest - before).max(0.0)))
}

async fn highest(stop: CancellationToken) -> Fallible<f64> {
    let mut highest = resident()?;
    while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
        highest = highest.max(resident()?);
    }
    Ok(highest)
}
