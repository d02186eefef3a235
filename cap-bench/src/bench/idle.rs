//! What an idle node asks of its database.

use std::time::{Duration, Instant};

use cap_engine::{Cap, Subscribe};

use crate::backend::{Broker, Database, Fallible};
use crate::bench::Settings;
use crate::counting::Counting;
use crate::report::Idle;

/// What the first seconds ask does not count: joining, the first looks, and each connection that prepares its statements.
const SETTLE: Duration = Duration::from_secs(15);
/// A server may tell of its transactions a moment later.
const FLUSH: Duration = Duration::from_secs(2);

/// Runs it. Calls of the storage are counted everywhere, transactions where the server counts them.
pub(crate) async fn run<D: Database, B: Broker>(settings: &Settings) -> Fallible<Idle> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let storage = Counting::new(database.storage().await?);
    let calls = storage.calls();
    let names = broker.names();
    let cap = Cap::builder()
        .storage(storage)
        .transport(broker.transport().await?)
        .subscription(Subscribe::to(&names.topic, async || {}).group(&names.group))
        .start()
        .await?;
    tokio::time::sleep(SETTLE).await;
    let before = (calls.total(), database.transactions().await?);
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(settings.seconds.unwrap_or(20))).await;
    let after_calls = calls.total();
    let took = begun.elapsed().as_secs_f64();
    tokio::time::sleep(if before.1.is_some() { FLUSH } else { Duration::ZERO }).await;
    let after = database.transactions().await?;
    let with_flush = begun.elapsed().as_secs_f64();
    cap.stop().await;
    broker.discard().await?;
    database.discard().await?;
    Ok(Idle {
        calls: (after_calls - before.0) as f64 / took,
        transactions: after.zip(before.1).map(|(after, before)| after.saturating_sub(before) as f64 / with_flush),
        by_method: calls.by_method(),
    })
}
