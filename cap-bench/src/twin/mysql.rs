//! MySQL and MariaDB by hand, on the tables of our schema.

use std::fmt::Display;

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Connection as _, MySql, MySqlConnection, QueryBuilder, Row as _};

use crate::backend::{Claimed, Fallible, Hand, InboxRow, Names, OutboxRow};
use crate::database::NOTE;

const PLACE: &str = "
INSERT INTO `cap.published` (Version, Name, Content, Retries, Added, StatusName, MessageId, DueAt)
VALUES ('v1', ?, ?, 0, UTC_TIMESTAMP(6), 'Scheduled', ?, UTC_TIMESTAMP(6))
";

const CLAIM: &str = "
SELECT Id, CAST(MessageId AS CHAR), Content FROM `cap.published` FORCE INDEX (published_due)
WHERE Version = 'v1' AND DueAt <= UTC_TIMESTAMP(6)
ORDER BY DueAt, Id LIMIT ?
FOR UPDATE SKIP LOCKED
";

const CLAIM_ONE: &str = "
SELECT Id, CAST(MessageId AS CHAR), Content FROM `cap.published` WHERE Id = ? AND DueAt IS NOT NULL FOR UPDATE
";

const HOLD: &str = "
UPDATE `cap.published`
SET StatusName = 'Queued', Retries = Retries + 1, DueAt = NULL, Owner = REPEAT('o', 16), Claim = REPEAT('c', 16)
WHERE Id IN ";

const MARK_SENT: &str = "
UPDATE `cap.published`
SET StatusName = 'Succeeded', ExpiresAt = UTC_TIMESTAMP(6) + INTERVAL 1 DAY, Owner = NULL, Claim = NULL
WHERE Claim = REPEAT('c', 16) AND Id IN ";

const RECEIVE: &str = "
INSERT INTO `cap.received` (Version, Name, `Group`, Content, Retries, Added, StatusName, MessageId, Owner, Claim) ";

const OR_NOTHING: &str = " ON DUPLICATE KEY UPDATE Id = Id";

const MARK_HANDLED: &str = "
UPDATE `cap.received`
SET StatusName = 'Succeeded', ExpiresAt = UTC_TIMESTAMP(6) + INTERVAL 1 DAY, Owner = NULL, Claim = NULL
WHERE Claim = REPEAT('c', 16) AND Id IN ";

/// The twin's connection.
pub(crate) struct MySqlHand(pub(crate) MySqlConnection);

fn claimed(row: &MySqlRow) -> Fallible<Claimed> {
    Ok(Claimed { id: row.try_get(0)?, message_id: row.try_get(1)?, content: row.try_get(2)? })
}

/// The statement with these numbers in the list that it ends with.
fn with_list(statement: &str, ids: impl Iterator<Item = impl Display>) -> AssertSqlSafe<String> {
    let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
    AssertSqlSafe(format!("{statement}({})", ids.join(",")))
}

impl Hand for MySqlHand {
    async fn place(&mut self, row: &OutboxRow) -> Fallible<i64> {
        let mut tx = self.0.begin().await?;
        sqlx::query("INSERT INTO orders (number, note) VALUES (?, ?)")
            .bind(row.number)
            .bind(NOTE)
            .execute(&mut *tx)
            .await?;
        let placed =
            sqlx::query(PLACE).bind(&row.topic).bind(&row.content).bind(&row.message_id).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(i64::try_from(placed.last_insert_id())?)
    }

    async fn claim(&mut self, limit: usize) -> Fallible<Vec<Claimed>> {
        // Without gap locks, which a claim would share with whoever publishes.
        let begin = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
        sqlx::raw_sql(begin).execute(&mut self.0).await?;
        let rows = sqlx::query(CLAIM).bind(i64::try_from(limit)?).fetch_all(&mut self.0).await?;
        let rows = rows.iter().map(claimed).collect::<Fallible<Vec<_>>>()?;
        if !rows.is_empty() {
            let hold = with_list(HOLD, rows.iter().map(|row| row.id));
            sqlx::raw_sql(hold).execute(&mut self.0).await?;
        }
        sqlx::raw_sql("COMMIT").execute(&mut self.0).await?;
        Ok(rows)
    }

    async fn claim_one(&mut self, id: i64) -> Fallible<Claimed> {
        let mut tx = self.0.begin().await?;
        let row = claimed(&sqlx::query(CLAIM_ONE).bind(id).fetch_one(&mut *tx).await?)?;
        sqlx::raw_sql(with_list(HOLD, [id].iter())).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(row)
    }

    async fn mark_sent(&mut self, ids: Vec<i64>) -> Fallible {
        sqlx::raw_sql(with_list(MARK_SENT, ids.iter())).execute(&mut self.0).await?;
        Ok(())
    }

    async fn receive(&mut self, names: &Names, rows: Vec<InboxRow>) -> Fallible<Vec<i64>> {
        let (number, queue) = (i64::try_from(rows.len())?, names.queue());
        let mut insert = QueryBuilder::<MySql>::new(RECEIVE);
        insert.push_values(rows, |mut values, row| {
            values.push("'v1'").push_bind(&names.topic).push_bind(&queue).push_bind(row.content);
            values.push("1, UTC_TIMESTAMP(6), 'Queued'").push_bind(row.message_id);
            values.push("REPEAT('o', 16), REPEAT('c', 16)");
        });
        insert.push(OR_NOTHING);
        let inserted = insert.build().execute(&mut self.0).await?;
        // The rows of one statement follow each other, and this round repeats none.
        let first = i64::try_from(inserted.last_insert_id())?;
        Ok((first..first + number).collect())
    }

    async fn mark_handled(&mut self, ids: Vec<i64>) -> Fallible {
        sqlx::raw_sql(with_list(MARK_HANDLED, ids.iter())).execute(&mut self.0).await?;
        Ok(())
    }
}
