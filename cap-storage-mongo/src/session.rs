//! Clients, and what it means to run something over one.
//!
//! A future of the driver must not be dropped under way: the connection, and the transaction on it, would be left in a
//! state that nobody knows. So each call runs in a task of its own, which goes to its end whatever happens, and the time
//! limit is on the wait for it.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::backend::{Attempt, unregistered};
use cap_core::storage::Table;
use cap_core::{BoxFuture, Error, ErrorKind, NodeId, Result};
use mongodb::bson::{DateTime, Document, doc};
use mongodb::options::{Acknowledgment, ClientOptions, DatabaseOptions, ReadConcern, WriteConcern};
use mongodb::{Client, ClientSession, Collection, Cursor, Database};
use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::commands::{self, Names};
use crate::config::{self, MongoOptions};
use crate::error::{Fallible, Fault, check_reply, has_taken_key, is_address_taken};
use crate::lsid::Lsids;
use crate::row::{MAX_CONTENT, ROOM};

/// The first pause before something is done again that the server took back for the sake of another transaction.
const PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait for another transaction where waiting is not worth much.
const SHORT_PATIENCE: Duration = Duration::from_millis(20);

/// Connections that only leases use, however busy the others are.
const KEEPERS: u32 = 2;

/// The oldest server that is supported, 5.0, by the version of its protocol.
const OLDEST_WIRE_VERSION: i32 = 13;

/// Kind and place, for people.
pub(crate) fn place(client: Option<&ClientOptions>, database: &str) -> String {
    match client {
        Some(options) => {
            let hosts: Vec<String> = options.hosts.iter().map(ToString::to_string).collect();
            format!("mongodb {}/{database}", hosts.join(","))
        }
        None => format!("mongodb database {database}"),
    }
}

/// The clients, and the rules by which they are used.
pub(crate) struct Clients {
    pub(crate) place: String,
    /// The user's, or the storage's own.
    work: Access,
    /// For what must not wait for the work of others.
    keepers: Access,
    /// For heartbeats, if the clients are the storage's own.
    leases: Option<Leases>,
    statement_timeout: Duration,
    connect_timeout: Duration,
    weakened: bool,
}

/// A client, and how many calls may be under way over it at once: one that was given up still counts, so that a server
/// which answers nothing is not sent ever more.
#[derive(Clone)]
struct Access {
    db: Db,
    permits: Arc<Semaphore>,
}

/// How heartbeats go out: over a client that belongs to the runtime which asks for them. It is made there, since a client
/// does nothing while every thread of the runtime is blocked in which it was made.
struct Leases {
    connect: ClientOptions,
    access: Mutex<Option<(runtime::Id, Access)>>,
}

/// Which client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Work,
    Keepers,
    Leases,
}

impl Clients {
    /// Over a client of the user's, with its pool.
    pub(crate) fn over(client: Client, options: &MongoOptions) -> Self {
        Self::new(client.clone(), client, place(None, &options.database), options)
    }

    /// Over clients of the storage's own. They connect when they are first used.
    pub(crate) fn own(connect: ClientOptions, options: &MongoOptions) -> Fallible<Self> {
        let place = place(Some(&connect), &options.database);
        let mut keepers = connect.clone();
        keepers.max_pool_size = Some(KEEPERS);
        let leases = Leases { connect: keepers.clone(), access: Mutex::default() };
        let clients = Self::new(Client::with_options(connect)?, Client::with_options(keepers)?, place, options);
        Ok(Self { leases: Some(leases), ..clients })
    }

    fn new(work: Client, keepers: Client, place: String, options: &MongoOptions) -> Self {
        let common = Common {
            names: Arc::new(Names::new(&options.prefix)),
            lsids: Arc::default(),
            clock: Arc::default(),
            longest: Arc::new(AtomicUsize::new(MAX_CONTENT)),
        };
        let access = |client: Client, size: u32| {
            let concern = client.write_concern().filter(|_| options.weaken_durability).cloned();
            let db = Db::new(client, options, common.clone(), concern.unwrap_or_else(config::durable));
            Access { db, permits: Arc::new(Semaphore::new(size as usize)) }
        };
        Self {
            place,
            work: access(work, options.pool_size),
            keepers: access(keepers, KEEPERS),
            leases: None,
            statement_timeout: options.statement_timeout,
            connect_timeout: options.connect_timeout,
            weakened: options.weaken_durability,
        }
    }

