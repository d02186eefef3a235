//! The nemeses that are operators: they change the servers while everybody works.

use std::time::Duration;

use cap_core::BoxFuture;
use tokio::time::Instant;

use crate::backend::{Broker, Database, Deed, Fallible};
use crate::crash::checker::AUDIT;
use crate::crash::nemesis::mischief::DEPLOYMENT;
use crate::crash::nemesis::{DATABASE, Nemesis};
use crate::crash::recorder::What;
use crate::crash::servers::Servers;
use crate::crash::trouble::{REMADE, Trouble};
use crate::database::now_micros;
use crate::report;

/// How long messages may take whose topic was made again, or whose binding was taken away.
const COMING: Duration = Duration::from_secs(60);

/// How long a server may take until it sees that its disk has room again: MariaDB looks once a minute.
const ROOM: Duration = Duration::from_secs(120);

/// How far a clock is ahead or behind, in seconds.
const STEP: i64 = 600;

/// What operators can do, as far as the backends have it.
pub(crate) trait Operators: Send + Sync {
    /// Deletes the topic of [`Trouble::Remade`] and makes it again.
    fn remake_topic(&self) -> BoxFuture<'_, Fallible>;

    /// Takes away the only binding of that topic.
    fn unbind(&self) -> BoxFuture<'_, Fallible>;

    /// Takes away all bindings, of all groups.
    fn unbind_all(&self) -> BoxFuture<'_, Fallible>;

    /// Does this to the database, or takes it back.
    fn operate(&self, deed: Deed, is_done: bool) -> BoxFuture<'_, Fallible>;
}

/// Those of one run's database and broker.
pub(crate) struct Hands<D, B> {
    pub(crate) database: D,
    pub(crate) broker: B,
}

impl<D: Database, B: Broker> Operators for Hands<D, B> {
    fn remake_topic(&self) -> BoxFuture<'_, Fallible> {
        Box::pin(async { self.broker.remake_topic(&self.broker.names().topic_of(REMADE)).await })
    }

    fn unbind(&self) -> BoxFuture<'_, Fallible> {
        Box::pin(async { self.broker.unbind(AUDIT, &self.broker.names().topic_of(REMADE)).await })
    }

    fn unbind_all(&self) -> BoxFuture<'_, Fallible> {
        Box::pin(self.broker.unbind_all())
    }

    fn operate(&self, deed: Deed, is_done: bool) -> BoxFuture<'_, Fallible> {
        Box::pin(self.database.operate(deed, is_done))
    }
}

impl Nemesis {
    /// A topic is deleted and made again, again and again: each time when all that was sent to it is handled, so that nothing
    /// is lost with it. What is sent afterwards must come, be it less than before or more.
    pub(super) async fn topics(&mut self, end: Instant) -> Fallible {
        while Instant::now() < end {
            let earlier = self.mischief.published.len();
            for _ in 0..self.random.usize(4..40) {
                self.publish(Trouble::Remade).await?;
            }
            if !self.until_over(earlier, COMING).await? {
                report::progress(format_args!(
                    "what was sent to a topic that was made again has not come within {COMING:?}"
                ));
                return Ok(());
            }
            self.attack("a topic is deleted and made again")?;
            self.operators.remake_topic().await?;
            self.tally.remakes += 1;
        }
        self.publish(Trouble::Remade).await
    }

