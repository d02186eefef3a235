//! A whole run: starts everything, lets the nemeses rage, heals, waits until all is delivered, and judges.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::Storage;
use cap_core::transport::Transport as _;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::backend::{Broker, Database, Fallible};
use crate::crash::checker::{self, Verdict};
use crate::crash::nemesis::{Backends, DATABASE, Hands, Mischief, Name, Nemesis, Pair, Processes, Tally};
use crate::crash::proxy::{Proxy, rewritten};
use crate::crash::recorder::{self, Recorder, What};
use crate::crash::remains;
use crate::crash::roles::{Kind, Role};
use crate::crash::servers::{SCRIPT, Servers, standby_of};
use crate::database::now_micros;
use crate::report;
use crate::walk::CALM;

/// What a run can be told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Settings {
    /// Decides what is attacked, and when.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// What attacks, separated by commas. Default: all that the backends allow.
    #[arg(long, value_delimiter = ',')]
    pub(crate) nemesis: Vec<Name>,
    /// How long the nemeses rage.
    #[arg(long, default_value_t = 180)]
    pub(crate) seconds: u64,
    /// Orders a second of each publisher.
    #[arg(long, default_value_t = 50)]
    pub(crate) rate: u32,
    /// The lease of each node, in milliseconds.
    #[arg(long, default_value_t = 5000)]
    pub(crate) lease_ms: u64,
    /// How long the rest may take once everything is healed, in seconds.
    #[arg(long, default_value_t = 120)]
    pub(crate) rest: u64,
    /// Keep the record of what happened.
    #[arg(long)]
    pub(crate) keep: bool,
    #[arg(long, hide = true)]
    pub(crate) role: Option<String>,
}

/// How long a process that is told to end may take before it is killed.
const END: Duration = Duration::from_secs(15);
/// How often it is looked whether all is delivered.
const LOOK: Duration = Duration::from_secs(1);

/// Runs it; answers the figures, and whether nothing is wrong.
pub(crate) async fn run<D: Database, B: Broker>(
    settings: &Settings,
    storage: &str,
    transport: &str,
) -> Fallible<(Map<String, Value>, bool)> {
    let servers = Servers::found(storage, transport);
    if servers.is_none() {
        report::progress(format_args!(
            "NOTE: NO SERVER IS ATTACKED ({SCRIPT} is not set, or {storage} and {transport} have no server of their \
             own): only processes and connections are"
        ));
    }
    put_right(servers.as_ref()).await?;
    let (database, broker) = (D::fresh().await?, B::fresh().await?);
    let place =
        database.application().await?.ok_or("the memory storage dies with its process: there is nothing to check")?;
    let broker_place = broker.place().ok_or("the broker has no place")?;
    broker.declare_groups().await?;
    tokio::time::sleep(CALM).await;
    let (pair, database) = paired(database, servers.as_ref()).await?;
    let mut proxies = Vec::new();
    let place = proxied(&mut proxies, DATABASE, place, None).await?;
    let broker_place = proxied(&mut proxies, "broker", broker_place, broker.proxy_port()).await?;
    let folder = tempfile::tempdir()?;
    let recorder = Recorder::create(folder.path(), "nemesis", 1)?;
    let kinds: &[Kind] = match transport {
        "memory" => &[Kind::Node, Kind::Node],
        _ => &[Kind::Publisher, Kind::Publisher, Kind::Relay, Kind::Consumer, Kind::Consumer],
    };
    let until = now_micros() + i64::try_from(settings.seconds)? * 1_000_000;
    let role = |(index, kind): (i64, &Kind)| Role {
        kind: *kind,
        index,
        life: 0,
        database: place.clone(),
        broker: broker_place.clone(),
        folder: folder.path().to_owned(),
        until,
        rate: settings.rate,
        lease_ms: settings.lease_ms,
        old: false,
    };
    let roles = (1..).zip(kinds).map(role).collect();
    let command = ["crash", "--storage", storage, "--transport", transport].map(str::to_owned).to_vec();
    let pooler = named_by(D::POOLER);
    let backends = Backends {
        has_servers: servers.is_some(),
        has_connections: !proxies.is_empty(),
        one_writer: matches!(storage, "sqlite" | "memory"),
        has_logs: B::HAS_LOGS,
        has_bindings: B::HAS_BINDINGS,
        has_clock: servers.as_ref().is_some_and(|servers| servers.clock().is_some()),
        has_disk: servers.as_ref().is_some_and(|servers| servers.disk().is_some()),
        has_database_connections: proxies.iter().any(|(name, _)| *name == DATABASE),
        has_pooler: pooler.is_some(),
        has_standby: pair.is_some(),
        deeds: D::DEEDS,
    };
    let (names, left_out) = Name::chosen(&settings.nemesis, backends);
    left_out.iter().for_each(|left_out| report::progress(format_args!("NOTE: without {left_out}")));
    let own: Arc<dyn Storage> = Arc::new(database.storage().await?);
    let max_body = broker.transport().await?.capabilities().max_body;
    let mut nemesis = Nemesis {
        names,
        backends,
        processes: Processes::new(roles, command, recorder.clone()),
        proxies,
        servers,
        mischief: Mischief::new(Arc::clone(&own), broker.names().clone(), recorder.clone(), max_body),
        pooler,
        pair,
        operators: Box::new(Hands { database: database.clone(), broker: broker.clone() }),
        random: fastrand::Rng::with_seed(settings.seed),
        recorder: recorder.clone(),
        tally: Tally::default(),
    };

    nemesis.processes.start_all()?;
    nemesis.rage(settings.seconds).await?;
    report::progress(format_args!("everything is healed; waiting until all is delivered"));
    let healed = now_micros();
    let trouble: Vec<_> = nemesis.mischief.published.iter().map(|published| published.message.clone()).collect();
    let judge = async || {
        let remains = remains::read(&*own, broker.names(), &trouble).await?;
        Fallible::Ok(checker::check(&recorder::read(folder.path())?, &database.business().await?, &remains))
    };
    let delivered = async {
        while now_micros() < until || !judge().await?.is_complete() {
            nemesis.processes.wait(LOOK, &mut nemesis.tally).await?;
        }
        Fallible::Ok(())
    };
    let left = u64::try_from((until - healed).max(0) / 1_000_000)?;
    match tokio::time::timeout(Duration::from_secs(settings.rest + left), delivered).await {
        Ok(delivered) => delivered?,
        Err(_) => report::progress(format_args!("NOT all was delivered within {} s", settings.rest)),
    }
    let rest = (now_micros() - healed) as f64 / 1e6;
    recorder.record(What::Attack { on: "end".into() })?;
    nemesis.processes.end_all(END).await?;
    let verdict = judge().await?;
    put_right(nemesis.servers.as_ref()).await?;
    let figures = figures(&nemesis, &verdict, rest);

    if settings.keep || !verdict.is_good() {
        let kept = folder.keep();
        report::progress(format_args!("the record is kept in {}", kept.display()));
    }
    broker.discard().await?;
    if verdict.is_good() {
        database.discard().await?;
    }
    Ok((figures, verdict.is_good() && verdict.is_complete()))
}

