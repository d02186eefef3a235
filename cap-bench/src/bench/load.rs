//! Waiting messages, and the signal that all of them have come to their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cap_core::storage::{Claim, NewRecord, Storage};
use cap_core::transport::{Confirm, Outgoing, Transport};
use cap_core::{Due, Headers, Message, MessageId, Table, Timestamp, Topic, Version, content, headers, lifecycle};
use cap_engine::Step;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::backend::{Fallible, Names};

/// A text that is `bytes` long as JSON and starts with the number.
pub(crate) fn payload(number: i64, bytes: usize) -> String {
    let mut text = format!("{number}-");
    let missing = bytes.saturating_sub(2 + text.len());
    text.extend(std::iter::repeat_n('x', missing));
    text
}

/// The message that publishing `payload` makes.
pub(crate) fn message(names: &Names, payload: &(impl Serialize + ?Sized)) -> Fallible<Message> {
    message_on(&names.topic, serde_json::to_vec(payload)?)
}

/// One on any topic, with a payload that is JSON already.
pub(crate) fn message_on(topic: &str, payload: Vec<u8>) -> Fallible<Message> {
    let id = MessageId::generate();
    let mut all = Headers::new();
    for (name, value) in [
        (headers::MESSAGE_ID, id.as_str()),
        (headers::MESSAGE_NAME, topic),
        (headers::MESSAGE_TYPE, "String"),
        (headers::CORRELATION_ID, id.as_str()),
        (headers::CORRELATION_SEQUENCE, "0"),
        (headers::SENT_TIME, "01/01/2026 00:00:00"),
    ] {
        all.set(name, value);
    }
    Ok(Message { id, topic: Topic::try_from(topic)?, headers: all, payload: payload.into() })
}

/// An outbox record that is due.
pub(crate) fn outbox_record(message: Message) -> NewRecord {
    NewRecord {
        content: content::wrap(&message, Timestamp::now()).into(),
        message_id: message.id,
        version: Version::default(),
        topic: message.topic,
        group: None,
        state: lifecycle::scheduled(Due::Now),
    }
}

/// Fills the outbox.
pub(crate) async fn fill_outbox(storage: &impl Storage, names: &Names, number: usize, bytes: usize) -> Fallible {
    let record = |index: usize| Ok(outbox_record(message(names, payload(index as i64, bytes).as_str())?));
    store(storage, Table::Outbox, number, None, record).await
}

/// Inserts so many records, in batches.
pub(crate) async fn store(
    storage: &impl Storage,
    table: Table,
    number: usize,
    claim: Option<Claim>,
    record: impl Fn(usize) -> Fallible<NewRecord>,
) -> Fallible {
    const BATCH: usize = 500;
    for first in (0..number).step_by(BATCH) {
        let records = (first..number.min(first + BATCH)).map(&record).collect::<Fallible<_>>()?;
        storage.insert(table, records, claim).await?;
    }
    Ok(())
}

/// Fills the queues of the broker, and waits until all is confirmed.
pub(crate) async fn fill_broker(transport: &impl Transport, names: &Names, number: usize, bytes: usize) -> Fallible {
    const WINDOW: usize = 1000;
    const BATCH: usize = 100;
    let window = Arc::new(Semaphore::new(WINDOW));
    let (failed, mut failures) = mpsc::unbounded_channel();
    for first in (0..number).step_by(BATCH) {
        let mut batch = Vec::with_capacity(BATCH);
        for index in first..number.min(first + BATCH) {
            let place = Arc::clone(&window).acquire_owned().await?;
            let failed = failed.clone();
            let confirm = Confirm::new(move |outcome| {
                if let Err(error) = outcome {
                    let _ = failed.send(error);
                }
                drop(place);
            });
            batch.push(Outgoing { message: message(names, payload(index as i64, bytes).as_str())?, confirm });
        }
        transport.send(batch).await;
    }
    let _all_confirmed = window.acquire_many(WINDOW as u32).await?;
    match failures.try_recv() {
        Ok(error) => Err(error.into()),
        Err(_) => Ok(()),
    }
}

/// Counts a step of the engine, and tells when it was done often enough.
#[derive(Clone)]
pub(crate) struct Countdown {
    left: Arc<AtomicUsize>,
    step: Step,
    done: CancellationToken,
}

impl Countdown {
    pub(crate) fn new(step: Step, number: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(number)), step, done: CancellationToken::new() }
    }

    /// For the builder's `on_step`.
    pub(crate) fn listener(&self) -> impl Fn(Step, &MessageId) + Send + Sync + 'static {
        let own = self.clone();
        move |step, _| {
            if step == own.step && own.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                own.done.cancel();
            }
        }
    }

    pub(crate) async fn wait(&self) {
        self.done.cancelled().await;
    }

    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::Acquire)
    }
}