    /// The only binding of a topic is taken away, or the exchange with all bindings of all topics. Nobody heals that but
    /// the groups themselves. The topic is one group's, which gets what comes back: where another group still has its
    /// binding, nothing comes back, and the one that lacks its own loses what is published meanwhile.
    pub(super) async fn bindings(&mut self, all: bool, end: Instant) -> Fallible {
        while Instant::now() < end {
            let earlier = self.mischief.published.len();
            if all {
                self.attack("the exchange is deleted")?;
                self.operators.unbind_all().await?;
            } else {
                self.attack("a binding is taken away")?;
                self.operators.unbind().await?;
            }
            self.tally.unbindings += 1;
            for _ in 0..self.random.usize(1..8) {
                self.publish(Trouble::Remade).await?;
            }
            if !self.until_over(earlier, COMING).await? {
                report::progress(format_args!(
                    "what was sent to a topic without bindings has not come within {COMING:?}"
                ));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Something is done to the database for some seconds, again and again.
    pub(super) async fn deeds(&mut self, deed: Deed, end: Instant) -> Fallible {
        while Instant::now() < end {
            let long = Duration::from_millis(self.random.u64(2000..11_000));
            self.attack(&format!("{deed:?} for {long:?}"))?;
            let from = now_micros();
            self.operators.operate(deed, true).await?;
            let waited = self.wait(long).await;
            // Whatever has happened meanwhile: a server may be others', too.
            self.operators.operate(deed, false).await?;
            waited?;
            let ails = Some(self.ails(deed == Deed::Revoke));
            self.recorder.record(What::Outage { of: format!("{deed:?}"), from, ails })?;
            self.tally.deeds += 1;
            self.recover(end).await?;
        }
        Ok(())
    }

    /// A pause between two deeds: long enough, now and then, for it to be seen whether everybody is well again.
    async fn recover(&mut self, end: Instant) -> Fallible {
        let pause = Duration::from_millis(self.random.u64(500..9000));
        self.wait(pause.min(end.saturating_duration_since(Instant::now()))).await
    }

    /// The disk of the database's server is full for some seconds, again and again. A server that ends for want of room is
    /// started again once there is some. How much fits into what it has left nobody knows, nor who notices.
    pub(super) async fn full(&mut self, end: Instant) -> Fallible {
        let Some(servers) = self.servers.clone() else { return Ok(()) };
        let Some(server) = servers.disk() else { return Ok(()) };
        while Instant::now() < end {
            let long = Duration::from_millis(self.random.u64(2000..11_000));
            self.attack(&format!("the disk of {server} is full for {long:?}"))?;
            let from = now_micros();
            servers.run("fill", server).await?;
            let waited = self.wait(long).await;
            servers.heal().await?;
            self.mischief.until_it_stores(ROOM).await?;
            waited?;
            self.recorder.record(What::Outage { of: format!("full disk of {server}"), from, ails: None })?;
            self.tally.fillings += 1;
            self.recover(end).await?;
        }
        Ok(())
    }

    /// The database's clock is ahead, right or behind by turns, and ahead in the end: what was stored under another clock is
    /// due then. (What is due by a clock that was ahead waits when it is not any more.) Now and then a process dies
    /// meanwhile, so that others take over from it by that clock or in spite of it.
    pub(super) async fn clock(&mut self, end: Instant) -> Fallible {
        let Some(servers) = self.servers.clone() else { return Ok(()) };
        let Some(server) = servers.clock() else { return Ok(()) };
        let mut offset = 0;
        while Instant::now() < end {
            let others = [-STEP, 0, STEP].into_iter().filter(|other| *other != offset).collect::<Vec<_>>();
            offset = self.random.choice(others).unwrap_or_default();
            self.step(&servers, server, offset).await?;
            if self.random.bool() {
                let index = self.random.usize(0..self.processes.number());
                self.tally.kills += u32::from(self.processes.kill(index).await?);
            }
            let long = self.processes.lease().mul_f64(0.3 + 1.7 * self.random.f64());
            self.wait(long.min(end.saturating_duration_since(Instant::now()))).await?;
        }
        self.step(&servers, server, STEP).await
    }

    async fn step(&mut self, servers: &Servers, server: &str, offset: i64) -> Fallible {
        self.attack(&format!("the clock of {server} goes wrong by {offset} s"))?;
        self.tally.clock_steps += 1;
        servers.set_clock(server, offset).await
    }

    /// The database's connections are closed when nothing has passed over them for a while, as servers and firewalls do.
    pub(super) async fn idle(&mut self, end: Instant) -> Fallible {
        let Some(index) = self.proxies.iter().position(|(name, _)| *name == DATABASE) else { return Ok(()) };
        let earlier = self.proxies[index].1.closed();
        while Instant::now() < end {
            let limit = Duration::from_millis(self.random.u64(300..2000));
            self.attack(&format!("connections to the database are closed after {limit:?} without use"))?;
            self.proxies[index].1.close_idle(Some(limit));
            let long = (limit * 5).min(end.saturating_duration_since(Instant::now()));
            self.wait(long).await?;
        }
        let proxy = &self.proxies[index].1;
        proxy.close_idle(None);
        self.tally.idle_closings += proxy.closed() - earlier;
        Ok(())
    }

    /// The database's address leads to a pooler, and later to the database again. Whether there is one, a process finds out
    /// when it starts: each time all of them are stopped before, and started again.
    pub(super) async fn pooler(&mut self, end: Instant) -> Fallible {
        let Some(pooler) = self.pooler.clone() else { return Ok(()) };
        let Some(database) = self.lead_to("the pooler", pooler).await? else { return Ok(()) };
        self.tally.poolers += 1;
        let waited = self.wait(end.saturating_duration_since(Instant::now())).await;
        self.lead_to("the database itself", database).await?;
        waited
    }

    /// Answers where the database's address has led before; nothing if there is no such address.
    async fn lead_to(&mut self, what: &str, target: String) -> Fallible<Option<String>> {
        let Some((_, proxy)) = self.proxies.iter().find(|(name, _)| *name == DATABASE) else { return Ok(None) };
        self.attack(&format!("all processes are stopped, and the database's address leads to {what}"))?;
        let from = now_micros();
        self.processes.end_all(DEPLOYMENT).await?;
        let before = proxy.lead_to(target);
        proxy.cut();
        self.processes.start_all()?;
        self.recorder.record(What::outage("all processes", from))?;
        Ok(Some(before))
    }

    /// Writes down and tells what is done.
    pub(super) fn attack(&self, what: &str) -> Fallible {
        report::progress(format_args!("nemesis: {what}"));
        Ok(self.recorder.record(What::Attack { on: what.into() })?)
    }
}
