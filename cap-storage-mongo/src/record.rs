//! Records to and from documents.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::refuse;
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{Claim, Counts, Inserted, Lane, NewRecord, Query, Record, Table};
use cap_core::{Due, ErrorKind, Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version, micros};
use mongodb::ClientSession;
use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::options::Hint;
use tokio::time::Instant;
use uuid::Uuid;

use crate::address;
use crate::commands::{self, AT_ONCE, Counted, Upsert, binary};
use crate::error::{Fallible, Fault, is_address_taken};
use crate::session::{Db, End, all, matched};

/// The longest content, in bytes, as long as the server was not asked: a document has at most 16 MiB.
pub(crate) const MAX_CONTENT: usize = (16 << 20) - ROOM;

/// What the other fields of a document have.
pub(crate) const ROOM: usize = 1 << 20;

/// How many bytes of content one command carries, unless a single record has more.
const MAX_COMMAND: usize = 8 << 20;

/// Durations beyond this many milliseconds, a thousand years, are cut to it, so that sums with the clock are dates that
/// everything knows which reads BSON: none beyond the year 9999.
const FAR: i64 = 365_250 * 24 * 3600 * 1000;

/// The last moment that is told apart, in milliseconds.
const LATEST: i64 = Timestamp::LATEST.as_micros() / 1_000;

/// How often an insert is done again under other addresses.
const TRIES: usize = 5;

/// How many records one transaction gives back.
const GIVEN_BACK: usize = 8 * AT_ONCE;

/// A duration as the server counts it: in milliseconds, rounded up.
pub(crate) fn span(duration: Duration) -> i64 {
    millis_up(micros(duration)).min(FAR)
}

fn millis_up(micros: i64) -> i64 {
    micros.div_euclid(1_000) + i64::from(micros.rem_euclid(1_000) > 0)
}

/// A limit as the server counts it; 0 would be none to it.
pub(crate) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A count of attempts as the server counts it.
pub(crate) fn attempts(state: &State) -> i32 {
    i32::try_from(state.attempts()).unwrap_or(i32::MAX)
}

/// A count of crashes as the server counts it.
pub(crate) fn crashes(state: &State) -> i32 {
    i32::try_from(state.crashes()).unwrap_or(i32::MAX)
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

/// Refuses what can never work, and a content that fits into no document.
pub(crate) fn check(table: Table, records: &[NewRecord], claim: Option<Claim>, longest: usize) -> Fallible<()> {
    if let Some(NewRecord { message_id, content, .. }) = records.iter().find(|record| record.content.len() > longest) {
        let length = content.len();
        let reason = format!("the content of message {message_id} has {length} bytes, the limit is {longest}");
        return Err(Fault::said(ErrorKind::Rejected, reason));
    }
    refuse(table, records, claim.is_some()).map_or(Ok(()), |reason| Err(Fault::said(ErrorKind::Invalid, reason)))
}

/// Records to be inserted at one time, under given addresses.
struct Batch<'r> {
    table: Table,
    records: &'r [NewRecord],
    first: i64,
    now: DateTime,
    held_by: Option<[Bson; 2]>,
}

impl Batch<'_> {
    fn address(&self, place: usize) -> i64 {
        self.first.saturating_add(i64::try_from(place).unwrap_or(i64::MAX))
    }

    fn upsert(&self, place: usize) -> Upsert {
        Upsert::of(self.table, &self.records[place], self.address(place), self.now, self.held_by.clone())
    }
}

/// Inserts records that were checked, all or none.
pub(crate) async fn insert(
    db: &Db,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
) -> Fallible<Vec<Inserted>> {
    if records.is_empty() && claim.is_none() {
        return Ok(Vec::new());
    }
    let now = match claim {
        None => db.clock().await?,
        Some(claim) => db.registered(claim.node).await?,
    };
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let held_by = claim.map(|claim| [binary(claim.node.0), binary(claim.token.0)]);
    let mut batch = Batch { table, records, first: 0, now, held_by };
    let mut tries = 1;
    let answers = loop {
        batch.first = address::take(records.len()).start;
        let inserted = if records.len() == 1 { insert_one(db, &batch).await } else { insert_many(db, &batch).await };
        match inserted {
            Err(Fault::AddressTaken) if tries < TRIES => {
                tries += 1;
                address::begin_anew();
            }
            other => break other?,
        }
    };
    if let Some(claim) = claim
        && let Err(fault) = confirm(db, table, claim).await
    {
        let reason = "the node's lease ended while they were stored: they are there, and due for others";
        return Err(match fault {
            Fault::Said(ErrorKind::LeaseLost, _) => Fault::said(ErrorKind::Unavailable, reason),
            other => other,
        });
    }
    Ok(answers)
}

