//! All SQL, complete. `{…}` stands for a name or for the clock; [`Sql::new`] fills it in once for a schema. The
//! migrations are in `migrations/`.
//!
//! Invariants of both tables: `DueAt` is set exactly while a record waits; `Owner` and `Claim` are set exactly while it
//! is `Queued`; `ExpiresAt` is set exactly when it is terminal. Content is written by `INSERT` alone.
//!
//! Four habits, each for a reason:
//! - Rows to be changed are found in a CTE that locks them, and addressed by `"Id" = ANY (ARRAY (…))`: a plan over the
//!   primary key, whatever the statistics make of the CTE.
//! - A limit is `(SELECT $n)`, which the planner cannot see through: if it knew that the limit is more than the rows that
//!   it believes in, it would fetch and sort all there are, of a backlog that its statistics know nothing of.
//! - Many rows are one statement over `UNNEST`, whose text is always the same.
//! - Whoever writes an owner shares a lock on the node's row, so that a takeover, which deletes the row first, waits for
//!   claims under way and then sees what they took.
//! - Where a handler's open transaction may have a row locked, a statement of our own waits for it no longer than its last
//!   parameter says ([`PATIENCE`]), and is followed by one that leaves the locked rows alone. A skipping lock for each
//!   row, which is seldom needed, would cost every settlement a second write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cap_core::storage::Table;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};
use uuid::Uuid;

/// The server's clock, one value for a statement, whatever time the user's transaction began.
const NOW: &str = "statement_timestamp()";

/// The same for CAP's columns, which have no time zone: UTC.
const UTC: &str = "(statement_timestamp() AT TIME ZONE 'UTC')";

/// The schema, one script for each version, from 1.
pub(crate) const MIGRATIONS: &[&str] =
    &[include_str!("migrations/1.sql"), include_str!("migrations/2.sql"), include_str!("migrations/3.sql")];

/// The least address that .NET CAP gives: ours are all below it.
const FIRST_OF_CAP: &str = "1125899906842623";

/// How long a statement waits for a lock, in milliseconds, before it is tried in a way that skips what is locked.
pub(crate) const PATIENCE: &str = "20";

/// For a transaction of the storage's own.
pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE";

/// Around a question to a session whose defaults are not known. Where they are serializable, read-only and deferrable a bare
/// question waits until no serializable transaction is open, and so for ever on the transaction of who asks.
const BEGIN_LOOK: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// The same around single statements, where the defaults of a session are not what they need.
pub(crate) fn begin_on_terms(statement_timeout: Duration) -> AssertSqlSafe<String> {
    let milliseconds = statement_timeout.as_millis();
    AssertSqlSafe(format!(
        "{BEGIN}; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = \
         {milliseconds}; SAVEPOINT cap_terms"
    ))
}

/// Whether they are not. (On a standby nothing can be written whatever is said, and a session that somebody has made read-only
/// is left. What is stored of a delivery must be
/// there after a crash of the server, since the broker is told so.)
pub(crate) fn needs_terms(statement_timeout: Duration) -> AssertSqlSafe<String> {
    let milliseconds = statement_timeout.as_millis();
    AssertSqlSafe(format!(
        "{BEGIN_LOOK}; SELECT EXISTS (
            SELECT FROM pg_catalog.pg_settings WHERE CASE name
                WHEN 'default_transaction_isolation' THEN setting <> 'read committed'
                WHEN 'default_transaction_read_only' THEN reset_val = 'on' AND NOT pg_catalog.pg_is_in_recovery()
                WHEN 'synchronous_commit' THEN setting = 'off'
                WHEN 'lock_timeout' THEN setting::bigint BETWEEN 1 AND {milliseconds}
                WHEN 'statement_timeout' THEN setting::bigint BETWEEN 1 AND {milliseconds} - 1
                ELSE false
            END
        ); COMMIT"
    ))
}

/// Makes good what a statement on such terms has failed in.
pub(crate) const TAKE_BACK: &str = "ROLLBACK TO SAVEPOINT cap_terms";

/// What the sessions of a pool of the storage's own are limited by.
pub(crate) fn limits(statement_timeout: Duration) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("SET statement_timeout = {}; SET lock_timeout = 0", statement_timeout.as_millis()))
}

/// For a handler's own work, which may take as long as it needs: no limit but that of the role or database. It is also as
/// isolated as they say.
pub(crate) const BEGIN_HANDLER: &str =
    "BEGIN READ WRITE; SET LOCAL statement_timeout TO DEFAULT; SET LOCAL lock_timeout TO DEFAULT";

/// For a migration, which may have to rewrite large tables.
pub(crate) const NO_TIME_LIMIT: &str = "SET LOCAL statement_timeout TO 0; SET LOCAL lock_timeout TO 0";

pub(crate) const LOCK_MIGRATION: &str = "SELECT pg_advisory_xact_lock($1)";

/// The tables that row level security is active on, for this role.
const POLICIES: &str = r#"
SELECT coalesce(array_agg(name), '{}')
FROM UNNEST(ARRAY['{published}', '{received}', '{nodes}', '{chores}']) AS name
WHERE row_security_active(name)
"#;

/// A record that is none: nobody claims it, and it is taken back.
const TRY_INSERT: &str = r#"
INSERT INTO {table} ("Version", "Name", {group_column}"Content", "Retries", "Added", "StatusName", "MessageId")
VALUES ('', '', {group_tried}'', 0, {utc}, 'Succeeded', 'tried ' || txid_current())
"#;