    /// How many bytes a content may have.
    pub(crate) fn longest(&self) -> usize {
        self.work.db.longest()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.work.db.client
    }

    pub(crate) fn names(&self) -> &Names {
        &self.work.db.names
    }

    /// A view of the database for work that begins now and has the time limit.
    pub(crate) fn db(&self) -> Db {
        self.at(&self.work)
    }

    fn at(&self, access: &Access) -> Db {
        Db { deadline: Instant::now() + self.statement_timeout, ..access.db.clone() }
    }

    fn access(&self, via: Via) -> Fallible<Access> {
        match (via, &self.leases) {
            (Via::Work, _) => Ok(self.work.clone()),
            (Via::Leases, Some(leases)) => leases.access(&self.keepers),
            (Via::Keepers | Via::Leases, _) => Ok(self.keepers.clone()),
        }
    }

    /// Runs `work` within the time limit, to its end.
    pub(crate) async fn run<T, F, W>(&self, via: Via, attempt: Attempt, work: W) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Fallible<T>> + Send + 'static,
        W: FnOnce(Db) -> F,
    {
        self.once(via, work).await.map_err(|fault| self.explain(fault, attempt))
    }

    async fn once<T, F, W>(&self, via: Via, work: W) -> Fallible<T>
    where
        T: Send + 'static,
        F: Future<Output = Fallible<T>> + Send + 'static,
        W: FnOnce(Db) -> F,
    {
        let access = self.access(via)?;
        let db = self.at(&access);
        let deadline = db.deadline;
        let permits = access.permits;
        let Ok(permit) = tokio::time::timeout_at(deadline, permits.acquire_owned()).await else {
            let reason = format!("all connections were busy for {:?}", self.statement_timeout);
            return Err(Fault::said(ErrorKind::Unavailable, reason));
        };
        let work = work(db);
        let task = tokio::spawn(async move {
            let answer = work.await;
            drop(permit);
            answer
        });
        match tokio::time::timeout_at(deadline, task).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => Err(Fault::said(ErrorKind::Internal, panic.to_string())),
            Err(_) => Err(self.no_answer()),
        }
    }

    /// Runs `work`, a migration, without a time limit, once it is known that the server is there and can be used.
    pub(crate) async fn run_unlimited<T, F, W>(&self, attempt: Attempt, work: W) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Fallible<T>> + Send + 'static,
        W: FnOnce(Db) -> F,
    {
        self.try_connect().await?;
        if self.weakened {
            let write_concern = &self.work.db.write_concern;
            tracing::warn!(
                cap.place = %self.place,
                ?write_concern,
                "`weaken_durability` is on: what is acknowledged may be lost or done twice when the primary changes, \
                 unless this write concern is as good as `majority` with a journal"
            );
        }
        let task = tokio::spawn(work(self.db()));
        let answer = task.await.unwrap_or_else(|panic| Err(Fault::said(ErrorKind::Internal, panic.to_string())));
        answer.map_err(|fault| self.explain(fault, attempt))
    }

    /// Asks the server what it is, within the connect timeout.
    pub(crate) async fn try_connect(&self) -> Result<()> {
        let attempt = Attempt::on_database("connect to");
        let db = self.db();
        // The driver gives up by itself, and says more than that it took too long.
        let limit = self.connect_timeout.saturating_add(Duration::from_millis(500));
        let asked = tokio::time::timeout(limit, tokio::spawn(async move { db.look().await })).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => Err(Fault::said(ErrorKind::Internal, panic.to_string())),
            Err(_) => Err(Fault::said(ErrorKind::Unavailable, format!("no answer within {:?}", self.connect_timeout))),
        };
        answer.map_err(|fault| self.explain(fault.of_setup(), attempt))
    }

    pub(crate) fn explain(&self, fault: Fault, attempt: Attempt) -> Error {
        fault.into_error(attempt, &self.place)
    }

    pub(crate) fn no_answer(&self) -> Fault {
        let limit = self.statement_timeout;
        let reason = format!("no answer within {limit:?}: it may have been carried out or not");
        Fault::said(ErrorKind::Unavailable, reason)
    }
}

