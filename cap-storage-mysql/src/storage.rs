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
use cap_core::{BoxFuture, NodeId, RecordId, Result, Status, Version};
use cap_storage_sqlx::{Fallible, Via};
use sqlx::{MySqlConnection, MySqlPool};

use crate::config::MySqlOptions;
use crate::insert::Packet;
use crate::schema;
use crate::script::{Script, bytes, list, number, text};
use crate::session::{Pools, Work};
use crate::settle::Within;
use crate::sql::{self, BEGIN, LIST, Sql, Statement, TableSql};
use crate::{claim, insert, record, settle};

/// How long to wait before each look at what a dead node holds.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(20)];

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
            Box::pin(release(connection, sql, *table, *claim))
        }))
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        let attempt = Attempt::on_database("ask for the next due records of");
        Box::pin(self.work(attempt, (&self.0.sql, version, lanes), |connection, (sql, version, lanes)| {
            Box::pin(claim::waits(connection, sql, version, lanes))
        }))
    }

    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        let attempt = Attempt::on_database("register a node in");
        Box::pin(self.beat(attempt, (&self.0.sql, node, lease), |connection, (sql, node, lease)| {
            Box::pin(async move {
                let lease = number(Some(record::RANGE.span(*lease)));
                let values = [("node", &*record::literal(*node)), ("lease", &lease)];
                Script::begin().then(&sql.join, &values).commit().run(connection).await?;
                Ok(())
            })
        }))
    }

    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        let attempt = Attempt::on_database("renew a node's lease in");
        Box::pin(self.beat(attempt, (&self.0.sql, node, lease), |connection, (sql, node, lease)| {
            Box::pin(heartbeat(connection, sql, *node, *lease))
        }))
    }

    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        let attempt = Attempt::on_database("take over from dead nodes in");
        Box::pin(
            self.keep(attempt, (&self.0.sql, dead), |connection, (sql, dead)| {
                Box::pin(take_over(connection, sql, dead))
            }),
        )
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        let attempt = Attempt::on_database("sign a node off in");
        Box::pin(
            self.keep(attempt, (&self.0.sql, node), |connection, (sql, node)| Box::pin(leave(connection, sql, *node))),
        )
    }

    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        let attempt = Attempt::on_database("take a chore from");
        Box::pin(self.work(attempt, (&self.0.sql, chore, node, term), |connection, (sql, chore, node, term)| {
            Box::pin(take_chore(connection, sql, *chore, *node, *term))
        }))
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("delete expired records from", table);
        Box::pin(self.work(attempt, (self.0.sql.table(table), limit), |connection, (sql, limit)| {
            Box::pin(collect(connection, sql, *limit))
        }))
    }

    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        let context = (&self.0.sql.table(table).counts, version);
        Box::pin(self.work(Attempt::on("count", table), context, |connection, (statement, version)| {
            Box::pin(counts(connection, statement, version))
        }))
    }

    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        let context = (self.0.sql.table(table), query);
        Box::pin(self.work(Attempt::on("list", table), context, |connection, (sql, query)| {
            Box::pin(record::list(connection, sql, query))
        }))
    }

    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("requeue records of", table);
        let context = (&self.0.sql.table(table).requeue, records, state);
        Box::pin(self.work(attempt, context, |connection, (statement, records, state)| {
            Box::pin(record::requeue(connection, statement, records, state))
        }))
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        let context = (&self.0.sql.table(table).delete, records);
        Box::pin(self.work(Attempt::on("delete records from", table), context, |connection, (statement, records)| {
            Box::pin(record::delete(connection, Script::begin(), statement, records.clone()))
        }))
    }
}

async fn release(connection: &mut MySqlConnection, sql: &Sql, table: Table, claim: Claim) -> Fallible<u64> {
    let (node, token) = (record::literal(claim.node), bytes(claim.token.0.as_bytes()));
    let table = sql.table(table);
    let script = Script::begin().then(&sql.lock_node, &[("node", &node)]).commit().plain(BEGIN);
    let held = script.then(&table.held_under_token, &[("node", &node), ("token", &token)]).run(connection).await?;
    let held = record::ids(held.last().map(std::slice::from_ref).unwrap_or_default())?;
    let mut script = Script::default();
    for ids in held.chunks(LIST) {
        script = script.then(&table.give_back, &[("node", &node), ("ids", &record::addresses(ids))]);
    }
    Ok(record::affected(&script.commit().run(connection).await?))
}

async fn heartbeat(connection: &mut MySqlConnection, sql: &Sql, node: NodeId, lease: Duration) -> Fallible<Lease> {
    let (own, lease) = (record::literal(node), number(Some(record::RANGE.span(lease))));
    let script = Script::begin().then(&sql.heartbeat, &[("node", &own), ("lease", &lease)]);
    let answers = script.then(&sql.signs, &[]).commit().run(connection).await?;
    let [.., renewed, signs, _commit] = &answers[..] else { return Err(record::out_of_step()) };
    if renewed.affected == 0 {
        return Ok(Lease::Lost);
    }
    record::lease(signs, node)
}

async fn take_over(connection: &mut MySqlConnection, sql: &Sql, dead: &[Sign]) -> Fallible<TakenOver> {
    // First the nodes: those that are left live on, and the dead claim nothing more.
    let nodes = forget_dead(connection, sql, dead).await?;
    let outbox = take_from_dead(connection, &sql.published).await?;
    let inbox = take_from_dead(connection, &sql.received).await?;
    Script::default().commit().run(connection).await?;
    Ok(TakenOver { nodes, outbox, inbox })
}