const TRY_UPDATE: &str = r#"UPDATE {table} SET "Retries" = 1 WHERE "MessageId" = 'tried ' || txid_current()"#;

const TRY_DELETE: &str = r#"DELETE FROM {table} WHERE "MessageId" = 'tried ' || txid_current()"#;

pub(crate) const NOTIFY: &str = "SELECT pg_notify($1, $2)";

/// The session that a connection has, whether it is in a transaction or not.
pub(crate) const SESSION: &str = "SELECT pg_backend_pid()";

/// The same outside of a transaction, whatever the session's defaults are.
pub(crate) const SESSION_BETWEEN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_backend_pid(); COMMIT";

/// A setting of nobody's.
pub(crate) const MARK: &str = "cap.direct";

/// Not by a `SELECT`, which may wait for others (see [`BEGIN_LOOK`]).
pub(crate) const SHOW_MARK: &str = "SHOW cap.direct";

/// A statement to be prepared, which tells whether it was this one that ran, and in which session.
pub(crate) fn echo(nonce: Uuid) -> String {
    format!("SELECT $1::integer, pg_backend_pid(), '{nonce}'")
}

/// The name is the driver's, of the first statement that a connection prepares.
pub(crate) const FORGET_ECHO: &str = "DEALLOCATE sqlx_s_1";

pub(crate) const HOLD: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";

pub(crate) const ROLLBACK: &str = "ROLLBACK";

/// The first fails outside of a transaction; together they leave it as it was.
pub(crate) const IN_TRANSACTION: &str = "SAVEPOINT cap_publish";

pub(crate) const FORGET_SAVEPOINT: &str = "RELEASE SAVEPOINT cap_publish";

/// A session that is not closed as idle. Servers before version 14 do not know the setting.
pub(crate) const MAY_BE_IDLE: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name = 'idle_session_timeout'; COMMIT";

/// The connection's own session, after a transaction has failed.
pub(crate) const END_SESSION: &str = "ROLLBACK; SELECT pg_terminate_backend(pg_backend_pid())";

/// Whether the transaction still is what it was begun as: it has written, so it has an id. From here on `$1` is the
/// time limit again.
pub(crate) const STILL_OPEN: &str =
    "SELECT txid_current_if_assigned() IS NOT NULL, set_config('statement_timeout', $1, true)";

pub(crate) const ENCODING: &str = "SHOW server_encoding";

pub(crate) const SCHEMA_THERE: &str = "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = $1";

/// How many of the tables there are that are named in `$2`.
pub(crate) const TABLES_THERE: &str = "
SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relkind IN ('r', 'p')
";

/// How many columns of .NET CAP's tables there are.
pub(crate) const CAP_COLUMNS_THERE: &str = "
SELECT count(*) FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND NOT a.attisdropped
  AND a.attname IN ('Id', 'Version', 'Name', 'Group', 'Content', 'Retries', 'Added', 'ExpiresAt', 'StatusName')
";

/// The zone that .NET CAP's times are read in, if somebody has named it.
pub(crate) const CAP_ZONE: &str = "SELECT nullif(current_setting('cap.time_zone', true), '')";

/// How many rows of each status .NET CAP has left.
const STATUSES: &str = r#"SELECT "StatusName", count(*) FROM {table} GROUP BY "StatusName" ORDER BY "StatusName""#;

const CREATE_SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS {schema}";

const CREATE_VERSIONS: &str = r#"
CREATE TABLE IF NOT EXISTS {versions} (
    "Version"   INTEGER     NOT NULL PRIMARY KEY,
    "AppliedAt" TIMESTAMPTZ NOT NULL
)"#;

const SCHEMA_VERSION: &str = r#"SELECT coalesce(max("Version"), 0)::bigint FROM {versions}"#;

const RECORD_VERSION: &str = r#"INSERT INTO {versions} ("Version", "AppliedAt") VALUES ($1::integer, {now})"#;

/// An array for each column that differs from row to row, and one of the kinds of rows for each that many have in
/// common. An answer for each row that was stored. The last parameter is null in a caller's transaction, whose limits are
/// left as they are. There `{on}` is empty, so that not even an address that is taken is an error, which would end it.
const INSERT: &str = r#"
INSERT INTO {table} ("Version", "Name", {group_column}"Content", "Retries", "Added", "ExpiresAt", "StatusName",
                     "MessageId", "DueAt", "Reason", "Crashes")
SELECT ($4::text[])[kind], name, {group_given}content, ($6::integer[])[kind], (SELECT {utc}),
       (SELECT {utc}) + ($10::bigint[])[kind] * interval '1 microsecond', ($7::text[])[kind], message_id,
       coalesce(timestamptz 'epoch' + ($8::bigint[])[kind] * interval '1 microsecond',
                (SELECT {now}) + ($9::bigint[])[kind] * interval '1 microsecond'),
       ($11::text[])[kind], ($13::integer[])[kind]
FROM (SELECT UNNEST($1::text[]), UNNEST($2::text[]), UNNEST($3::text[]), UNNEST($12::integer[]), $5::text[])
    AS given (message_id, name, content, kind, groups)
WHERE (SELECT CASE WHEN $14::text IS NULL THEN '' ELSE set_config('lock_timeout', $14, true) END) IS NOT NULL
ON CONFLICT {on}DO NOTHING
RETURNING "Id", "MessageId", {group}
"#;

