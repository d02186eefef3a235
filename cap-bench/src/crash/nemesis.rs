//! Who attacks: processes, connections and servers, in an order that a seed decides.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backend::Fallible;
use crate::crash::proxy::Proxy;
use crate::crash::recorder::{Recorder, What};
use crate::crash::roles::{Kind, Role};
use crate::crash::servers::Servers;
use crate::database::now_micros;
use crate::report;

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Tally {
    /// Processes of ours killed with SIGKILL.
    pub(crate) kills: u32,
    /// Servers killed with SIGKILL and started again.
    pub(crate) restarts: u32,
    /// Times all connections to a server were cut.
    pub(crate) cuts: u32,
    /// Servers and processes of ours stopped for a while and continued.
    pub(crate) freezes: u32,
    /// Processes of ours that ended though nobody killed them.
    pub(crate) unexpected_ends: u32,
}

/// One process, through all its lives.
struct Member {
    role: Role,
    child: Option<Child>,
    down_since: Option<i64>,
}

/// All that can be attacked, and the attacker's dice.
pub(crate) struct Nemesis {
    members: Vec<Member>,
    proxies: Vec<(&'static str, Proxy)>,
    servers: Option<Servers>,
    command: Vec<String>,
    random: fastrand::Rng,
    recorder: Recorder,
    pub(crate) tally: Tally,
}

impl Nemesis {
    pub(crate) fn new(
        roles: Vec<Role>,
        proxies: Vec<(&'static str, Proxy)>,
        servers: Option<Servers>,
        command: Vec<String>,
        seed: u64,
        recorder: Recorder,
    ) -> Self {
        let members = roles.into_iter().map(|role| Member { role, child: None, down_since: None }).collect();
        let random = fastrand::Rng::with_seed(seed);
        Self { members, proxies, servers, command, random, recorder, tally: Tally::default() }
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

    /// Attacks until `seconds` have passed, one thing after another.
    pub(crate) async fn rage(&mut self, seconds: u64) -> Fallible {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut outages = Vec::new();
        while Instant::now() < end {
            let calm = Duration::from_millis(self.random.u64(200..1800));
            tokio::time::sleep(calm.min(end.saturating_duration_since(Instant::now()))).await;
            self.revive()?;
            // A server's attack takes a while, in which the other attacks go on.
            outages.retain(|outage: &JoinHandle<()>| !outage.is_finished());
            match self.random.u32(0..100) {
                0..38 => self.kill().await?,
                38..48 => self.freeze_process().await?,
                48..65 => self.cut()?,
                _ => outages.extend(self.attack_server(outages.is_empty())?),
            }
        }
        for outage in outages {
            outage.await?;
        }
        if let Some(servers) = &self.servers {
            servers.heal().await?;
        }
        self.revive()
    }

    /// Kills one process, or two of them, and starts them again soon or a little later.
    async fn kill(&mut self) -> Fallible {
        for _ in 0..self.random.usize(1..=2) {
            let index = self.random.usize(0..self.members.len());
            let Some(mut child) = self.members[index].child.take() else { continue };
            let name = self.members[index].role.name();
            self.recorder.record(What::Attack { on: format!("kill {name}") })?;
            report::progress(format_args!("nemesis: kill -9 {name}"));
            child.kill().await?;
            self.tally.kills += 1;
            self.members[index].down_since = Some(now_micros());
        }
        let down = Duration::from_millis(self.random.u64(0..1500));
        tokio::time::sleep(down).await;
        self.revive()
    }

    /// Starts what does not run. Records a role of which no process ran as an outage: until the new ones are on their
    /// way; what they need to take over counts as a stall.
    fn revive(&mut self) -> Fallible {
        for member in &mut self.members {
            let ended = member.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                self.tally.unexpected_ends += 1;
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
                self.recorder.record(What::Outage { of: of.into(), from })?;
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

    /// Stops a process for longer or shorter than its lease, so that it wakes up as one that is thought dead.
    async fn freeze_process(&mut self) -> Fallible {
        let index = self.random.usize(0..self.members.len());
        let member = &self.members[index];
        let Some(id) = member.child.as_ref().and_then(Child::id) else { return Ok(()) };
        let lease = member.role.lease_ms;
        let pause = Duration::from_millis(self.random.u64(lease / 10..lease * 2));
        let name = member.role.name();
        self.recorder.record(What::Attack { on: format!("freeze {name} for {pause:?}") })?;
        report::progress(format_args!("nemesis: freeze {name} for {pause:?}"));
        self.tally.freezes += 1;
        let from = now_micros();
        signal("-STOP", id).await?;
        tokio::time::sleep(pause).await;
        signal("-CONT", id).await?;
        let alone =
            self.members.iter().filter(|other| other.role.kind.consumes() == member.role.kind.consumes()).count();
        if alone < 2 {
            self.recorder.record(What::Outage { of: name, from })?;
        }
        Ok(())
    }

    fn cut(&mut self) -> Fallible {
        if self.proxies.is_empty() {
            return Ok(());
        }
        let (name, proxy) = &self.proxies[self.random.usize(0..self.proxies.len())];
        self.recorder.record(What::Attack { on: format!("cut {name}") })?;
        report::progress(format_args!("nemesis: cut all connections to {name}"));
        proxy.cut();
        self.tally.cuts += 1;
        Ok(())
    }

    /// Restarts or freezes a server, at the side of whatever else happens; not if one is under attack already.
    fn attack_server(&mut self, calm: bool) -> Fallible<Option<JoinHandle<()>>> {
        let Some(servers) = self.servers.clone().filter(|_| calm) else { return Ok(None) };
        let name = servers.names[self.random.usize(0..servers.names.len())];
        let restart = self.random.bool();
        let pause = Duration::from_millis(self.random.u64(500..7000));
        let what = if restart { "kill -9 and restart" } else { "freeze" };
        self.recorder.record(What::Attack { on: format!("{what} {name}") })?;
        report::progress(format_args!("nemesis: {what} {name}"));
        *if restart { &mut self.tally.restarts } else { &mut self.tally.freezes } += 1;
        let recorder = self.recorder.clone();
        Ok(Some(tokio::spawn(async move {
            let from = now_micros();
            let attacked = match restart {
                true => servers.restart(name).await,
                false => servers.freeze(name, pause).await,
            };
            if let Err(error) = attacked {
                report::progress(format_args!("{name} was not well after the attack, and is healed: {error}"));
                while let Err(error) = servers.heal().await {
                    report::progress(format_args!("{error}"));
                }
            }
            if let Err(error) = recorder.record(What::Outage { of: name.into(), from }) {
                report::progress(format_args!("an outage could not be recorded: {error}"));
            }
        })))
    }

    /// Tells every process to end, and waits for a while.
    pub(crate) async fn end_all(&mut self, limit: Duration) -> Fallible {
        for member in &mut self.members {
            drop(member.child.as_mut().and_then(|child| child.stdin.take()));
        }
        for member in &mut self.members {
            let Some(mut child) = member.child.take() else { continue };
            if tokio::time::timeout(limit, child.wait()).await.is_err() {
                report::progress(format_args!("{} did not end when told: killed", member.role.name()));
                child.kill().await?;
            }
        }
        Ok(())
    }
}

async fn signal(signal: &str, id: u32) -> Fallible {
    let status = Command::new("kill").args([signal, &id.to_string()]).status().await?;
    if status.success() { Ok(()) } else { Err(format!("kill {signal} {id}: {status}").into()) }
}
