//! Doubles with exactly one fault each, which prove that a check catches what it is there to catch.
//!
//! Every double is the in-process broker behind a wrapper that breaks one promise. [`TRANSPORT_FAULTS`] says which check
//! must fail on it, and [`fault_table`] tries it. Doubles without a fault, one for each [`Pretence`], pass every check.

mod consumer;
mod server;
mod table;
mod transport;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cap_core::transport::{Confirm, TransportCapabilities};
use cap_core::{BoxFuture, Group, Message, Result, Topic, TopicPattern, Transport};
use cap_transport_memory::{MemoryTransport, MemoryTransportOptions};

pub use table::{TRANSPORT_FAULTS, TransportFault};

use super::fixture::TransportFixture;
use super::table::TransportCheck;
use crate::report::Outcome;
use crate::runner::run_one;
use server::Server;
use transport::FaultyTransport;

/// The only secret there is.
const SECRET: &str = "pa55-w0rd";

/// The limit of a body that the doubles declare.
const MAX_BODY: usize = 300 * 1024;

/// How long a check may take on a double. One that hangs has not found the fault: every wait of a check has a limit.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// What a check made of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// The check's number.
    pub id: &'static str,
    /// The check's name.
    pub name: &'static str,
    /// The fault.
    pub fault: TransportFault,
    /// What the check said of it; none when it did not notice.
    pub noticed: Option<String>,
}

impl fmt::Display for Kill {
    /// One line of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.noticed.as_deref().map_or("NOT NOTICED".into(), |text| format!("killed: {text:.120}"));
        write!(f, "{} {} | {:?}: {} | {verdict}", self.id, self.name, self.fault, self.fault)
    }
}

/// Runs a check on a double. A check that hangs or panics has not noticed the fault, but broken on it.
pub async fn try_fault(check: &'static TransportCheck, fault: TransportFault) -> Kill {
    let make = async move { Arc::new(FaultyFixture::new(fault)) as Arc<dyn TransportFixture> };
    let is_a_finding =
        |text: &String| !["it panicked", "it hung", "the fixture"].iter().any(|why| text.starts_with(why));
    let noticed = match run_one(check, make, TIME_LIMIT).await.outcome {
        Outcome::Failed(text) => Some(text).filter(is_a_finding),
        Outcome::Passed | Outcome::Unsupported { .. } => None,
    };
    Kill { id: check.id, name: check.name, fault, noticed }
}

/// Runs every check on each of its faults, all at once. Call it on a runtime of several threads.
pub async fn fault_table() -> Vec<Kill> {
    let rows = TRANSPORT_FAULTS.iter().filter_map(|(id, fault)| Some((super::check(id)?, *fault)));
    let running: Vec<_> = rows.map(|(check, fault)| tokio::spawn(try_fault(check, fault))).collect();
    let mut kills = Vec::with_capacity(running.len());
    for run in running {
        kills.extend(run.await);
    }
    kills.sort_by_key(|kill| kill.id);
    kills
}

/// What a double makes believe, so that checks apply which the in-process broker alone cannot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pretence {
    /// Nothing: it is the in-process broker.
    Memory,
    /// A server: durable, keeps backlogs, has connections that can be cut, can be restarted or be elsewhere, and a
    /// password.
    Server,
    /// A broker that declares none of the optional capabilities, and refuses them.
    Poor,
}

impl Pretence {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Server, Self::Poor];
}

/// What the handles of one fixture share.
#[derive(Debug, Default)]
struct Shared {
    handles: Mutex<Vec<Arc<dyn Transport>>>,
    groups: Mutex<HashSet<Group>>,
    out: AtomicI64,
    counter: AtomicU64,
    /// What was subscribed, each with what its consumer holds as long as it lives.
    subscribed: Mutex<Vec<(Vec<TopicPattern>, Weak<()>)>>,
    /// By message id: what the first acknowledgement confirms.
    unconfirmed: Mutex<HashMap<String, Confirm>>,
    /// By topic: how many messages were handed out, and how many of the next are taken for these.
    places: Mutex<HashMap<String, (usize, usize)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fixture whose transport has one fault, or none.
#[derive(Debug)]
pub struct FaultyFixture {
    fault: Option<TransportFault>,
    pretence: Pretence,
    broker: MemoryTransport,
    server: Arc<Server>,
    shared: Arc<Shared>,
}

impl FaultyFixture {
    /// A fixture with this fault. It waits only briefly for what will not come.
    pub fn new(fault: TransportFault) -> Self {
        Self::make(Some(fault), fault.pretence())
    }

