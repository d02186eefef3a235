//! How long a stop takes while something hangs: a broker or a database that is dead or frozen, an alarm, a handler.

use std::time::{Duration, Instant};

use cap_core::storage::Storage;
use cap_engine::{Cap, Options, Subscribe};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::backend::{Broker, Database, Fallible, within};
use crate::bench::load::fill_outbox;
use crate::crash::servers::Servers;
use crate::report;

/// What it can be told.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// How long a stop may take, in seconds.
    #[arg(long, default_value_t = 5)]
    drain: u64,
    /// Messages that wait, so that the engine has its hands full.
    #[arg(long, default_value_t = 5000)]
    messages: usize,
    /// How long the engine has been living with it, in seconds.
    #[arg(long, default_value_t = 2)]
    after: u64,
}

/// What is wrong when the engine is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Nothing,
    Killed(&'static str),
    Frozen(&'static str),
    /// Its disk has no room.
    Full(&'static str),
    /// RabbitMQ takes nothing more, for want of memory.
    Alarm,
    /// The handler awaits what never comes.
    Waits,
    /// The handler keeps its thread.
    Blocks,
}

/// A handler that keeps its thread does so for so long: longer than any stop may take.
const BLOCKED: Duration = Duration::from_secs(20);
/// So many messages are published to a broker that is away.
const IN_FLIGHT: u32 = 50;
/// What a database without room on its disk is asked to store, again and again.
const LARGE: usize = 1 << 20;
/// A database of which so many find room is not full.
const REFUSED_BY: usize = 2000;
/// Whoever needs longer does not end.
const LIMIT: Duration = Duration::from_secs(90);

impl Trouble {
    /// Those that these backends can have.
    fn all(servers: Option<&Servers>) -> Vec<Self> {
        let mut all = vec![Self::Nothing, Self::Waits, Self::Blocks];
        for name in servers.map_or(&[][..], |servers| &servers.names) {
            all.extend([Self::Killed(name), Self::Frozen(name)]);
            all.extend((*name == "rabbitmq").then_some(Self::Alarm));
        }
        all.extend(servers.and_then(Servers::disk).map(Self::Full));
        all
    }

    fn name(self) -> String {
        match self {
            Self::Nothing => "nothing".into(),
            Self::Killed(server) => format!("{server}_killed"),
            Self::Frozen(server) => format!("{server}_frozen"),
            Self::Full(server) => format!("{server}_full"),
            Self::Alarm => "broker_alarm".into(),
            Self::Waits => "handler_waits".into(),
            Self::Blocks => "handler_blocks".into(),
        }
    }

    fn is_the_brokers(self) -> bool {
        matches!(self, Self::Alarm | Self::Killed("rabbitmq" | "kafka") | Self::Frozen("rabbitmq" | "kafka"))
    }

    async fn begin(self, servers: Option<&Servers>) -> Fallible {
        let Some(servers) = servers else { return Ok(()) };
        match self {
            Self::Killed(server) => servers.run("kill", server).await,
            Self::Frozen(server) => servers.run("freeze", server).await,
            Self::Full(server) => servers.run("fill", server).await,
            Self::Alarm => servers.run_with("client", "rabbitmq", &[WATERMARK, "0.00001"]).await,
            Self::Nothing | Self::Waits | Self::Blocks => Ok(()),
        }
    }

    async fn end(self, servers: Option<&Servers>) -> Fallible {
        let Some(servers) = servers else { return Ok(()) };
        if self == Self::Alarm {
            servers.run_with("client", "rabbitmq", &[WATERMARK, "0.6"]).await?;
        }
        servers.heal().await
    }
}

const WATERMARK: &str = "set_vm_memory_high_watermark";

/// Runs it; answers seconds, by what was wrong.
pub(crate) async fn run<D: Database, B: Broker>(
    settings: &Settings,
    storage: &str,
    transport: &str,
) -> Fallible<Map<String, Value>> {
    let servers = Servers::found(storage, transport);
    let mut figures = report::object(json!({ "unit": "s", "aim": format!("at most {} s", settings.drain) }));
    for trouble in Trouble::all(servers.as_ref()) {
        let took = stop::<D, B>(settings, trouble, servers.as_ref()).await?;
        report::progress(format_args!("{}: stopped within {took:.2} s", trouble.name()));
        figures.insert(trouble.name(), json!((took * 100.0).round() / 100.0));
    }
    Ok(figures)
}

/// A full disk is noticed when what the server has left of its own files is used up.
async fn until_refused<S: Storage>(cap: &Cap<S>, topic: &str) -> Fallible {
    let payload = "x".repeat(LARGE);
    for _ in 0..REFUSED_BY {
        let published = tokio::time::timeout(Duration::from_secs(2), cap.publish(topic, &payload)).await;
        if !matches!(published, Ok(Ok(_))) {
            return Ok(());
        }
    }
    Err("the database found room for everything: is its disk full?".into())
}

async fn stop<D: Database, B: Broker>(
    settings: &Settings,
    trouble: Trouble,
    servers: Option<&Servers>,
) -> Fallible<f64> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let (names, storage) = (broker.names().clone(), database.storage().await?);
    let called: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    let handler = move || async move {
        called.add_permits(1);
        match trouble {
            Trouble::Waits => std::future::pending().await,
            Trouble::Blocks => std::thread::sleep(BLOCKED),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let cap = Cap::builder()
        .storage(storage.clone())
        .transport(broker.transport().await?)
        .options(Options { drain: Duration::from_secs(settings.drain), ..Options::default() })
        .subscription(Subscribe::to(&names.topic, handler).group(&names.group).concurrency(1))
        .start()
        .await?;
    fill_outbox(&storage, &names, settings.messages, 512).await?;
    called.acquire().await?.forget();
    trouble.begin(servers).await?;
    if trouble.is_the_brokers() {
        // So that something is on its way to it.
        for number in 0..IN_FLIGHT {
            cap.publish(&names.topic, &number).await?;
        }
    }
    if matches!(trouble, Trouble::Full(_)) {
        until_refused(&cap, &names.topic).await?;
    }
    tokio::time::sleep(Duration::from_secs(settings.after)).await;
    let began = Instant::now();
    let stopped = within(LIMIT, "the stop", cap.stop()).await;
    let took = began.elapsed().as_secs_f64();
    trouble.end(servers).await?;
    stopped?;
    broker.discard().await?;
    database.discard().await?;
    Ok(took)
}
