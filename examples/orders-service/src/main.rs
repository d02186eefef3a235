//! Two processes: `api` takes orders over HTTP and publishes `order.placed` in the transaction that writes them;
//! `billing` writes an invoice for each, in the transaction that settles the message. Start as many of each as you like,
//! and kill any of them: there is exactly one invoice for each order that was answered with 201.
//!
//! The README beside this crate shows it at work.

mod api;
mod billing;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cap::postgres::PostgresStorage;
use cap::rabbitmq::{RabbitMq, RabbitMqOptions};
use cap::{Cap, CapBuilder, Limit, Options, RetryPolicy, Version};
use clap::{Parser, Subcommand};
use sqlx::PgPool;
use tracing_subscriber::EnvFilter;

/// What is logged unless `RUST_LOG` says otherwise. Not the bodies of messages that no queue wants, as the driver would:
/// ours name customers.
const LOG: &str = "info,sqlx=warn,lapin::returned_messages=error";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// The PostgreSQL database: postgres://user:password@host:5432/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database: String,
    /// The RabbitMQ broker: amqp://user:password@host:5672/vhost
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    broker: String,
    /// Processes of one version share their messages, and nothing with those of another
    #[arg(long, env = "CAP_VERSION", default_value = "v1")]
    cap_version: Version,
    #[command(subcommand)]
    process: Process,
}

#[derive(Subcommand)]
enum Process {
    /// Takes orders: POST /orders, and shows them: GET /orders/{id}
    Api {
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
    },
    /// Writes invoices
    Billing,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    tracing_subscriber::fmt().with_env_filter(filter).init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Error> {
    let storage = PostgresStorage::connect(&arguments.database).await?;
    create_tables(storage.pool()).await?;
    let engine = engine(storage, &arguments)?;
    match arguments.process {
        Process::Api { listen } => api::run(engine, listen).await,
        Process::Billing => billing::run(engine).await,
    }
}

/// The business tables, in the database where CAP has its own.
async fn create_tables(pool: &PgPool) -> Result<(), Error> {
    // Statements that are sent together are one transaction.
    let created = sqlx::raw_sql(include_str!("schema.sql")).execute(pool).await;
    created.map_err(|error| format!("cannot create the tables of the shop: {error}"))?;
    Ok(())
}

/// What both processes have in common. Both relay what is in the outbox, so both need the same patience.
fn engine(storage: PostgresStorage, arguments: &Arguments) -> cap::Result<CapBuilder<Arc<PostgresStorage>>> {
    let version = arguments.cap_version.clone();
    let broker = RabbitMq::with_options(RabbitMqOptions::new(&arguments.broker).version(version.clone()))?;
    let options = Options {
        version,
        // Before billing has run for the first time there is no queue for orders, and sending one is a failure. By
        // default the 50th is the last, after some twenty minutes; but an order that was taken is never given up.
        retry: RetryPolicy { limit: Limit::None, ..RetryPolicy::default() },
        // Requests have ten seconds before it, and orchestrators kill after thirty.
        drain: Duration::from_secs(15),
        ..Options::default()
    };
    Ok(Cap::builder().storage(storage).transport(broker).options(options))
}

/// Waits until the process is asked to end: by Ctrl-C, or by SIGTERM as service managers and containers do.
async fn asked_to_stop() {
    let interrupted = async { tokio::signal::ctrl_c().await.expect("a process may listen to its signals") };
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).expect("a process may listen to its signals").recv().await;
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}
