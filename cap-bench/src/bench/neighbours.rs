//! The rate of a healthy topic alone, and beside others that are not well.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cap_core::storage::Table;
use cap_core::{HandlerError, Storage, Version};
use cap_engine::{Cap, CapBuilder, Options, Subscribe};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::backend::{Broker, Database, Fallible, Names, within};
use crate::bench::{load, rate};
use crate::report::{self, median};

/// What it can be told.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// How many rounds, each alone and beside every neighbour.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many healthy messages.
    #[arg(long, default_value_t = 10_000)]
    messages: usize,
    /// How many messages of the neighbour, stored before the healthy ones; of poison a twentieth.
    #[arg(long, default_value_t = 3000)]
    others: usize,
    /// A round that is not over then is counted as far as it came, in seconds.
    #[arg(long, default_value_t = 60)]
    limit: u64,
}

/// Who is beside the healthy topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Neighbour {
    /// Nobody.
    Alone,
    /// A topic whose queue is full and refuses.
    FullQueue,
    /// A topic whose messages a broker or a database chokes on: a text header `BCC`, and a handler that fails for good
    /// with a reason of a megabyte.
    Poisoned,
    /// A topic whose handler hangs, in the same group.
    HangingInGroup,
    /// One in another group.
    HangingElsewhere,
}

impl Neighbour {
    const ALL: [Self; 5] = [Self::Alone, Self::FullQueue, Self::Poisoned, Self::HangingInGroup, Self::HangingElsewhere];

    fn hangs(self) -> bool {
        matches!(self, Self::HangingInGroup | Self::HangingElsewhere)
    }

    fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

const PAYLOAD: usize = 512;
const CONCURRENCY: usize = 16;
/// Behind the healthy topic's name.
const OTHER: &str = ".other";

/// Runs it.
pub(crate) async fn run<D: Database, B: Broker>(settings: &Settings) -> Fallible<Map<String, Value>> {
    let mut rates: Vec<(Neighbour, Vec<f64>)> = Neighbour::ALL.map(|neighbour| (neighbour, Vec::new())).into();
    // The first engine of a process is slower than all that come after it.
    beside::<D, B>(settings, Neighbour::Alone).await?;
    for round in 1..=settings.rounds.max(1) {
        for (neighbour, rates) in &mut rates {
            let Some(rate) = beside::<D, B>(settings, *neighbour).await? else { continue };
            report::progress(format_args!("round {round}: {}: {rate:.0}/s", neighbour.name()));
            rates.push(rate);
        }
    }
    Ok(figures(&rates))
}

/// The ratio is that of the rates of the same round.
fn figures(rates: &[(Neighbour, Vec<f64>)]) -> Map<String, Value> {
    let mut figures = report::object(json!({ "unit": "messages/s" }));
    let alone = rates.first().map_or(&[][..], |(_, rates)| rates);
    for (neighbour, rates) in rates {
        let ratios: Vec<f64> = rates.iter().zip(alone).map(|(beside, alone)| beside / alone).collect();
        let told = match rates.is_empty() {
            true => json!({ "rate": null, "ratio": null }),
            false => json!({ "rate": median(rates).round(), "ratio": (median(&ratios) * 1000.0).round() / 1000.0 }),
        };
        figures.insert(neighbour.name(), told);
    }
    figures.insert("aim".into(), "each ratio at least 0.9".into());
    figures
}

/// Healthy messages a second, from the engine's start to the last one handled; none if this broker has no such neighbour.
async fn beside<D: Database, B: Broker>(settings: &Settings, neighbour: Neighbour) -> Fallible<Option<f64>> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let (storage, names) = (database.storage().await?, broker.names().clone());
    let mut _full = None;
    if neighbour == Neighbour::FullQueue {
        _full = broker.full_queue(&names.topic_of(OTHER)).await?;
        if _full.is_none() {
            return Ok(None);
        }
    }
    fill_others(&storage, &names, settings, neighbour).await?;
    if neighbour.hangs() {
        hang(&storage, builder(&storage, &broker, neighbour).await?.start().await?).await?;
    }
    load::fill_outbox(&storage, &names, settings.messages, PAYLOAD).await?;

