//! Concurrent publishes outside of any transaction of the caller share one insert, and so one commit: while an insert
//! is under way the next ones gather; an idle engine adds no delay.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Inserted, NewRecord, Storage, Table};

/// How many calls may wait; the next one waits before it is taken.
const WAITING: usize = 1024;
/// How many records are gathered for one insert; a single call's are never split.
const RECORDS: usize = 500;

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
        let stopped = || Error::new(ErrorKind::Stopped, "publish to", "the outbox", "the engine is stopped");
        self.0.send(Job { records, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

impl Batches {
    /// The next calls, as many as fit one insert; `None` once it is closed and empty.
    /// Cancel-safe.
    pub(crate) async fn gather(&mut self) -> Option<Vec<Job>> {
        let first = self.0.recv().await?;
        let mut records = first.records.len();
        let mut jobs = vec![first];
        while records < RECORDS {
            let Ok(job) = self.0.try_recv() else { break };
            records += job.records.len();
            jobs.push(job);
        }
        Some(jobs)
    }

    /// Takes no more calls; those that wait are still done.
    pub(crate) fn close(&mut self) {
        self.0.close();
    }
}

/// Inserts what was gathered and answers each call; `stored` is told what is committed.
pub(crate) async fn insert_jobs(storage: &Arc<dyn Storage>, jobs: Vec<Job>, stored: &(impl Fn(&[NewRecord]) + Sync)) {
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
            for job in jobs {
                Box::pin(insert_jobs(storage, vec![job], stored)).await;
            }
        }
        Err(error) => {
            for job in jobs {
                let _ = job.answer.send(Err(error.clone()));
            }
        }
    }
}
