//! Outcomes of attempts, written in batches: while one batch is being written the next gathers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

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
#[derive(Debug, Default)]
pub(crate) struct Settler {
    waiting: Mutex<Waiting>,
    enough: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    outcomes: Vec<Outcome>,
    /// The loop is woken when there are so many of them, and not for each; 0 while it is at work.
    wanted: usize,
    is_closed: bool,
}

impl Settler {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn settle(&self, held: Held, state: State) {
        let mut waiting = self.waiting();
        // After the end of a stop nobody listens; the record is then given back by signing off.
        if waiting.is_closed {
            return;
        }
        waiting.outcomes.push(Outcome { held, state });
        if waiting.wanted > 0 && waiting.outcomes.len() >= waiting.wanted {
            waiting.wanted = 0;
            drop(waiting);
            self.enough.notify_one();
        }
    }

    /// Waits until there are `number` of them.
    async fn wait_for(&self, number: usize) {
        loop {
            {
                let mut waiting = self.waiting();
                if waiting.outcomes.len() >= number {
                    waiting.wanted = 0;
                    return;
                }
                waiting.wanted = number;
            }
            self.enough.notified().await;
        }
    }

    fn take(&self) -> Vec<Outcome> {
        let outcomes = &mut self.waiting().outcomes;
        if outcomes.len() <= BATCH {
            return std::mem::take(outcomes);
        }
        outcomes.drain(..BATCH).collect()
    }

    /// What is handed in from now on is let go.
    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.is_closed = true;
        let outcomes = std::mem::take(&mut waiting.outcomes);
        drop(waiting);
        drop(outcomes);
    }
}

/// Writes outcomes until the end of a stop.
pub(crate) async fn run(engine: Arc<Engine>, table: Table) -> Result<()> {
    let (name, settler) = (format!("settle {table}"), engine.settler(table));
    let finish = &engine.stop.finish;
    loop {
        tokio::select! {
            biased;
            () = gather(&engine, table, settler) => {}
            () = finish.cancelled() => {
                settler.close();
                return Ok(());
            }
        }
        write(&engine, table, &name, settler.take()).await;
    }
}

/// Waits for an outcome, and then a moment for those that are in flight, if there are any: an idle engine adds no delay.
async fn gather(engine: &Engine, table: Table, settler: &Settler) {
    settler.wait_for(1).await;
    let all = async {
        let mut gathered = 1;
        loop {
            let wanted = engine.held(table).min(BATCH);
            if wanted <= gathered {
                return;
            }
            settler.wait_for(wanted).await;
            gathered = wanted;
        }
    };
    let _ = tokio::time::timeout(GATHER, all).await;
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::engine::slots::Slots;
    use crate::id::{ClaimToken, MessageId, RecordId};
    use crate::lifecycle;
    use crate::name::Topic;

    fn hand_in(settler: &Settler, slots: &Arc<Slots>) {
        let held = Held {
            record: RecordId(1),
            token: ClaimToken::generate(),
            message_id: MessageId::generate(),
            topic: Topic::from_stored("a"),
            group: None,
            attempts: 1,
            lane: 0,
            _slot: slots.take(1).next().unwrap(),
        };
        settler.settle(held, lifecycle::received(false));
    }

    #[test]
    fn who_waits_is_told_when_there_are_enough() {
        let (settler, slots) = (Settler::default(), Slots::fixed(10));
        let mut context = Context::from_waker(Waker::noop());
        let mut three = pin!(settler.wait_for(3));
        for _ in 0..3 {
            assert_eq!(three.as_mut().poll(&mut context), Poll::Pending);
            hand_in(&settler, &slots);
        }
        assert_eq!(three.poll(&mut context), Poll::Ready(()));
        assert_eq!(settler.take().len(), 3);
    }

    #[test]
    fn a_batch_is_bounded_and_the_rest_stays() {
        let (settler, slots) = (Settler::default(), Slots::fixed(BATCH + 1));
        (0..=BATCH).for_each(|_| hand_in(&settler, &slots));
        assert_eq!((settler.take().len(), settler.take().len()), (BATCH, 1));
    }

    #[test]
    fn after_the_end_nothing_keeps_its_slot() {
        let (settler, slots) = (Settler::default(), Slots::fixed(2));
        hand_in(&settler, &slots);
        settler.close();
        hand_in(&settler, &slots);
        assert_eq!(slots.used(), 0);
    }
}
