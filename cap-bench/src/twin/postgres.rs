//! PostgreSQL by hand, on the tables of our schema.

use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::backend::{Claimed, Fallible, Hand, InboxRow, Names, OutboxRow};
use crate::database::NOTE;

const PLACE: &str = r#"
INSERT INTO cap.published ("Version", "Name", "Content", "Retries", "Added", "StatusName", "MessageId", "DueAt")
VALUES ('v1', $1, $2, 0, now() AT TIME ZONE 'UTC', 'Scheduled', $3, now())
ON CONFLICT ("MessageId") DO NOTHING
RETURNING "Id"
"#;

const CLAIM: &str = r#"
WITH due AS MATERIALIZED (
    SELECT "Id" FROM cap.published
    WHERE "Version" = 'v1' AND "DueAt" <= now()
    ORDER BY "DueAt", "Id" LIMIT $1
    FOR UPDATE SKIP LOCKED
)
UPDATE cap.published
SET "StatusName" = 'Queued', "Retries" = "Retries" + 1, "DueAt" = NULL,
    "Owner" = '00000000-0000-0000-0000-000000000001', "Claim" = '00000000-0000-0000-0000-000000000002'
WHERE "Id" = ANY (ARRAY (SELECT "Id" FROM due))
RETURNING "Id", "MessageId", "Content"
"#;

const CLAIM_ONE: &str = r#"
UPDATE cap.published
SET "StatusName" = 'Queued', "Retries" = "Retries" + 1, "DueAt" = NULL,
    "Owner" = '00000000-0000-0000-0000-000000000001', "Claim" = '00000000-0000-0000-0000-000000000002'
WHERE "Id" = $1 AND "DueAt" IS NOT NULL
RETURNING "Id", "MessageId", "Content"
"#;

const MARK_SENT: &str = r#"
UPDATE cap.published
SET "StatusName" = 'Succeeded', "ExpiresAt" = now() AT TIME ZONE 'UTC' + interval '1 day', "Owner" = NULL, "Claim" = NULL
WHERE "Id" = ANY ($1) AND "Claim" = '00000000-0000-0000-0000-000000000002'
"#;

const RECEIVE: &str = r#"
INSERT INTO cap.received ("Version", "Name", "Group", "Content", "Retries", "Added", "StatusName", "MessageId",
                          "Owner", "Claim")
SELECT 'v1', $1, $2, content, 1, now() AT TIME ZONE 'UTC', 'Queued', message_id,
       '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002'
FROM UNNEST($3::text[], $4::text[]) AS given (message_id, content)
ON CONFLICT ("MessageId", "Group") DO NOTHING
RETURNING "Id"
"#;

const MARK_HANDLED: &str = r#"
UPDATE cap.received
SET "StatusName" = 'Succeeded', "ExpiresAt" = now() AT TIME ZONE 'UTC' + interval '1 day', "Owner" = NULL, "Claim" = NULL
WHERE "Id" = ANY ($1) AND "Claim" = '00000000-0000-0000-0000-000000000002'
"#;

/// The twin's connection.
pub(crate) struct PostgresHand(pub(crate) PgConnection);

fn claimed(row: &PgRow) -> Fallible<Claimed> {
    Ok(Claimed { id: row.try_get(0)?, message_id: row.try_get(1)?, content: row.try_get(2)? })
}

impl Hand for PostgresHand {
    async fn place(&mut self, row: &OutboxRow) -> Fallible<i64> {
        let mut tx = self.0.begin().await?;
        sqlx::query("INSERT INTO orders (number, note) VALUES ($1, $2)")
            .bind(row.number)
            .bind(NOTE)
            .execute(&mut *tx)
            .await?;
        let placed =
            sqlx::query(PLACE).bind(&row.topic).bind(&row.content).bind(&row.message_id).fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(placed.try_get(0)?)
    }

    async fn claim(&mut self, limit: usize) -> Fallible<Vec<Claimed>> {
        let rows = sqlx::query(CLAIM).bind(i64::try_from(limit)?).fetch_all(&mut self.0).await?;
        rows.iter().map(claimed).collect()
    }

    async fn claim_one(&mut self, id: i64) -> Fallible<Claimed> {
        claimed(&sqlx::query(CLAIM_ONE).bind(id).fetch_one(&mut self.0).await?)
    }

    async fn mark_sent(&mut self, ids: Vec<i64>) -> Fallible {
        sqlx::query(MARK_SENT).bind(ids).execute(&mut self.0).await?;
        Ok(())
    }

    async fn receive(&mut self, names: &Names, rows: Vec<InboxRow>) -> Fallible<Vec<i64>> {
        let (ids, contents): (Vec<_>, Vec<_>) = rows.into_iter().map(|row| (row.message_id, row.content)).unzip();
        let inserted = sqlx::query(RECEIVE)
            .bind(&names.topic)
            .bind(names.queue())
            .bind(ids)
            .bind(contents)
            .fetch_all(&mut self.0)
            .await?;
        inserted.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    async fn mark_handled(&mut self, ids: Vec<i64>) -> Fallible {
        sqlx::query(MARK_HANDLED).bind(ids).execute(&mut self.0).await?;
        Ok(())
    }
}
