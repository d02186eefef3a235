//! Jobs: work for one of the storage's threads, and the answer that comes back.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use cap_core::backend::Attempt;
use cap_core::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};

use crate::config::SqliteOptions;
use crate::error::{Fallible, Fault};
use crate::promises::Leases;
use crate::session::{self, Role, Session};
use crate::sql::Sql;

/// How many jobs may wait for a thread; more of them wait at the sender.
const CAPACITY: usize = 1024;

/// At most so many jobs are taken at once, and share one transaction: a bound on how long the first waits for the last.
const MAX_BATCH: usize = 256;

/// Work that answers, seen by a thread.
pub(crate) trait Job: Send {
    /// Looks whether there is anything to write, before the transaction begins. If not, it is to be answered at once.
    /// Never panics.
    fn is_idle(&mut self, session: &mut Session<'_>) -> bool;

    /// Does the work. Never panics, even if the work does.
    fn run(&mut self, session: &mut Session<'_>) -> Verdict;

    /// Sends the answer.
    fn answer(self: Box<Self>, fate: Fate);
}

pub(crate) type BoxedJob = Box<dyn Job>;

/// What is to become of what a job wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    /// The job is to be the last of its transaction: if the commit is refused, it is this job's doing.
    KeepUnlessRefused,
    Undo,
}

/// What became of the transaction that a job was part of.
#[derive(Debug)]
pub(crate) enum Fate {
    Committed,
    /// The commit went through without this job's writes, which it refused.
    Refused(Error),
    /// The whole transaction failed.
    Failed(Error),
}

/// A successful job's answer, and what is to become of what it wrote.
pub(crate) enum Done<T> {
    Kept(T),
    /// With the answer in case that the commit refuses it.
    KeptUnlessRefused(T, fn(Error) -> T),
    Undone(T),
}

/// What answers by reading alone, if that is enough.
type Look<T> = Box<dyn FnOnce(&mut Session<'_>) -> Fallible<Option<T>> + Send>;

struct Work<T, F> {
    look: Option<Look<T>>,
    work: Option<F>,
    outcome: Option<Result<Done<T>>>,
    answer: oneshot::Sender<Result<T>>,
    attempt: Attempt,
    place: Arc<str>,
}

impl<T, F> Job for Work<T, F>
where
    T: Send,
    F: FnOnce(&mut Session<'_>) -> Fallible<Done<T>> + Send,
{
    fn is_idle(&mut self, session: &mut Session<'_>) -> bool {
        let Some(look) = self.look.take() else { return false };
        let seen = caught(|| look(session)).map_err(|fault| fault.into_error(self.attempt, &self.place));
        self.outcome = seen.map(|answer| answer.map(Done::Kept)).transpose();
        self.outcome.is_some()
    }

    fn run(&mut self, session: &mut Session<'_>) -> Verdict {
        let Some(work) = self.work.take() else { return Verdict::Undo };
        let outcome = caught(|| work(session)).map_err(|fault| fault.into_error(self.attempt, &self.place));
        let verdict = match &outcome {
            Ok(Done::Kept(_)) => Verdict::Keep,
            Ok(Done::KeptUnlessRefused(..)) => Verdict::KeepUnlessRefused,
            Ok(Done::Undone(_)) | Err(_) => Verdict::Undo,
        };
        self.outcome = Some(outcome);
        verdict
    }

    fn answer(self: Box<Self>, fate: Fate) {
        let answer = match (self.outcome, fate) {
            (Some(Err(error)), _) => Err(error),
            (_, Fate::Failed(error)) => Err(error),
            (Some(Ok(Done::KeptUnlessRefused(_, refused))), Fate::Refused(error)) => Ok(refused(error)),
            (Some(Ok(Done::Undone(answer))), _) => Ok(answer),
            (Some(Ok(Done::Kept(answer) | Done::KeptUnlessRefused(answer, _))), Fate::Committed) => Ok(answer),
            (_, Fate::Refused(error)) => Err(error),
            (None, Fate::Committed) => Err(self.attempt.failed(ErrorKind::Internal, &self.place, "it was never run")),
        };
        // Nobody waits any more when the caller was dropped; what was done stays done.
        drop(self.answer.send(answer));
    }
}

/// A panic is an answer, too.
fn caught<T>(work: impl FnOnce() -> Fallible<T>) -> Fallible<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Fault::said(ErrorKind::Internal, format!("it panicked: {}", text_of(&*panic)))))
}