/// A single row of the outbox that waits for its first attempt, which is what most business transactions publish. That the
/// address is taken is no error, either.
const PUBLISH: &str = r#"
INSERT INTO {published} ("Version", "Name", "Content", "Retries", "Added", "StatusName", "MessageId", "DueAt")
VALUES ($4, $2, $3, 0, {utc}, $5, $1, {now} + $6::bigint * interval '1 microsecond')
ON CONFLICT DO NOTHING
RETURNING "Id"
"#;

/// The greatest address of the table, and the last one of the sequence that makes them, if it has made any yet (see
/// `sequence.rs`).
const LAST: &str = r#"
SELECT coalesce(max("Id"), 0), pg_sequence_last_value('{sequence}'::regclass) FROM {table} WHERE "Id" < {first_of_cap}
"#;

/// The one before the first that it makes. Who may only use the sequence may not ask this.
const BEFORE_FIRST: &str = r#"SELECT last_value - 1 FROM {sequence}"#;

/// So far nobody can be hindered by it, whatever others do meanwhile, and no right is needed but that to insert.
const ADVANCE: &str = "SELECT count(nextval('{sequence}')) FROM generate_series(1, $1::bigint)";

const CATCH_UP: &str = r#"
SELECT setval('{sequence}', (SELECT max("Id") FROM {table} WHERE "Id" < {first_of_cap}))
"#;

/// As [`INSERT`], with those in flight held by `$15` under `$16`. Answers no row at all when that node has no live
/// registered, and otherwise one without an address beside those that were stored.
const INSERT_HELD: &str = r#"
WITH live AS MATERIALIZED (
    SELECT "Node" FROM {nodes} WHERE "Node" = $15::uuid FOR KEY SHARE
), stored AS (
    INSERT INTO {table} ("Version", "Name", {group_column}"Content", "Retries", "Added", "ExpiresAt", "StatusName",
                         "MessageId", "DueAt", "Reason", "Crashes", "Owner", "Claim")
    SELECT ($4::text[])[kind], name, {group_given}content, ($6::integer[])[kind], (SELECT {utc}),
           (SELECT {utc}) + ($10::bigint[])[kind] * interval '1 microsecond', ($7::text[])[kind], message_id,
           coalesce(timestamptz 'epoch' + ($8::bigint[])[kind] * interval '1 microsecond',
                    (SELECT {now}) + ($9::bigint[])[kind] * interval '1 microsecond'),
           ($11::text[])[kind], ($13::integer[])[kind],
           CASE ($7::text[])[kind] WHEN 'Queued' THEN $15::uuid END,
           CASE ($7::text[])[kind] WHEN 'Queued' THEN $16::uuid END
    FROM (SELECT UNNEST($1::text[]), UNNEST($2::text[]), UNNEST($3::text[]), UNNEST($12::integer[]), $5::text[]
          WHERE EXISTS (SELECT FROM live))
        AS given (message_id, name, content, kind, groups)
    WHERE (SELECT CASE WHEN $14::text IS NULL THEN '' ELSE set_config('lock_timeout', $14, true) END) IS NOT NULL
    ON CONFLICT ({key}) DO NOTHING
    RETURNING "Id", "MessageId", {group} AS "Group"
)
SELECT "Id", "MessageId", "Group" FROM stored
UNION ALL
SELECT NULL, NULL, NULL FROM live
"#;

/// As [`INSERT_HELD`] for the inbox when all are in flight and have all else in common, as what a broker delivers mostly
/// has. Answers nothing when the node is not registered, and also when all were there before.
const INSERT_IN_FLIGHT: &str = r#"
WITH live AS MATERIALIZED (
    SELECT "Node" FROM {nodes} WHERE "Node" = $7::uuid FOR KEY SHARE
)
INSERT INTO {received} ("Version", "Name", "Group", "Content", "Retries", "Added", "StatusName", "MessageId", "Owner",
                        "Claim")
SELECT $4, name, $5, content, $6::integer, {utc}, 'Queued', message_id, $7::uuid, $8::uuid
FROM (SELECT UNNEST($1::text[]), UNNEST($2::text[]), UNNEST($3::text[]) WHERE EXISTS (SELECT FROM live))
    AS given (message_id, name, content)
WHERE (SELECT set_config('lock_timeout', $9::text, true)) IS NOT NULL
ON CONFLICT ("MessageId", "Group") DO NOTHING
RETURNING "Id", "MessageId"
"#;

/// Which of these are there already: their places, counted from 1. It locks nothing.
const KNOWN: &str = r#"
SELECT given.place
FROM UNNEST($1::text[], $2::text[]) WITH ORDINALITY AS given (message_id, message_group, place)
WHERE EXISTS (SELECT FROM {table} WHERE "MessageId" = given.message_id {and_of_group})
"#;

const IS_REGISTERED: &str = r#"SELECT FROM {nodes} WHERE "Node" = $1::uuid"#;

