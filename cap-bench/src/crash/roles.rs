//! What the processes of a crash run do: one engine each, on the places that they are told.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use cap_core::{Error, HandlerError, RetryPolicy, Storage};
use cap_engine::{Cap, CapBuilder, Context, Json, Options, Publish, Subscribe};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::runtime::{Handle, Runtime};
use tokio::time::{Instant, MissedTickBehavior};

use crate::backend::{Broker, Client as _, Database, End, Fallible};
use crate::crash::checker::AUDIT;
use crate::crash::recorder::{Recorder, What};
use crate::crash::trouble::{self, BIG, BILLING, HANG, HOLD, POISON, REMADE, RENEWED};
use crate::database::now_micros;

/// The groups: one whose handler is transactional, one whose handler is not.
pub(crate) const GROUPS: [&str; 2] = [BILLING, AUDIT];

/// Before a process tries again what a server that is away refused.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a process that is told to end may take.
const DRAIN: Duration = Duration::from_secs(10);
/// How often a process looks at its health, and how often it writes it down though nothing has changed.
const LOOK: Duration = Duration::from_millis(100);
pub(crate) const SIGN: Duration = Duration::from_secs(1);

/// What a process is there for. Every one of them relays, as every engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Places orders.
    Publisher,
    /// Only relays.
    Relay,
    /// Handles them in both groups.
    Consumer,
    /// All of it: where the broker is inside the process.
    Node,
}

impl Kind {
    pub(crate) fn publishes(self) -> bool {
        matches!(self, Self::Publisher | Self::Node)
    }

    pub(crate) fn consumes(self) -> bool {
        matches!(self, Self::Consumer | Self::Node)
    }
}

/// What a process is told, as JSON on its command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Role {
    pub(crate) kind: Kind,
    /// Its place among all processes: part of the numbers of its orders.
    pub(crate) index: i64,
    /// Which of its lives this is, from 1.
    pub(crate) life: u32,
    pub(crate) database: String,
    pub(crate) broker: String,
    /// Where the record is kept.
    pub(crate) folder: PathBuf,
    /// Orders are placed until then, in microseconds since 1970.
    pub(crate) until: i64,
    /// Orders a second.
    pub(crate) rate: u32,
    pub(crate) lease_ms: u64,
    /// It is of an older version, which has no subscription for the topic `RENEWED`.
    pub(crate) old: bool,
}

impl Role {
    pub(crate) fn name(&self) -> String {
        format!("{:?}-{}", self.kind, self.index).to_lowercase()
    }

    /// Numbers that no other life of any process uses.
    fn first_number(&self) -> i64 {
        self.index * 1_000_000_000_000 + i64::from(self.life) * 10_000_000
    }
}

/// Now and then a handler fails after it has written: what it wrote must not be seen.
pub(crate) fn mishap() -> Result<(), HandlerError> {
    match fastrand::u8(..) {
        0..8 => Err(HandlerError::retry("a mishap on purpose")),
        _ => Ok(()),
    }
}