/// A job, and where its answer will be.
pub(crate) fn job<T, F>(
    attempt: Attempt,
    place: Arc<str>,
    look: Option<Look<T>>,
    work: F,
) -> (BoxedJob, oneshot::Receiver<Result<T>>)
where
    T: Send + 'static,
    F: FnOnce(&mut Session<'_>) -> Fallible<Done<T>> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    (Box::new(Work { look, work: Some(work), outcome: None, answer, attempt, place }), answered)
}

/// What a panic said.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a value that is no text")
}

/// A thread with a connection, seen by those who give it work. The thread ends when the queue is dropped and what it
/// held is done.
#[derive(Debug)]
pub(crate) struct Queue {
    sender: mpsc::Sender<BoxedJob>,
    place: Arc<str>,
}

/// What a thread works with.
#[derive(Debug, Clone)]
pub(crate) struct Bench {
    pub(crate) options: SqliteOptions,
    pub(crate) place: Arc<str>,
    pub(crate) sql: Arc<Sql>,
    pub(crate) leases: Arc<Leases>,
}

impl Bench {
    pub(crate) fn new(options: SqliteOptions) -> Self {
        let (place, sql) = (session::place(&options.path).into(), Arc::new(Sql::new(&options.prefix)));
        Self { options, place, sql, leases: Arc::default() }
    }
}

/// How a thread runs the jobs that waited for it: every one is answered.
pub(crate) type RunBatch = fn(&mut Session<'_>, &str, VecDeque<BoxedJob>);

/// A thread's life: it opens the connection when the first job comes, tries anew with each until it succeeds, and again
/// when the file is another one.
fn serve(bench: &Bench, mut role: Role, run: RunBatch, mut jobs: mpsc::Receiver<BoxedJob>) {
    let mut waiting = Vec::with_capacity(MAX_BATCH);
    while !waiting.is_empty() || jobs.blocking_recv_many(&mut waiting, MAX_BATCH) > 0 {
        match session::open(&bench.options, role) {
            Ok(connection) => {
                if role == Role::Writer {
                    role = Role::WriterAgain;
                }
                serve_over(&mut Session::new(&connection, bench), bench, run, &mut jobs, &mut waiting);
            }
            Err(error) => waiting.drain(..).for_each(|job| job.answer(Fate::Failed(error.clone()))),
        }
    }
}

/// Until there is no more to do, or the connection is of no use any more: then what waits is left.
fn serve_over(
    session: &mut Session<'_>,
    bench: &Bench,
    run: RunBatch,
    jobs: &mut mpsc::Receiver<BoxedJob>,
    waiting: &mut Vec<BoxedJob>,
) {
    loop {
        run(session, &bench.place, waiting.drain(..).collect());
        if jobs.blocking_recv_many(waiting, MAX_BATCH) == 0 {
            return;
        }
        if session.has_moved() {
            tracing::error!(cap.place = %bench.place, "the file was deleted or replaced while it was open");
            return;
        }
    }
}

impl Queue {
    pub(crate) fn start(name: &str, bench: Bench, role: Role, run: RunBatch) -> Result<Self> {
        let (sender, jobs) = mpsc::channel(CAPACITY);
        let place = Arc::clone(&bench.place);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve(&bench, role, run, jobs))
            .map_err(|error| Error::with_source(ErrorKind::Unavailable, "start a thread for", &*place, error))?;
        Ok(Self { sender, place })
    }

    /// Runs `work` on the thread, and keeps what it wrote if it succeeds.
    pub(crate) async fn run<T, F>(&self, attempt: Attempt, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Session<'_>) -> Fallible<T> + Send + 'static,
    {
        self.run_done(attempt, move |session| work(session).map(Done::Kept)).await
    }

    /// Runs `work` on the thread, unless `look` can answer by reading alone: then no transaction is begun for it, which
    /// would wait for other writers.
    pub(crate) async fn run_if<T, F, L>(&self, attempt: Attempt, look: L, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Session<'_>) -> Fallible<T> + Send + 'static,
        L: FnOnce(&mut Session<'_>) -> Fallible<Option<T>> + Send + 'static,
    {
        self.give(attempt, Some(Box::new(look)), move |session| work(session).map(Done::Kept)).await
    }

    /// Runs `work` on the thread; it says what is to become of what it wrote.
    pub(crate) async fn run_done<T, F>(&self, attempt: Attempt, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Session<'_>) -> Fallible<Done<T>> + Send + 'static,
    {
        self.give(attempt, None, work).await
    }

    async fn give<T, F>(&self, attempt: Attempt, look: Option<Look<T>>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Session<'_>) -> Fallible<Done<T>> + Send + 'static,
    {
        let gone = || attempt.failed(ErrorKind::Internal, &self.place, "the storage's thread has ended");
        let (job, answered) = job(attempt, Arc::clone(&self.place), look, work);
        self.sender.send(job).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}
