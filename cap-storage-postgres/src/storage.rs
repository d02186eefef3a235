//! The storage.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cap_core::backend::Attempt;
use cap_core::lifecycle::State;
use cap_core::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled, Settlement,
    Sign, Storage, StorageCapabilities, Table, TakenOver, Wake,
};
use cap_core::{BoxFuture, NodeId, RecordId, Result, Version};
use cap_storage_sqlx::Via;
use sqlx::PgPool;

use crate::config::PostgresOptions;
use crate::floor::{Floor, Floors};
use crate::policy::Policies;
use crate::pooler::{self, Peer};
use crate::session::{Pools, Work};
use crate::sql::Sql;
use crate::watch::{self, Notifier};
use crate::{claim, insert, inspect, lease, schema, sequence, settle};

/// A storage in a PostgreSQL database. A handle: cheap to clone, and any number of handles on one database, in this
/// process or in others, work together.
///
/// ```no_run
/// use cap_core::Storage;
/// use cap_storage_postgres::PostgresStorage;
///
/// # async fn example() -> cap_core::Result<()> {
/// let storage = PostgresStorage::connect("postgres://orders:secret@db.example.com/orders").await?;
/// storage.prepare().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStorage(Arc<Shared>);

struct Shared {
    pools: Arc<Pools>,
    sql: Arc<Sql>,
    migrate: bool,
    notifier: Notifier,
    /// Learnt when the tables are prepared.
    ascii_only: AtomicBool,
    floors: Floors,
    policies: Policies,
}

impl PostgresStorage {
    /// The database at `url` (`postgres://role:password@host:5432/database`) with the default options, over a pool of
    /// its own.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with).
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(PostgresOptions::new(url)).await
    }

    /// The database of `options`, over a pool of its own. Connects once, so that what is wrong shows here.
    ///
    /// # Errors
    /// - `Invalid`: an option cannot be, such as a URL that is none;
    /// - `Unavailable`: there is no such host, nothing listens at the port, or no answer came within the connect
    ///   timeout;
    /// - `Rejected`: role or password are wrong, the database is missing, or the role may not use it.
    ///
    /// None shows the password.
    pub async fn connect_with(options: PostgresOptions) -> Result<Self> {
        let storage = Self::connect_lazy(options.clone())?;
        storage.0.pools.try_connect().await?;
        storage.find_pooler().await;
        Ok(storage)
    }

    /// The same, but it connects when it is first used, which is [`prepare`](Storage::prepare) where an engine starts.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// `Invalid` when an option cannot be.
    pub fn connect_lazy(options: PostgresOptions) -> Result<Self> {
        options.check()?;
        let pools = Pools::own(options.connect_options()?, options.limits());
        Ok(Self::over(pools, &options))
    }

    /// A storage over a pool that is there already, with the default options. It does no I/O.
    ///
    /// Leases and listening use up to four connections beside the pool, made with the pool's connect options, so that
    /// a busy pool never costs a node its life.
    pub fn new(pool: PgPool) -> Self {
        let options = PostgresOptions::default();
        Self::over(Pools::over(pool, options.limits()), &options)
    }

    /// The same with options; those about the URL and the pool do not apply.
    ///
    /// # Errors
    /// `Invalid` when an option cannot be.
    pub fn with_pool(pool: PgPool, options: PostgresOptions) -> Result<Self> {
        options.check()?;
        Ok(Self::over(Pools::over(pool, options.limits()), &options))
    }

    fn over(pools: Pools, options: &PostgresOptions) -> Self {
        let pools = Arc::new(pools);
        let notifier = Notifier::new(Arc::clone(&pools), &options.schema);
        let sql = Arc::new(Sql::lent(&options.schema, pools.lent()));
        Self(Arc::new(Shared {
            pools,
            sql,
            migrate: options.migrate,
            notifier,
            ascii_only: AtomicBool::new(false),
            floors: Floors::default(),
            policies: Policies::default(),
        }))
    }

    /// The pool that it works over: your own, or the one that it made.
    pub fn pool(&self) -> &PgPool {
        self.0.pools.work()
    }

    pub(crate) fn sql(&self) -> &Arc<Sql> {
        &self.0.sql
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.0.pools
    }

    pub(crate) fn notifier(&self) -> &Notifier {
        &self.0.notifier
    }

    async fn work<C, T>(&self, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        self.0.pools.run(Via::Work, attempt, context, work).await
    }

    async fn keep<C, T>(&self, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        self.0.pools.run(Via::Keepers, attempt, context, work).await
    }

    async fn beat<C, T>(&self, attempt: Attempt, context: C, work: Work<C, T>) -> Result<T> {
        self.0.pools.run(Via::Pulse, attempt, context, work).await
    }

    /// Finds out who answers. Whoever cannot connect is told so by what comes next.
    async fn find_pooler(&self) {
        let pools = &self.0.pools;
        if pools.is_lent() {
            return;
        }
        match pooler::peer(&pools.connect_options()).await {
            Peer::Server => pools.mark(),
            Peer::Lender => pools.lend(),
            Peer::Like => {}
        }
    }

    /// Brings the sequence of a table's addresses up to the table, over a connection of the storage's own.
    pub(crate) async fn catch_up(&self, table: Table) -> Result<()> {
        let attempt = Attempt::on("set the sequence of the addresses of", table);
        let catch_up = self.keep(attempt, (&self.0.sql, table), |connection, (sql, table)| {
            Box::pin(sequence::catch_up(connection, sql, *table))
        });
        // Apart, so that the futures of what comes to it are not too deep for the compiler.
        Box::pin(catch_up).await
    }

    /// Where a relay would see nothing of what is stored, since somebody made a policy, it says so.
    async fn look_for_policies(&self) -> Result<()> {
        let Shared { policies, sql, .. } = &*self.0;
        if !policies.is_time() {
            return Ok(());
        }
        let attempt = Attempt::on_database("look for row level security in");
        let look =
            self.work(attempt, (policies, sql), |connection, (policies, sql)| Box::pin(policies.look(connection, sql)));
        look.await
    }

    /// Tells others of records that are due again.
    fn tell_of(&self, outbox: u64, inbox: u64) {
        for (table, number) in [(Table::Outbox, outbox), (Table::Inbox, inbox)] {
            if number > 0 {
                self.0.notifier.tell(table);
            }
        }
    }
}

