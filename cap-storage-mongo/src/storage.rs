//! The storage.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::Attempt;
use cap_core::lifecycle::State;
use cap_core::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled, Settlement,
    Sign, Storage, StorageCapabilities, Table, TakenOver, Wake,
};
use cap_core::{BoxFuture, ErrorKind, NodeId, RecordId, Result, Version};
use mongodb::Client;
use mongodb::bson::doc;
use mongodb::options::ReturnDocument;

use crate::commands::{self, Counted, binary};
use crate::config::MongoOptions;
use crate::error::{Fallible, Fault, text_of};
use crate::session::{Clients, Db, End, Via, all};
use crate::watch::{self, Position};
use crate::{claim, record, schema, settle};

/// A storage in MongoDB. A handle: cheap to clone, and any number of handles on one database, in this process or in
/// others, work together.
///
/// ```no_run
/// use cap_core::Storage;
/// use cap_storage_mongo::MongoStorage;
///
/// # async fn example() -> cap_core::Result<()> {
/// let storage = MongoStorage::connect("mongodb://orders:secret@db.example.com/?replicaSet=rs0").await?;
/// storage.prepare().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MongoStorage(Arc<Shared>);

struct Shared {
    clients: Clients,
    migrate: bool,
    position: Position,
}

impl MongoStorage {
    /// The cluster at `url` (`mongodb://user:password@host:27017/?replicaSet=rs0`) with the default options, over
    /// clients of its own.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with).
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(MongoOptions::new(url)).await
    }

    /// The cluster of `options`, over clients of its own. Connects once, so that what is wrong shows here.
    ///
    /// # Errors
    /// - `Invalid`: an option cannot be, such as a URL that is none;
    /// - `Unavailable`: there is no such host, nothing listens at the port, no member is primary, or no answer came
    ///   within the connect timeout;
    /// - `Rejected`: user or password are wrong, or the user lacks the right; the server runs alone, without a replica
    ///   set; or it is older than MongoDB 5.0.
    ///
    /// None shows the password.
    pub async fn connect_with(options: MongoOptions) -> Result<Self> {
        let storage = Self::connect_lazy(options).await?;
        storage.0.clients.try_connect().await?;
        Ok(storage)
    }

    /// The same, but it connects when it is first used, which is [`prepare`](Storage::prepare) where an engine starts.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// `Invalid` when an option cannot be; as [`connect_with`](Self::connect_with) when the DNS records of a
    /// `mongodb+srv` URL cannot be had.
    pub async fn connect_lazy(options: MongoOptions) -> Result<Self> {
        options.check()?;
        let connect = options.client_options().await?;
        let clients = Clients::own(connect, &options);
        let attempt = Attempt::on_database("connect to");
        let place = format!("mongodb database {}", options.database);
        Ok(Self::over(clients.map_err(|fault| fault.into_error(attempt, &place))?, &options))
    }

    /// A storage over a client that is there already, with the default options. It does no I/O.
    ///
    /// The client's read and write concerns do not apply. Leases are renewed over it too: give it room for the
    /// storage's calls beside yours (`maxPoolSize`), and do not let handlers block every thread of the runtime in which
    /// it was made, where the lease would be lost. [`connect`](Self::connect) has no such condition.
    pub fn new(client: Client) -> Self {
        let options = MongoOptions::default();
        Self::over(Clients::over(client, &options), &options)
    }

    /// The same with options; the URL and the connect timeout do not apply.
    ///
    /// # Errors
    /// `Invalid` when an option cannot be.
    pub fn with_client(client: Client, options: MongoOptions) -> Result<Self> {
        options.check()?;
        Ok(Self::over(Clients::over(client, &options), &options))
    }

    fn over(clients: Clients, options: &MongoOptions) -> Self {
        Self(Arc::new(Shared { clients, migrate: options.migrate, position: Position::default() }))
    }

    /// The client that it works over: your own, or the one that it made.
    pub fn client(&self) -> &Client {
        self.0.clients.client()
    }

    pub(crate) fn clients(&self) -> &Clients {
        &self.0.clients
    }

    pub(crate) fn position(&self) -> &Position {
        &self.0.position
    }

    async fn work<T, F, W>(&self, attempt: Attempt, work: W) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Fallible<T>> + Send + 'static,
        W: FnOnce(Db) -> F,
    {
        self.0.clients.run(Via::Work, attempt, work).await
    }

    async fn keep<T, F, W>(&self, attempt: Attempt, work: W) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Fallible<T>> + Send + 'static,
        W: FnOnce(Db) -> F,
    {
        self.0.clients.run(Via::Keepers, attempt, work).await
    }
}

