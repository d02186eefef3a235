//! What the benchmarks and the crash rig need of a database and of a broker, ours and by hand.
//!
//! A [`Database`] and a [`Broker`] are places made fresh for one round. Each offers the engine's side (a storage, a
//! transport) and the raw twin's side ([`Hand`], [`Wire`]): the same driver, the same tables, nothing of the engine.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use cap_core::transport::Subscription;
use cap_core::{Group, Storage, TopicPattern, Transport};
use cap_engine::{Cap, Publish, Subscribe};
use serde::{Deserialize, Serialize};

use crate::crash::recorder::Recorder;

/// Everything that can go wrong here ends the program, or is tried again by whoever knows how.
pub(crate) type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The topic and the groups of one round: nobody else uses them, be the broker shared or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Names {
    pub(crate) topic: String,
    pub(crate) group: String,
}

impl Names {
    /// Those of a new round.
    pub(crate) fn fresh() -> Self {
        let unique = unique();
        Self { topic: format!("bench.{unique}"), group: format!("bench-{unique}") }
    }

    /// The effective name of the group: that of its queue.
    pub(crate) fn queue(&self) -> String {
        format!("{}.{VERSION}", self.group)
    }

    /// One of the round's topics, by what is behind the first one's name.
    pub(crate) fn topic_of(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.topic)
    }

    /// A subscription of a queue for several of them, of which one message is handed out at a time.
    pub(crate) fn subscription(&self, queue: &str, suffixes: &[&str]) -> Fallible<Subscription> {
        let topic = |suffix: &&str| Ok(TopicPattern::try_from(self.topic_of(suffix).as_str())?);
        let topics = suffixes.iter().map(topic).collect::<Fallible<_>>()?;
        Ok(Subscription { group: Group::try_from(queue)?, topics, prefetch: 1, prefetch_bytes: 64 * 1024 * 1024 })
    }

    /// The name of one of several groups of a crash run.
    pub(crate) fn group_of(&self, group: &str) -> String {
        format!("{}-{group}", self.group)
    }

    /// The effective name of such a group.
    pub(crate) fn queue_of(&self, group: &str) -> String {
        format!("{}.{VERSION}", self.group_of(group))
    }
}

/// The engine's default version, which all of this uses.
pub(crate) const VERSION: &str = "v1";

/// How a business transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It is committed.
    Commit,
    /// It is rolled back on purpose.
    RollBack,
}

/// What the business tables hold at the end of a crash run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Business {
    /// The numbers of all orders.
    pub(crate) orders: Vec<i64>,
    /// An entry for each effect of the transactional handler: the order's number, and when, in microseconds since 1970.
    pub(crate) invoices: Vec<(i64, i64)>,
}

/// What an operator does to a database for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The application's right to insert into CAP's inbox is revoked.
    Revoke,
    /// The server takes no writes, as a standby and an old primary do. It is done to all of the server's databases.
    ReadOnly,
}