impl fmt::Debug for PostgresStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = &self.0.sql.names.plain;
        f.debug_struct("PostgresStorage").field("place", &self.0.pools.place()).field("schema", schema).finish()
    }
}

impl Storage for PostgresStorage {
    fn describe(&self) -> String {
        format!("{} schema {}", self.0.pools.place(), self.0.sql.names.plain)
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: true,
            shared: true,
            enlists: true,
            transactional_handlers: true,
            savepoints: true,
            watches: true,
            host_clock: false,
            max_content: None,
            ascii_only: self.0.ascii_only.load(Ordering::Relaxed),
        }
    }

    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Shared { pools, sql, migrate, ascii_only, policies, .. } = &*self.0;
            let attempt = Attempt::on_database("prepare the tables of");
            self.find_pooler().await;
            let prepare =
                pools.run_unlimited(attempt, (sql, migrate, policies), |connection, (sql, migrate, policies)| {
                    Box::pin(async move {
                        if **migrate {
                            schema::apply(connection, sql).await?;
                        } else {
                            schema::check(connection, sql).await?;
                        }
                        for table in [Table::Outbox, Table::Inbox] {
                            sequence::catch_up(connection, sql, table).await?;
                        }
                        policies.look(connection, sql).await?;
                        schema::is_ascii_only(connection).await
                    })
                });
            ascii_only.store(prepare.await?, Ordering::Relaxed);
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
            insert::check(table, &records, claim).map_err(|fault| self.0.pools.explain(fault, attempt))?;
            let sql = &self.0.sql;
            let waits = records.iter().any(|record| record.state.due().is_some());
            let insert =
                self.work(attempt, (sql, table, records, claim), |connection, (sql, table, records, claim)| {
                    Box::pin(insert::insert(connection, sql, *table, records, *claim))
                });
            let inserted = insert.await?;
            if waits {
                self.0.notifier.tell(table);
            }
            Ok(inserted)
        })
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        Box::pin(async move {
            let attempt = Attempt::on("claim from", request.lane.table());
            let floor = self.0.floors.of(&request.lane, &request.version, &request.except, Instant::now());
            let context = (&self.0.sql, &request, floor.map(|floor| floor.due));
            let claim = self.work(attempt, context, |connection, (sql, request, floor)| {
                Box::pin(async move {
                    let begun = Instant::now();
                    let (claimed, asked) = claim::claim(connection, sql, request, *floor).await?;
                    Ok((claimed, asked, begun.elapsed()))
                })
            });
            let (claimed, asked, took) = claim.await?;
            match floor {
                Some(floor) => Ok(floor.answer(claimed, request.limit, Instant::now())),
                None => {
                    self.0.floors.learn(&request, &claimed, asked, took, Instant::now());
                    Ok(claimed)
                }
            }
        })
    }

    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        let context = (self.0.sql.table(table), settlements);
        Box::pin(self.work(Attempt::on("settle records in", table), context, |connection, (sql, settlements)| {
            Box::pin(settle::settle(connection, sql, settlements))
        }))
    }

    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let attempt = Attempt::on("release a claim in", table);
            // Each in a transaction of its own.
            let lock = self.keep(attempt, (&self.0.sql, claim.node), |connection, (sql, node)| {
                Box::pin(claim::lock_node(connection, sql, *node))
            });
            lock.await?;
            let release = self.keep(attempt, (self.0.sql.table(table), claim), |connection, (sql, claim)| {
                Box::pin(claim::release(connection, sql, *claim))
            });
            release.await
        })
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        let attempt = Attempt::on_database("ask for the next due records of");
        Box::pin(async move {
            let now = Instant::now();
            let floors: Vec<_> = lanes.iter().map(|lane| self.0.floors.of(lane, &version, &[], now)).collect();
            let dues: Vec<_> = floors.iter().map(|floor| floor.map(|floor| floor.due)).collect();
            let context = (&self.0.sql, version, lanes, dues);
            let waits = self.work(attempt, context, |connection, (sql, version, lanes, dues)| {
                Box::pin(claim::next_due(connection, sql, version, lanes, dues))
            });
            let answer = |(wait, floor): (Option<Duration>, Option<Floor>)| match floor {
                Some(floor) => Some(floor.wait(wait, now)),
                None => wait,
            };
            let waits = waits.await?;
            self.look_for_policies().await?;
            Ok(waits.into_iter().zip(floors).map(answer).collect())
        })
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
        Box::pin(async move {
            let attempt = Attempt::on_database("take over from dead nodes in");
            let take = self.keep(attempt, (&self.0.sql, dead), |connection, (sql, dead)| {
                Box::pin(lease::take_over(connection, sql, dead))
            });
            let taken = take.await?;
            self.tell_of(taken.outbox, taken.inbox);
            Ok(taken)
        })
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let attempt = Attempt::on_database("sign a node off in");
            let leave = self.keep(attempt, (&self.0.sql, node), |connection, (sql, node)| {
                Box::pin(lease::leave(connection, sql, *node))
            });
            let (outbox, inbox) = leave.await?;
            self.tell_of(outbox, inbox);
            Ok(())
        })
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
        Box::pin(async move {
            let attempt = Attempt::on("requeue records of", table);
            let context = (self.0.sql.table(table), records, state);
            let requeue = self.work(attempt, context, |connection, (sql, records, state)| {
                Box::pin(inspect::requeue(connection, sql, records, state))
            });
            let changed = requeue.await?;
            if changed > 0 {
                self.0.notifier.tell(table);
            }
            Ok(changed)
        })
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        let context = (self.0.sql.table(table), records);
        Box::pin(self.work(Attempt::on("delete records from", table), context, |connection, (sql, records)| {
            Box::pin(inspect::delete(connection, sql, records))
        }))
    }

    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        Box::pin(watch::watch(self.clone(), wake))
    }
}
