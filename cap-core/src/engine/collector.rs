//! Deletes expired records, in batches, on a cadence of its own.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::error::Result;
use crate::storage::Table;

/// Between two batches, so that a large clean-up leaves room for the others.
const BREATH: Duration = Duration::from_millis(20);

pub(crate) async fn run(engine: Arc<Engine>) -> Result<()> {
    let quiesce = &engine.stop.quiesce;
    loop {
        for table in [Table::Outbox, Table::Inbox] {
            let mut collected = 0;
            loop {
                let batch = engine.storage.collect(table, engine.options.collect_batch).await?;
                collected += batch;
                if batch < engine.options.collect_batch as u64 {
                    break;
                }
                tokio::select! {
                    () = quiesce.cancelled() => return Ok(()),
                    () = tokio::time::sleep(BREATH) => {}
                }
            }
            if collected > 0 {
                tracing::info!(%table, collected, "collected expired records");
            }
        }
        engine.health.well("collector");
        // Spread, so that the nodes of a fleet do not all come at once.
        let pause = engine.options.collect_every.mul_f64(0.9 + fastrand::f64() / 5.0);
        tokio::select! {
            () = quiesce.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}
