//! A short walk through all that a pair of storage and transport must do together, on real servers that are killed.
//!
//! One engine with two groups: `billing`, whose handler is transactional, and `audit`, whose handler is not. Each order
//! that the database has in the end must have been billed exactly once and audited at least once, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cap_core::HandlerError;
use cap_core::transport::{Confirm, Outgoing, Transport as _};
use cap_engine::{Cap, Context, Json, Options, Publish, Subscribe};
use serde_json::{Map, json};
use tokio::sync::oneshot;

use crate::backend::{Broker, Business, Client as _, Database, End, Fallible};
use crate::bench::load;
use crate::crash::recorder::Recorder;
use crate::crash::roles::GROUPS;
use crate::crash::servers::{SCRIPT, Servers};
use crate::report::{self, object};

/// How long all may take to come to its end, after the last server is back.
const LIMIT: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(50);
/// How long a transaction may take while the server is away.
const AWAY: Duration = Duration::from_secs(1);
/// Before a connection is tried again.
const PAUSE: Duration = Duration::from_millis(200);
const LEASE: Duration = Duration::from_secs(6);

/// Before a server is killed. RabbitMQ notes down a new quorum queue's member within a second; killed before (seen on 3.10),
/// it has a queue without a leader for ever, which nobody can publish to or consume from.
pub(crate) const CALM: Duration = Duration::from_secs(2);

/// The order whose message is published under an id that is taken: it must not be handled.
const SECOND_OF_ONE_ID: i64 = 2001;
/// A message that the broker gets twice, without an order.
const SENT_TWICE: i64 = 2100;
/// What the audit's handler refuses twice.
const STUBBORN: i64 = 3000;
const REFUSALS: u32 = 2;

/// The attempts that the audit's handler saw, by number.
type Seen = Arc<Mutex<BTreeMap<i64, Vec<u32>>>>;

struct Walk<D: Database, B: Broker> {
    database: D,
    broker: B,
    cap: Cap<D::Storage>,
    client: Option<D::Client>,
    seen: Seen,
}

/// Walks; answers how long each step took. The first step that fails ends it.
pub(crate) async fn run<D: Database, B: Broker>(
    storage: &str,
    transport: &str,
) -> Fallible<Map<String, serde_json::Value>> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    broker.declare_groups().await?;
    let folder = tempfile::tempdir()?;
    let recorder = Recorder::create(folder.path(), "walk", 1)?;
    let seen = Seen::default();
    let cap = start(&database, &broker, recorder, &seen).await?;
    let client = Some(database.client().await?);
    let mut walk = Walk { database, broker, cap, client, seen };

    let mut took = BTreeMap::new();
    let mut done = |step: &str, begun: Instant| {
        let seconds = begun.elapsed().as_secs_f64();
        report::progress(format_args!("{storage} + {transport}: {step}: {seconds:.2} s"));
        took.insert(step.to_owned(), (seconds * 100.0).round() / 100.0);
    };
    let failed = |step: &str, error| format!("{storage} + {transport}: {step}: {error}");
    macro_rules! step {
        ($name:expr, $walk:expr) => {{
            let begun = Instant::now();
            $walk.await.map_err(|error| failed($name, error))?;
            done($name, begun);
        }};
    }
    step!("publish, relay and handle", walk.publish());
    step!("roll back", walk.roll_back());
    step!("deduplicate", walk.deduplicate());
    step!("retry", walk.retry());
    match Servers::found(storage, transport) {
        Some(servers) => {
            for server in servers.names.clone() {
                step!(&format!("come back after {server} was killed"), walk.survive(&servers, server));
            }
        }
        None if Servers::names(storage, transport).is_empty() => {}
        None => return Err(format!("{SCRIPT} is not set: no server could be killed").into()),
    }
    walk.cap.stop().await;
    walk.broker.discard().await?;
    walk.database.discard().await?;
    Ok(object(json!({ "took_s": took })))
}

async fn start<D: Database, B: Broker>(
    database: &D,
    broker: &B,
    recorder: Recorder,
    seen: &Seen,
) -> Fallible<Cap<D::Storage>> {
    let (storage, names) = (database.storage().await?, broker.names());
    let options = Options { lease: LEASE, heartbeat: LEASE / 4, ..Options::default() };
    let seen = Arc::clone(seen);
    let audit = move |Json(number): Json<i64>, context: Context| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).entry(number).or_default().push(context.attempt());
        let refuses = number == STUBBORN && context.attempt() <= REFUSALS;
        std::future::ready(if refuses { Err(HandlerError::retry("refused on purpose")) } else { Ok(()) })
    };
    let [billing, auditing] = GROUPS;
    let billed = database.billing(&storage, &names.topic, recorder).group(names.group_of(billing)).concurrency(4);
    let audited = Subscribe::to(&names.topic, audit).group(names.group_of(auditing)).concurrency(4);
    let builder = Cap::builder().storage(storage).transport(broker.transport().await?).options(options);
    Ok(builder.subscription(billed).subscription(audited).start().await?)
}

impl<D: Database, B: Broker> Walk<D, B> {
    fn message(&self, number: i64) -> Publish {
        Publish::json(&self.broker.names().topic, &number)
    }

