//! What operators ask for, and deleting what has expired.

use cap_core::lifecycle::{State, Status};
use cap_core::storage::{Counts, Query as ListQuery, Record};
use cap_core::{Group, RecordId, Topic, Version};
use cap_storage_sqlx::Fallible;
use sqlx::MySqlConnection;

use crate::row::{Expressions, addresses, affected, ids, integer, limit, octets, ordered, read};
use crate::script::{Script, bytes, number, text};
use crate::sql::{LIST, Statement, TableSql};

pub(crate) async fn counts(connection: &mut MySqlConnection, sql: &TableSql, version: &Version) -> Fallible<Counts> {
    let version = text(Some(version.as_str()));
    let script = Script::begin_reading().then(&sql.counts, &[("version", &version)]).commit();
    let mut counts = Counts::default();
    for row in script.run(connection).await?.iter().flat_map(|answer| &answer.rows) {
        let status = octets(row, 0)?.map(String::from_utf8_lossy).unwrap_or_default();
        if let Ok(status) = status.parse::<Status>() {
            counts.add(status, integer(row, 1)? != 0, integer(row, 2)?.unsigned_abs());
        }
    }
    Ok(counts)
}

/// Reads the rows of a query.
pub(crate) async fn list(connection: &mut MySqlConnection, sql: &TableSql, query: &ListQuery) -> Fallible<Vec<Record>> {
    let message_id = query.message_id.as_ref().map(|id| bytes(id.as_str().as_bytes()));
    let statement = if message_id.is_some() { &sql.find } else { &sql.list };
    let values = [
        ("message_id", message_id.unwrap_or_default()),
        ("after", number(Some(query.after.map_or(i64::MIN, |after| after.0)))),
        ("limit", limit(query.limit)),
        ("version", text(query.version.as_ref().map(Version::as_str))),
        ("status", text(query.status.map(Status::as_str))),
        ("topic", text(query.topic.as_ref().map(Topic::as_str))),
        ("group_asked", text(query.group.as_ref().map(Group::as_str))),
    ];
    let values: Vec<(&str, &str)> = values.iter().map(|(name, literal)| (*name, literal.as_str())).collect();
    let answers = Script::begin_reading().then(statement, &values).commit().run(connection).await?;
    answers.iter().flat_map(|answer| &answer.rows).map(read).collect()
}

/// Gives terminal records a new state; answers how many.
pub(crate) async fn requeue(
    connection: &mut MySqlConnection,
    sql: &TableSql,
    records: &[RecordId],
    state: &State,
) -> Fallible<u64> {
    if records.is_empty() {
        return Ok(0);
    }
    let expressions = Expressions::of(state);
    let mut script = Script::begin();
    for ids in ordered(records.iter().copied()).chunks(LIST) {
        script = script.then(&sql.requeue, &expressions.with(&[("ids", &addresses(ids))]));
    }
    Ok(affected(&script.commit().run(connection).await?))
}

/// Deletes records that nobody holds; answers how many.
pub(crate) async fn delete(connection: &mut MySqlConnection, sql: &TableSql, records: Vec<RecordId>) -> Fallible<u64> {
    delete_within(connection, Script::begin(), &sql.delete, records).await
}

/// Deletes records, in the transaction that `script` begins; answers how many.
async fn delete_within(
    connection: &mut MySqlConnection,
    mut script: Script,
    statement: &Statement,
    records: Vec<RecordId>,
) -> Fallible<u64> {
    let mut deleted = 0;
    for (place, id) in ordered(records.into_iter()).into_iter().enumerate() {
        if place > 0 && place.is_multiple_of(LIST) {
            deleted += affected(&std::mem::take(&mut script).run(connection).await?);
        }
        script = script.then(statement, &[("id", &id.to_string())]);
    }
    deleted += affected(&script.commit().run(connection).await?);
    Ok(deleted)
}

pub(crate) async fn collect(connection: &mut MySqlConnection, sql: &TableSql, most: usize) -> Fallible<u64> {
    let expired = Script::begin().then(&sql.expired, &[("limit", &limit(most))]).run(connection).await?;
    delete_within(connection, Script::default(), &sql.collect, ids(&expired)?).await
}
