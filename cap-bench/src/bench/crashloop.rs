//! How fast inbox records are worked off whose processes died: with a killer among them, and very many of them.

use std::time::{Duration, Instant};

use cap_core::storage::{Claim, ClaimRequest, Lane, Lease, NewRecord, Query, Storage, Table};
use cap_core::{Group, NodeId, Status, Timestamp, Version, content, lifecycle};
use cap_engine::{Cap, Json, Options, Subscribe};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use tokio::sync::oneshot;

use crate::backend::{Broker, Database, Fallible, Names};
use crate::bench::{child, load};
use crate::report;

/// What it can be told.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// How many records, suspects and without suspicion.
    #[arg(long, default_value_t = 3000)]
    records: usize,
    /// How many suspects without a killer; 0 leaves this part out.
    #[arg(long, default_value_t = 100_000)]
    many: usize,
    /// The lease of the child's node, in milliseconds: after each death this much has to pass.
    #[arg(long, default_value_t = 1000)]
    lease_ms: u64,
    /// No part takes longer than this, in seconds.
    #[arg(long, default_value_t = 300)]
    limit: u64,
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(crate) child: Option<String>,
}

/// What the child is told.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    database: String,
    broker: String,
    lease_ms: u64,
}

/// How often each suspect's process has died.
const DEATHS: u32 = 3;
/// The killer's place among the records, as a part of them.
const KILLER_AT: f64 = 0.3;
/// The payload of the one that aborts its process.
const KILLER: i64 = -1;
const CONCURRENCY: usize = 16;
const LOOK: Duration = Duration::from_millis(10);
/// A pause longer than this, after a death, is waiting; what is shorter is work.
const BREAK: Duration = Duration::from_millis(100);
/// How long a process may take to start.
const RESTART: Duration = Duration::from_secs(1);

/// What is in the inbox at the start.
#[derive(Debug, Clone, Copy)]
struct Seed {
    records: usize,
    suspects: bool,
    killer: bool,
}

/// How working it off went.
#[derive(Debug, Clone, Copy)]
struct Worked {
    seconds: f64,
    /// Of these, after deaths, for leases to run out.
    waited: f64,
    /// Of these, from the starts of processes until their engines had started.
    starting: f64,
    deaths: u32,
    /// Not all was worked off within the limit.
    unfinished: u64,
    dead: u64,
    /// Of the dead, those that kill nobody.
    buried: usize,
}

/// Runs it.
pub(crate) async fn run<D: Database, B: Broker>(
    settings: &Settings,
    backends: [&str; 2],
) -> Fallible<Map<String, Value>> {
    let parts = [
        ("without_suspicion", Seed { records: settings.records, suspects: false, killer: false }),
        ("suspects", Seed { records: settings.records, suspects: true, killer: false }),
        ("suspects_and_killer", Seed { records: settings.records, suspects: true, killer: true }),
        ("many_suspects", Seed { records: settings.many, suspects: true, killer: false }),
    ];
    let mut figures = report::object(json!({ "unit": "s", "records": settings.records, "many": settings.many }));
    let mut worked = Vec::new();
    for (name, seed) in parts {
        if seed.records == 0 {
            continue;
        }
        report::progress(format_args!("{name}: seeding {}", seed.records));
        let part = worked_off::<D, B>(settings, backends, seed).await?;
        let Worked { seconds, waited, starting, deaths, unfinished, dead, buried } = part;
        report::progress(format_args!(
            "{name}: {seconds:.2} s, of which {waited:.2} s for leases and {starting:.2} s for starts; {deaths} deaths, \
             {unfinished} unfinished, {dead} dead, {buried} of them innocent"
        ));
        let told = json!({
            "s": seconds,
            "waited_s": waited,
            "starting_s": starting,
            "deaths": deaths,
            "unfinished": unfinished,
            "dead": dead,
            "buried": buried,
        });
        figures.insert(name.into(), told);
        worked.push(part);
    }
    figures.extend(compared(&worked));
    Ok(figures)
}

/// What was waited for leases is told apart: no engine can be faster.
fn compared(worked: &[Worked]) -> Map<String, Value> {
    let [alone, _, killer, ..] = worked else { return Map::new() };
    let rounded = |ratio: f64| (ratio * 100.0).round() / 100.0;
    report::object(json!({
        "ratio": rounded((killer.seconds - killer.waited) / alone.seconds),
        "ratio_without_starts": rounded((killer.seconds - killer.waited - killer.starting) / (alone.seconds - alone.starting)),
        "ratio_with_waiting": rounded(killer.seconds / alone.seconds),
        "aim": "ratio at most 3, buried 0, many_suspects within 60 s",
    }))
}