/// Answers no row at all when the node is not registered. Otherwise the first has no address: it tells the records'
/// order and, with fewer of them than the limit, the time of the lane's next one; they follow as they were written, since
/// sorting them here would copy their contents. The node's row is locked only if something is due: a claim of nothing
/// writes nothing. What is due and goes beyond the bytes is locked for as long as the statement takes, and is the next
/// one. What was due before `$7` is not looked for: see `floor.rs`. The condition on names is a `CASE` as in [`COLLECT`].
const CLAIM: &str = r#"
WITH due AS MATERIALIZED (
    SELECT "Id", "DueAt", octet_length("Content") AS bytes FROM {table}
    WHERE "Version" = $3 AND {in_lane} AND "DueAt" <= {now}
      AND "DueAt" >= coalesce(timestamptz 'epoch' + $7::bigint * interval '1 microsecond', '-infinity')
      AND CASE WHEN "Name" = ANY ($6::text[]) THEN false ELSE true END
    ORDER BY "DueAt", "Id"
    LIMIT (SELECT $4::bigint)
    FOR UPDATE SKIP LOCKED
), taken AS MATERIALIZED (
    SELECT "Id", "DueAt" FROM (
        SELECT "Id", "DueAt", sum(bytes) OVER given AS bytes, row_number() OVER given AS place
        FROM due WINDOW given AS (ORDER BY "DueAt", "Id" ROWS UNBOUNDED PRECEDING)
    ) AS summed
    WHERE place = 1 OR coalesce(bytes, 0) <= $5::bigint
), live AS MATERIALIZED (
    SELECT "Node" FROM {nodes}
    WHERE "Node" = $1::uuid AND EXISTS (SELECT FROM due)
    FOR KEY SHARE
), held AS (
    UPDATE {table}
    SET "StatusName" = 'Queued', "Retries" = "Retries" + 1, "DueAt" = NULL, "ExpiresAt" = NULL,
        "Owner" = $1::uuid, "Claim" = $2::uuid
    WHERE "Id" = ANY (ARRAY (SELECT "Id" FROM taken)) AND EXISTS (SELECT FROM live)
    RETURNING "Id", "MessageId", "Version", "Name", {group} AS "Group", "Content", "StatusName", "Retries", "Added",
              "ExpiresAt", "Owner", "Reason", "Crashes"
)
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL::timestamptz, NULL, NULL, NULL, NULL,
       ARRAY (SELECT "Id" FROM taken ORDER BY "DueAt", "Id"),
       CASE WHEN (SELECT count(*) FROM taken) < $4 THEN (
           SELECT "DueAt" FROM {table}
           WHERE "Version" = $3 AND {in_lane} AND "DueAt" IS NOT NULL
             AND "DueAt" >= coalesce(timestamptz 'epoch' + $7::bigint * interval '1 microsecond', '-infinity')
             AND "DueAt" <= 'infinity'
             AND CASE WHEN "Name" = ANY ($6::text[]) THEN false ELSE true END
             AND "Id" NOT IN (SELECT "Id" FROM taken)
           ORDER BY "DueAt" LIMIT 1
       ) END,
       {now}
WHERE CASE WHEN EXISTS (SELECT FROM due) THEN EXISTS (SELECT FROM live) ELSE EXISTS (
          SELECT FROM {nodes} WHERE "Node" = $1::uuid
      ) END
UNION ALL
SELECT "Id", "MessageId", "Version", "Name", "Group", "Content", "StatusName", "Retries", "Added", NULL, "ExpiresAt",
       "Owner", "Reason", "Crashes", NULL, NULL, NULL
FROM held
"#;

/// An array of addresses, and one of the kinds of outcomes for each value that many have in common.
const SETTLE: &str = r#"
UPDATE {table} AS record
SET "StatusName" = ($4::text[])[kind], "Retries" = ($5::integer[])[kind], "Reason" = ($9::text[])[kind],
    "DueAt" = coalesce(timestamptz 'epoch' + ($6::bigint[])[kind] * interval '1 microsecond',
                       (SELECT {now}) + ($7::bigint[])[kind] * interval '1 microsecond'),
    "ExpiresAt" = (SELECT {utc}) + ($8::bigint[])[kind] * interval '1 microsecond', "Crashes" = ($10::integer[])[kind],
    "Owner" = CASE ($4::text[])[kind] WHEN 'Queued' THEN "Owner" END,
    "Claim" = CASE ($4::text[])[kind] WHEN 'Queued' THEN "Claim" END
FROM (SELECT UNNEST($1::bigint[]), UNNEST($2::integer[])) AS given (id, kind)
WHERE record."Id" = given.id AND record."Claim" = ($3::uuid[])[kind] AND record."StatusName" = 'Queued'
  AND (SELECT CASE WHEN $11::text IS NULL THEN '' ELSE set_config('lock_timeout', $11, true) END) IS NOT NULL
RETURNING given.id, given.kind
"#;

/// Where a record is at present.
const PLACE: &str = r#"SELECT ctid::text FROM {table} WHERE "Id" = $1"#;

/// As [`SETTLE`] for one record of which is known where it is. In a transaction that is serializable nothing is noted as read by
/// it but this row: with an index, whole pages would be, and handlers whose records are neighbours would be each other's victims.
const SETTLE_PLACE: &str = r#"
UPDATE {table}
SET "StatusName" = $4, "Retries" = $5, "Reason" = $9,
    "DueAt" = (SELECT coalesce(timestamptz 'epoch' + $6::bigint * interval '1 microsecond',
                               {now} + $7::bigint * interval '1 microsecond')),
    "ExpiresAt" = (SELECT {utc} + $8::bigint * interval '1 microsecond'), "Crashes" = $10, "Owner" = NULL, "Claim" = NULL
WHERE ctid = $1::text::tid AND "Id" = $2 AND "Claim" = $3::uuid AND "StatusName" = 'Queued'
"#;

