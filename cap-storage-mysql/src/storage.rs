//! The storage.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cap_core::backend::Attempt;
use cap_core::lifecycle::State;
use cap_core::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled, Settlement,
    Sign, Storage, StorageCapabilities, Table, TakenOver,
};
use cap_core::{BoxFuture, NodeId, RecordId, Result, Version};
use cap_storage_sqlx::Via;
use sqlx::MySqlPool;

use crate::config::MySqlOptions;
use crate::insert::Packet;
use crate::session::{Pools, Work};
use crate::settle::Within;
use crate::sql::Sql;
use crate::{claim, insert, inspect, lease, schema, settle};

/// A storage in a MySQL or MariaDB database. A handle: cheap to clone, and any number of handles on one database, in this
/// process or in others, work together.
///
/// ```no_run
/// use cap_core::Storage;
/// use cap_storage_mysql::MySqlStorage;
///
/// # async fn example() -> cap_core::Result<()> {
/// let storage = MySqlStorage::connect("mysql://orders:secret@db.example.com/orders").await?;
/// storage.prepare().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MySqlStorage(Arc<Shared>);

struct Shared {
    pools: Pools,
    sql: Arc<Sql>,
    migrate: bool,
    /// What the server said when the tables were prepared.
    learnt: OnceLock<Learnt>,
}

/// What a server is asked when the tables are prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Learnt {
    pub(crate) packet: Packet,
    /// Whether a column cannot hold every text.
    pub(crate) ascii_only: bool,
}

impl MySqlStorage {
    /// The database at `url` (`mysql://user:password@host:3306/database`) with the default options, over a pool of
    /// its own.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with).
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(MySqlOptions::new(url)).await
    }

    /// The database of `options`, over a pool of its own. Connects once, so that what is wrong shows here.
    ///
    /// # Errors
    /// - `Invalid`: an option cannot be, such as a URL that is none;
    /// - `Unavailable`: there is no such host, nothing listens at the port, or no answer came within the connect
    ///   timeout;
    /// - `Rejected`: user or password are wrong, the database is missing, or the user may not use it; the server is older
    ///   than MySQL 8.0 or MariaDB 10.6.
    ///
    /// None shows the password.
    pub async fn connect_with(options: MySqlOptions) -> Result<Self> {
        let storage = Self::connect_lazy(options.clone())?;
        storage.0.pools.try_connect().await?;
        Ok(storage)
    }

    /// The same, but it connects when it is first used, which is [`prepare`](Storage::prepare) where an engine starts.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// `Invalid` when an option cannot be.
    pub fn connect_lazy(options: MySqlOptions) -> Result<Self> {
        options.check()?;
        let pools = Pools::own(options.connect_options()?, options.limits());
        Ok(Self::over(pools, &options))
    }

    /// A storage over a pool that is there already, with the default options. It does no I/O.
    ///
    /// Leases use up to three connections beside the pool, made with the pool's connect options, so that a busy pool never
    /// costs a node its life.
    pub fn new(pool: MySqlPool) -> Self {
        let options = MySqlOptions::default();
        Self::over(Pools::over(pool, options.limits()), &options)
    }

    /// The same with options; those about the URL and the pool do not apply.
    ///
    /// # Errors
    /// `Invalid` when an option cannot be.
    pub fn with_pool(pool: MySqlPool, options: MySqlOptions) -> Result<Self> {
        options.check()?;
        Ok(Self::over(Pools::over(pool, options.limits()), &options))
    }

    fn over(pools: Pools, options: &MySqlOptions) -> Self {
        let sql = Arc::new(Sql::new(&options.prefix));
        Self(Arc::new(Shared { pools, sql, migrate: options.migrate, learnt: OnceLock::new() }))
    }

    /// The pool that it works over: your own, or the one that it made.
    pub fn pool(&self) -> &MySqlPool {
        self.0.pools.work()
    }

    pub(crate) fn sql(&self) -> &Arc<Sql> {
        &self.0.sql
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.0.pools
    }

    /// What the server takes at once, if it was asked.
    pub(crate) fn packet(&self) -> Option<Packet> {
        self.0.learnt.get().map(|learnt| learnt.packet)
    }

    pub(crate) fn packet_or_least(&self) -> Packet {
        self.packet().unwrap_or(Packet::UNKNOWN)
    }

    async fn work<C, T>(&self, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        self.0.pools.run(Via::Work, attempt, context, work).await
    }

    async fn beat<C, T>(&self, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        self.0.pools.run(Via::Pulse, attempt, context, work).await
    }

    async fn keep<C, T>(&self, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        self.0.pools.run(Via::Keepers, attempt, context, work).await
    }
}

impl fmt::Debug for MySqlStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = &self.0.sql.names.prefix;
        f.debug_struct("MySqlStorage").field("place", &self.0.pools.place()).field("prefix", prefix).finish()
    }
}

