//! What operators ask for, and deleting what has expired.

use cap_core::backend::{Times, attempts, crashes, limit};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{Counts, Query as ListQuery, Record};
use cap_core::{Group, RecordId, Topic, Version};
use cap_storage_sqlx::Fallible;
use sqlx::{PgConnection, Row};

use crate::row::{RANGE, addresses, read, reason};
use crate::sql::TableSql;

pub(crate) async fn counts(connection: &mut PgConnection, sql: &TableSql, version: &Version) -> Fallible<Counts> {
    let mut counts = Counts::default();
    for row in sql.counts.query().bind(version.as_str()).fetch_all(connection).await? {
        if let Ok(status) = row.try_get::<&str, _>(0)?.parse() {
            counts.add(status, row.try_get(1)?, row.try_get::<i64, _>(2)?.unsigned_abs());
        }
    }
    Ok(counts)
}

/// Reads the rows of a query over a `list` or `find`.
pub(crate) async fn list(connection: &mut PgConnection, sql: &TableSql, query: &ListQuery) -> Fallible<Vec<Record>> {
    let statement = if query.message_id.is_some() { &sql.find } else { &sql.list };
    let list = statement
        .query()
        .bind(query.after.map_or(i64::MIN, |after| after.0))
        .bind(limit(query.limit))
        .bind(query.version.as_ref().map(Version::as_str))
        .bind(query.status.map(Status::as_str))
        .bind(query.topic.as_ref().map(Topic::as_str))
        .bind(query.group.as_ref().map(Group::as_str));
    let list = match &query.message_id {
        None => list,
        Some(id) => list.bind(id.as_str()),
    };
    list.fetch_all(connection).await?.iter().map(read).collect()
}

/// Gives terminal records a new state over a `requeue`; answers how many.
pub(crate) async fn requeue(
    connection: &mut PgConnection,
    sql: &TableSql,
    records: &[RecordId],
    state: &State,
) -> Fallible<u64> {
    let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
    let query = sql.requeue.query().bind(addresses(records)).bind(state.status().as_str()).bind(attempts(state));
    let query = query.bind(due_at).bind(due_in).bind(expires_in).bind(reason(state)).bind(crashes(state));
    Ok(query.execute(connection).await?.rows_affected())
}

/// Deletes records that nobody holds; answers how many.
pub(crate) async fn delete(connection: &mut PgConnection, sql: &TableSql, records: &[RecordId]) -> Fallible<u64> {
    Ok(sql.delete.query().bind(addresses(records)).execute(connection).await?.rows_affected())
}

/// Deletes expired records; answers how many.
pub(crate) async fn collect(connection: &mut PgConnection, sql: &TableSql, most: usize) -> Fallible<u64> {
    Ok(sql.collect.query().bind(limit(most)).execute(connection).await?.rows_affected())
}
