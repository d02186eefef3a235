//! Outcomes of attempts, written in batches: while one batch is being written the next gathers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::lifecycle::State;
use cap_core::storage::{Settled, Settlement};
use cap_core::{Due, Result, Table};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::Engine;
use crate::engine::backoff::Pause;
use crate::engine::held::Held;
use crate::engine::refusal::{DOUBT, Refusal};
use crate::engine::step::Step;

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
    let mut aside = Aside::default();
    loop {
        tokio::select! {
            biased;
            () = aside.due() => {
                // By themselves: whatever ails them is no affair of the others.
                let outcomes = aside.take();
                write(&engine, table, &name, outcomes, &mut aside).await;
            }
            () = gather(&engine, table, settler) => {
                write(&engine, table, &name, settler.take(), &mut aside).await;
            }
            () = finish.cancelled() => {
                settler.close();
                return Ok(());
            }
        }
    }
}

/// Outcomes that are tried again later, beside the others: their records are locked by open transactions, or the storage
/// refuses them.
#[derive(Debug, Default)]
struct Aside {
    outcomes: Vec<Outcome>,
    due: Option<Instant>,
    pause: Option<Pause>,
}

impl Aside {
    /// Puts an outcome here, until the next pause is over.
    fn put(&mut self, outcome: Outcome) {
        self.outcomes.push(outcome);
        if self.due.is_none() {
            self.due = Some(Instant::now() + self.pause.get_or_insert_with(Pause::quick).next());
        }
    }

    async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn take(&mut self) -> Vec<Outcome> {
        self.due = None;
        std::mem::take(&mut self.outcomes)
    }

    /// Nothing is here any more: the next pause is a short one.
    fn rest(&mut self) {
        if self.outcomes.is_empty() {
            self.pause = None;
        }
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

/// Part of a batch that is written with one call.
struct Part {
    outcomes: Vec<Outcome>,
    /// It was tried before, and may have been written.
    repeated: bool,
}

/// Writes a batch. One that the storage refuses is parted until what it refuses stands alone.
async fn write(engine: &Engine, table: Table, name: &str, batch: Vec<Outcome>, aside: &mut Aside) {
    let mut parts = vec![Part { outcomes: batch, repeated: false }];
    let (mut pause, mut tries, mut others_pass) = (Pause::quick(), 0, false);
    while let Some(mut part) = parts.pop() {
        let settlements = part.outcomes.iter().map(Outcome::settlement).collect();
        let error = match engine.storage.settle(table, settlements).await {
            Ok(answers) => {
                (tries, others_pass) = (0, true);
                engine.health.well(name);
                for (outcome, answer) in part.outcomes.into_iter().zip(answers) {
                    finish(engine, table, outcome, answer, part.repeated, aside);
                }
                continue;
            }
            Err(error) => error,
        };
        tries += 1;
        part.repeated = true;
        let refusal = Refusal::of(&error, tries, others_pass);
        let is_certain = refusal.is_certain(&error);
        engine.health.ill(name, error);
        match refusal {
            Refusal::OfSomething if part.outcomes.len() > 1 => {
                let half = part.outcomes.split_off(part.outcomes.len() / 2);
                parts.push(Part { outcomes: half, repeated: true });
                parts.push(part);
                continue;
            }
            Refusal::OfSomething => {
                let mut outcome = part.outcomes.remove(0);
                match outcome.state.in_plain_words().filter(|_| is_certain) {
                    Some(plain) => {
                        outcome.state = plain;
                        parts.push(Part { outcomes: vec![outcome], repeated: true });
                    }
                    // Nothing is left that could be its fault.
                    None => aside.put(outcome),
                }
                continue;
            }
            // In doubt the others come first: if they pass, it is known not to be everything.
            Refusal::OfEverything => parts.insert(if tries >= DOUBT { 0 } else { parts.len() }, part),
        }
        tokio::select! {
            () = engine.stop.finish.cancelled() => return,
            () = pause.wait() => {}
        }
    }
    aside.rest();
}

impl Outcome {
    fn settlement(&self) -> Settlement {
        Settlement { record: self.held.record, token: self.held.token, state: self.state.clone() }
    }
}

fn finish(engine: &Engine, table: Table, outcome: Outcome, answer: Settled, repeated: bool, aside: &mut Aside) {
    if answer == Settled::Locked {
        tracing::debug!(messaging.message.id = %outcome.held.message_id.shown(), "an open transaction holds its record: settled later");
        return aside.put(outcome);
    }
    let Outcome { held, state } = outcome;
    // After a repetition `Lost` may mean that the first try was written: a dead record is then told of all the same.
    if answer == Settled::Written || repeated {
        engine.notice_dead(table, &held, &state);
    }
    if answer == Settled::Lost {
        tracing::warn!(messaging.message.id = %held.message_id.shown(), messaging.destination.name = %held.topic.shown(), "the outcome was not written: another node has the record");
        return;
    }
    let step = if table == Table::Outbox { Step::OutboxSettled } else { Step::InboxSettled };
    engine.steps.tell(step, &held.message_id);
    let lane = held.lane_after(&state);
    match state.due() {
        Some(Due::In(delay)) => engine.scheduler.wake_in(lane, delay),
        Some(_) => engine.scheduler.wake(lane),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use cap_core::{ClaimToken, MessageId, RecordId, Topic, lifecycle};

    use super::*;
    use crate::engine::slots::Slots;

    fn hand_in(settler: &Settler, slots: &Arc<Slots>) {
        let held = Held {
            record: RecordId(1),
            token: ClaimToken::generate(),
            message_id: MessageId::generate(),
            topic: Topic::from_stored("a"),
            group: None,
            begun: lifecycle::Begun::first(),
            lane: 0,
            company: None,
            slot: slots.take(1).next().unwrap(),
            share: None,
        };
        settler.settle(held, lifecycle::received(false));
    }

    #[test]
    fn who_waits_is_told_when_there_are_enough() {
        let (settler, slots) = (Settler::default(), Slots::fixed(10, usize::MAX));
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
        let (settler, slots) = (Settler::default(), Slots::fixed(BATCH + 1, usize::MAX));
        (0..=BATCH).for_each(|_| hand_in(&settler, &slots));
        assert_eq!((settler.take().len(), settler.take().len()), (BATCH, 1));
    }

    #[test]
    fn after_the_end_nothing_keeps_its_slot() {
        let (settler, slots) = (Settler::default(), Slots::fixed(2, usize::MAX));
        hand_in(&settler, &slots);
        settler.close();
        hand_in(&settler, &slots);
        assert_eq!(slots.used(), 0);
    }
}
