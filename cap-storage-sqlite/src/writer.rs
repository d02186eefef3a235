//! The thread that writes, with group commit.
//!
//! SQLite has one writer at a time and a commit costs an `fsync`. So all jobs that wait are run in one transaction,
//! each in a savepoint of its own, and are answered after the one commit: whoever waits alone waits no longer, and many
//! together share the price. A job that fails is rolled back to its savepoint and the others go on.
//!
//! No job writes outside of a transaction on this connection, and no answer that speaks of success leaves before the
//! commit has succeeded.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cap_core::backend::Attempt;
use cap_core::{Error, ErrorKind, Result};
use rusqlite::params;

use crate::error::{commit_failed, failed, is_busy, is_constraint};
use crate::job::{BoxedJob, Fate, Verdict};
use crate::session::Session;

/// A transaction that has been open for so long takes no more jobs in: those that are done are to be answered, and other
/// connections are to have their turn.
const LONG: Duration = Duration::from_millis(100);

const BEGIN: &str = "BEGIN IMMEDIATE";
const COMMIT: &str = "COMMIT";
const ROLLBACK: &str = "ROLLBACK";
const SAVEPOINT: &str = "SAVEPOINT cap_job";
const RELEASE: &str = "RELEASE cap_job";
const ROLLBACK_TO: &str = "ROLLBACK TO cap_job";

/// Runs and answers all of them; first those that have nothing to write.
pub(crate) fn run(session: &mut Session<'_>, place: &str, jobs: VecDeque<BoxedJob>) {
    let mut batch = VecDeque::with_capacity(jobs.len());
    for mut job in jobs {
        if job.is_idle(session) {
            job.answer(Fate::Committed);
        } else {
            batch.push_back(job);
        }
    }
    while !batch.is_empty() {
        run_batch(session, place, &mut batch);
    }
}

/// Runs jobs from the front in one transaction, until none is left, one of them has to be its last, or it has been open
/// for long enough.
fn run_batch(session: &mut Session<'_>, place: &str, batch: &mut VecDeque<BoxedJob>) {
    if let Err(error) = begin(session, place) {
        let error = failed(Attempt::on_database("begin a transaction in"), place, error);
        return batch.drain(..).for_each(|job| job.answer(Fate::Failed(error.clone())));
    }

    let mut ran = Vec::with_capacity(batch.len());
    let ended = run_jobs(session, place, batch, &mut ran).and_then(|end| commit(session, place, end));

    let refused = match ended {
        Ok(refused) => refused,
        Err(error) => {
            rollback(session);
            keep_promises_at_last(session, place);
            return ran.into_iter().for_each(|job| job.answer(Fate::Failed(error.clone())));
        }
    };
    session.leases.kept();
    let refused = refused.and_then(|error| Some((ran.pop()?, error)));
    ran.into_iter().for_each(|job| job.answer(Fate::Committed));
    if let Some((job, error)) = refused {
        job.answer(Fate::Refused(error));
    }
}

/// What the commit has to reckon with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All savepoints are released.
    Clean,
    /// That of the last job is open, because the commit may be refused for what it wrote.
    MayBeRefused,
}

/// Moves jobs from `batch` to `ran`. An error means that the whole transaction is lost.
fn run_jobs(
    session: &mut Session<'_>,
    place: &str,
    batch: &mut VecDeque<BoxedJob>,
    ran: &mut Vec<BoxedJob>,
) -> Result<End> {
    let begun = Instant::now();
    while begun.elapsed() < LONG
        && let Some(mut job) = batch.pop_front()
    {
        let end = run_in_savepoint(session, &mut job);
        ran.push(job);
        if end.map_err(|why| lost(place, &why))? == End::MayBeRefused {
            return Ok(End::MayBeRefused);
        }
        // Before anything else is done: the next job may be a takeover.
        keep_promises(session).map_err(|error| lost(place, &error.to_string()))?;
    }
    Ok(End::Clean)
}

/// Renews what heartbeats were promised while a handler had the writer. Committed together with what it wrote.
fn keep_promises(session: &mut Session<'_>) -> rusqlite::Result<()> {
    for (node, span) in session.leases.promised() {
        session.statement(&session.sql.keep_promise)?.execute(params![node.to_string(), span])?;
    }
    Ok(())
}