impl Storage for MySqlStorage {
    fn describe(&self) -> String {
        format!("{} prefix {}", self.0.pools.place(), self.0.sql.names.prefix)
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: true,
            shared: true,
            enlists: true,
            transactional_handlers: true,
            savepoints: true,
            watches: false,
            host_clock: false,
            max_content: self.packet().map(|packet| usize::try_from(packet.most_content()).unwrap_or(usize::MAX)),
            ascii_only: self.0.learnt.get().is_some_and(|learnt| learnt.ascii_only),
        }
    }

    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Shared { pools, sql, migrate, learnt } = &*self.0;
            let attempt = Attempt::on_database("prepare the tables of");
            let prepared = if *migrate {
                pools.run_unlimited(attempt, sql, |connection, sql| Box::pin(schema::apply(connection, sql))).await
            } else {
                pools.run_unlimited(attempt, sql, |connection, sql| Box::pin(schema::check(connection, sql))).await
            }?;
            // What was learnt first stays.
            learnt.get_or_init(|| prepared);
            Ok(())
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
            let checked = insert::check(table, &records, claim, self.packet());
            checked.map_err(|fault| self.0.pools.explain(fault, attempt))?;
            let context = (&self.0.sql, table, records, claim, self.packet_or_least());
            let insert = self.work(attempt, context, |connection, (sql, table, records, claim, packet)| {
                Box::pin(insert::insert(connection, sql, *table, records, *claim, *packet))
            });
            insert.await
        })
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        let attempt = Attempt::on("claim from", request.lane.table());
        Box::pin(self.work(attempt, (&self.0.sql, request), |connection, (sql, request)| {
            Box::pin(claim::claim(connection, sql, request))
        }))
    }

    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        Box::pin(async move {
            let attempt = Attempt::on("settle records in", table);
            let states = settlements.iter().map(|settlement| &settlement.state);
            let checked = insert::check_reasons(states, self.packet());
            checked.map_err(|fault| self.0.pools.explain(fault, attempt))?;
            let context = (self.0.sql.table(table), settlements);
            let settle = self.work(attempt, context, |connection, (sql, settlements)| {
                Box::pin(settle::settle(connection, sql, settlements, Within::Own))
            });
            settle.await
        })
    }

    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("release a claim in", table);
        Box::pin(self.keep(attempt, (&self.0.sql, table, claim), |connection, (sql, table, claim)| {
            Box::pin(claim::release(connection, sql, *table, *claim))
        }))
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        let attempt = Attempt::on_database("ask for the next due records of");
        Box::pin(self.work(attempt, (&self.0.sql, version, lanes), |connection, (sql, version, lanes)| {
            Box::pin(claim::next_due(connection, sql, version, lanes))
        }))
    }

    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        let attempt = Attempt::on_database("register a node in");
        Box::pin(self.beat(attempt, (&self.0.sql, node, lease), |connection, (sql, node, lease)| {
            Box::pin(lease::join(connection, sql, *node, *lease))
        }))
    }

    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        let attempt = Attempt::on_database("renew a node's lease in");
        Box::pin(self.beat(attempt, (&self.0.sql, node, lease), |connection, (sql, node, lease)| {
            Box::pin(lease::heartbeat(connection, sql, *node, *lease))
        }))
    }

    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        let attempt = Attempt::on_database("take over from dead nodes in");
        Box::pin(self.keep(attempt, (&self.0.sql, dead), |connection, (sql, dead)| {
            Box::pin(lease::take_over(connection, sql, dead))
        }))
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        let attempt = Attempt::on_database("sign a node off in");
        Box::pin(self.keep(attempt, (&self.0.sql, node), |connection, (sql, node)| {
            Box::pin(lease::leave(connection, sql, *node))
        }))
    }

    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        let attempt = Attempt::on_database("take a chore from");
        Box::pin(self.work(attempt, (&self.0.sql, chore, node, term), |connection, (sql, chore, node, term)| {
            Box::pin(lease::take_chore(connection, sql, *chore, *node, *term))
        }))
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("delete expired records from", table);
        Box::pin(self.work(attempt, (self.0.sql.table(table), limit), |connection, (sql, limit)| {
            Box::pin(inspect::collect(connection, sql, *limit))
        }))
    }

    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        let context = (self.0.sql.table(table), version);
        Box::pin(self.work(Attempt::on("count", table), context, |connection, (sql, version)| {
            Box::pin(inspect::counts(connection, sql, version))
        }))
    }

    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        let context = (self.0.sql.table(table), query);
        Box::pin(self.work(Attempt::on("list", table), context, |connection, (sql, query)| {
            Box::pin(inspect::list(connection, sql, query))
        }))
    }

    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("requeue records of", table);
        let context = (self.0.sql.table(table), records, state);
        Box::pin(self.work(attempt, context, |connection, (sql, records, state)| {
            Box::pin(inspect::requeue(connection, sql, records, state))
        }))
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        let context = (self.0.sql.table(table), records);
        Box::pin(self.work(Attempt::on("delete records from", table), context, |connection, (sql, records)| {
            Box::pin(inspect::delete(connection, sql, records.clone()))
        }))
    }
}