impl Leases {
    /// The client of this runtime, made when it is first asked for. Otherwise as `like`.
    fn access(&self, like: &Access) -> Fallible<Access> {
        let runtime = runtime::Handle::current().id();
        let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, access)) = access.as_ref().filter(|(made_in, _)| *made_in == runtime) {
            return Ok(access.clone());
        }
        let client = Client::with_options(self.connect.clone())?;
        let made = Access { db: like.db.over(client), permits: Arc::new(Semaphore::new(KEEPERS as usize)) };
        *access = Some((runtime, made.clone()));
        Ok(made)
    }
}

/// How a transaction ends that met no error.
pub(crate) enum End<T> {
    Commit(T),
    Abort(T),
}

/// Something to do in a transaction. It captures nothing: what it needs is its context, so that it can be done again.
pub(crate) type Work<C, T> = for<'c> fn(&'c Db, &'c mut ClientSession, &'c C) -> BoxFuture<'c, Fallible<End<T>>>;

/// The database, as one call sees it.
#[derive(Clone)]
pub(crate) struct Db {
    pub(crate) client: Client,
    pub(crate) database: Database,
    pub(crate) names: Arc<Names>,
    pub(crate) deadline: Instant,
    pub(crate) lsids: Arc<Lsids>,
    clock: Arc<Clock>,
    longest: Arc<AtomicUsize>,
    write_concern: WriteConcern,
}

/// What the views of one database share.
#[derive(Clone)]
struct Common {
    names: Arc<Names>,
    lsids: Arc<Lsids>,
    clock: Arc<Clock>,
    longest: Arc<AtomicUsize>,
}

impl Db {
    fn new(client: Client, options: &MongoOptions, common: Common, write_concern: WriteConcern) -> Self {
        let database = database(&client, &options.database, &write_concern);
        let Common { names, lsids, clock, longest } = common;
        Self { client, database, names, deadline: Instant::now(), lsids, clock, longest, write_concern }
    }

    /// How many bytes a content may have, as far as is known.
    pub(crate) fn longest(&self) -> usize {
        self.longest.load(Ordering::Relaxed)
    }

    /// The same, over another client.
    pub(crate) fn over(&self, client: Client) -> Self {
        let database = database(&client, self.database.name(), &self.write_concern);
        Self { client, database, ..self.clone() }
    }

    pub(crate) fn table(&self, table: Table) -> Collection<Document> {
        self.collection(self.names.of(table))
    }

    pub(crate) fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    /// What the server is. One that runs alone has no transactions.
    async fn look(&self) -> Fallible<()> {
        let hello = self.database.run_command(doc! { "hello": 1 }).await?;
        if let Some(limit) = hello.get("maxBsonObjectSize").and_then(crate::row::whole) {
            let longest = usize::try_from(limit).unwrap_or(0).saturating_sub(ROOM).max(1);
            self.longest.store(longest, Ordering::Relaxed);
        }
        let is_router = hello.get_str("msg").is_ok_and(|message| message == "isdbgrid");
        if !is_router && hello.get_str("setName").is_err() {
            let reason = "the server runs alone, and transactions need a replica set: start it with --replSet and call \
                          rs.initiate(); one member is enough";
            return Err(Fault::said(ErrorKind::Rejected, reason));
        }
        let version = hello.get_i32("maxWireVersion").unwrap_or_default();
        if version < OLDEST_WIRE_VERSION {
            let reason = format!(
                "the server is too old: it speaks version {version} of the protocol, and MongoDB 5.0 speaks \
                 {OLDEST_WIRE_VERSION}"
            );
            return Err(Fault::said(ErrorKind::Rejected, reason));
        }
        // `hello` needs no login; this does.
        self.collection(&self.names.schema).find_one(doc! { "_id": "version 1" }).await?;
        Ok(())
    }

    /// The server's clock, and that the collections are there.
    pub(crate) async fn clock(&self) -> Fallible<DateTime> {
        let found = self.aggregate_one(&self.names.schema, commands::clock()).await?;
        found.as_ref().and_then(|found| found.get_datetime("Now").ok()).copied().ok_or_else(|| self.no_schema())
    }

    /// The same for a session, be it one of the caller's; without a look if there was one not long ago.
    pub(crate) async fn clock_for(&self, session: &ClientSession) -> Fallible<DateTime> {
        if let Some(now) = self.clock.now(session.id()) {
            return Ok(now);
        }
        let now = self.clock().await?;
        self.clock.heard(session.id(), now);
        Ok(now)
    }

