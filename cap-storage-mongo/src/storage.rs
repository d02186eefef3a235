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
use cap_core::{BoxFuture, NodeId, RecordId, Result, Version};
use mongodb::Client;

use crate::config::MongoOptions;
use crate::error::Fallible;
use crate::session::{Clients, Db, Via};
use crate::watch::{self, Position};
use crate::{claim, insert, inspect, lease, schema, settle};

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
            let checked = insert::check(table, &records, claim, self.0.clients.longest());
            checked.map_err(|fault| self.0.clients.explain(fault, attempt))?;
            self.work(attempt, |db| async move { insert::insert(&db, table, &records, claim).await }).await
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
        Box::pin(self.keep(attempt, move |db| async move { claim::release(&db, table, claim).await }))
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        let attempt = Attempt::on_database("ask for the next due records of");
        Box::pin(self.work(attempt, |db| async move { claim::next_due(&db, &version, &lanes).await }))
    }

    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        let attempt = Attempt::on_database("register a node in");
        let join = move |db| async move { lease::join(&db, node, lease).await };
        Box::pin(self.0.clients.run(Via::Leases, attempt, join))
    }

    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        let attempt = Attempt::on_database("renew a node's lease in");
        let renew = move |db| async move { lease::heartbeat(&db, node, lease).await };
        Box::pin(self.0.clients.run(Via::Leases, attempt, renew))
    }

    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        let attempt = Attempt::on_database("take over from dead nodes in");
        Box::pin(self.keep(attempt, move |db| {
            let dead = dead.clone();
            async move { lease::take_over(&db, &dead).await }
        }))
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        let attempt = Attempt::on_database("sign a node off in");
        Box::pin(self.keep(attempt, move |db| async move { lease::leave(&db, node).await }))
    }

    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        let attempt = Attempt::on_database("take a chore from");
        Box::pin(self.work(attempt, move |db| async move { lease::take_chore(&db, chore, node, term).await }))
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("delete expired records from", table);
        Box::pin(self.work(attempt, move |db| async move { inspect::collect(&db, table, limit).await }))
    }

    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        let attempt = Attempt::on("count", table);
        Box::pin(self.work(attempt, move |db| async move { inspect::counts(&db, table, &version).await }))
    }

    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        let attempt = Attempt::on("list", table);
        Box::pin(self.work(attempt, move |db| async move { inspect::list(&db, table, &query).await }))
    }

    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("requeue records of", table);
        Box::pin(self.work(attempt, move |db| async move { inspect::requeue(&db, table, &records, &state).await }))
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("delete records from", table);
        Box::pin(self.work(attempt, move |db| async move { inspect::delete(&db, table, &records).await }))
    }

    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        Box::pin(watch::watch(self.clone(), wake))
    }
}
