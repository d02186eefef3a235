//! Who attacks, and when: the nemeses take turns, with calm windows in between, in which nobody is attacked.

mod havoc;
mod mischief;
mod name;
mod operators;
mod processes;
mod switchover;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

pub(crate) use self::mischief::Mischief;
pub(crate) use self::name::{Backends, Name};
pub(crate) use self::operators::{Hands, Operators};
pub(crate) use self::processes::Processes;
pub(crate) use self::switchover::Pair;
use crate::backend::Fallible;
use crate::crash::neighbours::CALM;
use crate::crash::proxy::Proxy;
use crate::crash::recorder::{Ails, Recorder, What};
use crate::crash::servers::Servers;
use crate::database::now_micros;
use crate::report;

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Tally {
    /// Processes of ours killed with SIGKILL.
    pub(crate) kills: u32,
    /// Servers killed with SIGKILL and started again.
    pub(crate) restarts: u32,
    /// Times all connections to a server were cut.
    pub(crate) cuts: u32,
    /// Servers and processes of ours stopped for a while and continued.
    pub(crate) freezes: u32,
    /// Messages published that make trouble.
    pub(crate) trouble: u32,
    /// Processes of ours that a killer among the messages aborted.
    pub(crate) aborts: u32,
    /// Times an older version worked beside a newer one.
    pub(crate) deployments: u32,
    /// Times a topic was deleted and made again.
    pub(crate) remakes: u32,
    /// Times a binding was taken away, or the exchange with all of them.
    pub(crate) unbindings: u32,
    /// Times an operator took something from the database, and gave it back.
    pub(crate) deeds: u32,
    /// Times the disk of the database's server was full.
    pub(crate) fillings: u32,
    /// Times the database was reached through a pooler.
    pub(crate) poolers: u32,
    /// Times the database's standby took the place of its primary.
    pub(crate) switchovers: u32,
    /// Times the database's clock was set.
    pub(crate) clock_steps: u32,
    /// Connections closed because they were idle.
    pub(crate) idle_closings: u32,
    /// Processes of ours that ended otherwise though nobody killed them.
    pub(crate) unexpected_ends: u32,
    /// Nemeses that had no turn.
    pub(crate) without_turn: Vec<String>,
}

/// The proxy before the database.
pub(crate) const DATABASE: &str = "database";

/// All that can be attacked, and the attacker's dice.
pub(crate) struct Nemesis {
    pub(crate) names: Vec<Name>,
    pub(crate) backends: Backends,
    pub(crate) processes: Processes,
    pub(crate) proxies: Vec<(&'static str, Proxy)>,
    pub(crate) servers: Option<Servers>,
    pub(crate) mischief: Mischief,
    pub(crate) operators: Box<dyn Operators>,
    /// The host and port of a pooler before the database.
    pub(crate) pooler: Option<String>,
    /// The database's server and its standby.
    pub(crate) pair: Option<Pair>,
    pub(crate) random: fastrand::Rng,
    pub(crate) recorder: Recorder,
    pub(crate) tally: Tally,
}

/// Before the first window: processes start, and connect.
const START: Duration = Duration::from_secs(4);
/// Between a nemesis and the calm: what it held up is caught up with.
const QUIET: Duration = Duration::from_secs(2);

/// How long after the end of its lease a node may take to say so.
const KNOWING: Duration = Duration::from_secs(1);

/// How long its messages may take to come to their end before the next turn.
const REST: Duration = Duration::from_secs(30);

/// A turn: one nemesis, or all that make havoc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Havoc,
    Of(Name),
}

impl std::fmt::Display for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Havoc => f.write_str("havoc"),
            Self::Of(name) => name.fmt(f),
        }
    }
}

/// How long the parts of a turn are.
fn lengths(seconds: u64, turns: usize) -> (Duration, Duration) {
    let turn = Duration::from_secs(seconds) / u32::try_from(turns.max(1)).unwrap_or(u32::MAX);
    let calm = turn.mul_f64(0.25).clamp(Duration::from_secs(4), Duration::from_secs(10));
    let work = turn.mul_f64(0.5).clamp(Duration::from_secs(6), Duration::from_secs(30));
    (calm, work)
}

impl Nemesis {
    /// Attacks until `seconds` have passed. Only havoc, if nothing else was asked for, is without calm.
    pub(crate) async fn rage(&mut self, seconds: u64) -> Fallible {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut turns: Vec<Turn> = self.names.iter().filter(|name| !name.is_havoc()).copied().map(Turn::Of).collect();
        if turns.is_empty() {
            return self.havoc(end).await;
        }
        if turns.len() < self.names.len() {
            turns.push(Turn::Havoc);
        }
        self.random.shuffle(&mut turns);
        let (calm, work) = lengths(seconds, turns.len());
        self.wait(START).await?;
        let mut done = 0;
        // A turn that would not come to its work any more is not begun.
        while Instant::now() + calm + QUIET < end {
            let turn = turns[done % turns.len()];
            self.turn(turn, calm, work.min(end.saturating_duration_since(Instant::now() + calm))).await?;
            done += 1;
        }
        for turn in turns.iter().skip(done) {
            report::progress(format_args!("NOTE: NO TURN was left for {turn}: give it more --seconds"));
            self.tally.without_turn.push(turn.to_string());
        }
        Ok(())
    }

    async fn turn(&mut self, turn: Turn, calm: Duration, work: Duration) -> Fallible {
        let from = now_micros();
        self.wait(calm).await?;
        self.recorder.record(What::Window { of: CALM.into(), from, judged: true })?;
        report::progress(format_args!("nemesis: {turn} for {work:.0?}"));
        let (from, end, earlier) = (now_micros(), Instant::now() + work, self.mischief.published.len());
        let judged = match turn {
            Turn::Havoc => {
                self.havoc(end).await?;
                false
            }
            Turn::Of(name) => {
                self.mischief(name, end).await?;
                name.is_judged(self.backends)
            }
        };
        self.recorder.record(What::Window { of: turn.to_string(), from, judged })?;
        if !self.until_over(earlier, REST).await? {
            report::progress(format_args!(
                "NOTE: not all trouble of {turn} is over, and the next turn has it beside it"
            ));
        }
        // What was frozen or killed held records for as long as its lease.
        let healing = if turn == Turn::Havoc { self.processes.lease() * 2 } else { Duration::ZERO };
        self.wait(QUIET + healing).await
    }

    /// Who must be ill while the database takes nothing, or no inserts into the inbox: a node knows it at the latest when
    /// its lease is over, and a consumer earlier.
    fn ails(&self, only_consumers: bool) -> Ails {
        let within = self.processes.lease() + KNOWING;
        Ails { only_consumers, within: i64::try_from(within.as_micros()).unwrap_or(i64::MAX) }
    }

    async fn wait(&mut self, pause: Duration) -> Fallible {
        self.processes.wait(pause, &mut self.tally).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nemesis_has_a_turn_in_ten_minutes_and_enough_of_it() {
        const TURNS: u32 = 14;
        let (calm, work) = lengths(600, TURNS as usize);
        assert!((calm + work + QUIET) * TURNS < Duration::from_secs(600));
        assert!(calm >= Duration::from_secs(10) && work >= Duration::from_secs(20));
    }
}
