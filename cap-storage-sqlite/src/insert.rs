//! Storing records.

use std::ops::RangeInclusive;

use cap_core::backend::{Times, refuse};
use cap_core::lifecycle::Status;
use cap_core::storage::{Claim, Inserted, NewRecord, Table};
use cap_core::{ErrorKind, Group, RecordId};
use rusqlite::{Connection, Statement, ToSql};

use crate::claim::holder;
use crate::error::{Fallible, Fault};
use crate::row::RANGE;
use crate::session::Session;

/// Inserts records, in flight for whoever claims them.
pub(crate) fn insert(
    session: &mut Session<'_>,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
) -> Fallible<Vec<Inserted>> {
    let holder = match claim {
        Some(claim) => Some(holder(session, claim)?),
        None => None,
    };
    let holder = holder.as_ref().map(|(owner, token)| (owner.as_str(), token.as_str()));
    let Session { connection, sql, .. } = *session;
    insert_over(connection, session.statement(&sql.table(table).insert)?, table, records, holder)
}

/// Inserts over a prepared `insert` of `table`. `holder` is the text of owner and claim for records in flight.
pub(crate) fn insert_over(
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