/// As [`SETTLE`], without those that another has locked.
const SETTLE_UNLOCKED: &str = r#"
WITH free AS MATERIALIZED (
    SELECT "Id" FROM {table} WHERE "Id" = ANY ($1) AND "StatusName" = 'Queued' FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {table} AS record
SET "StatusName" = ($4::text[])[kind], "Retries" = ($5::integer[])[kind], "Reason" = ($9::text[])[kind],
    "DueAt" = coalesce(timestamptz 'epoch' + ($6::bigint[])[kind] * interval '1 microsecond',
                       (SELECT {now}) + ($7::bigint[])[kind] * interval '1 microsecond'),
    "ExpiresAt" = (SELECT {utc}) + ($8::bigint[])[kind] * interval '1 microsecond', "Crashes" = ($10::integer[])[kind],
    "Owner" = CASE ($4::text[])[kind] WHEN 'Queued' THEN "Owner" END,
    "Claim" = CASE ($4::text[])[kind] WHEN 'Queued' THEN "Claim" END
FROM (SELECT UNNEST($1::bigint[]), UNNEST($2::integer[])) AS given (id, kind)
WHERE record."Id" = ANY (ARRAY (SELECT "Id" FROM free))
  AND record."Id" = given.id AND record."Claim" = ($3::uuid[])[kind] AND record."StatusName" = 'Queued'
RETURNING given.id, given.kind
"#;

/// Who holds these. It locks nothing.
const HELD: &str = r#"SELECT "Id", "Claim" FROM {table} WHERE "Id" = ANY ($1) AND "StatusName" = 'Queued'"#;

/// As [`SETTLE`] when all have one outcome, as most have; one row answers with all addresses. Without `IS TRUE` the
/// planner would make a join of the pairs, with a sort or a scan.
const SETTLE_ALIKE: &str = r#"
WITH settled AS (
    UPDATE {table}
    SET "StatusName" = $3, "Retries" = $4, "Reason" = $8,
        "DueAt" = (SELECT coalesce(timestamptz 'epoch' + $5::bigint * interval '1 microsecond',
                                   {now} + $6::bigint * interval '1 microsecond')),
        "ExpiresAt" = (SELECT {utc} + $7::bigint * interval '1 microsecond'), "Crashes" = $9,
        "Owner" = NULL, "Claim" = NULL
    WHERE "Id" = ANY ($1) AND "StatusName" = 'Queued'
      AND (SELECT CASE WHEN $10::text IS NULL THEN '' ELSE set_config('lock_timeout', $10, true) END) IS NOT NULL
      AND (("Id", "Claim") IN (SELECT UNNEST($1::bigint[]), UNNEST($2::uuid[]))) IS TRUE
    RETURNING "Id"
)
SELECT array_agg("Id") FROM settled
"#;

/// Waits for claims of this node that are under way: what they take is seen by [`RELEASE`] afterwards, which is another
/// transaction, so that a heartbeat never waits for what that waits for.
const LOCK_NODE: &str = r#"SELECT "Node" FROM {nodes} WHERE "Node" = $1::uuid FOR UPDATE"#;

const RELEASE: &str = r#"
UPDATE {table}
SET "StatusName" = 'Scheduled', "Retries" = greatest("Retries" - 1, 0), "DueAt" = {now}, "Owner" = NULL, "Claim" = NULL
WHERE "Owner" = $1::uuid AND "Claim" = $2::uuid AND "StatusName" = 'Queued'
"#;

/// What a handler still has locked is left for a takeover.
const GIVE_BACK: &str = r#"
WITH held AS MATERIALIZED (
    SELECT "Id" FROM {table} WHERE "Owner" = $1::uuid AND "StatusName" = 'Queued' FOR UPDATE SKIP LOCKED
)
UPDATE {table}
SET "StatusName" = 'Scheduled', "Retries" = greatest("Retries" - 1, 0), "DueAt" = {now}, "Owner" = NULL, "Claim" = NULL
WHERE "Id" = ANY (ARRAY (SELECT "Id" FROM held))
"#;

/// The dead are named first, so that a record which a live node claims meanwhile is no longer theirs when its turn
/// comes. The owners are found by one look into the index for each. What a handler of a dead node still has locked is
/// left for the next takeover.
const TAKE_OVER: &str = r#"
WITH RECURSIVE owners AS (
    (SELECT "Owner" FROM {table} WHERE "Owner" IS NOT NULL ORDER BY "Owner" LIMIT 1)
    UNION ALL
    SELECT (SELECT "Owner" FROM {table} WHERE "Owner" > owners."Owner" ORDER BY "Owner" LIMIT 1)
    FROM owners WHERE owners."Owner" IS NOT NULL
), dead AS MATERIALIZED (
    SELECT "Owner" FROM owners
    WHERE "Owner" IS NOT NULL AND NOT EXISTS (SELECT FROM {nodes} WHERE "Node" = owners."Owner")
), held AS MATERIALIZED (
    SELECT "Id" FROM {table}
    WHERE "Owner" = ANY (ARRAY (SELECT "Owner" FROM dead)) AND "StatusName" = 'Queued'
    FOR UPDATE SKIP LOCKED
)
UPDATE {table}
SET "StatusName" = 'Scheduled', "DueAt" = {now}, "Crashes" = "Crashes" + 1, "Owner" = NULL, "Claim" = NULL
WHERE "Id" = ANY (ARRAY (SELECT "Id" FROM held))
"#;

/// The condition is a `CASE` because the planner makes nothing of it: if it believed that few of the expired records
/// match, it would sort all of them.
const COLLECT: &str = r#"
WITH expired AS MATERIALIZED (
    SELECT "Id" FROM {table}
    WHERE "ExpiresAt" <= {utc}
      AND CASE "StatusName" WHEN 'Succeeded' THEN true WHEN 'Failed' THEN "DueAt" IS NULL ELSE false END
    ORDER BY "ExpiresAt"
    LIMIT (SELECT $1::bigint)
    FOR UPDATE SKIP LOCKED
)
DELETE FROM {table} WHERE "Id" = ANY (ARRAY (SELECT "Id" FROM expired))
"#;

const COUNTS: &str = r#"
SELECT "StatusName", "DueAt" IS NULL, count(*)
FROM {table}
WHERE "Version" = $1
GROUP BY 1, 2
"#;

const LIST: &str = r#"
SELECT "Id", "MessageId", "Version", "Name", {group}, "Content", "StatusName", "Retries", "Added", "DueAt", "ExpiresAt",
       "Owner", "Reason", "Crashes"
FROM {table}
WHERE "Id" > $1 AND "StatusName" IN ('Scheduled', 'Delayed', 'Queued', 'Succeeded', 'Failed')
  AND ($3::text IS NULL OR "Version" = $3) AND ($4::text IS NULL OR "StatusName" = $4)
  AND ($5::text IS NULL OR "Name" = $5) AND ($6::text IS NULL OR {group} = $6)
ORDER BY "Id"
LIMIT $2
"#;

const FIND: &str = r#"
SELECT "Id", "MessageId", "Version", "Name", {group}, "Content", "StatusName", "Retries", "Added", "DueAt", "ExpiresAt",
       "Owner", "Reason", "Crashes"
FROM {table}
WHERE "MessageId" = $7 AND "Id" > $1 AND "StatusName" IN ('Scheduled', 'Delayed', 'Queued', 'Succeeded', 'Failed')
  AND ($3::text IS NULL OR "Version" = $3) AND ($4::text IS NULL OR "StatusName" = $4)
  AND ($5::text IS NULL OR "Name" = $5) AND ($6::text IS NULL OR {group} = $6)
ORDER BY "Id"
LIMIT $2
"#;

const REQUEUE: &str = r#"
UPDATE {table}
SET "StatusName" = $2, "Retries" = $3, "Reason" = $7, "Crashes" = $8,
    "DueAt" = coalesce(timestamptz 'epoch' + $4::bigint * interval '1 microsecond',
                       {now} + $5::bigint * interval '1 microsecond'),
    "ExpiresAt" = {utc} + $6::bigint * interval '1 microsecond'
WHERE "Id" = ANY ($1) AND "Owner" IS NULL
  AND ("StatusName" = 'Succeeded' OR ("StatusName" = 'Failed' AND "DueAt" IS NULL))
"#;

const DELETE: &str = r#"DELETE FROM {table} WHERE "Id" = ANY ($1) AND "Owner" IS NULL"#;

/// `$2` has an entry for each lane: the group, or null for the outbox; `$3` says whether it is the suspects', and `$4` where
/// the look begins (see `floor.rs`). Both bounds make the planner believe in few records: it need not sort those.
const NEXT_DUE: &str = r#"
SELECT CASE WHEN lane IS NULL THEN (
           SELECT "DueAt" FROM {published}
           WHERE "Version" = $1 AND "DueAt" IS NOT NULL
             AND "DueAt" >= coalesce(first, '-infinity') AND "DueAt" <= 'infinity'
           ORDER BY "DueAt" LIMIT 1
       ) WHEN suspects THEN (
           SELECT "DueAt" FROM {received}
           WHERE "Version" = $1 AND "Group" = lane AND "Crashes" > 0 AND "DueAt" IS NOT NULL
             AND "DueAt" >= coalesce(first, '-infinity') AND "DueAt" <= 'infinity'
           ORDER BY "DueAt" LIMIT 1
       ) ELSE (
           SELECT "DueAt" FROM {received}
           WHERE "Version" = $1 AND "Group" = lane AND "Crashes" = 0 AND "DueAt" IS NOT NULL
             AND "DueAt" >= coalesce(first, '-infinity') AND "DueAt" <= 'infinity'
           ORDER BY "DueAt" LIMIT 1
       ) END,
       {now}
FROM (SELECT lane, suspects, timestamptz 'epoch' + floor * interval '1 microsecond', place
      FROM UNNEST($2::text[], $3::boolean[], $4::bigint[]) WITH ORDINALITY AS lanes (lane, suspects, floor, place))
    AS given (lane, suspects, first, place)
ORDER BY place
"#;

const JOIN: &str = r#"
INSERT INTO {nodes} ("Node", "LeaseUntil") VALUES ($1::uuid, {now} + $2::bigint * interval '1 microsecond')
ON CONFLICT ("Node") DO UPDATE SET "LeaseUntil" = excluded."LeaseUntil"
"#;

/// Answers no row when the node is not registered; otherwise the other nodes, or none of them in one row.
const HEARTBEAT: &str = r#"
WITH renewed AS (
    UPDATE {nodes} SET "LeaseUntil" = {now} + $2::bigint * interval '1 microsecond'
    WHERE "Node" = $1::uuid
    RETURNING "Node"
)
SELECT {now}, other."Node", other."LeaseUntil"
FROM renewed LEFT JOIN {nodes} AS other ON other."Node" <> renewed."Node"
"#;

/// Forgets nodes that have given no other sign of life; the times in microseconds since 1970.
const FORGET_DEAD: &str = r#"
WITH dead AS MATERIALIZED (
    SELECT "Node" FROM {nodes}
    WHERE ("Node", "LeaseUntil") IN (
        SELECT UNNEST($1::uuid[]),
               timestamptz '1970-01-01 00:00:00Z' + UNNEST($2::bigint[]) * interval '1 microsecond')
    ORDER BY "Node" FOR UPDATE
)
DELETE FROM {nodes} WHERE "Node" = ANY (ARRAY (SELECT "Node" FROM dead)) RETURNING "Node"
"#;

const FORGET: &str = r#"DELETE FROM {nodes} WHERE "Node" = $1::uuid"#;

/// Answers no row when the node is not registered, and otherwise whether it has the chore now: it had it before, or
/// nobody has any more. What a forgotten node had is gone with it, by the foreign key.
const TAKE_CHORE: &str = r#"
WITH live AS MATERIALIZED (
    SELECT "Node" FROM {nodes} WHERE "Node" = $2::text::uuid FOR KEY SHARE
), taken AS (
    INSERT INTO {chores} AS chore ("Chore", "Node", "HeldUntil")
    SELECT $1::text, "Node", {now} + $3::bigint * interval '1 microsecond' FROM live
    ON CONFLICT ("Chore") DO UPDATE SET "Node" = excluded."Node", "HeldUntil" = excluded."HeldUntil"
    WHERE chore."Node" = excluded."Node" OR chore."HeldUntil" <= {now}
    RETURNING "Node"
)
SELECT EXISTS (SELECT FROM taken) FROM live
"#;

/// A statement whose text was made from templates of this file and the name of a schema that was checked.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    text: Arc<str>,
    lending: Lending,
}

