//! Records to and from rows.

use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::{self, Range, Times};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::Record;
use cap_core::{ErrorKind, Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version};
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::Row;
use sqlx::mysql::MySqlRow;
use uuid::Uuid;

use crate::script::{Answer, bytes, list as listed, null, number, text};
use crate::sql;

/// Times in more than this many microseconds (some 5000 years) are cut to it, so that sums with the clock stay within
/// what `DATETIME` holds: the years 1000 to 9999.
const FAR: i64 = 157_680_000_000_000_000;

/// The first and the last moment that are stored, in microseconds since 1970.
const MOMENTS: (i64, i64) = (-30_610_224_000_000_000, 250_000_000_000_000_000);

/// What a column of time holds.
pub(crate) const RANGE: Range = Range { far: FAR, moments: MOMENTS };

/// A limit as SQL counts it.
pub(crate) fn limit(limit: usize) -> String {
    number(Some(backend::limit(limit)))
}

/// What of a state a statement writes, as expressions: those of the holes in `settle` and `requeue`.
pub(crate) struct Expressions([(&'static str, String); 9]);

impl Expressions {
    pub(crate) fn of(state: &State) -> Self {
        let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
        let due = due_at.map(sql::at).or(due_in.map(sql::from_now));
        let is_held = state.status() == Status::Queued;
        let kept = |column: &str| if is_held { column.to_owned() } else { null() };
        Self([
            ("status", text(Some(state.status().as_str()))),
            ("attempts", number(Some(i64::from(backend::attempts(state))))),
            ("due", due.unwrap_or_else(null)),
            ("expires", expires_in.map_or_else(null, sql::from_now)),
            ("reason", text(state.reason())),
            ("owner", kept("`Owner`")),
            ("claim", kept("`Claim`")),
            ("crashes", number(Some(i64::from(backend::crashes(state))))),
            ("suspect", number(Some(i64::from(state.crashes() > 0)))),
        ])
    }

    pub(crate) fn with<'l>(&'l self, others: &[(&'l str, &'l str)]) -> Vec<(&'l str, &'l str)> {
        self.0.iter().map(|(name, literal)| (*name, literal.as_str())).chain(others.iter().copied()).collect()
    }
}

/// An answer of one number: in how many microseconds something is, if it ever is.
pub(crate) fn wait(answer: &Answer) -> Fallible<Option<Duration>> {
    let Some(row) = answer.rows.first() else { return Ok(None) };
    let wait = maybe_integer(row, 0)?;
    Ok(wait.map(|wait| Duration::from_micros(u64::try_from(wait).unwrap_or(0))))
}

/// How many rows were found by all statements together.
pub(crate) fn affected(answers: &[Answer]) -> u64 {
    answers.iter().map(|answer| answer.affected).sum()
}

/// In the order in which rows are locked, each once.
pub(crate) fn ordered(records: impl Iterator<Item = RecordId>) -> Vec<RecordId> {
    let mut records: Vec<RecordId> = records.collect();
    records.sort_unstable();
    records.dedup();
    records
}

pub(crate) fn addresses(records: &[RecordId]) -> String {
    listed(records.iter().map(RecordId::to_string))
}

/// The addresses in the first column of all answers.
pub(crate) fn ids(answers: &[Answer]) -> Fallible<Vec<RecordId>> {
    let rows = answers.iter().flat_map(|answer| &answer.rows);
    rows.map(|row| Ok(RecordId(integer(row, 0)?))).collect()
}

pub(crate) fn literal(node: NodeId) -> String {
    bytes(node.0.as_bytes())
}

pub(crate) fn out_of_step() -> Fault {
    Fault::said(ErrorKind::Unavailable, "the server answered fewer statements than it was sent")
}

/// One row of `due`, `list` or `find`. A column that holds what we would never write there, because somebody else wrote
/// it, is read as well as it can be: one odd row must not hide its neighbours.
pub(crate) fn read(row: &MySqlRow) -> Fallible<Record> {
    let id = RecordId(integer(row, 0)?);
    let text = |column: usize| Ok::<_, Fault>(octets(row, column)?.map(String::from_utf8_lossy));
    Ok(Record {
        id,
        message_id: MessageId::from_stored(text(1)?.as_deref(), id),
        version: Version::from_stored(&text(2)?.unwrap_or_default()),
        topic: Topic::from_stored(&text(3)?.unwrap_or_default()),
        group: text(4)?.map(|group| Group::from_stored(&group)),
        content: content(row, CONTENT)?,
        status: text(6)?.unwrap_or_default().parse().unwrap_or(Status::Failed),
        attempts: u32::try_from(integer(row, 7)?).unwrap_or(0),
        added: moment(row, 8)?.unwrap_or(Timestamp::from_micros(0)),
        due: moment(row, 9)?,
        expires: moment(row, 10)?,
        owner: uuid(row, 11)?.map(NodeId),
        reason: text(12)?.map(|reason| reason.into_owned()),
        crashes: u32::try_from(integer(row, 13)?).unwrap_or(0),
    })
}

/// The column of the content, and behind all others its length, where it is asked for.
pub(crate) const CONTENT: usize = 5;

pub(crate) const LENGTH: usize = 14;

pub(crate) fn content(row: &MySqlRow, column: usize) -> Fallible<Arc<str>> {
    Ok(Arc::from(octets(row, column)?.map(String::from_utf8_lossy).unwrap_or_default()))
}

pub(crate) fn integer(row: &MySqlRow, column: usize) -> Fallible<i64> {
    Ok(maybe_integer(row, column)?.unwrap_or(0))
}

pub(crate) fn maybe_integer(row: &MySqlRow, column: usize) -> Fallible<Option<i64>> {
    Ok(row.try_get_unchecked(column)?)
}

pub(crate) fn octets(row: &MySqlRow, column: usize) -> Fallible<Option<&[u8]>> {
    Ok(row.try_get_unchecked(column)?)
}

/// A UUID: the driver's own feature for them would bring `sqlx-sqlite` into the lock file.
pub(crate) fn uuid(row: &MySqlRow, column: usize) -> Fallible<Option<Uuid>> {
    Ok(octets(row, column)?.and_then(|octets| Uuid::from_slice(octets).ok()))
}

pub(crate) fn moment(row: &MySqlRow, column: usize) -> Fallible<Option<Timestamp>> {
    Ok(maybe_integer(row, column)?.map(Timestamp::from_micros))
}
