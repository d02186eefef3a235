//! Records to and from documents.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::{Alike, Holder, Settlements, refuse};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{
    Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, NewRecord, Query, Record, Settled, Settlement, Table,
};
use cap_core::{ClaimToken, Due, ErrorKind, Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version, micros};
use mongodb::ClientSession;
use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::options::Hint;
use uuid::Uuid;

use crate::address;
use crate::commands::{self, AT_ONCE, Counted, Upsert, binary};
use crate::error::{Fallible, Fault, is_address_taken};
use crate::session::{Db, End, all, matched};

/// The longest content, in bytes: a document has at most 16 MiB, with all its fields.
pub(crate) const MAX_CONTENT: usize = 15 << 20;

/// How many bytes of content one command carries, unless a single record has more.
const MAX_COMMAND: usize = 8 << 20;

/// Times beyond this many milliseconds (some 73 000 years) are cut to it, so that sums with the clock stay in range.
const FAR: i64 = i64::MAX / 4_000;

/// How often a claim looks again when others took what it had seen.
const ROUNDS: usize = 8;

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
fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A count of attempts as the server counts it.
pub(crate) fn attempts(state: &State) -> i32 {
    i32::try_from(state.attempts()).unwrap_or(i32::MAX)
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
            Due::At(moment) => Moment::At(DateTime::from_millis(millis_up(moment.as_micros()).clamp(0, FAR))),
        });
        Self { due, expires: state.expires().map(|expires| Moment::In(span(expires))) }
    }
}

/// Refuses what can never work, and a content that fits into no document.
pub(crate) fn check(table: Table, records: &[NewRecord], claim: Option<Claim>) -> Fallible<()> {
    if let Some(NewRecord { message_id, content, .. }) =
        records.iter().find(|record| record.content.len() > MAX_CONTENT)
    {
        let length = content.len();
        let reason = format!("the content of message {message_id} has {length} bytes, the limit is {MAX_CONTENT}");
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
        Some(claim) => db.lease(claim.node).await?,
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
            if fault.is_duplicate_key() { None } else { return Err(fault) }
        }
    };
    Ok(vec![inserted.map_or(Inserted::Duplicate, |id| Inserted::Stored(RecordId(id)))])
}