/// Whether a pooler lends sessions and keeps nothing in them, so that statements have no names there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lending(Arc<AtomicBool>);

impl Lending {
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Statement {
    /// A query that the driver prepares once for each connection, or each time where sessions are lent.
    pub(crate) fn query<'q>(&self) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(&self.text))).persistent(!self.lending.is_on())
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// The names of the tables in one schema, quoted.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// As it was given, not quoted.
    pub(crate) plain: String,
    schema: String,
    pub(crate) published: String,
    pub(crate) received: String,
    nodes: String,
    chores: String,
    pub(crate) versions: String,
    pub(crate) lending: Lending,
}

impl Names {
    /// Schemas hold neither quotes nor braces (see `config.rs`).
    fn new(schema: &str, lending: Lending) -> Self {
        let name = |table: &str| format!("\"{schema}\".\"{table}\"");
        Self {
            plain: schema.to_owned(),
            schema: format!("\"{schema}\""),
            published: name(Table::Outbox.as_str()),
            received: name(Table::Inbox.as_str()),
            nodes: name("nodes"),
            chores: name("chores"),
            versions: name("schema"),
            lending,
        }
    }

    fn of(&self, table: Table) -> &str {
        match table {
            Table::Outbox => &self.published,
            Table::Inbox => &self.received,
        }
    }

