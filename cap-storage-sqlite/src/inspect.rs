//! What operators ask for, and deleting what has expired.

use cap_core::backend::{Times, limit};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{Counts, Query, Record, Table};
use cap_core::{Group, RecordId, Topic, Version};
use rusqlite::{Statement, params};

use crate::error::Fallible;
use crate::row::{RANGE, read};
use crate::session::Session;

pub(crate) fn counts(session: &mut Session<'_>, table: Table, version: &Version) -> Fallible<Counts> {
    let mut counts = Counts::default();
    let mut rows = session.statement(&session.sql.table(table).counts)?.query([version.as_str()])?;
    while let Some(row) = rows.next()? {
        let (status, idle, number): (String, bool, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if let Ok(status) = status.parse() {
            counts.add(status, idle, number.unsigned_abs());
        }
    }
    Ok(counts)
}

pub(crate) fn list(session: &mut Session<'_>, table: Table, query: &Query) -> Fallible<Vec<Record>> {
    let sql = session.sql.table(table);
    let statement = if query.message_id.is_some() { &sql.find } else { &sql.list };
    Ok(list_over(session.statement(statement)?, query)?)
}

/// Reads the rows of a query over a prepared `list` or `find`.
fn list_over(statement: &mut Statement<'_>, query: &Query) -> rusqlite::Result<Vec<Record>> {
    let after = query.after.map_or(i64::MIN, |after| after.0);
    let limit = limit(query.limit);
    let version = query.version.as_ref().map(Version::as_str);
    let status = query.status.map(Status::as_str);
    let topic = query.topic.as_ref().map(Topic::as_str);
    let group = query.group.as_ref().map(Group::as_str);
    let rows = match &query.message_id {
        None => statement.query(params![after, limit, version, status, topic, group])?,
        Some(id) => statement.query(params![after, limit, version, status, topic, group, id.as_str()])?,
    };
    rows.mapped(read).collect()
}

/// Gives terminal records a new state; answers how many.
pub(crate) fn requeue(session: &mut Session<'_>, table: Table, records: &[RecordId], state: &State) -> Fallible<u64> {
    let requeue = session.statement(&session.sql.table(table).requeue)?;
    let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
    let (status, attempts, crashes) = (state.status().as_str(), state.attempts(), state.crashes());
    let mut changed = 0;
    for id in records {
        let values = params![id.0, status, attempts, due_at, due_in, expires_in, state.reason(), crashes];
        changed += requeue.execute(values)?;
    }
    Ok(changed as u64)
}

/// Deletes the records at these addresses that nobody holds; answers how many.
pub(crate) fn delete(
    session: &mut Session<'_>,
    table: Table,
    addresses: impl IntoIterator<Item = i64>,
) -> Fallible<u64> {
    let delete = session.statement(&session.sql.table(table).delete)?;
    let mut deleted = 0;
    for address in addresses {
        deleted += delete.execute([address])? as u64;
    }
    Ok(deleted)
}

/// Deletes expired records; answers how many.
pub(crate) fn collect(session: &mut Session<'_>, table: Table, most: usize) -> Fallible<u64> {
    let expired = session.statement(&session.sql.table(table).expired)?;
    let expired = expired.query_map([limit(most)], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
    delete(session, table, expired)
}