    let handled = Arc::new(AtomicUsize::new(0));
    let done = CancellationToken::new();
    let healthy = healthy(&names, settings.messages, &handled, &done);
    let begun = Instant::now();
    let cap = builder(&storage, &broker, neighbour).await?.subscription(healthy).start().await?;
    let _ = tokio::time::timeout(Duration::from_secs(settings.limit), done.cancelled()).await;
    let (handled, took) = (handled.load(Ordering::Acquire).min(settings.messages), begun.elapsed());
    if handled < settings.messages {
        report::progress(format_args!("{}: only {handled} of {} in {took:.0?}", neighbour.name(), settings.messages));
    }
    cap.stop().await;
    broker.discard().await?;
    database.discard().await?;
    Ok(Some(rate(handled, took)))
}

/// What hangs gets as far as its handler's inbox, and waits there: to send it is no part of the measurement.
async fn hang<S: Storage>(storage: &S, cap: Cap<S>) -> Fallible {
    const LOOK: Duration = Duration::from_millis(50);
    const LIMIT: Duration = Duration::from_secs(30);
    let sent = async {
        while storage.counts(Table::Outbox, Version::default()).await?.pending() > 0 {
            tokio::time::sleep(LOOK).await;
        }
        Fallible::Ok(())
    };
    let sent = within(LIMIT, "sending what hangs", sent).await;
    cap.stop().await;
    sent?
}

/// The neighbour's messages are stored first: they are due before the healthy ones.
async fn fill_others(storage: &impl Storage, names: &Names, settings: &Settings, neighbour: Neighbour) -> Fallible {
    let others = match neighbour {
        Neighbour::Alone => 0,
        Neighbour::Poisoned => settings.others / 20,
        _ => settings.others,
    };
    let topic = names.topic_of(OTHER);
    let other = |index: usize| {
        let mut message = load::message_on(&topic, index.to_string().into_bytes())?;
        if neighbour == Neighbour::Poisoned {
            message.headers.set("BCC", "a text");
        }
        Ok(load::outbox_record(message))
    };
    load::store(storage, Table::Outbox, others, None, other).await
}

/// An engine with the neighbour's own subscription.
async fn builder<S: Storage + Clone, B: Broker>(
    storage: &S,
    broker: &B,
    neighbour: Neighbour,
) -> Fallible<CapBuilder<Arc<S>>> {
    let options = Options { drain: Duration::from_secs(1), ..Options::default() };
    let builder = Cap::builder().storage(storage.clone()).transport(broker.transport().await?).options(options);
    Ok(with(builder, broker.names(), neighbour))
}

fn healthy(names: &Names, messages: usize, handled: &Arc<AtomicUsize>, done: &CancellationToken) -> Subscribe {
    let (handled, done) = (Arc::clone(handled), done.clone());
    let handler = move || {
        if handled.fetch_add(1, Ordering::AcqRel) + 1 == messages {
            done.cancel();
        }
        std::future::ready(())
    };
    Subscribe::to(&names.topic, handler).group(&names.group).concurrency(CONCURRENCY)
}

/// With the neighbour's own subscription.
fn with<S>(builder: CapBuilder<S>, names: &Names, neighbour: Neighbour) -> CapBuilder<S> {
    const MEGABYTE: usize = 1_000_000;
    let topic = names.topic_of(OTHER);
    let hanging = || Subscribe::to(&topic, std::future::pending::<()>).concurrency(CONCURRENCY);
    let poisoned = async || Err::<(), _>(HandlerError::permanent("x".repeat(MEGABYTE)));
    match neighbour {
        // A full queue has nobody who empties it.
        Neighbour::Alone | Neighbour::FullQueue => builder,
        Neighbour::Poisoned => builder.subscription(Subscribe::to(&topic, poisoned).group(&names.group)),
        Neighbour::HangingInGroup => builder.subscription(hanging().group(&names.group)),
        Neighbour::HangingElsewhere => builder.subscription(hanging().group(names.group_of("other"))),
    }
}