impl fmt::Debug for MongoStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Clients { place, .. } = &self.0.clients;
        f.debug_struct("MongoStorage").field("place", place).field("prefix", &self.0.clients.names().prefix).finish()
    }
}

impl Storage for MongoStorage {
    fn describe(&self) -> String {
        format!("{} collections {}.*", self.0.clients.place, self.0.clients.names().prefix)
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: true,
            shared: true,
            enlists: true,
            transactional_handlers: true,
            savepoints: false,
            watches: true,
            host_clock: false,
            max_content: Some(self.0.clients.longest()),
            ascii_only: false,
        }
    }

    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Shared { clients, migrate, .. } = &*self.0;
            let attempt = Attempt::on_database("prepare the collections of");
            if *migrate {
                clients.run_unlimited(attempt, |db| async move { schema::apply(&db).await }).await
            } else {
                clients.run_unlimited(attempt, |db| async move { schema::check(&db).await }).await
            }
        })
    }

    fn insert(
        &self,
        table: Table,
        records: Vec<NewRecord>,
        claim: Option<Claim>,
    ) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        Box::pin(async move {
            let attempt = Attempt::on("insert into", table);
            let checked = record::check(table, &records, claim, self.0.clients.longest());
            checked.map_err(|fault| self.0.clients.explain(fault, attempt))?;
            self.work(attempt, |db| async move { record::insert(&db, table, &records, claim).await }).await
        })
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        let attempt = Attempt::on("claim from", request.lane.table());
        Box::pin(self.work(attempt, |db| async move { claim::claim(&db, &request).await }))
    }

    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        let attempt = Attempt::on("settle records in", table);
        Box::pin(self.work(attempt, move |db| async move { settle::settle(&db, table, &settlements).await }))
    }

    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("release a claim in", table);
        let holder = commands::holder(claim.node, Some(claim.token.0));
        Box::pin(self.keep(attempt, move |db| async move { record::give_back(&db, table, holder, Counted::No).await }))
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        let attempt = Attempt::on_database("ask for the next due records of");
        Box::pin(self.work(attempt, |db| async move { record::waits(&db, &version, &lanes).await }))
    }

    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        let lease = record::span(lease);
        let attempt = Attempt::on_database("register a node in");
        Box::pin(self.0.clients.run(Via::Leases, attempt, move |db| async move {
            // Before the collections are made, this would make one.
            db.clock().await?;
            let nodes = db.collection(&db.names.nodes);
            nodes.update_one(commands::by_node(node), commands::begin_lease(lease)).upsert(true).await?;
            Ok(())
        }))
    }

    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        let lease = record::span(lease);
        let attempt = Attempt::on_database("renew a node's lease in");
        let renew = move |db| async move { heartbeat(&db, node, lease).await };
        Box::pin(self.0.clients.run(Via::Leases, attempt, renew))
    }

    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        let attempt = Attempt::on_database("take over from dead nodes in");
        Box::pin(self.keep(attempt, move |db| {
            let dead = dead.clone();
            async move { take_over(&db, &dead).await }
        }))
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        let attempt = Attempt::on_database("sign a node off in");
        Box::pin(self.keep(attempt, move |db| async move { leave(&db, node).await }))
    }

    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        let (attempt, term) = (Attempt::on_database("take a chore from"), record::span(term));
        Box::pin(self.work(attempt, move |db| async move { take_chore(&db, chore, node, term).await }))
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("delete expired records from", table);
        Box::pin(self.work(attempt, move |db| async move { record::collect(&db, table, limit).await }))
    }

    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        let attempt = Attempt::on("count", table);
        Box::pin(self.work(attempt, move |db| async move { record::counts(&db, table, &version).await }))
    }

    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        let attempt = Attempt::on("list", table);
        Box::pin(self.work(attempt, move |db| async move { record::list(&db, table, &query).await }))
    }

    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("requeue records of", table);
        Box::pin(self.work(attempt, move |db| async move {
            let statements = commands::requeue(&record::addresses(&records), &state);
            db.update(db.names.of(table), statements).await
        }))
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("delete records from", table);
        Box::pin(self.work(attempt, move |db| async move {
            db.delete(db.names.of(table), commands::delete(&record::addresses(&records))).await
        }))
    }

    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        Box::pin(watch::watch(self.clone(), wake))
    }
}

