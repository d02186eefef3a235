//! The nemeses that kill nothing themselves: they publish messages that make trouble, and deploy older versions.

use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{Inserted, Storage, Table};
use cap_core::{Message, MessageId, NodeId};
use tokio::time::Instant;

use crate::backend::{Deed, Fallible, Names};
use crate::bench::load;
use crate::crash::nemesis::{Name, Nemesis};
use crate::crash::recorder::{Recorder, What};
use crate::crash::remains;
use crate::crash::trouble::{Poison, Trouble};
use crate::report;

/// How long a killer may take to be found, and a deployment to be done.
const KILLER: Duration = Duration::from_secs(90);
pub(super) const DEPLOYMENT: Duration = Duration::from_secs(15);
/// What a large message has, unless the broker takes less.
const BIG: usize = 3 * 1024 * 1024;
/// How many of them come together.
const BURST: usize = 4;

/// Publishes trouble, without an engine: into the outbox, as the application's own code might.
pub(crate) struct Mischief {
    storage: Arc<dyn Storage>,
    names: Names,
    recorder: Recorder,
    big: usize,
    /// All that was published.
    pub(crate) published: Vec<Published>,
}

/// A message of trouble.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) message: MessageId,
    /// How many groups get it.
    groups: usize,
}

impl Mischief {
    /// `max_body`: the largest body that the broker takes.
    pub(crate) fn new(storage: Arc<dyn Storage>, names: Names, recorder: Recorder, max_body: Option<usize>) -> Self {
        let most = max_body.map_or(BIG, |most| most / 10 * 7);
        Self { storage, names, recorder, big: BIG.min(most), published: Vec::new() }
    }

    /// Waits until the database stores something again, as it may not do at once where its disk was full.
    pub(crate) async fn until_it_stores(&self, limit: Duration) -> Fallible {
        let begun = Instant::now();
        loop {
            let node = NodeId::generate();
            match self.storage.join(node, limit).await {
                Ok(()) => return Ok(self.storage.leave(node).await.map(|_| ())?),
                Err(error) if begun.elapsed() > limit => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Stores it in the outbox. If the storage does not answer, the end will tell whether it is there.
    async fn publish(&mut self, trouble: Trouble) -> Fallible {
        let number = trouble.number(self.published.len() as i64 + 1);
        let message = self.message(trouble, number)?;
        self.recorder.record(What::Trouble { id: number, message: message.id.as_str().to_owned() })?;
        self.published.push(Published { message: message.id.clone(), groups: trouble.groups() });
        match self.storage.insert(Table::Outbox, vec![load::outbox_record(message)], None).await.as_deref() {
            Ok([Inserted::Stored(_)]) => self.recorder.record(What::Committed { id: number })?,
            other => report::progress(format_args!("{trouble:?} was not stored, or is not known to be: {other:?}")),
        }
        Ok(())
    }

    /// Whether all has come to its end but the first so many.
    async fn is_over(&self, first: usize) -> Fallible<bool> {
        for published in &self.published[first..] {
            if !remains::is_over(&*self.storage, &published.message, published.groups).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn message(&self, trouble: Trouble, number: i64) -> Fallible<Message> {
        let topic = self.names.topic_of(trouble.topic());
        let mut message = load::message_on(&topic, trouble.payload(number, self.big))?;
        if let Trouble::Poison(poison) = trouble
            && let Some(header) = poison.header()
        {
            message.headers.set(header, "a text");
        }
        Ok(message)
    }
}

impl Nemesis {
    /// Lets one of them work until then; a crash loop for as long as its killer lives.
    pub(super) async fn mischief(&mut self, name: Name, end: Instant) -> Fallible {
        let lease = self.processes.lease();
        match name {
            Name::Rolling => self.rolling(end).await,
            Name::Crashloop => self.crashloop(end).await,
            Name::Poison => self.every(Duration::from_millis(400), end, 1, |n| Trouble::Poison(poison(n))).await,
            Name::Blocked => self.every(lease.mul_f64(1.5), end, 1, |_| Trouble::Blocker).await,
            Name::Slowtx => self.slowtx(end).await,
            Name::Topics => self.topics(end).await,
            Name::Bindings => self.bindings(false, end).await,
            Name::Exchange => self.bindings(true, end).await,
            Name::Clock => self.clock(end).await,
            Name::Standby => self.deeds(Deed::ReadOnly, end).await,
            Name::Full => self.full(end).await,
            Name::Idle => self.idle(end).await,
            Name::Pooler => self.pooler(end).await,
            Name::Switchover => self.switchover(end).await,
            Name::Rights => self.deeds(Deed::Revoke, end).await,
            Name::Bigmessages => self.every(Duration::from_secs(3), end, BURST, |_| Trouble::Big).await,
            Name::Kill | Name::Restart | Name::Cut | Name::Freeze => Ok(()),
        }
    }

    /// Waits until what was published after the first so many has come to its end; answers whether it has in time.
    pub(super) async fn until_over(&mut self, first: usize, limit: Duration) -> Fallible<bool> {
        let end = Instant::now() + limit;
        while !self.mischief.is_over(first).await? {
            if Instant::now() > end {
                return Ok(false);
            }
            self.wait(Duration::from_millis(500)).await?;
        }
        Ok(true)
    }

    pub(super) async fn publish(&mut self, trouble: Trouble) -> Fallible {
        self.tally.trouble += 1;
        self.mischief.publish(trouble).await
    }

    /// Publishes some trouble again and again.
    async fn every(
        &mut self,
        pause: Duration,
        end: Instant,
        at_once: usize,
        trouble: impl Fn(usize) -> Trouble,
    ) -> Fallible {
        let mut number = 0;
        while Instant::now() < end {
            for _ in 0..at_once {
                self.publish(trouble(number)).await?;
                number += 1;
            }
            self.wait(pause.min(end.saturating_duration_since(Instant::now()))).await?;
        }
        Ok(())
    }

    /// An older version works beside a newer one, and messages come that it does not know.
    async fn rolling(&mut self, end: Instant) -> Fallible {
        let Some(consumer) = self.processes.a_consumer() else { return Ok(()) };
        self.processes.deploy(consumer, true, DEPLOYMENT).await?;
        self.tally.deployments += 1;
        self.every(Duration::from_millis(250), end, 1, |_| Trouble::Renewed).await?;
        self.processes.deploy(consumer, false, DEPLOYMENT).await
    }

    /// One killer after another: each has until it is dead.
    async fn crashloop(&mut self, end: Instant) -> Fallible {
        let mut in_audit = self.random.bool();
        while Instant::now() < end {
            let earlier = self.mischief.published.len();
            self.publish(Trouble::Killer { in_audit }).await?;
            in_audit = !in_audit;
            if !self.until_over(earlier, KILLER).await? {
                report::progress(format_args!("a killer is not dead within {KILLER:?}"));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Somebody takes the row lock and keeps it, and somebody else wants it.
    async fn slowtx(&mut self, end: Instant) -> Fallible {
        let lease = self.processes.lease();
        while Instant::now() < end {
            self.publish(Trouble::Hold).await?;
            self.wait(lease / 8).await?;
            self.publish(Trouble::Hang).await?;
            self.wait((lease * 2).min(end.saturating_duration_since(Instant::now()))).await?;
        }
        Ok(())
    }
}

fn poison(number: usize) -> Poison {
    Poison::ALL[number % Poison::ALL.len()]
}
