//! Inserts over the caller's connection, inside the caller's transaction.
//!
//! In PostgreSQL an error ends the transaction that it happens in. So an address that is taken, as the sequence of the
//! addresses stands behind its table (see `sequence.rs`), must be none: the row is left out like one of a message that is
//! there already, the sequence is set over a connection of the storage's own, and the row is inserted again. Only then, and
//! outside of a transaction, several messages are more than one statement.

use cap_core::backend::Times;
use cap_core::storage::{Inserted, NewRecord, Table};
use cap_core::{ErrorKind, RecordId};
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::{PgConnection, Row};

use crate::insert::{given, known, stored};
use crate::row::RANGE;
use crate::sequence;
use crate::sql::Sql;
use crate::storage::PostgresStorage;

/// Inserts records of the outbox that were checked.
pub(crate) async fn publish(
    connection: &mut PgConnection,
    storage: &PostgresStorage,
    records: &[NewRecord],
) -> Fallible<Vec<Inserted>> {
    let sql = storage.sql();
    let mut answers = insert(connection, sql, records).await?;
    for _ in 0..sequence::TRIES {
        let left_out = left_out(connection, sql, records, &answers).await?;
        if left_out.is_empty() {
            return Ok(answers);
        }
        storage.catch_up(Table::Outbox).await.map_err(|error| Fault::said(error.kind(), error.reason()))?;
        let again: Vec<NewRecord> = left_out.iter().map(|place| records[*place].clone()).collect();
        for (place, answer) in left_out.into_iter().zip(insert(connection, sql, &again).await?) {
            answers[place] = answer;
        }
    }
    match left_out(connection, sql, records, &answers).await?.is_empty() {
        true => Ok(answers),
        false => Err(Fault::said(ErrorKind::Environment, sequence::BEHIND)),
    }
}

/// The places of those that are not there, although they should be.
async fn left_out(
    connection: &mut PgConnection,
    sql: &Sql,
    records: &[NewRecord],
    answers: &[Inserted],
) -> Fallible<Vec<usize>> {
    let mut places: Vec<usize> = (0..records.len()).filter(|place| answers[*place] == Inserted::Duplicate).collect();
    if places.is_empty() {
        return Ok(places);
    }
    let doubtful: Vec<NewRecord> = places.iter().map(|place| records[*place].clone()).collect();
    let mut is_known = known(connection, &sql.published, &doubtful).await?.into_iter();
    places.retain(|_| !is_known.next().unwrap_or(true));
    Ok(places)
}

/// One statement.
async fn insert(connection: &mut PgConnection, sql: &Sql, records: &[NewRecord]) -> Fallible<Vec<Inserted>> {
    match records {
        [] => Ok(Vec::new()),
        [record] => match due_in(record) {
            Some(due_in) => insert_one(connection, sql, record, due_in).await,
            None => insert_all(connection, sql, records).await,
        },
        _ => insert_all(connection, sql, records).await,
    }
}

async fn insert_all(connection: &mut PgConnection, sql: &Sql, records: &[NewRecord]) -> Fallible<Vec<Inserted>> {
    let rows = given(&sql.publish_all, records, None).fetch_all(connection).await?;
    stored(records, &rows, false)
}

/// In how many microseconds it is due, if it waits for its first attempt and is due so.
fn due_in(NewRecord { state, .. }: &NewRecord) -> Option<i64> {
    let is_fresh =
        state.attempts() == 0 && state.crashes() == 0 && state.expires().is_none() && state.reason().is_none();
    match Times::of(state, &RANGE) {
        Times { due_at: None, due_in, .. } if is_fresh => due_in,
        _ => None,
    }
}

async fn insert_one(
    connection: &mut PgConnection,
    sql: &Sql,
    record: &NewRecord,
    due_in: i64,
) -> Fallible<Vec<Inserted>> {
    let row = sql
        .publish
        .query()
        .bind(record.message_id.as_str())
        .bind(record.topic.as_str())
        .bind(&*record.content)
        .bind(record.version.as_str())
        .bind(record.state.status().as_str())
        .bind(due_in)
        .fetch_optional(connection)
        .await?;
    let id = row.map(|row| row.try_get(0)).transpose()?;
    Ok(vec![id.map_or(Inserted::Duplicate, |id| Inserted::Stored(RecordId(id)))])
}