/// The same after the transaction was lost, in one of its own, before anything else is done. If another connection was
/// quicker and has taken over, there is nothing to renew, and the next heartbeat says so.
fn keep_promises_at_last(session: &mut Session<'_>, place: &str) {
    if session.leases.promised().is_empty() {
        return;
    }
    let kept = session.execute(BEGIN).and_then(|_| keep_promises(session)).and_then(|()| session.execute(COMMIT));
    match kept {
        Ok(_) => session.leases.kept(),
        Err(error) => {
            rollback(session);
            session.leases.broken();
            tracing::warn!(place, error.message = %error, "leases that were held by a transaction may have run out, as it was lost");
        }
    }
}

/// Runs one job in a savepoint. An error says why the whole transaction is lost.
fn run_in_savepoint(session: &mut Session<'_>, job: &mut BoxedJob) -> Result<End, String> {
    session.execute(SAVEPOINT).map_err(|error| error.to_string())?;
    let verdict = job.run(session);
    if session.connection.is_autocommit() {
        return Err("SQLite rolled it back after an error, or a handler ended it with COMMIT or ROLLBACK".into());
    }
    if verdict == Verdict::KeepUnlessRefused {
        return Ok(End::MayBeRefused);
    }
    if verdict == Verdict::Undo {
        session.execute(ROLLBACK_TO).map_err(|error| error.to_string())?;
    }
    session.execute(RELEASE).map_err(|error| error.to_string())?;
    Ok(End::Clean)
}

/// Ends the transaction. Answers the error with which the last job was refused and left out, if it was.
fn commit(session: &mut Session<'_>, place: &str, end: End) -> Result<Option<Error>> {
    const ATTEMPT: Attempt = Attempt::on_database("commit to");
    let failed = |error| commit_failed(ATTEMPT, place, error);
    if session.has_moved() {
        let reason = "the file was deleted or replaced while it was open: nothing is stored";
        return Err(ATTEMPT.failed(ErrorKind::Environment, place, reason));
    }
    if end == End::MayBeRefused {
        keep_promises(session).map_err(failed)?;
    }
    let Err(error) = session.execute(COMMIT) else {
        return Ok(None);
    };
    if !is_constraint(&error) {
        return Err(failed(error));
    }
    if end == End::Clean {
        return Err(lost(place, &error.to_string()));
    }
    session.execute(ROLLBACK_TO).map_err(failed)?;
    keep_promises(session).map_err(failed)?;
    session.execute(COMMIT).map_err(failed)?;
    Ok(Some(failed(error)))
}

/// `Unavailable`, because of each job either all is stored or nothing, and the same may work later in other company.
fn lost(place: &str, why: &str) -> Error {
    let reason = format!("the transaction that this work shared with other work is lost: {why}");
    Attempt::on_database("commit to").failed(ErrorKind::Unavailable, place, reason)
}

/// How long SQLite waits at a stretch. The longer it waits the more seldom it looks, in the end every 100 ms: so long would
/// a transaction that was open for a while be over before anybody noticed.
const STRETCH: Duration = Duration::from_millis(30);

/// Waits for the writers of other connections, at most for the busy timeout; at half the lease it says what holds it up.
fn begin(session: &mut Session<'_>, place: &str) -> rusqlite::Result<()> {
    // Nothing leaves a transaction open; if something did, it must not become part of this one.
    rollback(session);
    let (asked, timeout) = (Instant::now(), session.waiting.timeout);
    let since = *session.waiting.since.get_or_insert(asked);
    loop {
        let left = timeout.saturating_sub(asked.elapsed());
        let patience = session.leases.patience().filter(|_| !session.waiting.is_told);
        let until_told = patience.map_or(left, |patience| patience.saturating_sub(since.elapsed()));
        // SQLite counts in milliseconds, and would not wait at all for less than one.
        session.connection.busy_timeout(left.min(STRETCH).min(until_told.max(Duration::from_millis(1))))?;
        let begun = session.execute(BEGIN);
        session.connection.busy_timeout(timeout)?;
        match begun {
            Ok(_) => {
                (session.waiting.since, session.waiting.is_told) = (None, false);
                return Ok(());
            }
            Err(error) if !is_busy(&error) => return Err(error),
            Err(error) => {
                let waited = since.elapsed();
                if patience.is_some_and(|patience| waited >= patience) {
                    session.waiting.is_told = true;
                    tracing::warn!(
                        place,
                        ?waited,
                        "another connection to the file keeps the one writer for longer than half the lease: \
                         heartbeats, claims and settlements wait, and the lease is lost if that lasts"
                    );
                }
                if asked.elapsed() >= timeout {
                    return Err(error);
                }
            }
        }
    }
}