/// A single document needs no transaction, and the driver tries again by itself where that is safe.
async fn insert_one(db: &Db, batch: &Batch<'_>) -> Fallible<Vec<Inserted>> {
    let Upsert { key, fields } = batch.upsert(0);
    let update = doc! { "$setOnInsert": fields };
    let inserted = match db.table(batch.table).update_one(key, update).upsert(true).await {
        Ok(updated) => updated.upserted_id.as_ref().and_then(whole),
        Err(error) if is_address_taken(&error) => return Err(Fault::AddressTaken),
        Err(error) => {
            let fault = Fault::from(error);
            // Another insert of the same id was quicker by a hair.
            if fault.is_message_taken() { None } else { return Err(fault) }
        }
    };
    Ok(vec![inserted.map_or(Inserted::Duplicate, |id| Inserted::Stored(RecordId(id)))])
}

/// Mostly all are new, and then an insert costs the server much less than upserts. A key that is there already ends the
/// transaction: only then is each asked for. What is there, and what an open transaction has written, is not waited for.
async fn insert_many(db: &Db, batch: &Batch<'_>) -> Fallible<Vec<Inserted>> {
    loop {
        let all_new = db.try_transact(batch, |db, session, batch| {
            Box::pin(async move {
                let are_stored = insert_new(db, session, batch).await?;
                Ok(if are_stored { End::Commit(true) } else { End::Abort(false) })
            })
        });
        if all_new.await? == Some(true) {
            return Ok((0..batch.records.len())
                .map(|place| Inserted::Stored(RecordId(batch.address(place))))
                .collect());
        }
        let each = db.try_transact(batch, |db, session, batch| {
            Box::pin(async move { Ok(End::Commit(insert_in(db, session, batch).await?)) })
        });
        if let Some(answers) = each.await? {
            return Ok(answers);
        }
        let known = known(db, batch).await?;
        if known.iter().any(|known| *known) {
            return insert_unknown(db, batch, &known).await;
        }
        // Another transaction inserts one of them, and only its end tells.
        if Instant::now() >= db.deadline {
            return Err(Fault::Conflict);
        }
    }
}

/// Which of them are there already, as a majority knows.
async fn known(db: &Db, batch: &Batch<'_>) -> Fallible<Vec<bool>> {
    let mut found = HashSet::new();
    for records in batch.records.chunks(AT_ONCE) {
        let of_messages = commands::of_messages(records.iter().map(|record| &record.message_id));
        let stored = db.table(batch.table);
        let find = stored.find(of_messages).projection(doc! { "MessageId": 1, "Group": 1 });
        for document in all(find.await?).await? {
            let text = |name: &str| document.get_str(name).ok().map(ToOwned::to_owned);
            found.insert((text("MessageId"), text("Group")));
        }
    }
    let is_known = |record: &NewRecord| {
        let group = record.group.as_ref().filter(|_| batch.table == Table::Inbox);
        let key = (Some(record.message_id.to_string()), group.map(|group| group.as_str().to_owned()));
        found.contains(&key)
    };
    Ok(batch.records.iter().map(is_known).collect())
}

/// Inserts those that are not there, in the places of the batch.
async fn insert_unknown(db: &Db, batch: &Batch<'_>, known: &[bool]) -> Fallible<Vec<Inserted>> {
    let places: Vec<usize> = (0..known.len()).filter(|place| !known[*place]).collect();
    let records: Vec<NewRecord> = places.iter().map(|place| batch.records[*place].clone()).collect();
    let mut answers = vec![Inserted::Duplicate; known.len()];
    if records.is_empty() {
        return Ok(answers);
    }
    let rest = Batch { records: &records, held_by: batch.held_by.clone(), ..*batch };
    for (place, inserted) in places.into_iter().zip(Box::pin(insert_many(db, &rest)).await?) {
        answers[place] = inserted;
    }
    Ok(answers)
}

/// Answers `false`, with the transaction at its end, if a key is there already.
async fn insert_new(db: &Db, session: &mut ClientSession, batch: &Batch<'_>) -> Fallible<bool> {
    let mut keys = HashSet::with_capacity(batch.records.len());
    if !batch.records.iter().all(|record| keys.insert((&record.message_id, &record.group))) {
        return Ok(false);
    }
    let mut begin = 0;
    while begin < batch.records.len() {
        let end = begin + how_many_fit(&batch.records[begin..]);
        let documents = (begin..end).map(|place| batch.upsert(place).document()).collect();
        if !db.insert_in(session, batch.table, documents).await? {
            return Ok(false);
        }
        begin = end;
    }
    Ok(true)
}

