//! Benchmarks of CAP for Rust beside raw twins, and the crash rig. See the README of this crate.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod backend;
mod bench;
mod broker;
mod counting;
mod crash;
mod database;
mod report;
mod twin;
mod walk;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::backend::{Broker, Database, Fallible};
use crate::report::Report;

/// Benchmarks beside raw twins, and the crash rig.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Where records are kept.
    #[arg(long, global = true, default_value = "sqlite")]
    storage: Storage,
    /// What carries messages.
    #[arg(long, global = true, default_value = "memory")]
    transport: Transport,
    /// The last line of stdout is one JSON object.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Waiting messages from the outbox to the broker, settled.
    Relay(bench::Settings),
    /// One business row and one message a transaction.
    Publish(bench::Settings),
    /// Waiting messages from the broker to an empty handler, settled.
    Consume(bench::Settings),
    /// From commit to handler at a steady pace.
    Latency(bench::Settings),
    /// A large backlog compared with a small one, and the memory it takes.
    Backlog(bench::Settings),
    /// What an idle node asks of its database.
    Idle(bench::Settings),
    /// Inbox records whose processes died, with a killer among them, against as many without suspicion.
    Crashloop(bench::crashloop::Settings),
    /// The memory that large messages take in a consumer whose storage hangs.
    Memory(bench::memory::Settings),
    /// A healthy topic's rate beside others that are not well.
    Neighbours(bench::neighbours::Settings),
    /// How long a stop takes while a server or a handler hangs.
    Stop(bench::stop::Settings),
    /// A short walk through all that a storage and a transport must do together, with their servers killed.
    Walk,
    /// Kills, freezes and cuts everything, and checks that nothing is lost, invented or done twice.
    Crash(crash::run::Settings),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Storage {
    Sqlite,
    Memory,
    Mysql,
    Postgres,
    Mongo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    Memory,
    Rabbitmq,
    Kafka,
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CAP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Fallible<bool> {
    match arguments.storage {
        Storage::Memory => with::<database::Memory>(arguments).await,
        Storage::Mongo => with::<database::Mongo>(arguments).await,
        Storage::Mysql => with::<database::MySql>(arguments).await,
        Storage::Postgres => with::<database::Postgres>(arguments).await,
        Storage::Sqlite => with::<database::Sqlite>(arguments).await,
    }
}

/// Runs on one storage.
async fn with<D: Database>(arguments: Arguments) -> Fallible<bool> {
    match arguments.transport {
        Transport::Kafka => on::<D, broker::KafkaBroker>(arguments).await,
        Transport::Memory => on::<D, broker::MemoryBroker>(arguments).await,
        Transport::Rabbitmq => on::<D, broker::RabbitMqBroker>(arguments).await,
    }
}

/// Runs on one storage and transport; answers whether nothing is wrong.
async fn on<D: Database, B: Broker>(arguments: Arguments) -> Fallible<bool> {
    let (storage, transport) = (name(arguments.storage), name(arguments.transport));
    let mut good = true;
    let (bench, settings, figures) = match &arguments.command {
        Command::Relay(settings) => {
            ("relay", json!(settings), bench::relay::run::<D, B>(settings).await?.figures("messages/s"))
        }
        Command::Publish(settings) => {
            ("publish", json!(settings), bench::publish::run::<D, B>(settings).await?.figures("transactions/s"))
        }
        Command::Consume(settings) => {
            ("consume", json!(settings), bench::consume::run::<D, B>(settings).await?.figures("messages/s"))
        }
        Command::Latency(settings) => {
            ("latency", json!(settings), bench::latency::run::<D, B>(settings).await?.figures())
        }
        Command::Backlog(settings) => {
            let (comparison, memory) = bench::backlog::run::<D, B>(settings).await?;
            let mut figures = comparison.figures("messages/s");
            figures.insert("memory_above_start_mib".into(), json!(memory));
            ("backlog", json!(settings), figures)
        }
        Command::Idle(settings) => ("idle", json!(settings), bench::idle::run::<D, B>(settings).await?.figures()),
        Command::Crashloop(settings) => {
            if let Some(told) = &settings.child {
                bench::crashloop::work::<D, B>(told).await?;
                return Ok(true);
            }
            let figures = bench::crashloop::run::<D, B>(settings, [&storage, &transport]).await?;
            ("crashloop", json!(settings), figures)
        }
        Command::Memory(settings) => {
            if let Some(told) = &settings.child {
                bench::memory::consume::<D, B>(told).await?;
                return Ok(true);
            }
            let figures = bench::memory::run::<D, B>(settings, [&storage, &transport]).await?;
            ("memory", json!(settings), figures)
        }
        Command::Neighbours(settings) => {
            ("neighbours", json!(settings), bench::neighbours::run::<D, B>(settings).await?)
        }
        Command::Stop(settings) => {
            ("stop", json!(settings), bench::stop::run::<D, B>(settings, &storage, &transport).await?)
        }
        Command::Walk => ("walk", json!(null), walk::run::<D, B>(&storage, &transport).await?),
        Command::Crash(settings) => {
            if let Some(role) = &settings.role {
                crash::roles::run::<D, B>(serde_json::from_str(role)?).await?;
                return Ok(true);
            }
            let (figures, verdict): (Map<String, Value>, bool) =
                crash::run::run::<D, B>(settings, &storage, &transport).await?;
            good = verdict;
            let (seed, seconds) = (settings.seed, settings.seconds);
            let told =
                json!({ "seed": seed, "seconds": seconds, "rate": settings.rate, "lease_ms": settings.lease_ms });
            ("crash", told, figures)
        }
    };
    Report { bench, storage, transport, settings, figures }.print(arguments.json);
    Ok(good)
}