    /// A fixture without a fault.
    pub fn sound(pretence: Pretence) -> Self {
        Self::make(None, pretence)
    }

    fn make(fault: Option<TransportFault>, pretence: Pretence) -> Self {
        let timeout = if fault.is_some() { Duration::from_millis(300) } else { Duration::from_secs(2) };
        let options = MemoryTransportOptions::default().confirm_timeout(timeout).max_body(MAX_BODY);
        let broker = MemoryTransport::with_options(options);
        let server = Arc::new(Server::new(broker.clone(), fault));
        Self { fault, pretence, broker, server, shared: Arc::default() }
    }

    fn is_server(&self) -> bool {
        self.pretence == Pretence::Server
    }

    fn open_inner(&self) -> Arc<dyn Transport> {
        if self.is_server() {
            return self.server.open();
        }
        Arc::new(self.broker.clone())
    }
}

impl TransportFixture for FaultyFixture {
    fn capabilities(&self) -> TransportCapabilities {
        let mut declared = match self.pretence {
            Pretence::Memory => self.broker.capabilities(),
            Pretence::Server => server::capabilities(),
            Pretence::Poor => TransportCapabilities::default(),
        };
        declared.keeps_backlog |= self.fault == Some(TransportFault::DeclaresABacklogItDoesNotKeep);
        declared
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Transport>>> {
        let inner = self.open_inner();
        lock(&self.shared.handles).push(Arc::clone(&inner));
        let double = FaultyTransport::new(inner, self.open_inner(), self, Arc::clone(&self.shared));
        Box::pin(async { Ok(Arc::new(double) as Arc<dyn Transport>) })
    }

    fn unique(&self, name: &str) -> String {
        name.to_owned()
    }

    fn confirm_limit(&self) -> Duration {
        self.patience().min(Duration::from_secs(2))
    }

    fn patience(&self) -> Duration {
        if self.fault.is_some() { Duration::from_millis(800) } else { Duration::from_secs(10) }
    }

    fn secret(&self) -> Option<String> {
        self.is_server().then(|| SECRET.into())
    }

    fn can_restart_broker(&self) -> bool {
        self.is_server()
    }

    fn restart_broker(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.server.restart())
    }

    fn can_cut_connections(&self) -> bool {
        self.is_server()
    }

    fn cut_connections(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.server.cut())
    }

    fn can_poison(&self) -> bool {
        self.is_server()
    }

    fn poison(&self, message: Message) -> Message {
        server::poison(message)
    }

    fn can_fill(&self) -> bool {
        self.is_server()
    }

    fn fill(&self, topic: Topic) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.server.fill(topic);
            Ok(())
        })
    }

    fn can_set_alarm(&self) -> bool {
        self.is_server()
    }

    fn set_alarm(&self, is_on: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.server.set_alarm(is_on);
            Ok(())
        })
    }

    fn can_unbind(&self) -> bool {
        self.is_server()
    }

    fn unbind(&self, _: Group, topic: Topic) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.server.unbind(topic);
            Ok(())
        })
    }

    fn can_remake_topic(&self) -> bool {
        self.is_server()
    }

    /// Its queues hold nothing then, and are as good as new.
    fn remake_topic(&self, topic: Topic) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if let Some((done, passed)) = lock(&self.shared.places).get_mut(topic.as_str()) {
                *passed = std::mem::take(done);
            }
            Ok(())
        })
    }

    fn can_open_nowhere(&self) -> bool {
        self.is_server()
    }

    fn open_nowhere(&self) -> BoxFuture<'_, Result<Arc<dyn Transport>>> {
        Box::pin(async { Ok(self.server.open_nowhere()) })
    }
}