    /// One business transaction. After a failure its end is unknown, and the next is on a new connection.
    async fn place(&mut self, number: i64, message: Publish, end: End) -> Fallible {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.database.client().await?,
        };
        client.place(&self.cap, number, message, end).await?;
        self.client = Some(client);
        Ok(())
    }

    async fn place_all(&mut self, numbers: impl IntoIterator<Item = i64>) -> Fallible {
        for number in numbers {
            self.place(number, self.message(number), End::Commit).await?;
        }
        Ok(())
    }

    async fn publish(&mut self) -> Fallible {
        self.place_all(0..100).await?;
        self.settled().await
    }

    async fn roll_back(&mut self) -> Fallible {
        for number in 1000..1010 {
            self.place(number, self.message(number), End::RollBack).await?;
        }
        self.place_all([1010]).await?;
        self.settled().await
    }

    /// At both ends: an id that is taken in the outbox, and a message that the broker delivers twice.
    async fn deduplicate(&mut self) -> Fallible {
        let id = format!("walk-{}", self.broker.names().topic);
        self.place(2000, self.message(2000).id(&id), End::Commit).await?;
        self.place(SECOND_OF_ONE_ID, self.message(SECOND_OF_ONE_ID).id(&id), End::Commit).await?;
        let transport = self.broker.transport().await?;
        transport.connect().await?;
        let message = load::message(self.broker.names(), &SENT_TWICE)?;
        for _ in 0..2 {
            let (confirmed, outcome) = oneshot::channel();
            let confirm = Confirm::new(move |outcome| drop(confirmed.send(outcome)));
            transport.send(vec![Outgoing { message: message.clone(), confirm }]).await;
            outcome.await??;
        }
        self.place_all([2101]).await?;
        self.settled().await?;
        let attempts = self.attempts(SENT_TWICE);
        if attempts != [1] {
            return Err(format!("the message that was sent twice was handled in attempts {attempts:?}").into());
        }
        Ok(())
    }

    async fn retry(&mut self) -> Fallible {
        self.place_all([STUBBORN]).await?;
        self.settled().await?;
        let (attempts, expected) = (self.attempts(STUBBORN), Vec::from_iter(1..=REFUSALS + 1));
        if attempts != expected {
            return Err(format!("what was refused was tried in attempts {attempts:?}, not {expected:?}").into());
        }
        Ok(())
    }

    /// Goes on publishing while a server is away. Where it is the database, what fails then is not there.
    async fn survive(&mut self, servers: &Servers, server: &'static str) -> Fallible {
        let first = 10_000 + 1000 * servers.names.iter().position(|name| *name == server).unwrap_or(0) as i64;
        tokio::time::sleep(CALM).await;
        self.place_all(first..first + 20).await?;
        servers.run("kill", server).await?;
        for number in first + 20..first + 30 {
            // A driver may wait long for its server; what its end was the tables tell.
            let placing = self.place(number, self.message(number), End::Commit);
            if tokio::time::timeout(AWAY, placing).await.is_err() {
                self.client = None;
            }
        }
        servers.run("restart", server).await?;
        let begun = Instant::now();
        for number in first + 40..first + 60 {
            while let Err(error) = self.place(number, self.message(number), End::Commit).await {
                if begun.elapsed() > LIMIT {
                    return Err(format!("nothing can be published since {server} is back: {error}").into());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.settled().await
    }

    fn attempts(&self, number: i64) -> Vec<u32> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned().unwrap_or_default()
    }

    /// Waits until every order is billed and audited.
    async fn settled(&self) -> Fallible {
        let begun = Instant::now();
        loop {
            // Away, the database has nothing to tell.
            let missing = match self.database.business().await {
                Ok(business) => {
                    self.nothing_wrong(&business)?;
                    Ok(self.missing(&business))
                }
                Err(error) => Err(error),
            };
            match missing {
                Ok(missing) if missing.is_empty() => return Ok(()),
                Ok(missing) if begun.elapsed() > LIMIT => {
                    let health = self.cap.health();
                    return Err(format!("not within {LIMIT:?}: {missing:?} are missing; {health:?}").into());
                }
                Err(error) if begun.elapsed() > LIMIT => return Err(error),
                Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// The orders that are not yet billed, or not yet audited.
    fn missing(&self, business: &Business) -> BTreeSet<i64> {
        let billed: BTreeSet<i64> = business.invoices.iter().map(|(number, _)| *number).collect();
        let is_audited = |number: &i64| {
            let refusals = if *number == STUBBORN { REFUSALS as usize } else { 0 };
            self.attempts(*number).len() > refusals
        };
        let expected = business.orders.iter().copied().filter(|number| *number != SECOND_OF_ONE_ID);
        expected.filter(|number| !billed.contains(number) || !is_audited(number)).collect()
    }

    /// Nothing is billed twice, and nothing without an order but what was sent without one.
    fn nothing_wrong(&self, business: &Business) -> Fallible {
        let orders: BTreeSet<i64> = business.orders.iter().copied().chain([SENT_TWICE]).collect();
        let mut billed = BTreeSet::new();
        for (number, _) in &business.invoices {
            if !billed.insert(*number) {
                return Err(format!("order {number} is billed twice").into());
            }
        }
        let seen: BTreeSet<i64> = self.seen.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        let handled = &billed | &seen;
        if let Some(phantom) = handled.iter().find(|number| !orders.contains(number) || **number == SECOND_OF_ONE_ID) {
            return Err(format!("{phantom} was handled, and there is no such order").into());
        }
        Ok(())
    }
}