    pub(crate) fn no_schema(&self) -> Fault {
        let Names { prefix, .. } = &*self.names;
        let reason = format!(
            "the collections {prefix}.* are missing: call `prepare`, or apply the printed schema, to this database"
        );
        Fault::said(ErrorKind::Environment, reason)
    }

    /// The server's clock, if the node is registered.
    pub(crate) async fn registered(&self, node: NodeId) -> Fallible<DateTime> {
        let found = self.aggregate_one(&self.names.nodes, commands::registered(node)).await?;
        if let Some(found) = found
            && let Ok(now) = found.get_datetime("Now")
        {
            return Ok(*now);
        }
        // Before the collections are made nobody is.
        self.clock().await?;
        Err(Fault::said(ErrorKind::LeaseLost, unregistered(node)))
    }

    pub(crate) async fn aggregate_one(&self, name: &str, pipeline: Vec<Document>) -> Fallible<Option<Document>> {
        Ok(all(self.collection(name).aggregate(pipeline).await?).await?.into_iter().next())
    }

    /// Carries out update statements, outside of any transaction; answers how many documents matched.
    pub(crate) async fn update(&self, name: &str, statements: Vec<Document>) -> Fallible<u64> {
        self.write(doc! { "update": name, "updates": statements, "ordered": true }).await
    }

    /// The same for delete statements.
    pub(crate) async fn delete(&self, name: &str, statements: Vec<Document>) -> Fallible<u64> {
        self.write(doc! { "delete": name, "deletes": statements, "ordered": true }).await
    }

    async fn write(&self, mut command: Document) -> Fallible<u64> {
        let is_empty = |list: &str| command.get_array(list).is_ok_and(Vec::is_empty);
        if is_empty("updates") || is_empty("deletes") {
            return Ok(0);
        }
        command.insert("writeConcern", concern(&self.write_concern));
        let left = self.deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
        command.insert("maxTimeMS", i64::try_from(left).unwrap_or(i64::MAX));
        let reply = self.database.run_command(command).await?;
        check_reply(&reply)?;
        Ok(matched(&reply))
    }

    /// Carries out update statements in a transaction; answers the whole reply.
    pub(crate) async fn update_in(
        &self,
        session: &mut ClientSession,
        table: Table,
        statements: Vec<Document>,
    ) -> Fallible<Document> {
        let command = doc! { "update": self.names.of(table), "updates": statements, "ordered": true };
        let reply = self.database.run_command(command).session(session).await?;
        check_reply(&reply)?;
        Ok(reply)
    }

    /// Inserts documents in a transaction; answers `false` if one has a message's key that is there already, which is the
    /// end of the transaction.
    pub(crate) async fn insert_in(
        &self,
        session: &mut ClientSession,
        table: Table,
        documents: Vec<Document>,
    ) -> Fallible<bool> {
        let command = doc! { "insert": self.names.of(table), "documents": documents, "ordered": true };
        let reply = match self.database.run_command(command).session(session).await {
            Ok(reply) => reply,
            Err(error) if is_address_taken(&error) => return Err(Fault::AddressTaken),
            Err(error) => {
                let fault = Fault::from(error);
                return if fault.is_duplicate_key() { Ok(false) } else { Err(fault) };
            }
        };
        let is_taken = has_taken_key(&reply);
        if !is_taken {
            check_reply(&reply)?;
        }
        Ok(!is_taken)
    }

    /// A session for transactions, which ends with this node.
    pub(crate) async fn start_session(&self) -> Fallible<ClientSession> {
        let session = self.client.start_session().await?;
        self.lsids.note(session.id());
        Ok(session)
    }

    /// Begins a transaction, durable and with a snapshot of what a majority has.
    pub(crate) async fn begin(&self, session: &mut ClientSession) -> Fallible<()> {
        session
            .start_transaction()
            .read_concern(ReadConcern::snapshot())
            .write_concern(self.write_concern.clone())
            .selection_criteria(config::primary())
            .await?;
        Ok(())
    }