async fn worked_off<D: Database, B: Broker>(settings: &Settings, backends: [&str; 2], seed: Seed) -> Fallible<Worked> {
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let told = Told {
        database: database.place().ok_or("this storage dies with its process: there is nothing left to work off")?,
        broker: broker.place().ok_or("the broker has no place")?,
        lease_ms: settings.lease_ms,
    };
    broker.sink().await?;
    let storage = database.storage().await?;
    fill(&storage, broker.names(), seed).await?;
    let limit = Duration::from_secs(settings.limit);
    let worked = watched(&storage, backends, &told, limit).await?;
    broker.discard().await?;
    database.discard().await?;
    Ok(worked)
}

/// Starts the child, and again when it dies, until nothing is left to work on.
async fn watched(storage: &impl Storage, backends: [&str; 2], told: &Told, limit: Duration) -> Fallible<Worked> {
    let begun = Instant::now();
    let mut child = child::start("crashloop", backends, told)?;
    // To wait for a child closes its stdin, and with that it would end.
    let mut _stdin = child.stdin.take();
    let mut started = told_of_start(&mut child);
    let (mut deaths, mut done, mut spawned) = (0, 0, begun);
    let mut waiting = Waiting::new(Duration::from_millis(told.lease_ms) + RESTART, begun);
    let mut starting = Duration::ZERO;
    let mut pause = LOOK;
    loop {
        if let Ok(status) = tokio::time::timeout(pause, child.wait()).await {
            deaths += 1;
            spawned = Instant::now();
            waiting.died(spawned);
            report::progress(format_args!("the child died ({}), and is started again", status?));
            child = child::start("crashloop", backends, told)?;
            _stdin = child.stdin.take();
            started = told_of_start(&mut child);
        }
        if let Ok(moment) = started.try_recv() {
            starting += moment - spawned;
            waiting.started(moment);
        }
        let looked = Instant::now();
        let counts = storage.counts(Table::Inbox, Version::default()).await?;
        let is_over = counts.pending() == 0 || begun.elapsed() > limit;
        if is_over || counts.succeeded + counts.dead != done {
            done = counts.succeeded + counts.dead;
            waiting.done(looked);
        }
        if is_over {
            let (seconds, waited) = ((looked - begun).as_secs_f64(), waiting.sum.as_secs_f64());
            let buried = buried(storage).await?;
            let starting = starting.as_secs_f64();
            return Ok(Worked {
                seconds,
                waited,
                starting,
                deaths,
                unfinished: counts.pending(),
                dead: counts.dead,
                buried,
            });
        }
        // To count many records takes a while, which is not to be half of the child's time.
        pause = LOOK + looked.elapsed() * 4;
    }
}

/// Gets the moment at which a child says that its engine has started.
fn told_of_start(child: &mut Child) -> oneshot::Receiver<Instant> {
    let (tell, told) = oneshot::channel();
    let stdout = child.stdout.take();
    tokio::spawn(async move {
        let Some(mut stdout) = stdout else { return };
        if stdout.read_u8().await.is_ok() {
            // Nobody waits for it any more if all is worked off.
            let _ = tell.send(Instant::now());
        }
    });
    told
}

/// How many are dead that kill nobody; some of the reasons are told.
async fn buried(storage: &impl Storage) -> Fallible<usize> {
    const MOST: usize = 1000;
    let query = Query { status: Some(Status::Failed), limit: MOST, ..Query::default() };
    let mut failed = storage.list(Table::Inbox, query).await?;
    let is_killer =
        |content: &str| serde_json::from_str::<Value>(content).is_ok_and(|wrapper| wrapper["Content"] == KILLER);
    failed.retain(|record| record.due.is_none() && !is_killer(&record.content));
    for record in failed.iter().take(5) {
        report::progress(format_args!(
            "dead, though it kills nobody: {}",
            record.reason.as_deref().unwrap_or_default()
        ));
    }
    Ok(failed.len())
}

/// The times after deaths in which nothing was done: nobody may take what a dead process held before its lease is over.
#[derive(Debug)]
struct Waiting {
    sum: Duration,
    /// What comes later after a death is no waiting for a lease.
    most: Duration,
    died: Option<Instant>,
    last_done: Instant,
}

impl Waiting {
    fn new(most: Duration, now: Instant) -> Self {
        Self { sum: Duration::ZERO, most, died: None, last_done: now }
    }

    fn died(&mut self, now: Instant) {
        self.done(now);
        self.died = Some(now);
    }

    /// The next process is there: what it took until now was no waiting.
    fn started(&mut self, now: Instant) {
        if self.died.is_some() && self.last_done < now {
            self.last_done = now;
        }
    }

    /// Something was worked off again.
    fn done(&mut self, now: Instant) {
        if let Some(died) = self.died {
            let (from, until) = (self.last_done.max(died), now.min(died + self.most));
            let pause = until.saturating_duration_since(from);
            self.sum += if pause > BREAK { pause } else { Duration::ZERO };
        }
        self.last_done = now;
    }
}

