//! MongoDB by hand, on the collections of our schema.

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::options::{Acknowledgment, WriteConcern};
use mongodb::{ClientSession, Database};

use crate::backend::{Claimed, Fallible, Hand, InboxRow, Names, OutboxRow};
use crate::database::NOTE;

/// How many addresses a statement lists, as in our storage.
const AT_ONCE: usize = 64;

/// A day, in milliseconds.
const DAY: i64 = 86_400_000;

/// The twin's client and its session.
pub(crate) struct MongoHand {
    pub(crate) database: Database,
    pub(crate) session: ClientSession,
}

fn durable() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build()
}

fn id(last: u8) -> Bson {
    let mut bytes = vec![0; 16];
    bytes[15] = last;
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes })
}

fn address() -> i64 {
    fastrand::i64(0..)
}

fn earliest() -> DateTime {
    DateTime::from_millis(-62_135_596_800_000)
}

fn take() -> Document {
    doc! {
        "$set": { "StatusName": "Queued", "Owner": id(1), "Claim": id(2) },
        "$inc": { "Retries": 1 },
        "$unset": { "DueAt": "" },
    }
}

fn claimed(found: &Document) -> Fallible<Claimed> {
    let text = |name: &str| found.get_str(name).map(str::to_owned);
    Ok(Claimed { id: found.get_i64("_id")?, message_id: text("MessageId")?, content: text("Content")? })
}

impl MongoHand {
    /// One command, with a statement for each so many addresses; answers how many documents it matched.
    async fn update(&self, name: &str, ids: &[i64], filter: Document, update: Document) -> Fallible<i64> {
        let statements: Vec<Document> = ids
            .chunks(AT_ONCE)
            .map(|ids| {
                let mut filter = filter.clone();
                filter.insert("_id", doc! { "$in": ids.to_vec() });
                doc! { "q": filter, "u": update.clone(), "multi": true }
            })
            .collect();
        if statements.is_empty() {
            return Ok(0);
        }
        let command = doc! { "update": name, "updates": statements, "writeConcern": { "w": "majority", "j": true } };
        let reply = self.database.run_command(command).await?;
        if let Ok(errors) = reply.get_array("writeErrors") {
            return Err(format!("{errors:?}").into());
        }
        Ok(i64::from(reply.get_i32("n")?))
    }

    async fn mark(&self, name: &str, ids: &[i64]) -> Fallible {
        let expires = DateTime::from_millis(DateTime::now().timestamp_millis() + DAY);
        let update = doc! {
            "$set": { "StatusName": "Succeeded", "ExpiresAt": expires },
            "$unset": { "Owner": "", "Claim": "" },
        };
        self.update(name, ids, doc! { "Claim": id(2) }, update).await?;
        Ok(())
    }
}

impl Hand for MongoHand {
    async fn place(&mut self, row: &OutboxRow) -> Fallible<i64> {
        let address = address();
        let now = DateTime::now();
        let message = doc! {
            "_id": address, "Version": "v1", "Name": &row.topic, "Content": &row.content, "Retries": 0, "Added": now,
            "StatusName": "Scheduled", "MessageId": &row.message_id, "DueAt": now,
        };
        let (orders, published) =
            (self.database.collection::<Document>("orders"), self.database.collection::<Document>("cap.published"));
        let session = &mut self.session;
        session.start_transaction().write_concern(durable()).await?;
        orders.insert_one(doc! { "_id": row.number, "note": NOTE }).session(&mut *session).await?;
        published.insert_one(message).session(&mut *session).await?;
        session.commit_transaction().await?;
        Ok(address)
    }

    async fn claim(&mut self, limit: usize) -> Fallible<Vec<Claimed>> {
        let published = self.database.collection::<Document>("cap.published");
        let due = doc! { "Version": "v1", "DueAt": { "$gt": earliest(), "$lte": DateTime::now() } };
        let find = published.find(due).sort(doc! { "DueAt": 1, "_id": 1 }).limit(i64::try_from(limit)?);
        let mut cursor = find.await?;
        let mut found = Vec::new();
        while cursor.advance().await? {
            found.push(claimed(&cursor.deserialize_current()?)?);
        }
        let ids: Vec<i64> = found.iter().map(|claimed| claimed.id).collect();
        let taken = self.update("cap.published", &ids, doc! { "DueAt": { "$gt": earliest() } }, take()).await?;
        if taken != i64::try_from(ids.len())? {
            return Err("another claimer is at work".into());
        }
        Ok(found)
    }

    async fn claim_one(&mut self, id: i64) -> Fallible<Claimed> {
        let published = self.database.collection::<Document>("cap.published");
        let filter = doc! { "_id": id, "DueAt": { "$gt": earliest() } };
        let found = published.find_one_and_update(filter, take()).write_concern(durable()).await?;
        claimed(&found.ok_or("it is not there")?)
    }

    async fn mark_sent(&mut self, ids: Vec<i64>) -> Fallible {
        self.mark("cap.published", &ids).await
    }

    async fn receive(&mut self, names: &Names, rows: Vec<InboxRow>) -> Fallible<Vec<i64>> {
        let now = DateTime::now();
        let mut ids = Vec::with_capacity(rows.len());
        let records: Vec<Document> = rows
            .into_iter()
            .map(|row| {
                let address = address();
                ids.push(address);
                doc! {
                    "_id": address, "Version": "v1", "Name": &names.topic, "Group": names.queue(),
                    "Content": row.content, "Retries": 1, "Added": now, "StatusName": "Queued",
                    "MessageId": row.message_id, "Owner": id(1), "Claim": id(2),
                }
            })
            .collect();
        let received = self.database.collection::<Document>("cap.received");
        received.insert_many(records).ordered(false).write_concern(durable()).await?;
        Ok(ids)
    }

    async fn mark_handled(&mut self, ids: Vec<i64>) -> Fallible {
        self.mark("cap.received", &ids).await
    }
}