/// The database's clock, where it can be set, and which of two servers takes writes.
async fn put_right(servers: Option<&Servers>) -> Fallible {
    let Some(servers) = servers else { return Ok(()) };
    if let Some(server) = servers.clock() {
        servers.set_clock(server, 0).await?;
    }
    if let Some(server) = servers.standby() {
        servers.run("promote", server).await?;
        servers.run("follow", &standby_of(server)).await?;
    }
    Ok(())
}

/// The host and port of a server that this variable names.
fn named_by(variable: Option<&str>) -> Option<String> {
    let url = std::env::var(variable?).ok()?;
    rewritten(&url, NOWHERE).map(|(target, _)| target)
}

/// The two servers, if there are two; and how the rig itself reaches whichever of them takes writes.
async fn paired<D: Database>(database: D, servers: Option<&Servers>) -> Fallible<(Option<Pair>, D)> {
    let server = servers.and_then(Servers::standby);
    let (Some(server), Some(standby), Some(place)) = (server, named_by(D::STANDBY), database.place()) else {
        return Ok((None, database));
    };
    let mut proxies = Vec::new();
    let place = proxied(&mut proxies, DATABASE, place, None).await?;
    let Some((_, proxy)) = proxies.pop() else { return Ok((None, database)) };
    Ok((Some(Pair::new(server, standby, proxy)), D::at(&place)?))
}

/// For whom only the other half of an address matters.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The place, reached through a proxy if it is on a server.
async fn proxied(
    proxies: &mut Vec<(&'static str, Proxy)>,
    name: &'static str,
    place: String,
    port: Option<u16>,
) -> Fallible<String> {
    // The broker's place is JSON with a URL in it, the database's a URL or a path.
    let parsed = serde_json::from_str::<Map<String, Value>>(&place).ok();
    let url = match &parsed {
        Some(members) => members.get("url").and_then(Value::as_str),
        None => Some(place.as_str()),
    };
    let Some((target, _)) = url.and_then(|url| rewritten(url, NOWHERE)) else { return Ok(place) };
    let proxy = Proxy::start(target, port).await?;
    let through = url.and_then(|url| rewritten(url, proxy.address())).map(|(_, through)| through).unwrap_or_default();
    proxies.push((name, proxy));
    match parsed {
        Some(mut members) => {
            members.insert("url".into(), through.into());
            Ok(serde_json::to_string(&members)?)
        }
        None => Ok(through),
    }
}

fn figures(nemesis: &Nemesis, verdict: &Verdict, rest: f64) -> Map<String, Value> {
    let mut figures =
        report::object(json!({ "nemeses": nemesis.names.iter().map(Name::to_string).collect::<Vec<_>>() }));
    figures.extend(report::object(json!(nemesis.tally)));
    figures.extend(report::object(json!(verdict)));
    figures.insert("complete".into(), verdict.is_complete().into());
    figures.insert("healed_until_delivered_s".into(), json!(rest));
    figures
}
