//! Records to and from rows.

use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::Range;
use cap_core::lifecycle::{State, Status};
use cap_core::storage::Record;
use cap_core::{ErrorKind, Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version};
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgRow, PgTypeInfo};
use sqlx::{Postgres, Row, Type, ValueRef};
use uuid::Uuid;

use crate::error::is_lock_timeout;

/// Times beyond this many microseconds (some 73 000 years) are cut to it, so that sums with the clock stay in range.
const FAR: i64 = i64::MAX / 4;

/// From 1970, where [`Timestamp`] counts from, to 2000, where PostgreSQL does, in microseconds.
const EPOCHS_APART: i64 = 946_684_800_000_000;

/// What a column of time holds. The earliest that PostgreSQL knows is in 4714 BC.
pub(crate) const RANGE: Range = Range { far: FAR, moments: (-EPOCHS_APART, FAR) };

/// The reason, without what PostgreSQL cannot hold in a text.
pub(crate) fn reason(state: &State) -> Option<String> {
    state.reason().map(|reason| reason.replace('\0', "\u{FFFD}"))
}

/// What the rows of a batch have in common is sent once, as a kind of row, and each row names its kind.
pub(crate) struct Kinds<K> {
    /// Each row's kind, counted from 1.
    pub(crate) of_rows: Vec<i32>,
    pub(crate) kinds: Vec<K>,
}

impl<K: PartialEq> Kinds<K> {
    /// How many of the latest kinds are looked through: rows of one kind mostly follow each other, and a kind that is
    /// sent twice does no harm.
    const RECENT: usize = 8;

    pub(crate) fn of(rows: impl ExactSizeIterator<Item = K>) -> Self {
        let mut found = Self { of_rows: Vec::with_capacity(rows.len()), kinds: Vec::new() };
        for kind in rows {
            let recent = found.kinds.len().saturating_sub(Self::RECENT);
            let known = found.kinds[recent..].iter().rposition(|known| *known == kind);
            let place = known.map_or(found.kinds.len(), |place| recent + place);
            if known.is_none() {
                found.kinds.push(kind);
            }
            found.of_rows.push(i32::try_from(place + 1).unwrap_or(i32::MAX));
        }
        found
    }

    pub(crate) fn column<'k, T>(&'k self, value: impl FnMut(&'k K) -> T) -> Vec<T> {
        column(&self.kinds, value)
    }
}

pub(crate) fn is_locked(fault: &Fault) -> bool {
    fault.driver().is_some_and(is_lock_timeout)
}

pub(crate) fn column<'r, R, T>(rows: &'r [R], value: impl FnMut(&'r R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// A column with a moment, if there is one, and the present time behind it: how long it is until then.
pub(crate) fn wait(row: &PgRow, column: usize) -> Fallible<Option<Duration>> {
    let (Some(moment), Some(now)) = (moment(row, column)?, moment(row, column + 1)?) else { return Ok(None) };
    let wait = moment.as_micros().saturating_sub(now.as_micros());
    Ok(Some(Duration::from_micros(u64::try_from(wait).unwrap_or(0))))
}

pub(crate) fn addresses(records: &[RecordId]) -> Vec<i64> {
    column(records, |record| record.0)
}

/// One row of `claim`, `list` or `find`. A column that holds what we would never write there, because somebody else
/// wrote it, is read as well as it can be: one odd row must not hide its neighbours.
pub(crate) fn read(row: &PgRow) -> Fallible<Record> {
    let id = RecordId(row.try_get(0)?);
    let text = |column: usize| row.try_get::<Option<&str>, _>(column);
    Ok(Record {
        id,
        message_id: MessageId::from_stored(text(1)?, id),
        version: Version::from_stored(text(2)?.unwrap_or_default()),
        topic: Topic::from_stored(text(3)?.unwrap_or_default()),
        group: text(4)?.map(Group::from_stored),
        content: Arc::from(text(5)?.unwrap_or_default()),
        status: text(6)?.unwrap_or_default().parse().unwrap_or(Status::Failed),
        attempts: u32::try_from(row.try_get::<i32, _>(7)?).unwrap_or(0),
        added: moment(row, 8)?.unwrap_or(Timestamp::from_micros(0)),
        due: moment(row, 9)?,
        expires: moment(row, 10)?,
        owner: node(row, 11)?,
        reason: text(12)?.map(str::to_owned),
        crashes: u32::try_from(row.try_get::<i32, _>(13)?).unwrap_or(0),
    })
}

/// A UUID as a parameter: the driver's own feature for them would bring `sqlx-sqlite` into the lock file.
pub(crate) struct Id(pub(crate) Uuid);

/// PostgreSQL's numbers of the types `uuid` and `uuid[]`.
const UUID: PgTypeInfo = PgTypeInfo::with_oid(Oid(2950));

const UUID_ARRAY: PgTypeInfo = PgTypeInfo::with_oid(Oid(2951));

impl Type<Postgres> for Id {
    fn type_info() -> PgTypeInfo {
        UUID
    }
}

impl PgHasArrayType for Id {
    fn array_type_info() -> PgTypeInfo {
        UUID_ARRAY
    }
}

impl Encode<'_, Postgres> for Id {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

/// A column of a timestamp type, with a zone (kept in UTC) or without (which we write in UTC).
pub(crate) fn moment(row: &PgRow, column: usize) -> Fallible<Option<Timestamp>> {
    let Some(bytes) = binary(row, column)? else { return Ok(None) };
    let micros = i64::from_be_bytes(bytes);
    Ok(Some(Timestamp::from_micros(micros.saturating_add(EPOCHS_APART))))
}

/// The node that a column of type `uuid` names.
pub(crate) fn node(row: &PgRow, column: usize) -> Fallible<Option<NodeId>> {
    Ok(uuid(row, column)?.map(NodeId))
}

pub(crate) fn uuid(row: &PgRow, column: usize) -> Fallible<Option<Uuid>> {
    Ok(binary(row, column)?.map(Uuid::from_bytes))
}

/// A value of a type that the driver has no features for, as the server sent it.
fn binary<const N: usize>(row: &PgRow, column: usize) -> Fallible<Option<[u8; N]>> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    let wrong = |_| Fault::said(ErrorKind::Corrupt, format!("column {column} is not of the type that it should be"));
    bytes.try_into().map(Some).map_err(wrong)
}
