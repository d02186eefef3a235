//! Records to and from rows.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;

use cap_core::backend::{Range, Times, refuse};
use cap_core::lifecycle::Status;
use cap_core::storage::{Inserted, NewRecord, Query, Record, Settled, Settlement, Table};
use cap_core::{ErrorKind, Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, Statement, ToSql, params};
use uuid::Uuid;

use crate::error::{Fallible, Fault};

/// Times beyond this many microseconds (some 73 000 years) are cut to it, so that sums with the clock stay integers.
const FAR: i64 = i64::MAX / 4;

/// The place of the content in what `due`, `list` and `find` answer.
const CONTENT: usize = 5;

/// What a column of time holds.
pub(crate) const RANGE: Range = Range { far: FAR, moments: (-FAR, FAR) };

/// Inserts over a prepared `insert` of `table`. `holder` is the text of owner and claim for records in flight.
pub(crate) fn insert(
    connection: &Connection,
    statement: &mut Statement<'_>,
    table: Table,
    records: &[NewRecord],
    holder: Option<(&str, &str)>,
) -> Fallible<Vec<Inserted>> {
    if let Some(reason) = refuse(table, records, holder.is_some()) {
        return Err(Fault::said(ErrorKind::Invalid, reason));
    }
    let inserted = insert_each(connection, statement, table, records, holder);
    // A statement that is kept would keep the last content with it.
    statement.clear_bindings();
    Ok(inserted?)
}

fn insert_each(
    connection: &Connection,
    statement: &mut Statement<'_>,
    table: Table,
    records: &[NewRecord],
    holder: Option<(&str, &str)>,
) -> rusqlite::Result<Vec<Inserted>> {
    let mut inserted = Vec::with_capacity(records.len());
    let mut before = None;
    for record in records {
        bind(statement, table, record, before, holder)?;
        before = Some(record);
        inserted.push(match statement.raw_execute()? {
            0 => Inserted::Duplicate,
            _ => Inserted::Stored(RecordId(connection.last_insert_rowid())),
        });
    }
    Ok(inserted)
}

/// Binds the columns of a record. What it has in common with the one before stays bound.
fn bind(
    statement: &mut Statement<'_>,
    table: Table,
    record: &NewRecord,
    before: Option<&NewRecord>,
    holder: Option<(&str, &str)>,
) -> rusqlite::Result<()> {
    let NewRecord { message_id, version, topic, group, content, state } = record;
    let mut bind = |places: RangeInclusive<usize>, values: &[&dyn ToSql]| {
        places.zip(values).try_for_each(|(place, value)| statement.raw_bind_parameter(place, value))
    };
    bind(1..=2, &[&message_id.as_str(), &&**content])?;
    if before.is_none_or(|before| before.version != *version || before.topic != *topic) {
        bind(3..=4, &[&version.as_str(), &topic.as_str()])?;
    }
    if before.is_none_or(|before| before.state != *state) {
        let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
        let holder = if state.status() == Status::Queued { holder } else { None };
        let (owner, claim) = holder.unzip();
        let (status, attempts, crashes) = (state.status().as_str(), state.attempts(), state.crashes());
        let reason = state.reason();
        bind(5..=13, &[&attempts, &expires_in, &status, &due_at, &due_in, &owner, &claim, &reason, &crashes])?;
    }
    if table == Table::Inbox && before.is_none_or(|before| before.group != *group) {
        bind(14..=14, &[&group.as_ref().map(Group::as_str)])?;
    }
    Ok(())
}

/// Writes outcomes over a prepared `settle`. What those that are alike have in common is bound once.
pub(crate) fn settle(statement: &mut Statement<'_>, settlements: &[Settlement]) -> Fallible<Vec<Settled>> {
    let mut before: Option<&Settlement> = None;
    let mut answers = Vec::with_capacity(settlements.len());
    for settlement in settlements {
        let Settlement { record, token, state } = settlement;
        statement.raw_bind_parameter(1, record.0)?;
        if before.is_none_or(|before| before.token != *token) {
            statement.raw_bind_parameter(2, token.to_string())?;
        }
        if before.is_none_or(|before| before.state != *state) {
            let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
            let (status, attempts, crashes) = (state.status().as_str(), state.attempts(), state.crashes());
            let values: [&dyn ToSql; 7] =
                [&status, &attempts, &due_at, &due_in, &expires_in, &state.reason(), &crashes];
            (3..).zip(values).try_for_each(|(place, value)| statement.raw_bind_parameter(place, value))?;
        }
        before = Some(settlement);
        let written = statement.raw_execute()? > 0;
        answers.push(if written { Settled::Written } else { Settled::Lost });
    }
    Ok(answers)
}

/// Reads the rows of a query over a prepared `list` or `find`.
pub(crate) fn list(statement: &mut Statement<'_>, query: &Query) -> rusqlite::Result<Vec<Record>> {
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

/// A limit as SQL counts it.
pub(crate) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// One row of `due`, `list` or `find`. A column that holds what we would never write there, because somebody else
/// wrote it, is read as well as it can be: one odd row must not hide its neighbours.
pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Record> {
    let id = RecordId(row.get(0)?);
    let message_id = text(row, 1)?;
    Ok(Record {
        id,
        message_id: MessageId::from_stored(Some(&message_id), id),
        version: Version::from_stored(&text(row, 2)?),
        topic: Topic::from_stored(&text(row, 3)?),
        group: optional_text(row, 4)?.map(|group| Group::from_stored(&group)),
        content: Arc::from(text(row, CONTENT)?),
        status: text(row, 6)?.parse().unwrap_or(Status::Failed),
        attempts: number(row, 7)?,
        crashes: number(row, 13)?,
        added: Timestamp::from_micros(integer(row, 8)?.unwrap_or(0)),
        due: integer(row, 9)?.map(Timestamp::from_micros),
        expires: integer(row, 10)?.map(Timestamp::from_micros),
        owner: optional_text(row, 11)?.and_then(|owner| node(&owner)),
        reason: optional_text(row, 12)?.map(Cow::into_owned),
    })
}

/// How many bytes of content a row has.
pub(crate) fn size(row: &Row<'_>) -> rusqlite::Result<usize> {
    Ok(match row.get_ref(CONTENT)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
        _ => 0,
    })
}

/// The node that a column names, if it is one.
pub(crate) fn node(text: &str) -> Option<NodeId> {
    Uuid::parse_str(text).ok().map(NodeId)
}

fn text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<Cow<'r, str>> {
    Ok(optional_text(row, column)?.unwrap_or_default())
}

fn optional_text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<Option<Cow<'r, str>>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes)),
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
    })
}

/// A count: none below 0.
fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u32> {
    Ok(u32::try_from(integer(row, column)?.unwrap_or(0).max(0)).unwrap_or(u32::MAX))
}

fn integer(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => Some(number),
        ValueRef::Real(number) => Some(number as i64),
        _ => None,
    })
}