async fn heartbeat(db: &Db, node: NodeId, lease: i64) -> Fallible<Lease> {
    let nodes = db.collection(&db.names.nodes);
    let renew = nodes
        .find_one_and_update(commands::by_node(node), commands::renew_lease(lease, db.lsids.list()))
        .return_document(ReturnDocument::After);
    let Some(renewed) = renew.await? else { return Ok(Lease::Lost) };
    let Ok(now) = renewed.get_datetime("Seen") else {
        return Err(Fault::said(ErrorKind::Corrupt, format!("the document of node {node} has no times")));
    };
    let (filter, fields) = commands::signs(node);
    let others = all(nodes.find(filter).projection(fields).await?).await?;
    let sign = |other: &mongodb::bson::Document| {
        let node = other.get("_id").and_then(record::uuid).map(NodeId)?;
        Some(Sign { node, until: record::timestamp(*other.get_datetime("LeaseUntil").ok()?) })
    };
    Ok(Lease::Held { now: record::timestamp(*now), others: others.iter().filter_map(sign).collect() })
}

/// First the nodes: those that are left live on, and a claim of the dead that is written from now on is given back by
/// itself.
async fn take_over(db: &Db, dead: &[Sign]) -> Fallible<TakenOver> {
    // Before the collections are made, this says so.
    db.clock().await?;
    let mut nodes = Vec::new();
    for sign in dead {
        let dead = commands::dead_node(sign);
        let found = all(db.collection(&db.names.nodes).find(dead.clone()).await?).await?;
        end_sessions(db, &found).await;
        if !found.is_empty() && forget(db, sign.node, dead).await? {
            nodes.push(sign.node);
        }
    }
    let outbox = record::take_over(db, Table::Outbox).await?;
    let inbox = record::take_over(db, Table::Inbox).await?;
    record::count_crashes(db).await?;
    Ok(TakenOver { nodes, outbox, inbox })
}

/// Has the server end the transactions of dead nodes, which would keep what they have written locked for a minute. If it
/// cannot be done, the takeover is only slower.
async fn end_sessions(db: &Db, dead: &[mongodb::bson::Document]) {
    let sessions: Vec<_> = dead.iter().flat_map(|node| db.lsids.foreign(node)).collect();
    if sessions.is_empty() {
        return;
    }
    if let Err(error) = db.database.run_command(commands::kill_sessions(sessions)).await {
        let reason = text_of(&error);
        tracing::warn!(
            error.message = reason,
            "the transactions of dead nodes could not be ended, and hold their locks for a minute"
        );
    }
}

async fn leave(db: &Db, node: NodeId) -> Fallible<()> {
    forget(db, node, commands::by_node(node)).await?;
    for table in [Table::Outbox, Table::Inbox] {
        record::give_back(db, table, commands::holder(node, None), Counted::No).await?;
    }
    Ok(())
}

/// Forgets a node and frees its chores, in one commit; answers whether it was there.
async fn forget(db: &Db, node: NodeId, filter: mongodb::bson::Document) -> Fallible<bool> {
    db.transact(&(node, filter), |db, session, (node, filter)| {
        Box::pin(async move {
            let nodes = db.collection(&db.names.nodes);
            let deleted = nodes.delete_one(filter.clone()).session(&mut *session).await?.deleted_count;
            if deleted == 0 {
                return Ok(End::Abort(false));
            }
            let chores = db.collection(&db.names.chores);
            chores.delete_many(doc! { "Node": binary(node.0) }).session(session).await?;
            Ok(End::Commit(true))
        })
    })
    .await
}

async fn take_chore(db: &Db, chore: Chore, node: NodeId, term: i64) -> Fallible<bool> {
    let now = db.registered(node).await?;
    let (chores, owner) = (db.collection(&db.names.chores), binary(node.0));
    let take = chores.update_one(commands::free_chore(chore.as_str(), &owner, now), commands::take_chore(&owner, term));
    match take.upsert(true).await.map_err(Fault::from) {
        Ok(_) => {}
        // It is there and matches not: another node has it.
        Err(fault) if fault.is_duplicate_key() => return Ok(false),
        Err(fault) => return Err(fault),
    }
    // As with a claim: a node that was forgotten meanwhile must not keep it.
    if let Err(fault) = db.registered(node).await {
        if matches!(fault, Fault::Said(ErrorKind::LeaseLost, _)) {
            chores.delete_one(doc! { "_id": chore.as_str(), "Node": owner }).await?;
        }
        return Err(fault);
    }
    Ok(true)
}
