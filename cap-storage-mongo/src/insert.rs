//! Storing records.

use std::collections::HashSet;

use cap_core::backend::refuse;
use cap_core::storage::{Claim, Inserted, NewRecord, Table};
use cap_core::{ErrorKind, RecordId};
use mongodb::ClientSession;
use mongodb::bson::{Bson, DateTime, doc};
use tokio::time::Instant;

use crate::address;
use crate::claim::confirm;
use crate::commands::{self, AT_ONCE, Upsert, binary};
use crate::error::{Fallible, Fault, is_address_taken};
use crate::row::whole;
use crate::session::{Db, End, all};

/// How many bytes of content one command carries, unless a single record has more.
const MAX_COMMAND: usize = 8 << 20;

/// How often an insert is done again under other addresses.
const TRIES: usize = 5;

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

#[cfg(test)]
mod tests {
    use cap_core::{Due, MessageId, Topic, Version, lifecycle};

    use super::*;
    use crate::row::MAX_CONTENT;

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
}