/// Begins a transaction, and forgets in it those of these nodes that have given no other sign of life.
async fn forget_dead(connection: &mut MySqlConnection, sql: &Sql, dead: &[Sign]) -> Fallible<Vec<NodeId>> {
    if dead.is_empty() {
        Script::begin().run(connection).await?;
        return Ok(Vec::new());
    }
    let signs =
        dead.iter().map(|sign| format!("({}, {})", record::literal(sign.node), sql::at(sign.until.as_micros())));
    let signs = signs.collect::<Vec<_>>().join(", ");
    let found = Script::begin().then(&sql.dead_nodes, &[("signs", &signs)]).run(connection).await?;
    let mut nodes = Vec::new();
    for row in found.iter().flat_map(|answer| &answer.rows) {
        nodes.extend(record::uuid(row, 0)?.map(NodeId));
    }
    if !nodes.is_empty() {
        let gone = list(nodes.iter().map(|node| record::literal(*node)));
        Script::default().then(&sql.forget, &[("nodes_gone", &gone)]).run(connection).await?;
    }
    Ok(nodes)
}

/// The dead are named first, so that a record which a live node claims meanwhile is no longer theirs when its turn
/// comes.
async fn take_from_dead(connection: &mut MySqlConnection, sql: &TableSql) -> Fallible<u64> {
    let dead = Script::default().then(&sql.dead_owners, &[]).run(connection).await?;
    let mut owners = Vec::new();
    for row in dead.iter().flat_map(|answer| &answer.rows) {
        owners.extend(record::uuid(row, 0)?.map(|owner| bytes(owner.as_bytes())));
    }
    if owners.is_empty() {
        return Ok(0);
    }
    let owners = list(owners.into_iter());
    let held = Script::default().then(&sql.held_by_dead, &[("owners", &owners)]).run(connection).await?;
    let mut taken = 0;
    for ids in record::ids(&held)?.chunks(LIST) {
        taken += take(connection, sql, &sql.take_over, &owners, ids.to_vec()).await?;
    }
    Ok(taken)
}

/// Takes these records from their owners, but for what stays locked. A claim that passes by locks a record for a moment, and a handler for as
/// long as it works: what it has is left for the next takeover, so that nobody waits for it here.
async fn take(
    connection: &mut MySqlConnection,
    sql: &TableSql,
    statement: &Statement,
    owners: &str,
    mut records: Vec<RecordId>,
) -> Fallible<u64> {
    let mut taken = 0;
    for pause in LOOKS {
        tokio::time::sleep(pause).await;
        let ids = record::addresses(&records);
        let script = Script::default().then(&sql.lock_held_by, &[("owners", owners), ("ids", &ids)]);
        let locked = record::ids(&script.run(connection).await?)?;
        if !locked.is_empty() {
            // A node that leaves is its own heir, and named once more.
            let values = [("ids", &*record::addresses(&locked)), ("node", owners)];
            let script = Script::default().then(statement, &values);
            taken += record::affected(&script.run(connection).await?);
        }
        records.retain(|record| !locked.contains(record));
        if records.is_empty() {
            break;
        }
    }
    Ok(taken)
}

async fn leave(connection: &mut MySqlConnection, sql: &Sql, node: NodeId) -> Fallible<()> {
    let node = record::literal(node);
    Script::begin().then(&sql.forget, &[("nodes_gone", &node)]).run(connection).await?;
    for table in [&sql.published, &sql.received] {
        let held = Script::default().then(&table.held_by_node, &[("node", &node)]).run(connection).await?;
        for ids in record::ids(&held)?.chunks(LIST) {
            take(connection, table, &table.give_back, &node, ids.to_vec()).await?;
        }
    }
    Script::default().commit().run(connection).await?;
    Ok(())
}

async fn take_chore(
    connection: &mut MySqlConnection,
    sql: &Sql,
    chore: Chore,
    node: NodeId,
    term: Duration,
) -> Fallible<bool> {
    let owner = record::literal(node);
    let (chore, term) = (bytes(chore.as_str().as_bytes()), number(Some(record::RANGE.span(term))));
    let lease = Script::begin().then(&sql.lock_lease, &[("node", &owner)]).run(connection).await?;
    if lease.last().is_none_or(|lease| lease.rows.is_empty()) {
        return Err(record::lease_lost(node));
    }
    let values = [("chore", &*chore), ("node", &owner), ("term", &term)];
    let script = Script::default().then(&sql.know_chore, &values).then(&sql.take_chore, &values).commit();
    let answers = script.run(connection).await?;
    let [.., taken, _commit] = &answers[..] else { return Err(record::out_of_step()) };
    Ok(taken.affected > 0)
}

async fn collect(connection: &mut MySqlConnection, sql: &TableSql, limit: usize) -> Fallible<u64> {
    let expired = Script::begin().then(&sql.expired, &[("limit", &record::limit(limit))]).run(connection).await?;
    record::delete(connection, Script::default(), &sql.collect, record::ids(&expired)?).await
}

async fn counts(connection: &mut MySqlConnection, statement: &Statement, version: &Version) -> Fallible<Counts> {
    let version = text(Some(version.as_str()));
    let script = Script::begin_reading().then(statement, &[("version", &version)]).commit();
    let mut counts = Counts::default();
    for row in script.run(connection).await?.iter().flat_map(|answer| &answer.rows) {
        let status = record::octets(row, 0)?.map(String::from_utf8_lossy).unwrap_or_default();
        if let Ok(status) = status.parse::<Status>() {
            counts.add(status, record::integer(row, 1)? != 0, record::integer(row, 2)?.unsigned_abs());
        }
    }
    Ok(counts)
}
