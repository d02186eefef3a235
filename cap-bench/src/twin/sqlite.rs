//! SQLite by hand: one connection that all loops share, since there is one writer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, TransactionBehavior};

use crate::backend::{Claimed, Fallible, Hand, InboxRow, Names, OutboxRow};
use crate::database::{NOTE, sqlite};

const NOW: &str = "(CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000)";
const OWNER: &str = "00000000-0000-0000-0000-000000000001";
const TOKEN: &str = "00000000-0000-0000-0000-000000000002";

/// The twin's connection.
#[derive(Clone)]
pub(crate) struct SqliteHand(Arc<Mutex<Connection>>);

impl SqliteHand {
    pub(crate) fn open(path: &Path) -> Fallible<Self> {
        Ok(Self(Arc::new(Mutex::new(sqlite::open(path)?))))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Fallible<T>) -> Fallible<T> {
        tokio::task::block_in_place(|| work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn claim_where(&self, condition: &str, value: i64) -> Fallible<Vec<Claimed>> {
        let sql = format!(
            r#"UPDATE "cap.published"
               SET StatusName = 'Queued', Retries = Retries + 1, DueAt = NULL, Owner = '{OWNER}', Claim = '{TOKEN}'
               WHERE Id IN ({condition}) RETURNING Id, MessageId, Content"#
        );
        self.with(|connection| {
            let mut claim = connection.prepare_cached(&sql)?;
            let rows = claim.query_map([value], |row| {
                Ok(Claimed { id: row.get(0)?, message_id: row.get(1)?, content: row.get(2)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn mark(&self, table: &str, ids: &[i64]) -> Fallible {
        let sql = format!(
            r#"UPDATE "{table}" SET StatusName = 'Succeeded', ExpiresAt = {NOW} + 86400000000, Owner = NULL, Claim = NULL
               WHERE Id IN (SELECT value FROM json_each(?1)) AND Claim = '{TOKEN}'"#
        );
        let ids = serde_json::to_string(ids)?;
        self.with(|connection| Ok(connection.prepare_cached(&sql)?.execute([ids]).map(drop)?))
    }
}

impl Hand for SqliteHand {
    async fn place(&mut self, row: &OutboxRow) -> Fallible<i64> {
        let sql = format!(
            r#"INSERT INTO "cap.published" (Version, Name, Content, Retries, Added, StatusName, MessageId, DueAt)
               VALUES ('v1', ?1, ?2, 0, {NOW}, 'Scheduled', ?3, {NOW}) ON CONFLICT (MessageId) DO NOTHING"#
        );
        self.with(|connection| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.prepare_cached("INSERT INTO orders (number, note) VALUES (?1, ?2)")?.execute((row.number, NOTE))?;
            tx.prepare_cached(&sql)?.execute((&row.topic, &row.content, &row.message_id))?;
            let id = tx.last_insert_rowid();
            tx.commit()?;
            Ok(id)
        })
    }

    async fn claim(&mut self, limit: usize) -> Fallible<Vec<Claimed>> {
        let due = format!(
            r#"SELECT Id FROM "cap.published" INDEXED BY "cap.published.due"
               WHERE Version = 'v1' AND DueAt <= {NOW} ORDER BY DueAt, Id LIMIT ?1"#
        );
        self.claim_where(&due, i64::try_from(limit)?)
    }

    async fn claim_one(&mut self, id: i64) -> Fallible<Claimed> {
        self.claim_where("?1", id)?.pop().ok_or_else(|| "the row is not there".into())
    }

    async fn mark_sent(&mut self, ids: Vec<i64>) -> Fallible {
        self.mark("cap.published", &ids)
    }

    async fn receive(&mut self, names: &Names, rows: Vec<InboxRow>) -> Fallible<Vec<i64>> {
        let sql = format!(
            r#"INSERT INTO "cap.received"
                   (Version, Name, "Group", Content, Retries, Added, StatusName, MessageId, Owner, Claim)
               VALUES ('v1', ?1, ?2, ?3, 1, {NOW}, 'Queued', ?4, '{OWNER}', '{TOKEN}')
               ON CONFLICT (MessageId, "Group") DO NOTHING"#
        );
        let (topic, group) = (&names.topic, names.queue());
        self.with(|connection| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut ids = Vec::with_capacity(rows.len());
            for row in &rows {
                if tx.prepare_cached(&sql)?.execute((topic, &group, &row.content, &row.message_id))? == 1 {
                    ids.push(tx.last_insert_rowid());
                }
            }
            tx.commit()?;
            Ok(ids)
        })
    }

    async fn mark_handled(&mut self, ids: Vec<i64>) -> Fallible {
        self.mark("cap.received", &ids)
    }
}
