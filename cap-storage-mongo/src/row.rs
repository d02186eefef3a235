//! Records to and from documents.

use std::sync::Arc;
use std::time::Duration;

use cap_core::lifecycle::{State, Status};
use cap_core::storage::Record;
use cap_core::{Due, Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version, micros};
use mongodb::bson::{Bson, DateTime, Document, doc};
use uuid::Uuid;

/// The longest content, in bytes, as long as the server was not asked: a document has at most 16 MiB.
pub(crate) const MAX_CONTENT: usize = (16 << 20) - ROOM;

/// What the other fields of a document have.
pub(crate) const ROOM: usize = 1 << 20;

/// Durations beyond this many milliseconds, a thousand years, are cut to it, so that sums with the clock are dates that
/// everything knows which reads BSON: none beyond the year 9999.
const FAR: i64 = 365_250 * 24 * 3600 * 1000;

/// The last moment that is told apart, in milliseconds.
const LATEST: i64 = Timestamp::LATEST.as_micros() / 1_000;

/// A duration as the server counts it: in milliseconds, rounded up.
pub(crate) fn span(duration: Duration) -> i64 {
    millis_up(micros(duration)).min(FAR)
}

fn millis_up(micros: i64) -> i64 {
    micros.div_euclid(1_000) + i64::from(micros.rem_euclid(1_000) > 0)
}

/// A time to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    At(DateTime),
    /// In so many milliseconds.
    In(i64),
}

impl Moment {
    /// Where the server's clock was read.
    pub(crate) fn after(self, now: DateTime) -> DateTime {
        match self {
            Self::At(moment) => moment,
            Self::In(delay) => DateTime::from_millis(now.timestamp_millis().saturating_add(delay)),
        }
    }

    /// In a pipeline.
    pub(crate) fn expression(self) -> Bson {
        match self {
            Self::At(moment) => moment.into(),
            Self::In(delay) => doc! { "$add": ["$$NOW", delay] }.into(),
        }
    }
}

/// The times of a state.
pub(crate) struct Times {
    pub(crate) due: Option<Moment>,
    pub(crate) expires: Option<Moment>,
}

impl Times {
    pub(crate) fn of(state: &State) -> Self {
        let due = state.due().map(|due| match due {
            Due::Now => Moment::In(0),
            Due::In(delay) => Moment::In(span(delay)),
            Due::At(moment) => Moment::At(DateTime::from_millis(millis_up(moment.as_micros()).clamp(0, LATEST))),
        });
        Self { due, expires: state.expires().map(|expires| Moment::In(span(expires))) }
    }
}

/// How long it is until then; zero when it has passed.
pub(crate) fn until(moment: DateTime, now: DateTime) -> Duration {
    let wait = moment.timestamp_millis().saturating_sub(now.timestamp_millis());
    Duration::from_millis(u64::try_from(wait).unwrap_or(0))
}

/// A time of the database's.
pub(crate) fn timestamp(moment: DateTime) -> Timestamp {
    Timestamp::from_micros(moment.timestamp_millis().saturating_mul(1_000))
}

pub(crate) fn addresses(records: &[RecordId]) -> Vec<i64> {
    records.iter().map(|record| record.0).collect()
}

pub(crate) fn read_all(documents: Vec<Document>) -> Vec<Record> {
    documents.into_iter().filter_map(read).collect()
}

/// One document. A field that holds what we would never write there, because somebody else wrote it, is read as well as
/// it can be: one odd document must not hide its neighbours. One whose address is no number has none that we could use.
fn read(mut document: Document) -> Option<Record> {
    let id = RecordId(whole(document.get("_id")?)?);
    let mut text = |name: &str| match document.remove(name) {
        Some(Bson::String(text)) => Some(text),
        _ => None,
    };
    let (message_id, content, reason) = (text("MessageId"), text("Content"), text("Reason"));
    let (version, topic, group, status) = (text("Version"), text("Name"), text("Group"), text("StatusName"));
    let moment = |name: &str| {
        let moment = document.get_datetime(name).ok()?;
        Some(timestamp(*moment))
    };
    let number = |name: &str| {
        document.get(name).and_then(whole).and_then(|number| u32::try_from(number.max(0)).ok()).unwrap_or(0)
    };
    Some(Record {
        id,
        message_id: MessageId::from_stored(message_id.as_deref(), id),
        version: Version::from_stored(&version.unwrap_or_default()),
        topic: Topic::from_stored(&topic.unwrap_or_default()),
        group: group.as_deref().map(Group::from_stored),
        content: Arc::from(content.unwrap_or_default()),
        status: status.unwrap_or_default().parse().unwrap_or(Status::Failed),
        attempts: number("Retries"),
        crashes: number("Crashes"),
        added: moment("Added").unwrap_or(Timestamp::from_micros(0)),
        due: moment("DueAt"),
        expires: moment("ExpiresAt"),
        owner: document.get("Owner").and_then(uuid).map(NodeId),
        reason,
    })
}

/// A whole number, of whichever type it was written.
pub(crate) fn whole(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int64(number) => Some(*number),
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Double(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
        _ => None,
    }
}

pub(crate) fn uuid(value: &Bson) -> Option<Uuid> {
    match value {
        Bson::Binary(binary) => Uuid::from_slice(&binary.bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cap_core::lifecycle;

    use super::*;

    #[test]
    fn times_are_rounded_up_so_that_nothing_is_due_too_early() {
        assert_eq!(span(Duration::from_micros(1)), 1);
        assert_eq!(span(Duration::from_millis(1)), 1);
        assert_eq!(span(Duration::MAX), FAR);
        let at = |micros| Times::of(&lifecycle::scheduled(Due::At(Timestamp::from_micros(micros)))).due.unwrap();
        assert_eq!(at(1_000_001), Moment::At(DateTime::from_millis(1_001)));
        assert_eq!(at(-5), Moment::At(DateTime::from_millis(0)), "before 1970 is long past");
        assert_eq!(at(i64::MAX), Moment::At(DateTime::from_millis(LATEST)));
    }

    #[test]
    fn an_odd_document_is_read_as_well_as_it_can_be() {
        let record = read(doc! { "_id": 7, "Retries": "many", "Content": Bson::Null }).unwrap();
        assert_eq!((record.message_id.as_str(), record.attempts, &*record.content), ("row-7", 0, ""));
        assert!(read(doc! { "_id": "text" }).is_none());
    }
}
