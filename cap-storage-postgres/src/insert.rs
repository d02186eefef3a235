//! Storing records.

use std::collections::HashMap;

use cap_core::backend::{Times, attempts, crashes, refuse};
use cap_core::lifecycle::Status;
use cap_core::storage::{Claim, Inserted, NewRecord, Table};
use cap_core::{ErrorKind, Group, RecordId};
use cap_storage_sqlx::{Fallible, Fault, shrink};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};

use crate::error::is_taken_address;
use crate::row::{Id, Kinds, RANGE, column, is_locked, reason};
use crate::sequence;
use crate::session::take_back;
use crate::sql::{PATIENCE, Sql, Statement, TableSql};

/// Refuses what can never work.
pub(crate) fn check(table: Table, records: &[NewRecord], claim: Option<Claim>) -> Fallible<()> {
    refuse(table, records, claim.is_some()).map_or(Ok(()), |reason| Err(Fault::said(ErrorKind::Invalid, reason)))
}

/// How long an insert waits for another one of the same id, in milliseconds: it is a duplicate only once that is committed.
const WAIT_FOR_TWIN: &str = "5000";

/// Inserts records that were checked, in one statement, or in two if a handler at work has one of them locked: that one is
/// there, so it is a duplicate.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    sql: &Sql,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
) -> Fallible<Vec<Inserted>> {
    let (mut waits, mut taken) = (false, 0);
    let outcome = loop {
        let outcome = match waits {
            false => insert_within(connection, sql, table, records, claim, Some(PATIENCE)).await,
            true => insert_unknown(connection, sql, table, records, claim).await,
        };
        match outcome {
            Err(fault) if is_locked(&fault) && !waits => waits = true,
            Err(fault) if fault.driver().is_some_and(is_taken_address) && taken < sequence::TRIES => {
                take_back(connection).await?;
                sequence::catch_up(connection, sql, table).await?;
                taken += 1;
                continue;
            }
            outcome => break outcome,
        }
        take_back(connection).await?;
    };
    shrink(connection, records.iter().map(|record| record.content.len()).sum());
    outcome
}

/// Inserts those that are not there already.
async fn insert_unknown(
    connection: &mut PgConnection,
    sql: &Sql,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
) -> Fallible<Vec<Inserted>> {
    let is_known = known(connection, sql.table(table), records).await?;
    let unknown = records.iter().zip(&is_known).filter(|(_, is_known)| !**is_known);
    let unknown: Vec<NewRecord> = unknown.map(|(record, _)| record.clone()).collect();
    // Also when none is left: it says whether the lease is live.
    let mut stored = insert_within(connection, sql, table, &unknown, claim, Some(WAIT_FOR_TWIN)).await?.into_iter();
    let answer = |is_known: bool| if is_known { None } else { stored.next() };
    Ok(is_known.into_iter().map(answer).map(|stored| stored.unwrap_or(Inserted::Duplicate)).collect())
}

/// Which of them are there.
pub(crate) async fn known(connection: &mut PgConnection, sql: &TableSql, records: &[NewRecord]) -> Fallible<Vec<bool>> {
    let rows = sql
        .known
        .query()
        .bind(column(records, |record| record.message_id.as_str()))
        .bind(column(records, |record| record.group.as_ref().map(Group::as_str)))
        .fetch_all(connection)
        .await?;
    let mut is_known = vec![false; records.len()];
    for row in &rows {
        let place = usize::try_from(row.try_get::<i64, _>(0)? - 1).unwrap_or(usize::MAX);
        if let Some(known) = is_known.get_mut(place) {
            *known = true;
        }
    }
    Ok(is_known)
}

