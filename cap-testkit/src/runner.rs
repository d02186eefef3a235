//! Runs checks: each on a fresh fixture, in its own task and within a time limit.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::check::{Check, Failure, Fixture};
use crate::report::{Entry, Outcome, Report};

/// The environment variable that names the file to which `conformance_report` writes its JSON.
pub const REPORT_PATH: &str = "CAP_CONFORMANCE_REPORT";
/// The environment variable that says how long each of the generated tests may take, in seconds, for servers or machines
/// that are slow. Default: that of [`RunOptions`].
pub const TIME_LIMIT: &str = "CAP_CONFORMANCE_TIME_LIMIT";

/// How [`run_all`] runs a suite.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// What is checked, for the report: a backend's name.
    pub subject: String,
    /// Runs only checks whose number or name contains this text. Default: all.
    pub filter: Option<String>,
    /// How long one check may take; one that takes longer has failed. Default: 60 s.
    pub time_limit: Duration,
    /// Called after each check. Default: nothing.
    pub progress: fn(&Entry),
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { subject: "backend".into(), filter: None, time_limit: Duration::from_secs(60), progress: |_| {} }
    }
}

impl RunOptions {
    /// Default options for the backend of this name.
    pub fn for_subject(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), ..Self::default() }
    }

    fn lets_through<F: ?Sized, C>(&self, check: &Check<F, C>) -> bool {
        self.filter.as_deref().is_none_or(|text| check.id.contains(text) || check.name.contains(text))
    }
}

/// Runs the checks that the filter lets through, one after the other, each on a fixture of its own, which `make`
/// makes. A check that fails, panics or hangs is an entry of the report and does not keep the others from running; so
/// is a fixture that cannot be made.
///
/// Call it on a Tokio runtime, better one of several threads: a check that blocks a thread is then found, too.
pub async fn run_all<F, C, M>(checks: &[Check<F, C>], mut make: impl FnMut() -> M, options: &RunOptions) -> Report
where
    F: Fixture<Abilities = C> + ?Sized,
    C: 'static,
    M: Future<Output = Arc<F>> + Send + 'static,
{
    let mut entries = Vec::new();
    for check in checks.iter().filter(|check| options.lets_through(check)) {
        let entry = run_one(check, make(), options.time_limit).await;
        (options.progress)(&entry);
        entries.push(entry);
    }
    Report { subject: options.subject.clone(), entries }
}

/// Runs one check on the fixture that `make` resolves to. A panic, or taking longer than `time_limit`, is a failure.
pub async fn run_one<F, C>(
    check: &Check<F, C>,
    make: impl Future<Output = Arc<F>> + Send + 'static,
    time_limit: Duration,
) -> Entry
where
    F: Fixture<Abilities = C> + ?Sized,
    C: 'static,
{
    let begun = Instant::now();
    let fixture = match guarded(make, time_limit).await {
        Ok(fixture) => fixture,
        Err(failure) => {
            let outcome = Outcome::Failed(format!("the fixture could not be made: {failure}"));
            return entry(check, outcome, begun);
        }
    };
    let mut outcome = judge(check, Arc::clone(&fixture), time_limit).await;
    let cleaned = guarded(async move { fixture.clean_up().await }, time_limit).await;
    let left_behind = cleaned.and_then(|result| result.map_err(Failure::from));
    if let (Err(failure), false) = (left_behind, matches!(outcome, Outcome::Failed(_))) {
        outcome = Outcome::Failed(format!("the fixture could not be cleaned up: {failure}"));
    }
    entry(check, outcome, begun)
}

fn entry<F: ?Sized, C>(check: &Check<F, C>, outcome: Outcome, begun: Instant) -> Entry {
    Entry { id: check.id, name: check.name, promises: check.promises, outcome, took: begun.elapsed() }
}

async fn judge<F, C>(check: &Check<F, C>, fixture: Arc<F>, time_limit: Duration) -> Outcome
where
    F: Fixture<Abilities = C> + ?Sized,
    C: 'static,
{
    let missing = check.needs.as_ref().filter(|need| !(need.declared)(&fixture.abilities()));
    let (run, success) = match (missing, check.undeclared) {
        (None, _) => (check.run, Outcome::Passed),
        (Some(need), Some(refuses)) => (refuses, Outcome::Unsupported { capability: need.name, verified: true }),
        (Some(need), None) => return Outcome::Unsupported { capability: need.name, verified: false },
    };
    let result = guarded(async move { run(&fixture).await }, time_limit).await;
    match result.and_then(|checked| checked) {
        Ok(()) => success,
        Err(failure) => Outcome::Failed(failure.text().to_owned()),
    }
}

