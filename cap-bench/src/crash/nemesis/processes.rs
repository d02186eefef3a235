//! The processes of a run, through all their lives.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::backend::Fallible;
use crate::crash::nemesis::Tally;
use crate::crash::recorder::{Recorder, What};
use crate::crash::roles::{Kind, Role};
use crate::database::now_micros;
use crate::report;

/// How often it is looked whether all processes run.
const LOOK: Duration = Duration::from_millis(500);
/// What `abort` ends a process with.
const SIGABRT: i32 = 6;

/// One process, through all its lives.
struct Member {
    role: Role,
    child: Option<Child>,
    down_since: Option<i64>,
}

/// All of them.
pub(crate) struct Processes {
    members: Vec<Member>,
    command: Vec<String>,
    recorder: Recorder,
}

impl Processes {
    /// None runs yet; `command` goes before the role on the command line.
    pub(crate) fn new(roles: Vec<Role>, command: Vec<String>, recorder: Recorder) -> Self {
        let members = roles.into_iter().map(|role| Member { role, child: None, down_since: None }).collect();
        Self { members, command, recorder }
    }

    pub(crate) fn number(&self) -> usize {
        self.members.len()
    }

    /// Of each the same.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.members.first().map_or(0, |member| member.role.lease_ms))
    }

    /// Starts every process.
    pub(crate) fn start_all(&mut self) -> Fallible {
        (0..self.members.len()).try_for_each(|index| self.start(index))
    }

    fn start(&mut self, index: usize) -> Fallible {
        let program: PathBuf = std::env::current_exe()?;
        let member = &mut self.members[index];
        member.role.life += 1;
        let child = Command::new(program)
            .args(&self.command)
            .args(["--role", &serde_json::to_string(&member.role)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        member.child = Some(child);
        self.recorder.record(What::Attack { on: format!("start {}", member.role.name()) })?;
        Ok(())
    }

    /// Kills one; answers whether it ran.
    pub(crate) async fn kill(&mut self, index: usize) -> Fallible<bool> {
        let Some(mut child) = self.members[index].child.take() else { return Ok(false) };
        let name = self.members[index].role.name();
        self.recorder.record(What::Attack { on: format!("kill {name}") })?;
        report::progress(format_args!("nemesis: kill -9 {name}"));
        child.kill().await?;
        self.members[index].down_since = Some(now_micros());
        Ok(true)
    }

    /// Starts what does not run. Records a role of which no process ran as an outage: until the new ones are on their
    /// way; what they need to take over counts as a stall.
    pub(crate) fn revive(&mut self, tally: &mut Tally) -> Fallible {
        for member in &mut self.members {
            let ended = member.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                let aborted = status.signal() == Some(SIGABRT);
                *if aborted { &mut tally.aborts } else { &mut tally.unexpected_ends } += 1;
                report::progress(format_args!("{} ended by itself: {status}", member.role.name()));
                self.recorder.record(What::Attack { on: format!("{} ended: {status}", member.role.name()) })?;
                member.child = None;
                member.down_since = Some(now_micros());
            }
        }
        let everyone: fn(Kind) -> bool = |_| true;
        for (of, belongs) in [("all processes", everyone), ("all consumers", Kind::consumes)] {
            let those: Vec<_> = self.members.iter().filter(|member| belongs(member.role.kind)).collect();
            let all_down: Option<Vec<i64>> = those.iter().map(|member| member.down_since).collect();
            if let Some(from) = all_down.and_then(|since| since.into_iter().max()) {
                self.recorder.record(What::outage(of, from))?;
            }
        }
        for index in 0..self.members.len() {
            if self.members[index].child.is_none() {
                self.start(index)?;
                self.members[index].down_since = None;
            }
        }
        Ok(())
    }

    /// Waits, and starts again meanwhile what does not run.
    pub(crate) async fn wait(&mut self, pause: Duration, tally: &mut Tally) -> Fallible {
        let end = Instant::now() + pause;
        loop {
            self.revive(tally)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// Stops a process for a while; answers whether it ran.
    pub(crate) async fn freeze(&mut self, index: usize, pause: Duration) -> Fallible<bool> {
        let member = &self.members[index];
        let Some(id) = member.child.as_ref().and_then(Child::id) else { return Ok(false) };
        let name = member.role.name();
        self.recorder.record(What::Attack { on: format!("freeze {name} for {pause:?}") })?;
        report::progress(format_args!("nemesis: freeze {name} for {pause:?}"));
        let from = now_micros();
        signal("-STOP", id).await?;
        tokio::time::sleep(pause).await;
        signal("-CONT", id).await?;
        let alike = |other: &&Member| other.role.kind.consumes() == member.role.kind.consumes();
        if self.members.iter().filter(alike).count() < 2 {
            self.recorder.record(What::outage(name, from))?;
        }
        Ok(true)
    }

    /// One that consumes while another does, too.
    pub(crate) fn a_consumer(&self) -> Option<usize> {
        let mut consumers = (0..self.members.len()).filter(|index| self.members[*index].role.kind.consumes());
        let first = consumers.next();
        consumers.next().and(first)
    }

    /// Stops a process as a deployment does, and starts another version in its place.
    pub(crate) async fn deploy(&mut self, index: usize, old: bool, limit: Duration) -> Fallible {
        let member = &mut self.members[index];
        member.role.old = old;
        let (name, version) = (member.role.name(), if old { "older" } else { "newer" });
        report::progress(format_args!("nemesis: {name} is replaced by the {version} version"));
        self.recorder.record(What::Attack { on: format!("{name} is replaced by the {version} version") })?;
        if let Some(mut child) = member.child.take() {
            end(&name, &mut child, limit).await?;
        }
        self.start(index)
    }

    /// Tells every process to end, and waits for a while.
    pub(crate) async fn end_all(&mut self, limit: Duration) -> Fallible {
        for member in &mut self.members {
            drop(member.child.as_mut().and_then(|child| child.stdin.take()));
        }
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                end(&member.role.name(), &mut child, limit).await?;
            }
        }
        Ok(())
    }
}

async fn end(name: &str, child: &mut Child, limit: Duration) -> Fallible {
    drop(child.stdin.take());
    if tokio::time::timeout(limit, child.wait()).await.is_err() {
        report::progress(format_args!("{name} did not end when told: killed"));
        child.kill().await?;
    }
    Ok(())
}

async fn signal(signal: &str, id: u32) -> Fallible {
    let status = Command::new("kill").args([signal, &id.to_string()]).status().await?;
    if status.success() { Ok(()) } else { Err(format!("kill {signal} {id}: {status}").into()) }
}
