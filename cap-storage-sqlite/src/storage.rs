//! The storage.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::Attempt;
use cap_core::lifecycle::State;
use cap_core::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled, Settlement,
    Sign, Storage, StorageCapabilities, Table, TakenOver, Wake,
};
use cap_core::{BoxFuture, NodeId, RecordId, Result, Timestamp, Version};

use crate::config::SqliteOptions;
use crate::job::{Bench, Queue};
use crate::row::RANGE;
use crate::session::{Role, Session};
use crate::sql::Sql;
use crate::watch::Watcher;
use crate::{claim, insert, inspect, lease, reader, schema, settle, writer};

/// A storage in a SQLite file. A handle: cheap to clone, and two handles on one file, in this process or in others,
/// work together.
///
/// ```
/// use cap_core::Storage;
/// use cap_storage_sqlite::SqliteStorage;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("orders.db");
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let storage = SqliteStorage::open(path)?;
/// storage.prepare().await?;
/// # cap_core::Result::<()>::Ok(())
/// # })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStorage(Arc<Shared>);

struct Shared {
    bench: Bench,
    writer: Queue,
    reader: Queue,
}

impl SqliteStorage {
    /// The file at `path` with the default options.
    ///
    /// # Errors
    /// As [`with_options`](Self::with_options).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::with_options(SqliteOptions::new(path.as_ref()))
    }

    /// A handle with two threads, one that writes and one that reads. It does not touch the file yet, so it neither
    /// blocks nor needs a runtime: the file is opened by the first call, which is [`prepare`](Storage::prepare) where an
    /// engine starts. It is created when it is not there, and its write-ahead log is turned on. When it is deleted or
    /// replaced afterwards, calls fail with `Environment` until a file is there again, and nothing is made in its place.
    ///
    /// A file that cannot be opened is an error of that call, and is tried again by the next one:
    /// - `Environment`: the directory is missing, this process may not open or write the file, or it is no SQLite
    ///   database;
    /// - `Unavailable`: others kept the file locked for longer than the busy timeout.
    ///
    /// # Errors
    /// `Invalid` when an option cannot be, such as the path `:memory:`.
    pub fn with_options(options: SqliteOptions) -> Result<Self> {
        options.check()?;
        let bench = Bench::new(options);
        let writer = Queue::start("cap-sqlite-writer", bench.clone(), Role::Writer, writer::run)?;
        let reader = Queue::start("cap-sqlite-reader", bench.clone(), Role::Reader, reader::run)?;
        Ok(Self(Arc::new(Shared { bench, writer, reader })))
    }

    /// The options that it was made with.
    pub fn options(&self) -> &SqliteOptions {
        &self.0.bench.options
    }

    pub(crate) fn sql(&self) -> &Sql {
        &self.0.bench.sql
    }

    pub(crate) fn writer(&self) -> &Queue {
        &self.0.writer
    }

    /// A heartbeat that the database answers.
    async fn renew(&self, node: NodeId, span: i64) -> Result<Lease> {
        let attempt = Attempt::on_database("renew a node's lease in");
        let renewed = self.0.writer.run(attempt, move |session| lease::heartbeat(session, node, span));
        let leases = &self.0.bench.leases;
        let Some((until, now, others)) = renewed.await? else {
            leases.ended(node);
            return Ok(Lease::Lost);
        };
        leases.granted(node, until, span);
        leases.saw(&others);
        Ok(Lease::Held { now: Timestamp::from_micros(now), others })
    }
}

impl fmt::Debug for SqliteStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqliteStorage").field(&self.0.bench.options).finish()
    }
}

