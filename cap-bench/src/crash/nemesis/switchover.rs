//! The database's primary and its standby take each other's place, and back, as operators let them, or as it happens.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Fallible;
use crate::crash::nemesis::{DATABASE, Nemesis};
use crate::crash::proxy::Proxy;
use crate::crash::recorder::What;
use crate::crash::servers::{Servers, standby_of};
use crate::database::now_micros;
use crate::report;

/// A database's server and the one beside it.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The name of the one that takes writes when no switchover is on.
    server: &'static str,
    /// The other one's host and port.
    standby: String,
    /// How the rig itself reaches the one that takes writes.
    own: Proxy,
}

/// A switchover: from which server to which.
#[derive(Debug, Clone)]
struct Switch {
    from: String,
    to: String,
    /// The old primary is killed instead of fenced. Nothing is lost where a commit waits for the standby.
    is_killed: bool,
    /// The address leads to the standby before it takes writes: new connections are read-only for a while.
    is_early: bool,
}

impl Pair {
    pub(crate) fn new(server: &'static str, standby: String, own: Proxy) -> Self {
        Self { server, standby, own }
    }

    /// Whether a commit can wait for the standby.
    fn is_synchronous(&self) -> bool {
        self.server == "postgres"
    }
}

impl Nemesis {
    /// Switches there and back, again and again: in the end the server is the primary that was it before. Connections to
    /// an old primary that lives on are not cut: whoever is refused there has to leave by itself.
    pub(super) async fn switchover(&mut self, end: Instant) -> Fallible {
        let (Some(servers), Some(pair)) = (self.servers.clone(), &self.pair) else { return Ok(()) };
        let (first, second) = (pair.server.to_owned(), standby_of(pair.server));
        let (is_synchronous, mut elsewhere) = (pair.is_synchronous(), pair.standby.clone());
        servers.run("follow", &second).await?;
        while Instant::now() < end {
            for (from, to) in [(&first, &second), (&second, &first)] {
                let switch = Switch {
                    from: from.clone(),
                    to: to.clone(),
                    is_killed: is_synchronous && self.random.bool(),
                    is_early: self.random.bool(),
                };
                elsewhere = self.switch(&servers, &switch, elsewhere).await?;
                servers.run("follow", from).await?;
                // Long enough for it to be seen who has not left the old one.
                let long = Duration::from_millis(self.random.u64(5500..8000));
                self.wait(long).await?;
            }
        }
        servers.run("promote", &first).await
    }

    /// Answers where the database's address has led before.
    async fn switch(&mut self, servers: &Servers, switch: &Switch, target: String) -> Fallible<String> {
        servers.run("await", &switch.to).await?;
        let how = if switch.is_killed { "kill" } else { "fence" };
        let when = if switch.is_early { "before" } else { "after" };
        let Switch { from, to, .. } = switch;
        self.attack(&format!("{how} {from} and promote {to}; the address leads there {when} that"))?;
        let since = now_micros();
        if switch.is_early {
            self.lead_database_to(&target);
            self.pause(500).await;
        }
        servers.run(how, from).await?;
        self.pause(2000).await;
        servers.run("promote", to).await?;
        if !switch.is_early {
            self.pause(1500).await;
            self.lead_database_to(&target);
        }
        let before = match &self.pair {
            Some(pair) => {
                let before = pair.own.lead_to(target);
                // The rig's own role may write to a server that is read-only: it must not stay there.
                pair.own.cut();
                before
            }
            None => target,
        };
        let ails = Some(self.ails(false));
        self.recorder.record(What::Outage { of: "switchover".into(), from: since, ails })?;
        self.tally.switchovers += 1;
        report::progress(format_args!("nemesis: {to} takes writes"));
        let long = Duration::from_millis(self.random.u64(500..3000));
        self.wait(long).await?;
        Ok(before)
    }

    /// For new connections.
    fn lead_database_to(&self, target: &str) {
        let proxies = self.proxies.iter().filter(|(name, _)| *name == DATABASE);
        proxies.for_each(|(_, proxy)| drop(proxy.lead_to(target.to_owned())));
    }

    /// For up to so many milliseconds, without starting anybody again.
    async fn pause(&mut self, most: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(0..most))).await;
    }
}
