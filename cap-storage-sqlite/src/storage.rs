//! The storage.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::{Attempt, Times};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, Lease, NewRecord, Query, Record, Settled, Settlement,
    Sign, Storage, StorageCapabilities, Table, TakenOver, Wake,
};
use cap_core::{BoxFuture, ErrorKind, NodeId, RecordId, Result, Timestamp, Topic, Version};
use rusqlite::{OptionalExtension, params};

use crate::config::SqliteOptions;
use crate::error::{Fallible, Fault};
use crate::job::{Bench, Queue};
use crate::session::{Role, Session};
use crate::sql::Sql;
use crate::watch::Watcher;
use crate::{reader, record, schema, writer};

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
        let renewed = self.0.writer.run(Attempt::on_database("renew a node's lease in"), move |session| {
            let text = node.to_string();
            let renew = session.statement(&session.sql.heartbeat)?;
            let renewed = renew.query_row(params![text, span], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let Some((until, now)) = renewed else { return Ok(None) };
            let signs = session.statement(&session.sql.signs)?;
            let others = signs.query_map([text], read_sign)?.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(Some((until, now, others.into_iter().flatten().collect::<Vec<_>>())))
        });
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
        Box::pin(self.0.writer.run(Attempt::on("insert into", table), move |session| {
            let holder = match claim {
                Some(claim) => Some(holder(session, claim)?),
                None => None,
            };
            let holder = holder.as_ref().map(|(owner, token)| (owner.as_str(), token.as_str()));
            let Session { connection, sql, .. } = *session;
            record::insert(connection, session.statement(&sql.table(table).insert)?, table, &records, holder)
        }))
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claimed>> {
        let (attempt, asked) = (Attempt::on("claim from", request.lane.table()), request.clone());
        Box::pin(self.0.writer.run_if(
            attempt,
            move |session| nothing_due(session, &asked),
            move |session| {
                let (owner, token) = holder(session, request.claim)?;
                let (mut records, cut) = due(session, &request)?;
                let hold = session.statement(&session.sql.table(request.lane.table()).hold)?;
                for record in &mut records {
                    hold.execute(params![record.id.0, owner, token])?;
                    record.status = Status::Queued;
                    record.attempts = record.attempts.saturating_add(1);
                    record.owner = Some(request.claim.node);
                    (record.due, record.expires) = (None, None);
                }
                if records.len() >= request.limit {
                    return Ok(Claimed { records, next_due: None });
                }
                let next_due = if cut { Some(Duration::ZERO) } else { next_due(session, &request)? };
                Ok(Claimed { records, next_due })
            },
        ))
    }

    fn settle(&self, table: Table, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<Settled>>> {
        Box::pin(self.0.writer.run(Attempt::on("settle records in", table), move |session| {
            record::settle(session.statement(&session.sql.table(table).settle)?, &settlements)
        }))
    }

    fn release(&self, table: Table, claim: Claim) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.0.writer.run(Attempt::on("release a claim in", table), move |session| {
            let release = session.statement(&session.sql.table(table).release)?;
            Ok(release.execute(params![claim.node.to_string(), claim.token.to_string()])? as u64)
        }))
    }

    fn next_due(&self, version: Version, lanes: Vec<Lane>) -> BoxFuture<'_, Result<Vec<Option<Duration>>>> {
        let attempt = Attempt::on_database("ask for the next due records of");
        Box::pin(self.0.reader.run(attempt, move |session| waits(session, &version, &lanes, &[])))
    }

    fn join(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let span = record::RANGE.span(lease);
            let joined = self.0.writer.run(Attempt::on_database("register a node in"), move |session| {
                let join = session.statement(&session.sql.join)?;
                Ok(join.query_row(params![node.to_string(), span], |row| row.get(0))?)
            });
            self.0.bench.leases.granted(node, joined.await?, span);
            Ok(())
        })
    }

    fn heartbeat(&self, node: NodeId, lease: Duration) -> BoxFuture<'_, Result<Lease>> {
        let span = record::RANGE.span(lease);
        Box::pin(async move {
            tokio::select! {
                biased;
                held = self.0.bench.leases.promise(node, span) => Ok(held),
                renewed = self.renew(node, span) => renewed,
            }
        })
    }

    fn take_over(&self, dead: Vec<Sign>) -> BoxFuture<'_, Result<TakenOver>> {
        Box::pin(self.0.writer.run(Attempt::on_database("take over from dead nodes in"), move |session| {
            let sql = session.sql;
            // First the nodes: those that are left live on, at this one moment, for both tables.
            let mut nodes = Vec::new();
            for Sign { node, until } in &dead {
                let forget = session.statement(&sql.forget_dead)?;
                if forget.execute(params![node.to_string(), until.as_micros()])? > 0 {
                    nodes.push(*node);
                }
            }
            session.execute(&sql.free_chores)?;
            Ok(TakenOver {
                nodes,
                outbox: session.execute(&sql.published.take_over)? as u64,
                inbox: session.execute(&sql.received.take_over)? as u64,
            })
        }))
    }

    fn leave(&self, node: NodeId) -> BoxFuture<'_, Result<()>> {
        self.0.bench.leases.ended(node);
        Box::pin(self.0.writer.run(Attempt::on_database("sign a node off in"), move |session| {
            let node = node.to_string();
            for statement in [&session.sql.forget, &session.sql.published.give_back, &session.sql.received.give_back] {
                session.statement(statement)?.execute([&node])?;
            }
            session.execute(&session.sql.free_chores)?;
            Ok(())
        }))
    }

    fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> BoxFuture<'_, Result<bool>> {
        Box::pin(self.0.writer.run(Attempt::on_database("take a chore from"), move |session| {
            let node = registered(session, node)?;
            let take = session.statement(&session.sql.take_chore)?;
            Ok(take.execute(params![chore.as_str(), node, record::RANGE.span(term)])? > 0)
        }))
    }

    fn collect(&self, table: Table, limit: usize) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.0.writer.run(Attempt::on("delete expired records from", table), move |session| {
            let sql = session.sql.table(table);
            let expired = session.statement(&sql.expired)?.query_map([record::limit(limit)], |row| row.get(0))?;
            let expired = expired.collect::<rusqlite::Result<Vec<i64>>>()?;
            delete(session, table, expired)
        }))
    }

    fn counts(&self, table: Table, version: Version) -> BoxFuture<'_, Result<Counts>> {
        Box::pin(self.0.reader.run(Attempt::on("count", table), move |session| {
            let mut counts = Counts::default();
            let mut rows = session.statement(&session.sql.table(table).counts)?.query([version.as_str()])?;
            while let Some(row) = rows.next()? {
                let (status, idle, number): (String, bool, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                if let Ok(status) = status.parse() {
                    counts.add(status, idle, number.unsigned_abs());
                }
            }
            Ok(counts)
        }))
    }

    fn list(&self, table: Table, query: Query) -> BoxFuture<'_, Result<Vec<Record>>> {
        Box::pin(self.0.reader.run(Attempt::on("list", table), move |session| {
            let sql = session.sql.table(table);
            let statement = if query.message_id.is_some() { &sql.find } else { &sql.list };
            Ok(record::list(session.statement(statement)?, &query)?)
        }))
    }

    fn requeue(&self, table: Table, records: Vec<RecordId>, state: State) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.0.writer.run(Attempt::on("requeue records of", table), move |session| {
            let requeue = session.statement(&session.sql.table(table).requeue)?;
            let Times { due_at, due_in, expires_in } = Times::of(&state, &record::RANGE);
            let (status, attempts, crashes) = (state.status().as_str(), state.attempts(), state.crashes());
            let mut changed = 0;
            for id in records {
                changed += requeue.execute(params![
                    id.0,
                    status,
                    attempts,
                    due_at,
                    due_in,
                    expires_in,
                    state.reason(),
                    crashes
                ])?;
            }
            Ok(changed as u64)
        }))
    }

    fn delete(&self, table: Table, records: Vec<RecordId>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.0.writer.run(Attempt::on("delete records from", table), move |session| {
            delete(session, table, records.into_iter().map(|record| record.0))
        }))
    }

    fn watch(&self, wake: Wake) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Watcher::start(self.0.bench.options.clone(), wake)?.failed().await })
    }
}

