//! The process that kills and judges.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cap::Step;

use super::child::{DEADLY_LIMIT, LEASE, Order};
use super::history::{self, History};

type Outcome = Result<(), String>;

/// How long a restarted child may take for what was left, beyond the lease. Generous: the machine may be busy.
const WORK: Duration = Duration::from_secs(60);

/// How long a busy machine may take to start a process and let it take over, beyond the lease.
const TAKEOVER: Duration = Duration::from_secs(10);

/// Long enough for the rest of a halted child to do what it can.
const OTHERS_GO_ON: Duration = Duration::from_millis(300);

struct Rig {
    folder: tempfile::TempDir,
    placed: i64,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { folder: tempfile::tempdir().unwrap(), placed: 0 };
        history::create(&rig.file());
        rig
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("shop.db")
    }

    fn start(&mut self, count: i64, halt: Option<(String, u64)>) -> Child {
        self.start_with(count, halt, false)
    }

    fn start_with(&mut self, count: i64, halt: Option<(String, u64)>, deadly: bool) -> Child {
        let order = Order { file: self.file(), first: self.placed, count, halt, deadly };
        self.placed += count;
        order.command().stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
    }

    /// Runs a child to its end: what the dead held is taken over within the lease, and all is done within the work's time.
    fn finish(&mut self) -> Result<history::Totals, String> {
        let started = Instant::now();
        let mut child = self.start(0, None);
        while history::held_by_the_dead(&self.file()) > 0 {
            if started.elapsed() > LEASE + TAKEOVER {
                kill(&mut child);
                return Err(format!("stuck: still held by a dead process {:?} after the restart", started.elapsed()));
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let limit = LEASE + WORK;
        let status = wait(&mut child, limit)
            .ok_or_else(|| format!("stuck: the restarted process had not finished after {limit:?}"))?;
        if !status.success() {
            return Err(format!("the restarted process ended with {status} after {:?}", started.elapsed()));
        }
        History::read(&self.file()).check_complete()
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    kill(child);
    None
}

/// SIGKILL, and the end of it.
fn kill(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Kills the child when it has done `step` for the first time, and in a second life some time after it has done it for
/// the seventh time.
pub(crate) fn killed_at(step: Step) -> Outcome {
    let mut rig = Rig::new();
    for time in [1, if step == Step::Published { 1 } else { 7 }] {
        let mut child = rig.start(20, Some((format!("{step:?}"), time)));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // The second time everything else in the process goes on for a while, with this one step undone.
        if time > 1 {
            std::thread::park_timeout(OTHERS_GO_ON);
        }
        kill(&mut child);
        if line != "halted\n" {
            return Err(format!("the child never came to {step:?} number {time}: it said {line:?}"));
        }
        History::read(&rig.file()).check()?;
    }
    rig.finish().map(|_| ())
}

/// A message whose handler kills the process is given up in the end, and takes none of its neighbours with it.
pub(crate) fn killed_by_a_message() -> Outcome {
    let mut rig = Rig::new();
    let mut deaths = 0;
    let mut child = rig.start_with(60, None, true);
    while !wait(&mut child, LEASE + WORK).ok_or("stuck: a child neither ended nor died")?.success() {
        deaths += 1;
        if deaths > 4 * DEADLY_LIMIT {
            return Err(format!("the deadly message was still tried after {deaths} deaths"));
        }
        History::read(&rig.file()).check()?;
        child = rig.start(0, None);
    }
    if deaths < DEADLY_LIMIT {
        return Err(format!("the deadly message was given up after {deaths} deaths, {DEADLY_LIMIT} are allowed"));
    }
    let dead = history::dead(&rig.file());
    if dead != ["order.deadly"] {
        return Err(format!("dead are {dead:?}"));
    }
    History::read(&rig.file()).check_complete().map(|_| ())
}

pub(crate) fn killed_at_random() -> Outcome {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let kills = number("CAP_CRASH_KILLS").unwrap_or(200);
    let seed = number("CAP_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("seed {seed}: set CAP_CRASH_SEED to repeat");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rig = Rig::new();
    for life in 1..=kills {
        let mut child = rig.start(40, None);
        // From before it has opened the file to well into its work; now and then long enough to take over.
        let most = if life % 10 == 0 { 1500 } else { 250 };
        std::thread::park_timeout(Duration::from_millis(random.u64(5..most)));
        kill(&mut child);
        History::read(&rig.file()).check().map_err(|fault| format!("seed {seed}, life {life}: {fault}"))?;
        if life % 20 == 0 {
            eprintln!("{life} of {kills} kills");
        }
    }
    let totals = rig.finish().map_err(|fault| format!("seed {seed}, after {kills} kills: {fault}"))?;
    println!(
        "{kills} random kills: {} orders committed, {} lost, {} phantom, {} doubled: exactly one invoice each",
        totals.orders, totals.lost, totals.phantom, totals.doubled
    );
    Ok(())
}
