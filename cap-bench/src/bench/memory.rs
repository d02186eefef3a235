//! How much memory large messages take in a consumer whose database hangs for a while.

use std::time::Duration;

use cap_core::transport::Transport as _;
use cap_engine::{Cap, Options, Step, Subscribe};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use crate::backend::{Broker, Database, Fallible, within};
use crate::bench::child;
use crate::bench::load::{Countdown, fill_broker};
use crate::bench::resident::{peak, resident};
use crate::counting::Counting;
use crate::report;

/// What it can be told.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// How many messages.
    #[arg(long, default_value_t = 100)]
    messages: usize,
    /// The payload of each, in bytes; less where the broker takes no such body.
    #[arg(long, default_value_t = 8_000_000)]
    bytes: usize,
    /// How long the storage takes no insert, in seconds.
    #[arg(long, default_value_t = 10)]
    frozen: u64,
    /// How long all may take after that, in seconds.
    #[arg(long, default_value_t = 180)]
    limit: u64,
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(crate) child: Option<String>,
}

/// What the child is told.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    /// None: it makes one of its own.
    database: Option<String>,
    broker: String,
    messages: usize,
    bytes: usize,
    frozen: u64,
    limit: u64,
}

/// What the child tells, in MiB.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    start: f64,
    frozen: f64,
    peak: f64,
    handled: f64,
    idle: f64,
    left: usize,
}

/// What is freed comes back within this.
const IDLE: Duration = Duration::from_secs(5);
/// A broker gets so many at once.
const BATCH: usize = 5;
const MIB: f64 = 1024.0 * 1024.0;

/// Runs it: the messages are sent from here where the broker keeps them, so that the child's memory is the consumer's.
pub(crate) async fn run<D: Database, B: Broker>(
    settings: &Settings,
    backends: [&str; 2],
) -> Fallible<Map<String, Value>> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let transport = broker.transport().await?;
    let capabilities = transport.capabilities();
    let bytes = settings.bytes.min(capabilities.max_body.unwrap_or(usize::MAX) / 10 * 9);
    if capabilities.keeps_backlog {
        report::progress(format_args!("filling the broker with {} messages of {bytes} bytes", settings.messages));
        broker.sink().await?;
        transport.connect().await?;
        let limit = Duration::from_secs(settings.limit);
        within(limit, "filling the broker", fill(&transport, broker.names(), settings.messages, bytes)).await??;
    }
    transport.close().await?;
    let told = Told {
        database: database.place(),
        broker: broker.place().ok_or("the broker has no place")?,
        messages: settings.messages,
        bytes,
        frozen: settings.frozen,
        limit: settings.limit,
    };
    let seen = told_by_child(backends, &told).await?;
    broker.discard().await?;
    database.discard().await?;
    Ok(figures(&seen, bytes, settings.messages, capabilities.keeps_backlog))
}

fn figures(seen: &Seen, bytes: usize, messages: usize, keeps_backlog: bool) -> Map<String, Value> {
    let above = |value: f64| (value - seen.start).round();
    report::object(json!({
        "unit": "MiB above the start",
        "all_messages_mib": (bytes as f64 * messages as f64 / MIB).round(),
        "start_mib": seen.start.round(),
        "frozen": above(seen.frozen),
        "peak": above(seen.peak),
        "handled": above(seen.handled),
        "idle": above(seen.idle),
        "unfinished": seen.left,
        "broker_in_process": !keeps_backlog,
        "aim": "peak and idle at most 200, where the broker is another process",
    }))
}

async fn fill<B: cap_core::Transport>(
    transport: &B,
    names: &crate::backend::Names,
    messages: usize,
    bytes: usize,
) -> Fallible {
    for first in (0..messages).step_by(BATCH) {
        fill_broker(transport, names, BATCH.min(messages - first), bytes).await?;
    }
    Ok(())
}

async fn told_by_child(backends: [&str; 2], told: &Told) -> Fallible<Seen> {
    let mut child = child::start("memory", backends, told)?;
    let limit = Duration::from_secs(told.frozen + told.limit) + IDLE * 4;
    let mut text = String::new();
    let mut stdout = child.stdout.take().ok_or("the child has no stdout")?;
    within(limit, "the child", stdout.read_to_string(&mut text)).await??;
    let status = within(limit, "the child's end", child.wait()).await??;
    serde_json::from_str(&text).map_err(|error| format!("the child ({status}) said {text:?}: {error}").into())
}

/// In the child: an engine whose inbox takes nothing for a while. Its last line says what memory that took.
pub(crate) async fn consume<D: Database, B: Broker>(told: &str) -> Fallible {
    let told: Told = serde_json::from_str(told)?;
    let (database, broker) = match &told.database {
        Some(place) => (D::at(place)?, B::at(&told.broker)?),
        None => (D::fresh().await?, B::at(&told.broker)?),
    };
    let (open, gate) = watch::channel(false);
    let storage = Counting::gated(database.storage().await?, gate);
    let names = broker.names().clone();
    let countdown = Countdown::new(Step::InboxSettled, told.messages);
    let start = resident()?;
    let cap = Cap::builder()
        .storage(storage)
        .transport(broker.transport().await?)
        .options(Options { drain: Duration::from_secs(2), ..Options::default() })
        .subscription(Subscribe::to(&names.topic, async || {}).group(&names.group))
        .on_step(countdown.listener())
        .start()
        .await?;
    let transport = broker.transport().await?;
    let filling = (!transport.capabilities().keeps_backlog).then(|| {
        report::progress(format_args!("NOTE: the broker is in the process, and what it holds counts"));
        let (messages, bytes) = (told.messages, told.bytes);
        tokio::spawn(async move { fill(&transport, &names, messages, bytes).await })
    });
    report::progress(format_args!("{start:.0} MiB at the start; the storage is frozen for {} s", told.frozen));
    tokio::time::sleep(Duration::from_secs(told.frozen)).await;
    let frozen = resident()?;
    report::progress(format_args!("{frozen:.0} MiB; thawed"));
    open.send(true)?;
    let done = within(Duration::from_secs(told.limit), "handling", countdown.wait()).await;
    let handled = resident()?;
    if let Err(error) = done {
        report::progress(format_args!("{error}: {} are left; {:?}", countdown.left(), cap.health()));
    }
    tokio::time::sleep(IDLE).await;
    let seen = Seen { start, frozen, peak: peak()?, handled, idle: resident()?, left: countdown.left() };
    println!("{}", serde_json::to_string(&seen)?);
    if let Some(filling) = filling {
        filling.abort();
    }
    cap.stop().await;
    std::process::exit(0);
}
