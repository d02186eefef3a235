//! Kills, restarts, cuts and freezes, one after another, in an order that a seed decides.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backend::Fallible;
use crate::crash::nemesis::{Name, Nemesis};
use crate::crash::recorder::{Ails, What};
use crate::database::now_micros;
use crate::report;

/// What can be done next.
#[derive(Clone, Copy)]
enum Attack {
    Kill,
    FreezeProcess,
    Cut,
    Server,
}

impl Nemesis {
    /// Attacks until then, and heals.
    pub(super) async fn havoc(&mut self, end: Instant) -> Fallible {
        let mut outages = Vec::new();
        while Instant::now() < end {
            let calm = Duration::from_millis(self.random.u64(200..1800));
            tokio::time::sleep(calm.min(end.saturating_duration_since(Instant::now()))).await;
            self.processes.revive(&mut self.tally)?;
            // A server's attack takes a while, in which the other attacks go on.
            outages.retain(|outage: &JoinHandle<()>| !outage.is_finished());
            match self.next_attack() {
                Some(Attack::Kill) => self.kill().await?,
                Some(Attack::FreezeProcess) => self.freeze_process().await?,
                Some(Attack::Cut) => self.cut()?,
                Some(Attack::Server) => outages.extend(self.attack_server(outages.is_empty())?),
                None => {}
            }
        }
        for outage in outages {
            outage.await?;
        }
        if let Some(servers) = &self.servers {
            servers.heal().await?;
        }
        self.processes.revive(&mut self.tally)
    }

    fn has(&self, name: Name) -> bool {
        self.names.contains(&name)
    }

    fn next_attack(&mut self) -> Option<Attack> {
        let weighed = [
            (Attack::Kill, 38, self.has(Name::Kill)),
            (Attack::FreezeProcess, 10, self.has(Name::Freeze)),
            (Attack::Cut, 17, self.has(Name::Cut)),
            (Attack::Server, 35, self.has(Name::Restart) || self.has(Name::Freeze)),
        ];
        let chosen = weighed.iter().filter(|(_, _, is_chosen)| *is_chosen);
        let sum: u32 = chosen.clone().map(|(_, weight, _)| weight).sum();
        let mut roll = self.random.u32(0..sum.max(1));
        for (attack, weight, _) in chosen {
            if roll < *weight {
                return Some(*attack);
            }
            roll -= weight;
        }
        None
    }

    /// Kills one process, or two of them, and starts them again soon or a little later.
    async fn kill(&mut self) -> Fallible {
        for _ in 0..self.random.usize(1..=2) {
            let index = self.random.usize(0..self.processes.number());
            self.tally.kills += u32::from(self.processes.kill(index).await?);
        }
        let down = Duration::from_millis(self.random.u64(0..1500));
        tokio::time::sleep(down).await;
        self.processes.revive(&mut self.tally)
    }

    /// Stops a process for longer or shorter than its lease, so that it wakes up as one that is thought dead.
    async fn freeze_process(&mut self) -> Fallible {
        let index = self.random.usize(0..self.processes.number());
        let pause = self.processes.lease().mul_f64(0.1 + 1.9 * self.random.f64());
        self.tally.freezes += u32::from(self.processes.freeze(index, pause).await?);
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
        let restart = match (self.has(Name::Restart), self.has(Name::Freeze)) {
            (true, true) => self.random.bool(),
            (restart, _) => restart,
        };
        let pause = Duration::from_millis(self.random.u64(500..10_000));
        let what = if restart { "kill -9 and restart" } else { "freeze" };
        self.recorder.record(What::Attack { on: format!("{what} {name}") })?;
        report::progress(format_args!("nemesis: {what} {name}"));
        *if restart { &mut self.tally.restarts } else { &mut self.tally.freezes } += 1;
        let recorder = self.recorder.clone();
        let of = format!("{what} {name}");
        let ails = self.ails_of_attack(name, restart);
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
            if let Err(error) = recorder.record(What::Outage { of, from, ails }) {
                report::progress(format_args!("an outage could not be recorded: {error}"));
            }
        })))
    }

    /// Of a broker that is frozen nobody knows before something is to be sent to it, or its heartbeats are missed.
    fn ails_of_attack(&self, server: &str, is_restart: bool) -> Option<Ails> {
        let is_broker = matches!(server, "rabbitmq" | "kafka");
        (!is_broker || is_restart).then(|| self.ails(is_broker))
    }
}