async fn insert_in(db: &Db, session: &mut ClientSession, batch: &Batch<'_>) -> Fallible<Vec<Inserted>> {
    let mut answers = vec![Inserted::Duplicate; batch.records.len()];
    let mut begin = 0;
    while begin < batch.records.len() {
        let end = begin + how_many_fit(&batch.records[begin..]);
        let statements = (begin..end).map(|place| batch.upsert(place).statement()).collect();
        let reply = db.update_in(session, batch.table, statements).await?;
        for stored in reply.get_array("upserted").into_iter().flatten().filter_map(Bson::as_document) {
            let place = stored.get("index").and_then(whole).and_then(|index| usize::try_from(index).ok());
            let (Some(place), Some(id)) = (place, stored.get("_id").and_then(whole)) else { continue };
            if let Some(answer) = answers.get_mut(begin + place) {
                *answer = Inserted::Stored(RecordId(id));
            }
        }
        begin = end;
    }
    Ok(answers)
}

/// How many of the records fit into one command: at least one.
fn how_many_fit(records: &[NewRecord]) -> usize {
    let mut bytes = 0;
    let fit = records.iter().take_while(|record| {
        bytes += record.content.len();
        bytes <= MAX_COMMAND
    });
    fit.count().max(1)
}

/// Inserts records of the outbox that were checked, in a transaction that is open.
pub(crate) async fn publish(db: &Db, session: &mut ClientSession, records: &[NewRecord]) -> Fallible<Vec<Inserted>> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let now = db.clock_for(session).await?;
    let first = address::take(records.len()).start;
    let batch = Batch { table: Table::Outbox, records, first, now, held_by: None };
    let inserted = insert_in(db, session, &batch).await;
    if matches!(inserted, Err(Fault::AddressTaken)) {
        address::begin_anew();
    }
    inserted
}