    fn fill(&self, template: &str) -> Statement {
        let text = template
            .replace("{published}", &self.published)
            .replace("{received}", &self.received)
            .replace("{nodes}", &self.nodes)
            .replace("{chores}", &self.chores)
            .replace("{versions}", &self.versions)
            .replace("{schema}", &self.schema)
            .replace("{now}", NOW)
            .replace("{utc}", UTC);
        Statement { text: text.into(), lending: self.lending.clone() }
    }
}

/// Every statement, ready for one schema.
#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) names: Names,
    pub(crate) published: TableSql,
    pub(crate) received: TableSql,
    pub(crate) publish: Statement,
    pub(crate) publish_all: Statement,
    pub(crate) insert_in_flight: Statement,
    pub(crate) is_registered: Statement,
    pub(crate) next_due: Statement,
    pub(crate) lock_node: Statement,
    pub(crate) join: Statement,
    pub(crate) heartbeat: Statement,
    pub(crate) forget_dead: Statement,
    pub(crate) forget: Statement,
    pub(crate) take_chore: Statement,
    pub(crate) policies: Statement,
    pub(crate) create_schema: Statement,
    pub(crate) create_versions: Statement,
    pub(crate) schema_version: Statement,
    pub(crate) record_version: Statement,
    pub(crate) migrations: Vec<Statement>,
}

/// The statements on one of the two tables.
#[derive(Debug)]
pub(crate) struct TableSql {
    pub(crate) statuses: Statement,
    pub(crate) insert: Statement,
    pub(crate) insert_held: Statement,
    pub(crate) known: Statement,
    pub(crate) claim: Statement,
    /// The same for the suspects; of the inbox alone.
    pub(crate) claim_suspects: Statement,
    pub(crate) settle: Statement,
    pub(crate) settle_alike: Statement,
    pub(crate) settle_unlocked: Statement,
    pub(crate) place: Statement,
    pub(crate) settle_place: Statement,
    pub(crate) held: Statement,
    pub(crate) release: Statement,
    pub(crate) give_back: Statement,
    pub(crate) take_over: Statement,
    pub(crate) collect: Statement,
    pub(crate) counts: Statement,
    pub(crate) list: Statement,
    pub(crate) find: Statement,
    pub(crate) requeue: Statement,
    pub(crate) delete: Statement,
    pub(crate) try_insert: Statement,
    pub(crate) try_update: Statement,
    pub(crate) try_delete: Statement,
    pub(crate) last: Statement,
    pub(crate) before_first: Statement,
    pub(crate) advance: Statement,
    pub(crate) catch_up: Statement,
}