impl Storage for SqliteStorage {
    fn describe(&self) -> String {
        self.0.bench.place.to_string()
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: true,
            shared: true,
            enlists: true,
            transactional_handlers: true,
            savepoints: true,
            watches: true,
            host_clock: true,
            max_content: None,
            ascii_only: false,
        }
    }

    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        let migrate = self.0.bench.options.migrate;
        let attempt = Attempt::on_database("prepare the tables of");
        Box::pin(self.0.writer.run(attempt, move |session| {
            let Session { connection, sql, .. } = *session;
            if migrate { schema::apply(connection, sql) } else { schema::check(connection, sql) }
        }))
    }

    fn insert(
        &self,
        table: Table,
        records: Vec<NewRecord>,
        claim: Option<Claim>,
    ) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        let attempt = Attempt::on("insert into", table);
        Box::pin(self.0.writer.run(attempt, move |session| insert::insert(session, table, &records, claim)))
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        let (attempt, asked) = (Attempt::on("claim from", request.lane.table()), request.clone());
        Box::pin(self.0.writer.run_if(
            attempt,
            move |session| claim::nothing_due(session, &asked),
            move |session| claim::claim(session, &request),
        ))
    }

    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        Box::pin(self.0.writer.run(Attempt::on("settle records in", table), move |session| {
            settle::settle(session.statement(&session.sql.table(table).settle)?, &settlements)
        }))
    }

    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("release a claim in", table);
        Box::pin(self.0.writer.run(attempt, move |session| claim::release(session, table, claim)))
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        let attempt = Attempt::on_database("ask for the next due records of");
        Box::pin(self.0.reader.run(attempt, move |session| claim::next_due(session, &version, &lanes, &[])))
    }

    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let (attempt, span) = (Attempt::on_database("register a node in"), RANGE.span(lease));
            let joined = self.0.writer.run(attempt, move |session| lease::join(session, node, span));
            self.0.bench.leases.granted(node, joined.await?, span);
            Ok(())
        })
    }

    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        let span = RANGE.span(lease);
        Box::pin(async move {
            tokio::select! {
                biased;
                held = self.0.bench.leases.promise(node, span) => Ok(held),
                renewed = self.renew(node, span) => renewed,
            }
        })
    }

    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        let attempt = Attempt::on_database("take over from dead nodes in");
        Box::pin(self.0.writer.run(attempt, move |session| lease::take_over(session, &dead)))
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        self.0.bench.leases.ended(node);
        let attempt = Attempt::on_database("sign a node off in");
        Box::pin(self.0.writer.run(attempt, move |session| lease::leave(session, node)))
    }

    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        let attempt = Attempt::on_database("take a chore from");
        Box::pin(self.0.writer.run(attempt, move |session| lease::take_chore(session, chore, node, term)))
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("delete expired records from", table);
        Box::pin(self.0.writer.run(attempt, move |session| inspect::collect(session, table, limit)))
    }

    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        let attempt = Attempt::on("count", table);
        Box::pin(self.0.reader.run(attempt, move |session| inspect::counts(session, table, &version)))
    }

    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        let attempt = Attempt::on("list", table);
        Box::pin(self.0.reader.run(attempt, move |session| inspect::list(session, table, &query)))
    }

    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("requeue records of", table);
        Box::pin(self.0.writer.run(attempt, move |session| inspect::requeue(session, table, &records, &state)))
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        let attempt = Attempt::on("delete records from", table);
        let addresses = records.into_iter().map(|record| record.0);
        Box::pin(self.0.writer.run(attempt, move |session| inspect::delete(session, table, addresses)))
    }

    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Watcher::start(self.0.bench.options.clone(), wake)?.failed().await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_end_with_the_last_handle() {
        let directory = tempfile::tempdir().unwrap();
        let storage = SqliteStorage::open(directory.path().join("a.db")).unwrap();
        let held_by_the_threads = Arc::downgrade(&storage.0.bench.sql);
        let other = storage.clone();
        drop(storage);
        assert_eq!(held_by_the_threads.strong_count(), 3);
        drop(other);
        while held_by_the_threads.strong_count() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_handle_describes_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let storage = SqliteStorage::open(&path).unwrap();
        assert_eq!(storage.describe(), format!("sqlite {}", path.display()));
        assert!(format!("{storage:?}").contains("a.db"));
    }
}