fn rollback(session: &mut Session<'_>) {
    if session.connection.is_autocommit() {
        return;
    }
    if let Err(error) = session.execute(ROLLBACK) {
        tracing::error!(error.message = %error, "cannot roll a transaction back");
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use tokio::sync::oneshot;

    use super::*;
    use crate::config::SqliteOptions;
    use crate::error::{Fallible, Fault};
    use crate::job::{Bench, Done, job};
    use crate::session::{self, Role};

    type Answer = oneshot::Receiver<Result<&'static str>>;
    type Batch = VecDeque<BoxedJob>;

    struct Fixture {
        connection: Connection,
        bench: Bench,
        _directory: tempfile::TempDir,
    }

    impl Fixture {
        /// A file with a table `t`, and foreign keys that are checked at the commit.
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let options = SqliteOptions::new(directory.path().join("a.db")).busy_timeout(std::time::Duration::ZERO);
            let connection = session::open(&options, Role::Writer).unwrap();
            connection
                .execute_batch(
                    "PRAGMA foreign_keys = ON;
                     CREATE TABLE t (name TEXT PRIMARY KEY);
                     CREATE TABLE child (name TEXT REFERENCES t DEFERRABLE INITIALLY DEFERRED)",
                )
                .unwrap();
            Self { connection, bench: Bench::new(options), _directory: directory }
        }

        fn run(&self, batch: &mut Batch) {
            run_batch(&mut Session::new(&self.connection, &self.bench), "here", batch);
        }

        /// What another connection sees.
        fn committed(&self) -> Vec<String> {
            let reader = session::open(&self.bench.options, Role::Reader).unwrap();
            let mut names = reader.prepare("SELECT name FROM t ORDER BY rowid").unwrap();
            names.query_map([], |row| row.get(0)).unwrap().map(|name| name.unwrap()).collect()
        }
    }

    fn add<F>(batch: &mut Batch, work: F) -> Answer
    where
        F: FnOnce(&mut Session<'_>) -> Fallible<Done<&'static str>> + Send + 'static,
    {
        let (job, answer) = job(Attempt::on_database("write to"), "here".into(), None, work);
        batch.push_back(job);
        answer
    }

    fn write(session: &Session<'_>, name: &str) -> Fallible<()> {
        session.connection.execute("INSERT INTO t VALUES (?1)", [name])?;
        Ok(())
    }

    fn kept(name: &'static str) -> impl FnOnce(&mut Session<'_>) -> Fallible<Done<&'static str>> + Send {
        move |session| {
            write(session, name)?;
            Ok(Done::Kept(name))
        }
    }

    fn answered(mut answer: Answer) -> Result<&'static str> {
        answer.try_recv().expect("the job was answered")
    }

    #[test]
    fn a_job_that_fails_panics_or_takes_itself_back_leaves_the_others_in_the_same_commit() {
        let fixture = Fixture::new();
        let mut batch = Batch::new();
        let first = add(&mut batch, kept("first"));
        let fails = add(&mut batch, |session| {
            write(session, "fails")?;
            Err(Fault::said(ErrorKind::Invalid, "no"))
        });
        let violates = add(&mut batch, |session| {
            write(session, "violates")?;
            write(session, "first").map(|()| Done::Kept("violates"))
        });
        let panics = add(&mut batch, |session| {
            write(session, "panics")?;
            // Not by `panic!`: a backtrace may take longer than a batch.
            std::panic::resume_unwind(Box::new("oh dear".to_owned()))
        });
        let undone = add(&mut batch, |session| {
            write(session, "undone")?;
            Ok(Done::Undone("undone"))
        });
        let last = add(&mut batch, kept("last"));
        fixture.run(&mut batch);

        assert_eq!((answered(first).unwrap(), answered(last).unwrap()), ("first", "last"));
        assert_eq!(answered(fails).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(answered(violates).unwrap_err().kind(), ErrorKind::Rejected);
        let panicked = answered(panics).unwrap_err();
        assert_eq!((panicked.kind(), panicked.reason()), (ErrorKind::Internal, "it panicked: oh dear"));
        assert_eq!(answered(undone).unwrap(), "undone");
        assert_eq!(fixture.committed(), ["first", "last"]);
    }

    #[test]
    fn nothing_is_answered_before_the_commit() {
        let fixture = Fixture::new();
        let mut batch = Batch::new();
        let mut first = add(&mut batch, kept("first"));
        let (tell, told) = std::sync::mpsc::channel();
        let second = add(&mut batch, move |_| {
            tell.send(first.try_recv().is_err()).unwrap();
            Ok(Done::Kept("second"))
        });
        fixture.run(&mut batch);
        assert!(told.recv().unwrap(), "the first job was answered while the second one ran");
        answered(second).unwrap();
    }

    #[test]
    fn a_job_that_ends_the_transaction_fails_what_shared_it_and_the_next_transaction_is_clean() {
        for end in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"] {
            let fixture = Fixture::new();
            let mut batch = Batch::new();
            let before = add(&mut batch, kept("before"));
            let breaks_out = add(&mut batch, move |session| {
                session.connection.execute_batch(end)?;
                Ok(Done::Kept("done"))
            });
            let after = add(&mut batch, kept("after"));
            fixture.run(&mut batch);
            assert_eq!(batch.len(), 1, "what had not run yet was answered");
            fixture.run(&mut batch);

            assert_eq!(answered(before).unwrap_err().kind(), ErrorKind::Unavailable, "{end}");
            assert_eq!(answered(breaks_out).unwrap_err().kind(), ErrorKind::Unavailable, "{end}");
            assert_eq!(answered(after).unwrap(), "after", "{end}");
            assert_eq!(fixture.committed().last().unwrap(), "after");
        }
    }

    #[test]
    fn a_commit_that_is_refused_for_the_last_job_goes_through_without_it() {
        let fixture = Fixture::new();
        let mut batch = Batch::new();
        let before = add(&mut batch, kept("before"));
        let refused = add(&mut batch, |session| {
            write(session, "refused")?;
            session.connection.execute("INSERT INTO child VALUES ('nobody')", [])?;
            assert!(session.commit_may_be_refused()?);
            Ok(Done::KeptUnlessRefused("kept", |_| "refused"))
        });
        let after = add(&mut batch, kept("after"));
        while !batch.is_empty() {
            fixture.run(&mut batch);
        }
        assert_eq!(answered(before).unwrap(), "before");
        assert_eq!(answered(refused).unwrap(), "refused");
        assert_eq!(answered(after).unwrap(), "after");
        assert_eq!(fixture.committed(), ["before", "after"]);
    }

    #[test]
    fn who_has_nothing_to_write_does_not_wait_for_other_writers() {
        let fixture = Fixture::new();
        let other = session::open(&fixture.bench.options, Role::Writer).unwrap();
        other.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES ('not yet')").unwrap();
        let looks = |session: &mut Session<'_>| -> Fallible<Option<&'static str>> {
            let rows: i64 = session.connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
            Ok((rows == 0).then_some("nothing"))
        };
        let add = |batch: &mut Batch| {
            let (job, answer) =
                job(Attempt::on_database("write to"), "here".into(), Some(Box::new(looks)), kept("something"));
            batch.push_back(job);
            answer
        };
        let run = |batch: Batch| run(&mut Session::new(&fixture.connection, &fixture.bench), "here", batch);

        let mut batch = Batch::new();
        let answer = add(&mut batch);
        run(batch);
        assert_eq!(answered(answer).unwrap(), "nothing");

        other.execute_batch("COMMIT").unwrap();
        let mut batch = Batch::new();
        let answer = add(&mut batch);
        run(batch);
        assert_eq!(answered(answer).unwrap(), "something");
        assert_eq!(fixture.committed(), ["not yet", "something"]);
    }

    #[test]
    fn a_file_that_another_writer_keeps_locked_is_unavailable_and_every_job_hears_it() {
        let fixture = Fixture::new();
        let other = session::open(&fixture.bench.options, Role::Writer).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut batch = Batch::new();
        let answers = [add(&mut batch, kept("a")), add(&mut batch, kept("b"))];
        fixture.run(&mut batch);
        for answer in answers {
            let error = answered(answer).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("here: database is locked"), "{error}");
        }
        other.execute_batch("ROLLBACK").unwrap();
        let answer = add(&mut batch, kept("c"));
        fixture.run(&mut batch);
        answered(answer).unwrap();
    }
}