/// Runs until stdin ends, which a SIGKILL mostly forestalls.
pub(crate) async fn run<D: Database, B: Broker>(role: Role) -> Fallible {
    trouble::keep_quiet_about_purpose();
    let recorder = Recorder::create(&role.folder, &role.name(), role.life)?;
    let (database, broker) = (D::at(&role.database)?, B::at(&role.broker)?);
    let cap = loop {
        match start(&role, &database, &broker, &recorder).await {
            Ok(cap) => break cap,
            Err(error) => {
                tracing::info!(%error, "not started yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    recorder.record(What::Started)?;
    let watching = tokio::spawn(watch(cap.clone(), recorder.clone()));
    let placing = async {
        if role.kind.publishes() {
            place(&role, &database, &broker, &cap, &recorder).await?;
        }
        std::future::pending::<Fallible>().await
    };
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        Err(error) = placing => {
            tracing::error!(%error, "it cannot go on");
            // Not by returning: the thread that reads stdin would be waited for.
            std::process::exit(1);
        }
        _ = stdin.read_u8() => {}
    }
    watching.abort();
    let _ = tokio::time::timeout(DRAIN, cap.stop()).await;
    Ok(())
}

/// A loop that is ill, and the beginning of its reason.
fn why(name: &str, error: &Error) -> String {
    const MOST: usize = 120;
    let reason: String = error.reason().chars().take(MOST).collect();
    format!("{name}: {reason}")
}

/// Writes down what the engine says of its health.
async fn watch<S: Storage>(cap: Cap<S>, recorder: Recorder) -> Fallible {
    let (mut last, mut told) = (None, Instant::now());
    let mut pace = tokio::time::interval(LOOK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let health = cap.health();
        let now = (health.ready, health.ill().map(|(name, error)| why(name, error)).collect::<Vec<_>>());
        if last.as_ref() != Some(&now) || told.elapsed() >= SIGN {
            told = Instant::now();
            recorder.record(What::Health { ready: now.0, ill: now.1.clone() })?;
            last = Some(now);
        }
    }
}

async fn start<D: Database, B: Broker>(
    role: &Role,
    database: &D,
    broker: &B,
    recorder: &Recorder,
) -> Fallible<Cap<D::Storage>> {
    let lease = Duration::from_millis(role.lease_ms);
    let storage = database.storage().await?;
    let mut builder = Cap::builder()
        .storage(storage.clone())
        .transport(broker.transport_of(&role.name()).await?)
        .options(Options { lease, heartbeat: lease / 5, ..Options::default() });
    if B::IS_PARTITIONED {
        builder = builder.handlers_on(handlers()?);
    }
    if role.kind.consumes() {
        let (billing, audit) = (billing(role, database, broker, &storage, recorder), audit(role, broker, recorder));
        builder = billing.into_iter().chain(audit).fold(builder, CapBuilder::subscription);
    }
    Ok(builder.start().await?)
}

/// A runtime of the handlers' own, until the process ends.
fn handlers() -> Fallible<&'static Handle> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok(RUNTIME.get_or_init(|| runtime).handle())
}

/// A message whose process died is tried again so often before it is tried alone: a killer is to be found within a run.
fn few_crashes() -> RetryPolicy {
    RetryPolicy { crashes: 3, ..RetryPolicy::default() }
}

/// The transactional handlers: of orders, of what holds a row lock for longer than the lease, and of what hangs on it.
fn billing<D: Database, B: Broker>(
    role: &Role,
    database: &D,
    broker: &B,
    storage: &D::Storage,
    recorder: &Recorder,
) -> Vec<Subscribe> {
    let (names, lease) = (broker.names(), Duration::from_millis(role.lease_ms));
    let locking =
        |suffix, hold| database.locking(storage, &names.topic_of(suffix), recorder.clone(), hold).concurrency(1);
    let orders = database.billing(storage, &names.topic, recorder.clone()).concurrency(4).retry(few_crashes());
    let all = [orders, locking(HOLD, lease.mul_f64(1.5)), locking(HANG, Duration::ZERO).timeout(lease / 2)];
    all.map(|subscribe| subscribe.group(names.group_of(BILLING))).into()
}

/// The plain handlers: of orders, and of trouble that has topics of its own.
fn audit<B: Broker>(role: &Role, broker: &B, recorder: &Recorder) -> Vec<Subscribe> {
    let (names, lease) = (broker.names(), Duration::from_millis(role.lease_ms));
    let recording = recorder.clone();
    let orders = move |Json(number): Json<i64>, context: Context| {
        let recorder = recording.clone();
        async move {
            trouble::met_in_audit(number, lease).await;
            // A failure before the effect; after it the line is written, and there is nothing to take back.
            mishap()?;
            Ok::<(), HandlerError>(recorder.handled(AUDIT, number, context.attempt())?)
        }
    };
    let troubled = |suffix: &str| {
        let recorder = recorder.clone();
        let handler = move |message, context| trouble::audited(message, context, recorder.clone());
        Subscribe::to(names.topic_of(suffix), handler)
    };
    let poison = troubled(POISON).retry(RetryPolicy::fixed(3, Duration::from_millis(500)));
    let mut all = vec![
        Subscribe::to(&names.topic, orders).concurrency(4).retry(few_crashes()),
        poison,
        troubled(BIG),
        troubled(REMADE),
    ];
    if !role.old {
        all.push(troubled(RENEWED));
    }
    all.into_iter().map(|subscribe| subscribe.group(names.group_of(AUDIT))).collect()
}

/// Places orders at the role's pace; every fifth is rolled back on purpose.
async fn place<D: Database, B: Broker>(
    role: &Role,
    database: &D,
    broker: &B,
    cap: &Cap<D::Storage>,
    recorder: &Recorder,
) -> Fallible
where
    D::Storage: Storage,
{
    let mut pace = tokio::time::interval(Duration::from_secs(1) / role.rate.max(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = None;
    for number in role.first_number().. {
        pace.tick().await;
        if now_micros() > role.until {
            return Ok(());
        }
        let Some(connected) = client.as_mut() else {
            client = database.client().await.ok();
            continue;
        };
        let end = if number % 5 == 4 { End::RollBack } else { End::Commit };
        recorder.record(What::Begun { id: number })?;
        let message = Publish::json(&broker.names().topic, &number);
        match (connected.place(cap, number, message, end).await, end) {
            (Ok(()), End::Commit) => recorder.record(What::Committed { id: number })?,
            (Ok(()), End::RollBack) => recorder.record(What::RolledBack { id: number })?,
            (Err(error), _) => {
                tracing::debug!(number, %error, "the transaction's end is unknown");
                client = None;
            }
        }
    }
    Ok(())
}
