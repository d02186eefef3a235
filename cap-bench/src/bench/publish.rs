//! One business row and one message a transaction, on several connections.

use std::ops::Range;
use std::time::{Duration, Instant};

use cap_engine::{Cap, Publish};
use tokio::task::JoinSet;

use crate::backend::{Broker, Client as _, Database, End, Fallible};
use crate::bench::load::payload;
use crate::bench::{Settings, in_turn, rate};
use crate::report::Comparison;
use crate::twin;

const LATER: Duration = Duration::from_secs(3600);

/// Runs it.
pub(crate) async fn run<D: Database, B: Broker>(settings: &Settings) -> Fallible<Comparison> {
    in_turn(settings, async || ours::<D, B>(settings).await, async || raw::<D, B>(settings).await).await
}

fn transactions(settings: &Settings) -> usize {
    settings.messages.unwrap_or(10_000)
}

/// The numbers that each connection writes.
fn shares(settings: &Settings) -> Vec<Range<i64>> {
    let connections = settings.connections.max(1);
    let cut = |share: usize| (transactions(settings) * share / connections) as i64;
    (0..connections).map(|share| cut(share)..cut(share + 1)).collect()
}

/// The messages are published for later, so that the relay does not take part: the twin has none. With `--relaying`
/// they are due at once, and the relay works on the same machine meanwhile.
async fn ours<D: Database, B: Broker>(settings: &Settings) -> Fallible<f64> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    broker.sink().await?;
    let cap = Cap::builder().storage(database.storage().await?).transport(broker.transport().await?).start().await?;
    let mut clients = Vec::new();
    for _ in shares(settings) {
        clients.push(database.client().await?);
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for (numbers, mut client) in shares(settings).into_iter().zip(clients) {
        let (cap, topic) = (cap.clone(), broker.names().topic.clone());
        let (bytes, relaying) = (settings.bytes, settings.relaying);
        tasks.spawn(async move {
            for number in numbers {
                let mut message = Publish::json(&topic, &payload(number, bytes));
                if !relaying {
                    message = message.delay(LATER);
                }
                client.place(&cap, number, message, End::Commit).await?;
            }
            Fallible::Ok(())
        });
    }
    let took = joined(tasks, begun).await?;
    cap.stop().await;
    broker.discard().await?;
    database.discard().await?;
    Ok(rate(transactions(settings), took))
}

async fn raw<D: Database, B: Broker>(settings: &Settings) -> Fallible<f64> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let mut hands = Vec::new();
    for _ in shares(settings) {
        hands.push(database.hand().await?);
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for (numbers, mut hand) in shares(settings).into_iter().zip(hands) {
        let (broker, bytes) = (broker.clone(), settings.bytes);
        tasks.spawn(async move {
            twin::publish::publish::<D, B>(&mut hand, &broker, numbers, |number| payload(number, bytes)).await
        });
    }
    let took = joined(tasks, begun).await?;
    broker.discard().await?;
    database.discard().await?;
    Ok(rate(transactions(settings), took))
}

async fn joined(mut tasks: JoinSet<Fallible>, begun: Instant) -> Fallible<Duration> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(begun.elapsed())
}