/// A database with CAP's tables and the business tables `orders`, `invoices` and `locks`.
pub(crate) trait Database: Clone + Send + Sync + 'static {
    /// Our side.
    type Storage: Storage + Clone;
    /// An application's connection.
    type Client: Client<Self::Storage>;
    /// The twin's connection.
    type Hand: Hand;

    /// A new, empty one; the business tables and CAP's are there when it answers.
    fn fresh() -> impl Future<Output = Fallible<Self>> + Send;

    /// The one that [`Database::place`] named: for another process. Nothing is touched.
    fn at(place: &str) -> Fallible<Self>;

    /// Where it is, for other processes; `None` if no other process can get there.
    fn place(&self) -> Option<String>;

    /// A handle of ours.
    fn storage(&self) -> impl Future<Output = Fallible<Self::Storage>> + Send;

    /// A connection for business transactions.
    fn client(&self) -> impl Future<Output = Fallible<Self::Client>> + Send;

    /// A connection of its own for the twin.
    fn hand(&self) -> impl Future<Output = Fallible<Self::Hand>> + Send;

    /// A second handle beside `first` for a loop that works at the same time: another connection, or the same one
    /// where the database has one writer.
    fn another(&self, first: &Self::Hand) -> impl Future<Output = Fallible<Self::Hand>> + Send;

    /// A transactional handler that writes an invoice for each order.
    fn billing(&self, storage: &Self::Storage, topic: &str, recorder: Recorder) -> Subscribe;

    /// A transactional handler that locks the one row of `locks`, waits so long, and writes an invoice.
    fn locking(&self, storage: &Self::Storage, topic: &str, recorder: Recorder, hold: Duration) -> Subscribe;

    /// What is in the business tables.
    fn business(&self) -> impl Future<Output = Fallible<Business>> + Send;

    /// Transactions that the server has counted so far, if it counts.
    fn transactions(&self) -> impl Future<Output = Fallible<Option<u64>>> + Send {
        std::future::ready(Ok(None))
    }

    /// Where it is for an application: for a role of its own, if there are roles, which has no more rights than it needs
    /// and is forgotten with the database. To be called once.
    fn application(&self) -> impl Future<Output = Fallible<Option<String>>> + Send {
        std::future::ready(Ok(self.place()))
    }

    /// Names the URL of a pooler before the same server, in transaction mode.
    const POOLER: Option<&'static str> = None;

    /// Names the URL of a second server, which is a replica of its own and can take its place.
    const STANDBY: Option<&'static str> = None;

    /// What can be done to it by [`Database::operate`].
    const DEEDS: &'static [Deed] = &[];

    /// Does this to it or to its [`application`](Database::application), or takes it back.
    fn operate(&self, deed: Deed, is_done: bool) -> impl Future<Output = Fallible> + Send {
        let told = format!("{deed:?} ({is_done}) cannot be done to this database");
        std::future::ready(Err(told.into()))
    }

    /// Deletes it.
    fn discard(self) -> impl Future<Output = Fallible> + Send;
}

/// An application's connection, one transaction at a time.
pub(crate) trait Client<S: Storage>: Send + 'static {
    /// One business transaction: the order's row, the message, and the end.
    fn place(&mut self, cap: &Cap<S>, number: i64, message: Publish, end: End)
    -> impl Future<Output = Fallible> + Send;
}

/// A row of the outbox as the twin writes it.
#[derive(Debug, Clone)]
pub(crate) struct OutboxRow {
    pub(crate) number: i64,
    pub(crate) topic: String,
    pub(crate) message_id: String,
    pub(crate) content: String,
}

/// A row that the twin has claimed.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) id: i64,
    pub(crate) message_id: String,
    pub(crate) content: String,
}

/// A row of the inbox as the twin writes it.
#[derive(Debug, Clone)]
pub(crate) struct InboxRow {
    pub(crate) message_id: String,
    pub(crate) content: String,
}

/// The twin's connection to a database: the same durable work on the same tables, by hand.
pub(crate) trait Hand: Send + 'static {
    /// The order's row and the outbox row in one transaction; answers the outbox row's address.
    fn place(&mut self, row: &OutboxRow) -> impl Future<Output = Fallible<i64>> + Send;

    /// Claims waiting outbox rows.
    fn claim(&mut self, limit: usize) -> impl Future<Output = Fallible<Vec<Claimed>>> + Send;

    /// Claims one outbox row by its address.
    fn claim_one(&mut self, id: i64) -> impl Future<Output = Fallible<Claimed>> + Send;

    /// Marks outbox rows as sent, in one statement.
    fn mark_sent(&mut self, ids: Vec<i64>) -> impl Future<Output = Fallible> + Send;

    /// Inserts inbox rows, in flight, in one statement; answers their addresses.
    fn receive(&mut self, names: &Names, rows: Vec<InboxRow>) -> impl Future<Output = Fallible<Vec<i64>>> + Send;

    /// Marks inbox rows as handled, in one statement.
    fn mark_handled(&mut self, ids: Vec<i64>) -> impl Future<Output = Fallible> + Send;
}

