//! Records to and from rows.

use std::borrow::Cow;
use std::sync::Arc;

use cap_core::backend::Range;
use cap_core::lifecycle::Status;
use cap_core::storage::Record;
use cap_core::{Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version};
use rusqlite::Row;
use rusqlite::types::ValueRef;
use uuid::Uuid;

/// Times beyond this many microseconds (some 73 000 years) are cut to it, so that sums with the clock stay integers.
const FAR: i64 = i64::MAX / 4;

/// The place of the content in what `due`, `list` and `find` answer.
const CONTENT: usize = 5;

/// What a column of time holds.
pub(crate) const RANGE: Range = Range { far: FAR, moments: (-FAR, FAR) };

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
