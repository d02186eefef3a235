//! Concurrent publishes outside of any transaction of the caller share one insert, and so one commit: while an insert
//! is under way the next ones gather; an idle engine adds no delay.

use std::sync::Arc;

use cap_core::storage::{Inserted, NewRecord};
use cap_core::{Error, ErrorKind, Result, Storage, Table};
use tokio::sync::{mpsc, oneshot};

/// How many calls may wait; the next one waits before it is taken.
const WAITING: usize = 1024;
/// How many records are gathered for one insert; a single call's are never split.
const RECORDS: usize = 500;
/// And at most so many bytes of content, but for a single call that has more.
const BYTES: usize = 4 * 1024 * 1024;

/// One call.
#[derive(Debug)]
pub(crate) struct Job {
    records: Vec<NewRecord>,
    answer: oneshot::Sender<Result<Vec<Inserted>>>,
}

/// The sending side: what `publish` calls.
#[derive(Clone, Debug)]
pub(crate) struct Batcher(mpsc::Sender<Job>);

/// The receiving side: what the engine's loop runs.
#[derive(Debug)]
pub(crate) struct Batches(mpsc::Receiver<Job>);

impl Batcher {
    pub(crate) fn new() -> (Self, Batches) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), Batches(receiver))
    }

    /// Inserts `records` into the outbox, together with those of others.
    pub(crate) async fn insert(&self, records: Vec<NewRecord>) -> Result<Vec<Inserted>> {
        let (answer, answered) = oneshot::channel();
        let stopped = |_| failed(ErrorKind::Stopped, "the engine is stopped; nothing was stored");
        self.0.send(Job { records, answer }).await.map_err(stopped)?;
        // Taken over, and gone without an answer: only the storage knows.
        answered.await.map_err(|_| unknown())?
    }
}

fn failed(kind: ErrorKind, reason: &str) -> Error {
    Error::new(kind, "publish to", "the outbox", reason)
}

/// The error of whoever has no answer.
pub(crate) fn unknown() -> Error {
    failed(ErrorKind::Unavailable, "no answer came: it may be stored all the same")
}

impl Batches {
    /// The next calls, as many as fit one insert; `None` once it is closed and empty.
    /// Cancel-safe.
    pub(crate) async fn gather(&mut self) -> Option<Vec<Job>> {
        let first = self.0.recv().await?;
        let (mut records, mut bytes) = (first.records.len(), first.bytes());
        let mut jobs = vec![first];
        while records < RECORDS && bytes < BYTES {
            let Ok(job) = self.0.try_recv() else { break };
            records += job.records.len();
            bytes += job.bytes();
            jobs.push(job);
        }
        Some(jobs)
    }

    /// Takes no more calls; those that wait are still done.
    pub(crate) fn close(&mut self) {
        self.0.close();
    }
}

impl Job {
    fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.content.len()).sum()
    }
}

/// Inserts what was gathered and answers each call; `stored` is told what is committed.
pub(crate) async fn insert_jobs(
    storage: &Arc<dyn Storage>,
    mut jobs: Vec<Job>,
    stored: &(impl Fn(&[NewRecord]) + Sync),
) {
    let alone = jobs.len() == 1;
    let records: Vec<NewRecord> = jobs.iter().flat_map(|job| job.records.iter().cloned()).collect();
    match storage.insert(Table::Outbox, records.clone(), None).await {
        Ok(inserted) => {
            stored(&records);
            let mut inserted = inserted.into_iter();
            for job in jobs {
                let own = inserted.by_ref().take(job.records.len()).collect();
                let _ = job.answer.send(Ok(own));
            }
        }
        // One call's record may be what the storage refuses: the others must not suffer for it.
        Err(error) if !alone && !error.is_retryable() => {
            let half = jobs.split_off(jobs.len() / 2);
            Box::pin(insert_jobs(storage, jobs, stored)).await;
            Box::pin(insert_jobs(storage, half, stored)).await;
        }
        Err(error) => {
            for job in jobs {
                let _ = job.answer.send(Err(error.clone()));
            }
        }
    }
}