/// In the child: works until the parent has seen enough.
pub(crate) async fn work<D: Database, B: Broker>(told: &str) -> Fallible {
    let Told { database, broker, lease_ms } = serde_json::from_str(told)?;
    let (database, broker) = (D::at(&database)?, B::at(&broker)?);
    let lease = Duration::from_millis(lease_ms);
    let names = broker.names();
    let handler = async |Json(number): Json<i64>| {
        if number == KILLER {
            std::process::abort();
        }
    };
    let _cap = Cap::builder()
        .storage(database.storage().await?)
        .transport(broker.transport().await?)
        .options(Options { lease, heartbeat: lease / 4, ..Options::default() })
        .subscription(Subscribe::to(&names.topic, handler).group(&names.group).concurrency(CONCURRENCY))
        .start()
        .await?;
    println!("started");
    child::parent_is_gone().await;
    // Not by returning: the runtime would wait for what still runs.
    std::process::exit(0);
}

/// Fills the inbox. Suspects come about as they do in life: a node takes them, and dies.
async fn fill(storage: &impl Storage, names: &Names, seed: Seed) -> Fallible {
    let killer = seed.killer.then_some((seed.records as f64 * KILLER_AT) as usize);
    let record = |index: usize| inbox_record(names, if Some(index) == killer { KILLER } else { index as i64 }, seed);
    if !seed.suspects {
        return load::store(storage, Table::Inbox, seed.records, None, record).await;
    }
    let first = joined(storage).await?;
    load::store(storage, Table::Inbox, seed.records, Some(Claim::by(first)), record).await?;
    die(storage, first, seed.records).await?;
    for _ in 1..DEATHS {
        let node = joined(storage).await?;
        take_all(storage, names, node, seed.records).await?;
        die(storage, node, seed.records).await?;
    }
    Ok(())
}

fn inbox_record(names: &Names, number: i64, seed: Seed) -> Fallible<NewRecord> {
    let message = load::message(names, &number)?;
    Ok(NewRecord {
        content: content::wrap(&message, Timestamp::now()).into(),
        message_id: message.id,
        version: Version::default(),
        topic: message.topic,
        group: Some(Group::try_from(names.queue().as_str())?),
        state: lifecycle::received(seed.suspects),
    })
}

async fn joined(storage: &impl Storage) -> Fallible<NodeId> {
    const LEASE: Duration = Duration::from_secs(600);
    let node = NodeId::generate();
    storage.join(node, LEASE).await?;
    Ok(node)
}

async fn take_all(storage: &impl Storage, names: &Names, node: NodeId, records: usize) -> Fallible {
    const BATCH: usize = 500;
    let mut taken = 0;
    while taken < records {
        let lane = Lane::Suspects(Group::try_from(names.queue().as_str())?);
        let request = ClaimRequest::new(lane, Version::default(), Claim::by(node), BATCH);
        let claimed = storage.claim(request).await?.records.len();
        if claimed == 0 {
            return Err(format!("{taken} of {records} records could be claimed, and no more").into());
        }
        taken += claimed;
    }
    Ok(())
}

/// The node gives no sign any more, and what it holds is taken from it.
async fn die(storage: &impl Storage, node: NodeId, records: usize) -> Fallible {
    let (heir, lease) = (NodeId::generate(), Duration::from_secs(60));
    storage.join(heir, lease).await?;
    let Lease::Held { mut others, .. } = storage.heartbeat(heir, lease).await? else {
        return Err("a node that has just joined is not known".into());
    };
    storage.leave(heir).await?;
    others.retain(|sign| sign.node == node);
    let taken = storage.take_over(others).await?.inbox;
    if taken < records as u64 {
        return Err(format!("{taken} of {records} records were taken over").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_after_deaths_count_up_to_a_lease_and_a_restart() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut waiting = Waiting::new(second * 2, start);
        waiting.done(start + second);
        assert_eq!(waiting.sum, Duration::ZERO, "nobody has died");
        waiting.died(start + second);
        waiting.done(start + second + BREAK / 2);
        assert_eq!(waiting.sum, Duration::ZERO, "work goes on");
        waiting.done(start + second * 2 + BREAK / 2);
        assert_eq!(waiting.sum, second);
        waiting.died(start + second * 3 + BREAK / 2);
        assert_eq!(waiting.sum, second * 2 - BREAK / 2, "until two seconds after the death");
        waiting.done(start + second * 60);
        assert_eq!(waiting.sum, second * 4 - BREAK / 2);
        waiting.died(start + second * 61);
        waiting.started(start + second * 62);
        waiting.done(start + second * 63);
        assert_eq!(waiting.sum, second * 5 - BREAK / 2, "to start is not to wait");
    }
}