/// The columns of a record that `claim` holds, if its node may claim.
fn holder(session: &mut Session<'_>, claim: Claim) -> Fallible<(String, String)> {
    Ok((registered(session, claim.node)?, claim.token.to_string()))
}

/// The node as a column holds it, if it is registered.
fn registered(session: &mut Session<'_>, node: NodeId) -> Fallible<String> {
    let node = node.to_string();
    let known: i64 = session.statement(&session.sql.is_registered)?.query_row([&node], |row| row.get(0))?;
    if known == 0 {
        let reason = format!("node {node} is not registered: it was taken over from, or it never joined");
        return Err(Fault::said(ErrorKind::LeaseLost, reason));
    }
    Ok(node)
}

/// The answer to a claim of a lane in which nothing is due.
fn nothing_due(session: &mut Session<'_>, request: &ClaimRequest) -> Fallible<Option<Claimed>> {
    registered(session, request.claim.node)?;
    Ok(match next_due(session, request)? {
        Some(Duration::ZERO) => None,
        next_due => Some(Claimed { records: Vec::new(), next_due }),
    })
}

/// The due records that a claim takes, earliest first, as they are stored; and whether there are more of them, for which
/// it has no room.
fn due(session: &mut Session<'_>, request: &ClaimRequest) -> Fallible<(Vec<Record>, bool)> {
    let statement = session.statement(&session.sql.table(request.lane.table()).due)?;
    let (version, limit) = (request.version.as_str(), record::limit(request.limit));
    let except = excepted(&request.except)?;
    let mut rows = match &request.lane {
        Lane::Outbox => statement.query(params![version, limit, except])?,
        Lane::Inbox(group) => statement.query(params![version, limit, except, group.as_str(), false])?,
        Lane::Suspects(group) => statement.query(params![version, limit, except, group.as_str(), true])?,
    };
    let (mut records, mut room) = (Vec::new(), request.bytes);
    while let Some(row) = rows.next()? {
        let size = record::size(row)?;
        if size > room && !records.is_empty() {
            return Ok((records, true));
        }
        room = room.saturating_sub(size);
        records.push(record::read(row)?);
    }
    Ok((records, false))
}