/// Inserts records in one statement, which waits for locks as long as `patience` says, in milliseconds.
async fn insert_within(
    connection: &mut PgConnection,
    sql: &Sql,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
    patience: Option<&'static str>,
) -> Fallible<Vec<Inserted>> {
    let Some(Claim { node, token }) = claim else {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let rows = given(&sql.table(table).insert, records, patience).fetch_all(connection).await?;
        return stored(records, &rows, table == Table::Inbox);
    };
    if let Some(one) = all_in_flight(table, records) {
        let rows = sql
            .insert_in_flight
            .query()
            .bind(column(records, |record| record.message_id.as_str()))
            .bind(column(records, |record| record.topic.as_str()))
            .bind(column(records, |record| &*record.content))
            .bind(one.version.as_str())
            .bind(one.group.as_ref().map(Group::as_str))
            .bind(attempts(&one.state))
            .bind(Id(node.0))
            .bind(Id(token.0))
            .bind(patience.unwrap_or(PATIENCE))
            .fetch_all(&mut *connection)
            .await?;
        if rows.is_empty() && sql.is_registered.query().bind(Id(node.0)).fetch_optional(connection).await?.is_none() {
            return Err(Fault::lease_lost(node));
        }
        return stored(records, &rows, false);
    }
    let query = given(&sql.table(table).insert_held, records, patience).bind(Id(node.0)).bind(Id(token.0));
    let rows = query.fetch_all(connection).await?;
    if rows.is_empty() {
        return Err(Fault::lease_lost(node));
    }
    stored(records, &rows, table == Table::Inbox)
}

/// The first record of the inbox, if all are in flight and differ only in what a message has of its own.
fn all_in_flight(table: Table, records: &[NewRecord]) -> Option<&NewRecord> {
    let one = records.first()?;
    let alike =
        |record: &NewRecord| record.version == one.version && record.group == one.group && record.state == one.state;
    let is_fresh = one.state.status() == Status::Queued && one.state.crashes() == 0 && one.state.reason().is_none();
    let suits = table == Table::Inbox && is_fresh && records.iter().all(alike);
    suits.then_some(one)
}

/// What an insert answers for each record, from the rows that were stored: address, message id and, `by_group`, the
/// group. A row without an address only says that the lease is live.
pub(crate) fn stored(records: &[NewRecord], rows: &[PgRow], by_group: bool) -> Fallible<Vec<Inserted>> {
    let mut stored = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(id) = row.try_get::<Option<i64>, _>(0)? {
            let group = if by_group { row.try_get(2)? } else { None };
            stored.push(((row.try_get::<&str, _>(1)?, group), RecordId(id)));
        }
    }
    let keys = records.iter().map(|record| {
        let group = record.group.as_ref().filter(|_| by_group).map(Group::as_str);
        (record.message_id.as_str(), group)
    });
    // Mostly all of them, as they were given.
    if stored.len() == records.len() && stored.iter().zip(keys.clone()).all(|((row, _), key)| *row == key) {
        return Ok(stored.into_iter().map(|(_, id)| Inserted::Stored(id)).collect());
    }
    // Of two equal ones the first was stored: they are written in their order.
    let mut stored: HashMap<_, _> = stored.into_iter().collect();
    Ok(keys.map(|key| stored.remove(&key).map_or(Inserted::Duplicate, Inserted::Stored)).collect())
}

/// A query over an `insert`, with the columns of the records.
pub(crate) fn given<'q>(
    statement: &Statement,
    records: &'q [NewRecord],
    patience: Option<&'static str>,
) -> Query<'q, Postgres, PgArguments> {
    let kinds = Kinds::of(records.iter().map(|record| (&record.version, &record.group, &record.state)));
    let times = kinds.column(|(_, _, state)| Times::of(state, &RANGE));
    statement
        .query()
        .bind(column(records, |record| record.message_id.as_str()))
        .bind(column(records, |record| record.topic.as_str()))
        .bind(column(records, |record| &*record.content))
        .bind(kinds.column(|(version, _, _)| version.as_str()))
        .bind(kinds.column(|(_, group, _)| group.as_ref().map(Group::as_str)))
        .bind(kinds.column(|(_, _, state)| attempts(state)))
        .bind(kinds.column(|(_, _, state)| state.status().as_str()))
        .bind(column(&times, |times| times.due_at))
        .bind(column(&times, |times| times.due_in))
        .bind(column(&times, |times| times.expires_in))
        .bind(kinds.column(|(_, _, state)| reason(state)))
        .bind(kinds.of_rows.clone())
        .bind(kinds.column(|(_, _, state)| crashes(state)))
        .bind(patience)
}
