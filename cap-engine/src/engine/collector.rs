//! Deletes expired records, in batches, on a cadence of its own. One node does it for all; the others ask whether it is
//! their turn.

use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::Chore;
use cap_core::{ErrorKind, NodeId, Result, Table};
use tokio::time::Instant;

use crate::engine::Engine;

/// Between two batches, so that a large clean-up leaves room for the others.
const BREATH: Duration = Duration::from_millis(20);

pub(crate) async fn run(engine: Arc<Engine>) -> Result<()> {
    let quiesce = &engine.stop.quiesce;
    loop {
        let epoch = tokio::select! {
            biased;
            () = quiesce.cancelled() => return Ok(()),
            epoch = engine.node.joined() => epoch,
        };
        let began = Instant::now();
        match round(&engine, epoch.id).await {
            Ok(()) => engine.health.well("collector"),
            Err(error) if error.kind() == ErrorKind::LeaseLost => {
                engine.node.lost(&epoch);
                continue;
            }
            Err(error) => return Err(error),
        }
        // Spread, so that the nodes of a fleet do not all come at once.
        let pause = engine.options.collect_every.mul_f64(0.9 + fastrand::f64() / 5.0);
        tokio::select! {
            () = quiesce.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause.saturating_sub(began.elapsed())) => {}
        }
    }
}

/// Collects everything that has expired, as long as it is this node's turn.
async fn round(engine: &Engine, node: NodeId) -> Result<()> {
    let mut turn = Turn { engine, node, answer: Answer::Unknown };
    for table in [Table::Outbox, Table::Inbox] {
        let mut collected = 0;
        while turn.is_ours().await? {
            let batch = engine.storage.collect(table, engine.options.collect_batch).await?;
            collected += batch;
            if batch < engine.options.collect_batch as u64 {
                break;
            }
            tokio::select! {
                () = engine.stop.quiesce.cancelled() => return Ok(()),
                () = tokio::time::sleep(BREATH) => {}
            }
        }
        if collected > 0 {
            tracing::info!(cap.table = %table, cap.collected = collected, "collected expired records");
        }
    }
    Ok(())
}

/// Whose turn it is, as far as this node knows, in one round.
struct Turn<'e> {
    engine: &'e Engine,
    node: NodeId,
    answer: Answer,
}

enum Answer {
    Unknown,
    /// Ours, as of then.
    Ours(Instant),
    /// Another's: for the rest of the round.
    Anothers,
}

impl Turn<'_> {
    /// Asks the storage, and again in a round so long that half of the term is over.
    async fn is_ours(&mut self) -> Result<bool> {
        // Longer than the time to the next round, so that the turn stays where it is. If its node dies, it moves when
        // the node is taken over, and at the latest when the term is over.
        let every = self.engine.options.collect_every;
        let term = every.saturating_add(every / 2);
        match self.answer {
            Answer::Anothers => return Ok(false),
            Answer::Ours(asked) if asked.elapsed() < term / 2 => return Ok(true),
            Answer::Ours(_) | Answer::Unknown => {}
        }
        let asked = Instant::now();
        let is_ours = self.engine.storage.take_chore(Chore::Collect, self.node, term).await?;
        self.answer = if is_ours { Answer::Ours(asked) } else { Answer::Anothers };
        Ok(is_ours)
    }
}