/// Drives `work` in its own task. The time limit is kept by a thread, so that a task that blocks every thread of the
/// runtime is found as well.
async fn guarded<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
    time_limit: Duration,
) -> Result<T, Failure> {
    let mut task = tokio::spawn(work);
    let (done, is_done) = mpsc::channel::<()>();
    let (late, is_late) = oneshot::channel();
    std::thread::spawn(move || {
        if is_done.recv_timeout(time_limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = late.send(());
        }
    });
    let result = tokio::select! {
        biased;
        joined = &mut task => joined.map_err(|error| Failure::new(panic_text(error))),
        Ok(()) = is_late => {
            task.abort();
            Err(Failure::new(format!("it hung: nothing came within {time_limit:?}")))
        }
    };
    drop(done);
    result
}

fn panic_text(error: tokio::task::JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else {
        return "its task was cancelled".into();
    };
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.unwrap_or_else(|| "without a text".into()))
}

/// The body of a test that runs one check on a runtime of its own, with two worker threads.
///
/// # Panics
/// When the check fails, with its number, its name and the failure.
#[doc(hidden)]
pub fn test_check<F, C>(check: &Check<F, C>, make: impl Future<Output = Arc<F>> + Send + 'static)
where
    F: Fixture<Abilities = C> + ?Sized,
    C: 'static,
{
    let entry = on_runtime(run_one(check, make, time_limit()));
    show(&entry);
    if let Outcome::Failed(text) = &entry.outcome {
        panic!("{} {}: {text}", entry.id, entry.name);
    }
}

/// The body of the test `conformance_report`: runs all checks, prints the table, and writes the JSON to the file that
/// the environment variable [`REPORT_PATH`] names, if it is set.
///
/// # Panics
/// When a check fails or the file cannot be written.
#[doc(hidden)]
pub fn test_report<F, C, M>(subject: &str, checks: &[Check<F, C>], make: impl FnMut() -> M)
where
    F: Fixture<Abilities = C> + ?Sized,
    C: 'static,
    M: Future<Output = Arc<F>> + Send + 'static,
{
    let options = RunOptions { progress: show, time_limit: time_limit(), ..RunOptions::for_subject(subject) };
    let report = on_runtime(run_all(checks, make, &options));
    print_table(&report);
    if let Some(path) = std::env::var_os(REPORT_PATH) {
        let text = format!("{:#}\n", report.to_json());
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
    assert!(report.is_conformant(), "{} of {} checks failed", report.failed().count(), report.entries.len());
}

/// # Panics
/// When [`TIME_LIMIT`] is no number of seconds.
fn time_limit() -> Duration {
    let Some(given) = std::env::var_os(TIME_LIMIT) else { return RunOptions::default().time_limit };
    let seconds = given.to_str().and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    Duration::from_secs(seconds.unwrap_or_else(|| panic!("{TIME_LIMIT} is {given:?}, and no number of seconds")))
}

#[expect(clippy::print_stderr, reason = "the test harness shows it on request")]
fn show(entry: &Entry) {
    eprintln!("{entry}");
}

#[expect(clippy::print_stdout, reason = "the report is what was asked for")]
fn print_table(report: &Report) {
    println!("{report}");
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the operating system gives a test two threads");
    let result = runtime.block_on(work);
    // A check that hung may still hold a thread, which must not keep the test from ending.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{CheckResult, Need, RunCheck};
    use crate::ensure;

    /// A fixture that can do one thing, or not.
    struct Bench {
        able: bool,
    }

    impl Fixture for Bench {
        type Abilities = bool;

        fn abilities(&self) -> bool {
            self.able
        }

        fn clean_up(&self) -> cap_core::BoxFuture<'_, cap_core::Result<()>> {
            let result = if self.able { Ok(()) } else { Err(cap_core::Error::invalid("a bench", "it is stuck")) };
            Box::pin(async { result })
        }
    }

    fn check(run: RunCheck<Bench>) -> Check<Bench, bool> {
        Check { id: "B-001", name: "a_check", promises: &[], needs: None, catches: "", run, undeclared: None }
    }

    fn outcome_within(limit: Duration, check: &Check<Bench, bool>, able: bool) -> Outcome {
        on_runtime(run_one(check, async move { Arc::new(Bench { able }) }, limit)).outcome
    }

    fn outcome(check: &Check<Bench, bool>, able: bool) -> Outcome {
        outcome_within(Duration::from_secs(30), check, able)
    }

    fn failure(check: &Check<Bench, bool>) -> String {
        match outcome(check, true) {
            Outcome::Failed(text) => text,
            other => panic!("{other:?}"),
        }
    }

    fn ensure_hangs(run: RunCheck<Bench>) {
        let outcome = outcome_within(Duration::from_millis(100), &check(run), true);
        assert!(matches!(&outcome, Outcome::Failed(text) if text.starts_with("it hung")), "{outcome:?}");
    }

    async fn passes() -> CheckResult {
        Ok(())
    }

    async fn fails() -> CheckResult {
        ensure!(1 + 1 == 3, "it does not add up");
        Ok(())
    }

    #[test]
    fn a_failure_a_panic_and_a_hang_are_failures_with_their_reason() {
        assert_eq!(failure(&check(|_| Box::pin(fails()))), "it does not add up");
        assert_eq!(failure(&check(|_| Box::pin(async { panic!("number {}", 7) }))), "it panicked: number 7");
        ensure_hangs(|_| Box::pin(std::future::pending()));
    }

    #[test]
    fn a_check_that_blocks_its_thread_is_found() {
        ensure_hangs(|_| {
            Box::pin(async {
                let (_never, nothing) = mpsc::channel::<()>();
                let _ = nothing.recv_timeout(Duration::from_secs(60));
                Ok(())
            })
        });
    }

    #[test]
    fn what_is_left_behind_is_a_failure_unless_there_is_another() {
        let stuck = "the fixture could not be cleaned up";
        assert!(
            matches!(outcome(&check(|_| Box::pin(passes())), false), Outcome::Failed(text) if text.contains(stuck))
        );
        assert_eq!(outcome(&check(|_| Box::pin(fails())), false), Outcome::Failed("it does not add up".into()));
    }

    #[test]
    fn a_fixture_that_cannot_be_made_is_a_failure() {
        let make = async { panic!("no server") };
        let entry = on_runtime(run_one(&check(|_| Box::pin(passes())), make, Duration::from_secs(5)));
        assert!(matches!(entry.outcome, Outcome::Failed(text) if text.ends_with("it panicked: no server")));
    }

    #[test]
    fn an_undeclared_capability_is_unsupported_and_its_refusal_is_verified() {
        const NEED: Need<bool> = Need { name: "flying", declared: |_| false };
        let verdict = |undeclared| {
            let check = Check { needs: Some(NEED), undeclared, ..check(|_| Box::pin(fails())) };
            outcome(&check, true)
        };
        let unsupported = |verified| Outcome::Unsupported { capability: "flying", verified };
        assert_eq!(verdict(None), unsupported(false));
        assert_eq!(verdict(Some(|_| Box::pin(passes()))), unsupported(true));
        assert_eq!(verdict(Some(|_| Box::pin(fails()))), Outcome::Failed("it does not add up".into()));
    }

    #[test]
    fn a_run_goes_on_after_a_failure_and_the_filter_picks_by_number_and_name() {
        let named = |id, name, run| Check { id, name, ..check(run) };
        let checks = [named("B-001", "first", |_| Box::pin(fails())), named("B-002", "second", |_| Box::pin(passes()))];
        let run = |filter: Option<&str>| {
            let options = RunOptions { filter: filter.map(Into::into), ..RunOptions::for_subject("a bench") };
            let report = on_runtime(run_all(&checks, || async { Arc::new(Bench { able: true }) }, &options));
            report.entries.into_iter().map(|entry| (entry.id, entry.outcome.word())).collect::<Vec<_>>()
        };
        assert_eq!(run(None), [("B-001", "failed"), ("B-002", "passed")]);
        assert_eq!(run(Some("B-002")), [("B-002", "passed")]);
        assert_eq!(run(Some("fir")), [("B-001", "failed")]);
        assert_eq!(run(Some("third")), []);
    }
}