/// Looks at the node's lease again after its claim was written. A takeover forgets the node first and looks for what it
/// held afterwards. So if the node is still there, the takeover is yet to come, and will see the claim; if it is not,
/// the claim is given back.
pub(crate) async fn confirm(db: &Db, table: Table, claim: Claim) -> Fallible<()> {
    let Err(fault) = db.registered(claim.node).await else { return Ok(()) };
    if matches!(fault, Fault::Said(ErrorKind::LeaseLost, _)) {
        give_back(db, table, commands::holder(claim.node, Some(claim.token.0)), Counted::No).await?;
    }
    Err(fault)
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

/// In how long the next waiting record of each lane is due.
pub(crate) async fn waits(db: &Db, version: &Version, lanes: &[Lane]) -> Fallible<Vec<Option<Duration>>> {
    let pipeline = commands::next_due(&db.names, version, lanes);
    let found = all(db.collection(&db.names.schema).aggregate(pipeline).await?).await?;
    let now = found.iter().find_map(|found| found.get_datetime("Now").ok()).copied();
    let Some(now) = now else { return Err(db.no_schema()) };
    let mut answers = vec![None; lanes.len()];
    for found in &found {
        let place = found.get("Lane").and_then(whole).and_then(|lane| usize::try_from(lane).ok());
        if let (Some(place), Ok(due)) = (place, found.get_datetime("DueAt"))
            && let Some(answer) = answers.get_mut(place)
        {
            *answer = Some(until(*due, now));
        }
    }
    Ok(answers)
}

/// Makes due at once what somebody holds; answers how many that were. What an open transaction has in its hands is
/// left: it is settled when that one commits, and the next takeover's when it does not.
pub(crate) async fn give_back(db: &Db, table: Table, holder: Document, counted: Counted) -> Fallible<u64> {
    let mut filter = holder.clone();
    filter.insert("StatusName", Status::Queued.as_str());
    let found = all(db.table(table).find(filter).projection(doc! { "_id": 1 }).await?).await?;
    let ids: Vec<i64> = found.iter().filter_map(|found| found.get("_id").and_then(whole)).collect();
    let mut number = 0;
    for ids in ids.chunks(GIVEN_BACK) {
        if let Some(given) = try_give_back(db, table, ids, &holder, counted).await? {
            number += given;
            continue;
        }
        for id in ids {
            let given = try_give_back(db, table, std::slice::from_ref(id), &holder, counted).await?;
            number += given.unwrap_or_default();
        }
    }
    Ok(number)
}

/// A transaction, since an update outside of one would wait for those that are open.
async fn try_give_back(
    db: &Db,
    table: Table,
    ids: &[i64],
    holder: &Document,
    counted: Counted,
) -> Fallible<Option<u64>> {
    db.try_transact(&(table, ids, holder, counted), |db, session, (table, ids, holder, counted)| {
        Box::pin(async move {
            let reply = db.update_in(session, *table, commands::give_back(ids, holder, *counted)).await?;
            Ok(End::Commit(matched(&reply)))
        })
    })
    .await
}

/// Makes due what is held by nodes that are no more; answers how many records that were. The owners are asked for
/// before the nodes: whoever holds something had joined before, so a live one is found.
pub(crate) async fn take_over(db: &Db, table: Table) -> Fallible<u64> {
    let hint = Hint::Name(commands::OWNER.to_owned());
    let found = all(db.table(table).aggregate(commands::owners()).hint(hint).await?).await?;
    let owners: Vec<Bson> = found.into_iter().filter_map(|mut found| found.remove("_id")).collect();
    if owners.is_empty() {
        return Ok(0);
    }
    let nodes = db.collection(&db.names.nodes);
    let live = nodes.find(doc! { "_id": commands::among(&owners) }).await?;
    let live: Vec<Bson> = all(live).await?.into_iter().filter_map(|mut node| node.remove("_id")).collect();
    let dead: Vec<Bson> = owners.into_iter().filter(|owner| !live.contains(owner)).collect();
    if dead.is_empty() {
        return Ok(0);
    }
    give_back(db, table, doc! { "Owner": commands::among(&dead) }, Counted::AsCrash).await
}

/// Puts what nodes of the version before have made due into its lane.
pub(crate) async fn count_crashes(db: &Db) -> Fallible<()> {
    let records = db.table(Table::Inbox);
    let find = records.find(commands::without_crashes()).projection(doc! { "_id": 1 }).limit(limit(GIVEN_BACK));
    let found = all(find.hint(Hint::Name(commands::LANE.to_owned())).await?).await?;
    let ids: Vec<i64> = found.iter().filter_map(|found| found.get("_id").and_then(whole)).collect();
    for ids in ids.chunks(AT_ONCE) {
        db.try_transact(&ids, |db, session, ids| {
            Box::pin(async move {
                db.update_in(session, Table::Inbox, commands::set_crashes(ids)).await?;
                Ok(End::Commit(()))
            })
        })
        .await?;
    }
    Ok(())
}

/// Deletes expired records, the longest expired first.
pub(crate) async fn collect(db: &Db, table: Table, most: usize) -> Fallible<u64> {
    if most == 0 {
        return Ok(0);
    }
    let now = db.clock().await?;
    let records = db.table(table);
    let find = records
        .find(commands::expired(now))
        .sort(doc! { "ExpiresAt": 1 })
        .projection(doc! { "_id": 1 })
        .limit(limit(most));
    let found = all(find.await?).await?;
    let ids: Vec<i64> = found.iter().filter_map(|found| found.get("_id").and_then(whole)).collect();
    db.delete(db.names.of(table), commands::collect(&ids, now)).await
}

/// How many records of a version there are of each kind.
pub(crate) async fn counts(db: &Db, table: Table, version: &Version) -> Fallible<Counts> {
    db.clock().await?;
    let mut counts = Counts::default();
    for found in all(db.table(table).aggregate(commands::counts(version)).await?).await? {
        let Ok(kind) = found.get_document("_id") else { continue };
        let number = found.get("number").and_then(whole).unwrap_or_default();
        if let Ok(status) = kind.get_str("status").unwrap_or_default().parse() {
            counts.add(status, kind.get_bool("dead").unwrap_or_default(), number.unsigned_abs());
        }
    }
    Ok(counts)
}

/// A page of records.
pub(crate) async fn list(db: &Db, table: Table, query: &Query) -> Fallible<Vec<Record>> {
    if query.limit == 0 {
        return Ok(Vec::new());
    }
    let records = db.table(table);
    let find = records.find(commands::list(query)).sort(doc! { "_id": 1 }).limit(limit(query.limit));
    Ok(read_all(all(find.await?).await?))
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
    fn commands_stay_below_the_servers_limit() {
        let record = |bytes: usize| NewRecord {
            message_id: MessageId::generate(),
            version: Version::default(),
            topic: Topic::try_from("t").unwrap(),
            group: None,
            content: "x".repeat(bytes).into(),
            state: lifecycle::scheduled(Due::Now),
        };
        assert_eq!(how_many_fit(&[record(MAX_CONTENT), record(1)]), 1);
        assert_eq!(how_many_fit(&[record(MAX_COMMAND / 2), record(MAX_COMMAND / 2), record(1)]), 2);
        assert_eq!(how_many_fit(&[record(1), record(1)]), 2);
        let error = check(Table::Outbox, &[record(MAX_CONTENT + 1)], None, MAX_CONTENT).unwrap_err();
        assert!(matches!(error, Fault::Said(ErrorKind::Rejected, _)), "{error:?}");
    }

    #[test]
    fn an_odd_document_is_read_as_well_as_it_can_be() {
        let record = read(doc! { "_id": 7, "Retries": "many", "Content": Bson::Null }).unwrap();
        assert_eq!((record.message_id.as_str(), record.attempts, &*record.content), ("row-7", 0, ""));
        assert!(read(doc! { "_id": "text" }).is_none());
    }
}