/// In how long the next record that a claim would take is due.
fn next_due(session: &mut Session<'_>, request: &ClaimRequest) -> Fallible<Option<Duration>> {
    let lanes = std::slice::from_ref(&request.lane);
    Ok(waits(session, &request.version, lanes, &request.except)?.pop().flatten())
}

/// Deletes the records at these addresses that nobody holds; answers how many.
fn delete(session: &mut Session<'_>, table: Table, addresses: impl IntoIterator<Item = i64>) -> Fallible<u64> {
    let delete = session.statement(&session.sql.table(table).delete)?;
    let mut deleted = 0;
    for address in addresses {
        deleted += delete.execute([address])? as u64;
    }
    Ok(deleted)
}

/// In how long the next waiting record of each lane is due, without those of some topics.
fn waits(
    session: &mut Session<'_>,
    version: &Version,
    lanes: &[Lane],
    except: &[Topic],
) -> Fallible<Vec<Option<Duration>>> {
    let lanes = json(&lanes.iter().map(lane_in_json).collect::<Vec<_>>())?;
    let statement = session.statement(&session.sql.next_due)?;
    let waits = statement.query_map(params![version.as_str(), lanes, excepted(except)?], read_wait)?;
    Ok(waits.collect::<rusqlite::Result<_>>()?)
}

/// A lane as the statement knows it: the group, and whether its suspects are meant.
fn lane_in_json(lane: &Lane) -> Option<(&str, u8)> {
    match lane {
        Lane::Outbox => None,
        Lane::Inbox(group) => Some((group.as_str(), 0)),
        Lane::Suspects(group) => Some((group.as_str(), 1)),
    }
}

/// The topics that are left alone, as the statements know them.
fn excepted(except: &[Topic]) -> Fallible<Option<String>> {
    if except.is_empty() {
        return Ok(None);
    }
    json(&except.iter().map(Topic::as_str).collect::<Vec<_>>()).map(Some)
}

fn json<T: serde::Serialize>(value: &T) -> Fallible<String> {
    serde_json::to_string(value).map_err(|error| Fault::said(ErrorKind::Internal, error.to_string()))
}

/// From a moment, if there is one, and the present time: how long it is until then.
fn read_sign(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Sign>> {
    let (node, until): (String, i64) = (row.get(0)?, row.get(1)?);
    Ok(record::node(&node).map(|node| Sign { node, until: Timestamp::from_micros(until) }))
}

fn read_wait(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Duration>> {
    let (moment, now): (Option<i64>, i64) = (row.get(0)?, row.get(1)?);
    let wait = moment.map(|moment| u64::try_from(moment.saturating_sub(now)).unwrap_or(0));
    Ok(wait.map(Duration::from_micros))
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
