//! Outcomes of attempts, written in batches: while one batch is being written the next gathers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::engine::Engine;
use crate::engine::backoff::Pause;
use crate::engine::slots::Held;
use crate::engine::step::Step;
use crate::error::{ErrorKind, Result};
use crate::lifecycle::State;
use crate::storage::{Settled, Settlement, Table};
use crate::time::Due;

/// At most so many settlements in one statement.
const BATCH: usize = 500;
/// How long the first of them waits for others that are in flight.
const GATHER: Duration = Duration::from_millis(5);

/// An attempt's outcome, with what it holds until it is written.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) held: Held,
    pub(crate) state: State,
}

/// Where outcomes are handed in. What is in flight is bounded by the slots that they hold, so this is not.
#[derive(Debug, Clone)]
pub(crate) struct Settler(mpsc::UnboundedSender<Outcome>);

impl Settler {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Outcome>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    pub(crate) fn settle(&self, held: Held, state: State) {
        // After the end of a stop nobody listens; the record is then given back by signing off.
        let _ = self.0.send(Outcome { held, state });
    }
}

/// Writes outcomes until nobody can hand in any more, or until the end of a stop.
pub(crate) async fn run(
    engine: Arc<Engine>,
    table: Table,
    outcomes: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Outcome>>>,
) -> Result<()> {
    let name = format!("settle {table}");
    let mut outcomes = outcomes.lock().await;
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            count = outcomes.recv_many(&mut batch, BATCH) => if count == 0 { return Ok(()) },
            () = engine.stop.finish.cancelled() => return Ok(()),
        }
        gather(&engine, table, &mut outcomes, &mut batch).await;
        write(&engine, table, &name, std::mem::take(&mut batch)).await;
    }
}

/// Adds outcomes that come within a moment, as long as others are in flight: an idle engine adds no delay.
async fn gather(
    engine: &Engine,
    table: Table,
    outcomes: &mut mpsc::UnboundedReceiver<Outcome>,
    batch: &mut Vec<Outcome>,
) {
    let over = tokio::time::sleep(GATHER);
    tokio::pin!(over);
    while batch.len() < BATCH && engine.held(table) > batch.len() {
        tokio::select! {
            biased;
            count = outcomes.recv_many(batch, BATCH - batch.len()) => if count == 0 { return },
            () = &mut over => return,
            () = engine.stop.finish.cancelled() => return,
        }
    }
}

async fn write(engine: &Engine, table: Table, name: &str, batch: Vec<Outcome>) {
    let settlements: Vec<Settlement> = batch
        .iter()
        .map(|outcome| Settlement {
            record: outcome.held.record,
            token: outcome.held.token,
            state: outcome.state.clone(),
        })
        .collect();
    let mut pause = Pause::quick();
    let mut repeated = false;
    let answers = loop {
        match engine.storage.settle(table, settlements.clone()).await {
            Ok(answers) => break answers,
            Err(error) => {
                let hopeless = !error.is_retryable() && error.kind() != ErrorKind::Internal;
                engine.health.ill(name, error);
                // What this batch holds is then taken over by the next life, or by another node.
                if hopeless && repeated {
                    return engine.node.renew();
                }
            }
        }
        repeated = true;
        tokio::select! {
            () = engine.stop.finish.cancelled() => return,
            () = pause.wait() => {}
        }
    };
    engine.health.well(name);
    for (outcome, answer) in batch.into_iter().zip(answers) {
        finish(engine, table, outcome, answer, repeated);
    }
}

fn finish(engine: &Engine, table: Table, outcome: Outcome, answer: Settled, repeated: bool) {
    let Outcome { held, state } = outcome;
    // After a repetition `Lost` may mean that the first try was written: a dead record is then told of all the same.
    if answer == Settled::Written || repeated {
        engine.notice_dead(table, &held, &state);
    }
    if answer == Settled::Lost {
        tracing::warn!(message = %held.message_id, topic = %held.topic, "the outcome was not written: another node has the record");
        return;
    }
    let step = if table == Table::Outbox { Step::OutboxSettled } else { Step::InboxSettled };
    engine.steps.tell(step, &held.message_id);
    match state.due() {
        Some(Due::In(delay)) => engine.scheduler.wake_in(held.lane, delay),
        Some(_) => engine.scheduler.wake(held.lane),
        None => {}
    }
}