/// A broker, with names of its own.
pub(crate) trait Broker: Clone + Send + Sync + 'static {
    /// Our side.
    type Transport: Transport;
    /// The twin's connection.
    type Wire: Wire;

    /// A new, empty one.
    fn fresh() -> impl Future<Output = Fallible<Self>> + Send;

    /// The one that [`Broker::place`] named: for another process.
    fn at(place: &str) -> Fallible<Self>;

    /// Where it is, for other processes.
    fn place(&self) -> Option<String>;

    /// The port at which a proxy must stand, where the broker tells its clients where to connect; any, if it does not.
    fn proxy_port(&self) -> Option<u16> {
        None
    }

    /// Whether a part of the messages waits for one process, whatever the others do: then handlers that block must not hold
    /// it up.
    const IS_PARTITIONED: bool = false;

    /// The topic and group of this round.
    fn names(&self) -> &Names;

    /// A connection of ours.
    fn transport(&self) -> impl Future<Output = Fallible<Self::Transport>> + Send;

    /// The connection of a process that keeps its name when it is started again.
    fn transport_of(&self, process: &str) -> impl Future<Output = Fallible<Self::Transport>> + Send {
        let _ = process;
        self.transport()
    }

    /// A connection of the twin's.
    fn wire(&self) -> impl Future<Output = Fallible<Self::Wire>> + Send;

    /// Declares what the twin needs for its own queue to get messages, but consumes nothing.
    fn prepare(&self) -> impl Future<Output = Fallible> + Send;

    /// Declares the queues of the crash run's groups, for all their topics, before anything is published: a group gets what is sent after it
    /// has subscribed for the first time, and nothing earlier.
    fn declare_groups(&self) -> impl Future<Output = Fallible> + Send;

    /// Makes what is sent routable without a handler: a bound queue that nobody consumes, or, where a queue needs its
    /// consumer, one that acknowledges and forgets.
    fn sink(&self) -> impl Future<Output = Fallible> + Send;

    /// A queue for this topic, beside the round's own, that is full and refuses what comes, until the answer is dropped;
    /// `None` where a queue cannot be full.
    fn full_queue(&self, topic: &str) -> impl Future<Output = Fallible<Option<FullQueue>>> + Send {
        let _ = topic;
        std::future::ready(Ok(None))
    }

    /// Whether its topics are logs, which can be deleted and made again.
    const HAS_LOGS: bool = false;

    /// Deletes a topic and makes it again, as an operator would.
    fn remake_topic(&self, topic: &str) -> impl Future<Output = Fallible> + Send {
        let told = format!("topic {topic} cannot be made again");
        std::future::ready(Err(told.into()))
    }

    /// Whether groups get messages by bindings, which can be taken away.
    const HAS_BINDINGS: bool = false;

    /// Takes a group's binding of a topic away, as an operator would by mistake.
    fn unbind(&self, group: &str, topic: &str) -> impl Future<Output = Fallible> + Send {
        let told = format!("{group} has no binding of {topic}");
        std::future::ready(Err(told.into()))
    }

    /// Deletes what all bindings, of everybody, hang on.
    fn unbind_all(&self) -> impl Future<Output = Fallible> + Send {
        std::future::ready(Err("there are no bindings".into()))
    }

    /// Deletes what it made.
    fn discard(self) -> impl Future<Output = Fallible> + Send;
}

/// Keeps a queue full: a connection, or a consumer.
pub(crate) type FullQueue = Box<dyn std::any::Any + Send>;

/// A message that the twin got.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) tag: u64,
    pub(crate) message_id: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// The twin's connection to a broker.
pub(crate) trait Wire: Send + 'static {
    /// The outcome of one message.
    type Confirm: Future<Output = Fallible> + Send + 'static;

    /// Sends the message of a row, as the wire format asks: its payload as the body, all its headers beside it. Answers
    /// when it is on its way.
    fn publish(&mut self, row: Claimed) -> impl Future<Output = Fallible<Self::Confirm>> + Send;

    /// Begins to consume.
    fn consume(&mut self, prefetch: usize) -> impl Future<Output = Fallible> + Send;

    /// Waits for one message, and takes what else is there.
    fn receive(&mut self, most: usize) -> impl Future<Output = Fallible<Vec<Arrived>>> + Send;

    /// Acknowledges all of a batch.
    fn ack(&mut self, tags: Vec<u64>) -> impl Future<Output = Fallible> + Send;
}

/// Waits at most so long for something that a benchmark or the end of a crash run needs.
pub(crate) async fn within<T>(limit: Duration, what: &str, waiting: impl Future<Output = T>) -> Fallible<T> {
    tokio::time::timeout(limit, waiting).await.map_err(|_| format!("{what}: not within {limit:?}").into())
}

/// A name that no other round has: letters and digits, at most 20 of them.
pub(crate) fn unique() -> String {
    format!("b{:016x}", fastrand::u64(..))
}