    /// Does `work` in one transaction, again as long as the server takes it back for the sake of another one.
    pub(crate) async fn transact<C: Sync, T>(&self, context: &C, work: Work<C, T>) -> Fallible<T> {
        self.transact_until(self.deadline, context, work).await
    }

    /// The same, but `None` if another transaction has what it needs, and keeps it.
    pub(crate) async fn try_transact<C: Sync, T>(&self, context: &C, work: Work<C, T>) -> Fallible<Option<T>> {
        match self.transact_until(Instant::now() + SHORT_PATIENCE, context, work).await {
            Ok(answer) => Ok(Some(answer)),
            Err(fault) if fault.is_conflict() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Conflicts with other transactions are waited for until `end`, whatever else passes until the time limit.
    async fn transact_until<C: Sync, T>(&self, end: Instant, context: &C, work: Work<C, T>) -> Fallible<T> {
        let mut session = self.start_session().await?;
        let mut pause = PAUSE;
        let mut may_reconnect = true;
        loop {
            let fault = match self.attempt(&mut session, context, work).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            // Connections may be dead since the server was restarted. While it is unknown whether a commit took place,
            // nothing is done again.
            let reconnects = may_reconnect && fault.is_lost_connection() && !fault.is_unknown_commit();
            may_reconnect = false;
            let end = if fault.is_conflict() { end } else { self.deadline };
            if !(fault.is_victim() || reconnects) || Instant::now() + pause >= end {
                return Err(fault);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt<C: Sync, T>(&self, session: &mut ClientSession, context: &C, work: Work<C, T>) -> Fallible<T> {
        self.begin(session).await?;
        match work(self, session, context).await {
            Ok(End::Commit(answer)) => {
                self.commit(session).await?;
                Ok(answer)
            }
            Ok(End::Abort(answer)) => {
                self.abort(session).await;
                Ok(answer)
            }
            Err(fault) => {
                self.abort(session).await;
                Err(fault)
            }
        }
    }

    /// Commits, again as long as it is unknown whether it took place.
    pub(crate) async fn commit(&self, session: &mut ClientSession) -> Fallible<()> {
        let mut pause = PAUSE;
        loop {
            let Err(error) = session.commit_transaction().await else { return Ok(()) };
            let fault = Fault::from(error);
            if !fault.is_unknown_commit() || Instant::now() + pause >= self.deadline {
                return Err(fault);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Takes a transaction back. The server does so by itself if this does not arrive.
    pub(crate) async fn abort(&self, session: &mut ClientSession) {
        if let Err(error) = session.abort_transaction().await {
            tracing::debug!(error.message = %error, "a transaction was not rolled back cleanly");
        }
    }
}

/// Whether a transaction is open on the session. The driver says so only to who would begin another one.
pub(crate) async fn is_in_transaction(session: &mut ClientSession) -> Fallible<bool> {
    match session.start_transaction().await {
        Ok(()) => {
            // Nothing was sent for it.
            session.abort_transaction().await?;
            Ok(false)
        }
        Err(error) if error.to_string().contains("already in progress") => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn database(client: &Client, name: &str, write_concern: &WriteConcern) -> Database {
    let options = DatabaseOptions::builder()
        .read_concern(ReadConcern::majority())
        .write_concern(write_concern.clone())
        .selection_criteria(config::primary())
        .build();
    client.database_with_options(name, options)
}

/// For a command that the driver passes on as it is.
fn concern(concern: &WriteConcern) -> Document {
    let mut document = Document::new();
    if let Some(w) = &concern.w {
        match w {
            Acknowledgment::Nodes(nodes) => document.insert("w", i64::from(*nodes)),
            Acknowledgment::Custom(tag) => document.insert("w", tag),
            _ => document.insert("w", "majority"),
        };
    }
    if let Some(journal) = concern.journal {
        document.insert("j", journal);
    }
    document
}

/// How many documents the statements of a command matched.
pub(crate) fn matched(reply: &Document) -> u64 {
    let number = reply.get("n").and_then(crate::row::whole).unwrap_or_default();
    u64::try_from(number).unwrap_or_default()
}

/// All documents of a cursor.
pub(crate) async fn all(mut cursor: Cursor<Document>) -> Fallible<Vec<Document>> {
    let mut documents = Vec::new();
    while cursor.advance().await? {
        documents.push(cursor.deserialize_current()?);
    }
    Ok(documents)
}