/// Mostly all are new, and then an insert costs the server much less than upserts. A key that is there already ends the
/// transaction: only then is each asked for.
async fn insert_many(db: &Db, batch: &Batch<'_>) -> Fallible<Vec<Inserted>> {
    let all_new = db.transact(batch, |db, session, batch| {
        Box::pin(async move {
            let are_stored = insert_new(db, session, batch).await?;
            Ok(if are_stored { End::Commit(true) } else { End::Abort(false) })
        })
    });
    if all_new.await? {
        return Ok((0..batch.records.len()).map(|place| Inserted::Stored(RecordId(batch.address(place)))).collect());
    }
    let each = db.transact(batch, |db, session, batch| {
        Box::pin(async move { Ok(End::Commit(insert_in(db, session, batch).await?)) })
    });
    each.await
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
async fn confirm(db: &Db, table: Table, claim: Claim) -> Fallible<()> {
    let Err(fault) = db.lease(claim.node).await else { return Ok(()) };
    if matches!(fault, Fault::Said(ErrorKind::LeaseLost, _)) {
        give_back(db, table, commands::holder(claim.node, Some(claim.token.0)), Counted::No).await?;
    }
    Err(fault)
}

/// Takes due records, earliest first.
pub(crate) async fn claim(db: &Db, request: &ClaimRequest) -> Fallible<Claimed> {
    let ClaimRequest { lane, version, claim, limit: most } = request;
    let table = lane.table();
    let now = db.lease(claim.node).await?;
    let (owner, token) = (binary(claim.node.0), binary(claim.token.0));
    let mut order: HashMap<i64, usize> = HashMap::new();
    let mut taken = 0;
    for _ in 0..ROUNDS {
        let due = due(db, commands::due(version, lane, now), most - taken).await?;
        for id in &due {
            let place = order.len();
            order.entry(*id).or_insert(place);
        }
        let won = db.update(db.names.of(table), commands::claim(&due, now, &owner, &token)).await?;
        taken += usize::try_from(won).unwrap_or(due.len());
        // If others took some of them, what they left comes next.
        if won == due.len() as u64 {
            break;
        }
    }
    let confirmed = confirm(db, table, *claim);
    let next_due = next_due(db, version, lane, now);
    // None of them is dropped under way.
    let (records, confirmed, next_due) = match (order.is_empty(), taken < *most) {
        (true, true) => (Ok(Vec::new()), Ok(()), next_due.await),
        (true, false) => return Ok(Claimed::default()),
        (false, true) => tokio::join!(won(db, table, &owner, &token), confirmed, next_due),
        (false, false) => {
            let (records, confirmed) = tokio::join!(won(db, table, &owner, &token), confirmed);
            (records, confirmed, Ok(None))
        }
    };
    confirmed?;
    let mut records = records?;
    records.sort_unstable_by_key(|record| order.get(&record.id.0).copied());
    Ok(Claimed { records, next_due: next_due? })
}

/// The addresses of those that are due, the earliest first.
async fn due(db: &Db, (table, filter): (Table, Document), most: usize) -> Fallible<Vec<i64>> {
    if most == 0 {
        return Ok(Vec::new());
    }
    let records = db.table(table);
    let find = records.find(filter).sort(commands::earliest_first()).projection(doc! { "DueAt": 1 }).limit(limit(most));
    let found = all(find.await?).await?;
    Ok(found.iter().filter_map(|found| found.get("_id").and_then(whole)).collect())
}

/// In how long the next of a lane is due that waits now.
async fn next_due(db: &Db, version: &Version, lane: &Lane, now: DateTime) -> Fallible<Option<Duration>> {
    let records = db.table(lane.table());
    let find = records
        .find_one(commands::waiting(version, lane))
        .sort(commands::earliest_first())
        .projection(doc! { "DueAt": 1 });
    Ok(find.await?.and_then(|found| Some(until(*found.get_datetime("DueAt").ok()?, now))))
}

/// What a claim has won.
async fn won(db: &Db, table: Table, owner: &Bson, token: &Bson) -> Fallible<Vec<Record>> {
    Ok(read_all(all(db.table(table).find(commands::held(owner, token)).await?).await?))
}

/// How long it is until then; zero when it has passed.
pub(crate) fn until(moment: DateTime, now: DateTime) -> Duration {
    let wait = moment.timestamp_millis().saturating_sub(now.timestamp_millis());
    Duration::from_millis(u64::try_from(wait).unwrap_or(0))
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

fn statements(settlements: &[&Settlement]) -> Vec<Document> {
    let written = |alike: Alike<'_>| {
        let ids: Vec<i64> = alike.records.iter().map(|record| record.0).collect();
        commands::settle(&ids, &binary(alike.token.0), alike.state)
    };
    Alike::group(settlements.iter().copied()).into_iter().flat_map(written).collect()
}

/// Writes outcomes, in one transaction.
pub(crate) async fn settle(db: &Db, table: Table, settlements: &[Settlement]) -> Fallible<Vec<Settled>> {
    let batch = Settlements::new(settlements);
    let first: Vec<&Settlement> = batch.first().collect();
    let written = match first[..] {
        [] => HashSet::new(),
        [only] if settle_one(db, table, only).await? => HashSet::from([(only.record, only.token)]),
        [_] => HashSet::new(),
        _ => settle_many(db, table, &batch, &first).await?,
    };
    Ok(batch.answer(written))
}

/// A single document needs no transaction, and the driver tries again by itself where that is safe.
async fn settle_one(db: &Db, table: Table, settlement: &Settlement) -> Fallible<bool> {
    let Settlement { record, token, state } = settlement;
    let filter = commands::still_held(record.0, &binary(token.0));
    Ok(db.table(table).update_one(filter, commands::write(state)).await?.matched_count > 0)
}

/// Mostly all are still held; only when they are not, it is asked which.
async fn settle_many(db: &Db, table: Table, batch: &Settlements<'_>, all: &[&Settlement]) -> Fallible<HashSet<Holder>> {
    let context = (table, batch, all);
    let are_all_written = db.transact(&context, |db, session, (table, _, all)| {
        Box::pin(async move {
            let reply = db.update_in(session, *table, statements(all)).await?;
            let is_complete = matched(&reply) == all.len() as u64;
            Ok(if is_complete { End::Commit(true) } else { End::Abort(false) })
        })
    });
    if are_all_written.await? {
        return Ok(all.iter().map(|settlement| (settlement.record, settlement.token)).collect());
    }
    let settle_held = db.transact(&context, |db, session, (table, batch, all)| {
        Box::pin(async move {
            let held = held(db, session, *table, all).await?;
            let ours = batch.of(&held);
            let written: HashSet<Holder> =
                ours.iter().map(|settlement| (settlement.record, settlement.token)).collect();
            if written.is_empty() {
                return Ok(End::Abort(written));
            }
            let reply = db.update_in(session, *table, statements(&ours)).await?;
            if matched(&reply) != written.len() as u64 {
                return Err(Fault::Conflict);
            }
            Ok(End::Commit(written))
        })
    });
    settle_held.await
}

/// Which of them are still held, as this transaction sees it.
async fn held(
    db: &Db,
    session: &mut ClientSession,
    table: Table,
    settlements: &[&Settlement],
) -> Fallible<HashSet<Holder>> {
    let ids: Vec<i64> = settlements.iter().map(|settlement| settlement.record.0).collect();
    let mut held = HashSet::new();
    for ids in ids.chunks(AT_ONCE) {
        let records = db.table(table);
        let find = records.find(commands::all_held(ids)).projection(doc! { "Claim": 1 });
        let mut cursor = find.session(&mut *session).await?;
        while cursor.advance(session).await? {
            let found = cursor.deserialize_current()?;
            if let (Some(id), Some(token)) = (found.get("_id").and_then(whole), found.get("Claim").and_then(uuid)) {
                held.insert((RecordId(id), ClaimToken(token)));
            }
        }
    }
    Ok(held)
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
    give_back(db, table, doc! { "Owner": commands::among(&dead) }, Counted::Yes).await
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

fn read_all(documents: Vec<Document>) -> Vec<Record> {
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
        Some(Timestamp::from_micros(moment.timestamp_millis().saturating_mul(1_000)))
    };
    Some(Record {
        id,
        message_id: MessageId::from_stored(message_id.as_deref(), id),
        version: Version::from_stored(&version.unwrap_or_default()),
        topic: Topic::from_stored(&topic.unwrap_or_default()),
        group: group.as_deref().map(Group::from_stored),
        content: Arc::from(content.unwrap_or_default()),
        status: status.unwrap_or_default().parse().unwrap_or(Status::Failed),
        attempts: document.get("Retries").and_then(whole).and_then(|number| u32::try_from(number).ok()).unwrap_or(0),
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
        let error = check(Table::Outbox, &[record(MAX_CONTENT + 1)], None).unwrap_err();
        assert!(matches!(error, Fault::Said(ErrorKind::Rejected, _)), "{error:?}");
    }

    #[test]
    fn an_odd_document_is_read_as_well_as_it_can_be() {
        let record = read(doc! { "_id": 7, "Retries": "many", "Content": Bson::Null }).unwrap();
        assert_eq!((record.message_id.as_str(), record.attempts, &*record.content), ("row-7", 0, ""));
        assert!(read(doc! { "_id": "text" }).is_none());
    }
}