impl Sql {
    /// For a schema that was checked, and sessions that nobody lends.
    pub(crate) fn new(schema: &str) -> Self {
        Self::lent(schema, Arc::default())
    }

    /// For a schema that was checked, and sessions that a pooler lends as soon as `lent` says so.
    pub(crate) fn lent(schema: &str, lent: Arc<AtomicBool>) -> Self {
        let names = Names::new(schema, Lending(lent));
        Self {
            published: TableSql::new(&names, Table::Outbox),
            received: TableSql::new(&names, Table::Inbox),
            publish: names.fill(PUBLISH),
            publish_all: TableSql::fill(&names, Table::Outbox, &INSERT.replace("{on}", "")),
            insert_in_flight: names.fill(INSERT_IN_FLIGHT),
            is_registered: names.fill(IS_REGISTERED),
            next_due: names.fill(NEXT_DUE),
            lock_node: names.fill(LOCK_NODE),
            join: names.fill(JOIN),
            heartbeat: names.fill(HEARTBEAT),
            forget_dead: names.fill(FORGET_DEAD),
            forget: names.fill(FORGET),
            take_chore: names.fill(TAKE_CHORE),
            policies: names.fill(POLICIES),
            create_schema: names.fill(CREATE_SCHEMA),
            create_versions: names.fill(CREATE_VERSIONS),
            schema_version: names.fill(SCHEMA_VERSION),
            record_version: names.fill(RECORD_VERSION),
            migrations: MIGRATIONS.iter().map(|script| names.fill(script)).collect(),
            names,
        }
    }

    pub(crate) fn table(&self, table: Table) -> &TableSql {
        match table {
            Table::Outbox => &self.published,
            Table::Inbox => &self.received,
        }
    }
}

impl TableSql {
    fn fill(names: &Names, table: Table, template: &str) -> Statement {
        // What only the inbox has: the column, its value, the key, the lane's condition, and that of one message.
        let [group, group_column, group_given, group_tried, key, and_of_group] = match table {
            Table::Outbox => ["NULL::text", "", "", "", "\"MessageId\"", ""],
            Table::Inbox => [
                "\"Group\"",
                "\"Group\", ",
                "groups[kind], ",
                "'', ",
                "\"MessageId\", \"Group\"",
                "AND \"Group\" = given.message_group",
            ],
        };
        let template = template
            .replace("{table}", names.of(table))
            .replace("{group}", group)
            .replace("{group_column}", group_column)
            .replace("{group_given}", group_given)
            .replace("{group_tried}", group_tried)
            .replace("{and_of_group}", and_of_group)
            .replace("{on}", "({key}) ")
            .replace("{key}", key)
            .replace("{sequence}", &format!("{}.\"{}_Id\"", names.schema, table.as_str()))
            .replace("{first_of_cap}", FIRST_OF_CAP);
        names.fill(&template)
    }

    fn new(names: &Names, table: Table) -> Self {
        let [in_lane, in_suspects] = match table {
            Table::Outbox => ["true", "\"Crashes\" > 0"],
            Table::Inbox => ["\"Group\" = $8::text AND \"Crashes\" = 0", "\"Group\" = $8::text AND \"Crashes\" > 0"],
        };
        let fill = |template: &str| Self::fill(names, table, &template.replace("{in_lane}", in_lane));
        Self {
            statuses: fill(STATUSES),
            insert: fill(INSERT),
            insert_held: fill(INSERT_HELD),
            known: fill(KNOWN),
            claim: fill(CLAIM),
            claim_suspects: fill(&CLAIM.replace("{in_lane}", in_suspects)),
            settle: fill(SETTLE),
            settle_alike: fill(SETTLE_ALIKE),
            settle_unlocked: fill(SETTLE_UNLOCKED),
            place: fill(PLACE),
            settle_place: fill(SETTLE_PLACE),
            held: fill(HELD),
            release: fill(RELEASE),
            give_back: fill(GIVE_BACK),
            take_over: fill(TAKE_OVER),
            collect: fill(COLLECT),
            counts: fill(COUNTS),
            list: fill(LIST),
            find: fill(FIND),
            requeue: fill(REQUEUE),
            delete: fill(DELETE),
            try_insert: fill(TRY_INSERT),
            try_update: fill(TRY_UPDATE),
            try_delete: fill(TRY_DELETE),
            last: fill(LAST),
            before_first: fill(BEFORE_FIRST),
            advance: fill(ADVANCE),
            catch_up: fill(CATCH_UP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_be_filled_in() {
        let everything = format!("{:?}", Sql::new("odd; name"));
        assert!(
            !everything.contains('{')
                || !everything.split('{').any(|part| {
                    part.find('}')
                        .is_some_and(|end| part[..end].chars().all(|c| c.is_ascii_lowercase() || c == '_') && end > 0)
                }),
            "a hole is left"
        );
        assert!(everything.contains(r#"\"odd; name\".\"published\""#));
    }

    #[test]
    fn only_an_insert_writes_content() {
        let sql = Sql::new("cap");
        for table in [&sql.published, &sql.received] {
            for statement in
                [&table.claim, &table.settle, &table.settle_alike, &table.requeue, &table.take_over, &table.release]
            {
                assert!(!statement.text().contains("\"Content\" ="), "{}", statement.text());
            }
        }
    }
}
