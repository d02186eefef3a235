//! From commit to handler, at a steady pace.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cap_core::HandlerError;
use cap_engine::{Cap, Json, Publish, Subscribe};
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::backend::{Broker, Client as _, Database, End, Fallible, within};
use crate::bench::Settings;
use crate::bench::load::payload;
use crate::report::{self, LatencyComparison};
use crate::twin::latency::Chain;

/// How long the last messages may take.
const REST: Duration = Duration::from_secs(10);
/// The first messages of a round warm caches and connections up, and do not count.
const WARM_UP: i64 = 20;

type Arrivals = mpsc::UnboundedReceiver<(i64, Instant)>;

/// Runs it.
pub(crate) async fn run<D: Database, B: Broker>(settings: &Settings) -> Fallible<LatencyComparison> {
    let mut comparison = LatencyComparison::default();
    for round in 1..=settings.rounds() {
        let mine = ours::<D, B>(settings).await?;
        let raw = raw::<D, B>(settings).await?;
        comparison.add(&mine, &raw)?;
        let ms = |histogram: &Histogram<u64>, quantile| report::milliseconds(histogram.value_at_quantile(quantile));
        report::progress(format_args!(
            "round {round}: p50 / p99 in ms: ours {:.2} / {:.2}, twin {:.2} / {:.2}",
            ms(&mine, 0.5),
            ms(&mine, 0.99),
            ms(&raw, 0.5),
            ms(&raw, 0.99),
        ));
    }
    Ok(comparison)
}

fn messages(settings: &Settings) -> i64 {
    let seconds = i64::try_from(settings.seconds.unwrap_or(4)).unwrap_or(4);
    WARM_UP + seconds * i64::from(settings.rate.max(1))
}

async fn ours<D: Database, B: Broker>(settings: &Settings) -> Fallible<Histogram<u64>> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let (handled, arrivals) = mpsc::unbounded_channel();
    let handler = move |Json(text): Json<String>| {
        let number = text.split('-').next().and_then(|digits| digits.parse().ok());
        let told = number.map(|number| handled.send((number, Instant::now())));
        std::future::ready(told.map(drop).ok_or_else(|| HandlerError::permanent("no number")))
    };
    let names = broker.names();
    let cap = Cap::builder()
        .storage(database.storage().await?)
        .transport(broker.transport().await?)
        .subscription(Subscribe::to(&names.topic, handler).group(&names.group))
        .start()
        .await?;
    let mut client = database.client().await?;
    let mut commits = HashMap::new();
    let mut pace = pace(settings);
    for number in 0..messages(settings) {
        pace.tick().await;
        let message = Publish::json(&names.topic, &payload(number, settings.bytes));
        client.place(&cap, number, message, End::Commit).await?;
        commits.insert(number, Instant::now());
    }
    let histogram = gathered(commits, arrivals).await?;
    cap.stop().await;
    broker.discard().await?;
    database.discard().await?;
    Ok(histogram)
}

async fn raw<D: Database, B: Broker>(settings: &Settings) -> Fallible<Histogram<u64>> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    broker.prepare().await?;
    let (handled, arrivals) = mpsc::unbounded_channel();
    let mut chain = Chain::start(&database, &broker, handled).await?;
    let mut commits = HashMap::new();
    let mut pace = pace(settings);
    for number in 0..messages(settings) {
        pace.tick().await;
        let committed = chain.place(number, &payload(number, settings.bytes)).await?;
        commits.insert(number, committed);
    }
    let histogram = gathered(commits, arrivals).await?;
    drop(chain);
    broker.discard().await?;
    database.discard().await?;
    Ok(histogram)
}

fn pace(settings: &Settings) -> tokio::time::Interval {
    let mut pace = tokio::time::interval(Duration::from_secs(1) / settings.rate.max(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

/// Microseconds from commit to handler, of all but the first messages.
async fn gathered(mut commits: HashMap<i64, Instant>, mut arrivals: Arrivals) -> Fallible<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    while !commits.is_empty() {
        let arrival = within(REST, "the last messages", arrivals.recv()).await?;
        let (number, handled) = arrival.ok_or("nobody handles messages any more")?;
        let Some(committed) = commits.remove(&number) else { continue };
        if number >= WARM_UP {
            // A handler may begin before the committing task goes on.
            let took = handled.saturating_duration_since(committed);
            histogram.record(u64::try_from(took.as_micros())?.max(1))?;
        }
    }
    Ok(histogram)
}
