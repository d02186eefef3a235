//! The benchmarks: each runs ours and the twin in turn, every round in a fresh database and with fresh queues.

pub(crate) mod backlog;
pub(crate) mod child;
pub(crate) mod consume;
pub(crate) mod crashloop;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod neighbours;
pub(crate) mod publish;
pub(crate) mod relay;
pub(crate) mod resident;
pub(crate) mod stop;

use std::time::Duration;

use cap_engine::Options;
use clap::Args;
use serde::Serialize;

use crate::backend::Fallible;
use crate::report::{self, Comparison};

/// What all benchmarks can be told.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// How many rounds of each kind. Default: 5 (backlog: 1).
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// How many messages a round. Default: 20,000 (publish: 10,000; consume: 50,000).
    #[arg(long)]
    pub(crate) messages: Option<usize>,
    /// The payload of a message, in bytes.
    #[arg(long, default_value_t = 512)]
    pub(crate) bytes: usize,
    /// Another value for the engine's option of this name (relay, consume).
    #[arg(long)]
    pub(crate) prefetch: Option<usize>,
    /// Another value for the engine's option of this name (relay, consume).
    #[arg(long)]
    pub(crate) relay_in_flight: Option<usize>,
    /// Connections that publish (publish).
    #[arg(long, default_value_t = 16)]
    pub(crate) connections: usize,
    /// Let the relay work while messages are published (publish); the twin has none.
    #[arg(long)]
    pub(crate) relaying: bool,
    /// Messages a second (latency).
    #[arg(long, default_value_t = 50)]
    pub(crate) rate: u32,
    /// How long a round takes (latency: default 4; idle: default 20).
    #[arg(long)]
    pub(crate) seconds: Option<u64>,
    /// The large backlog (backlog).
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) large: usize,
    /// The small backlog (backlog).
    #[arg(long, default_value_t = 10_000)]
    pub(crate) small: usize,
}

impl Settings {
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(5).max(1)
    }

    /// The engine's options: its defaults, but for what was asked for.
    pub(crate) fn options(&self) -> Options {
        let defaults = Options::default();
        Options {
            prefetch: self.prefetch.unwrap_or(defaults.prefetch),
            relay_in_flight: self.relay_in_flight.unwrap_or(defaults.relay_in_flight),
            ..defaults
        }
    }

    pub(crate) fn messages(&self) -> usize {
        self.messages.unwrap_or(20_000)
    }
}

/// No round takes longer than this and a millisecond for each message.
const ROUND: Duration = Duration::from_secs(120);

pub(crate) fn limit(messages: usize) -> Duration {
    ROUND + Duration::from_millis(messages as u64)
}

/// Runs `ours` and `twin` in turn and compares their rates, in messages a second.
pub(crate) async fn in_turn<A, B>(settings: &Settings, ours: A, twin: B) -> Fallible<Comparison>
where
    A: AsyncFn() -> Fallible<f64>,
    B: AsyncFn() -> Fallible<f64>,
{
    let mut comparison = Comparison::default();
    for round in 1..=settings.rounds() {
        let mine = ours().await?;
        let raw = twin().await?;
        report::progress(format_args!("round {round}: ours {mine:.0}/s, twin {raw:.0}/s, ratio {:.2}", mine / raw));
        comparison.add(mine, raw);
    }
    Ok(comparison)
}

/// Things a second.
pub(crate) fn rate(number: usize, took: Duration) -> f64 {
    number as f64 / took.as_secs_f64()
}
