//! All SQL, complete. `{…}` stands for a name or for the clock; [`Sql::new`] fills it in once for a prefix.
//!
//! The partial indexes hold open records only, so that finished ones cost nothing. They are named in the statements
//! (`INDEXED BY`) because stale statistics, from an `ANALYZE` of a table that was small, would otherwise turn a claim
//! into a scan of everything. Those by which records are claimed hold the topic, too, so that what a claim leaves alone
//! is passed over in the index; in the inbox, suspects have a part of the index of their own.
//!
//! Invariants of both tables: `DueAt` is set exactly while a record waits; `Owner` and `Claim` are set exactly while it
//! is `Queued`; `ExpiresAt` is set exactly when it is terminal. Content is written by `INSERT` alone.

use cap_core::storage::Table;

/// SQLite's clock in microseconds since the epoch, UTC. It ticks in milliseconds. One value for a whole statement.
const NOW: &str = "(CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000)";

/// The schema, one script for each version, from 1.
pub(crate) const MIGRATIONS: &[&str] = &[
    r#"
CREATE TABLE "{published}" (
    Id         INTEGER PRIMARY KEY AUTOINCREMENT,
    Version    TEXT    NOT NULL,
    Name       TEXT    NOT NULL,
    Content    TEXT,
    Retries    INTEGER NOT NULL DEFAULT 0,
    Added      INTEGER NOT NULL,
    ExpiresAt  INTEGER,
    StatusName TEXT    NOT NULL,
    MessageId  TEXT    DEFAULT NULL,
    DueAt      INTEGER DEFAULT NULL,
    Owner      TEXT    DEFAULT NULL,
    Claim      TEXT    DEFAULT NULL,
    Reason     TEXT    DEFAULT NULL
);
CREATE UNIQUE INDEX "{published}.message" ON "{published}" (MessageId);
CREATE INDEX "{published}.due" ON "{published}" (Version, DueAt, Id) WHERE DueAt IS NOT NULL;
CREATE INDEX "{published}.owner" ON "{published}" (Owner) WHERE Owner IS NOT NULL;
CREATE INDEX "{published}.expired" ON "{published}" (ExpiresAt) WHERE ExpiresAt IS NOT NULL;

CREATE TABLE "{received}" (
    Id         INTEGER PRIMARY KEY AUTOINCREMENT,
    Version    TEXT    NOT NULL,
    Name       TEXT    NOT NULL,
    "Group"    TEXT    NOT NULL,
    Content    TEXT,
    Retries    INTEGER NOT NULL DEFAULT 0,
    Added      INTEGER NOT NULL,
    ExpiresAt  INTEGER,
    StatusName TEXT    NOT NULL,
    MessageId  TEXT    DEFAULT NULL,
    DueAt      INTEGER DEFAULT NULL,
    Owner      TEXT    DEFAULT NULL,
    Claim      TEXT    DEFAULT NULL,
    Reason     TEXT    DEFAULT NULL
);
CREATE UNIQUE INDEX "{received}.message" ON "{received}" (MessageId, "Group");
CREATE INDEX "{received}.due" ON "{received}" (Version, "Group", DueAt, Id) WHERE DueAt IS NOT NULL;
CREATE INDEX "{received}.owner" ON "{received}" (Owner) WHERE Owner IS NOT NULL;
CREATE INDEX "{received}.expired" ON "{received}" (ExpiresAt) WHERE ExpiresAt IS NOT NULL;

CREATE TABLE "{nodes}" (
    Node       TEXT    NOT NULL PRIMARY KEY,
    LeaseUntil INTEGER NOT NULL
) WITHOUT ROWID;
"#,
    r#"
CREATE TABLE "{chores}" (
    Chore     TEXT    NOT NULL PRIMARY KEY,
    Node      TEXT    NOT NULL,
    HeldUntil INTEGER NOT NULL
) WITHOUT ROWID;
"#,
    // The indexes by which records are claimed keep the name and the columns that nodes of the version before ask for:
    // while those are replaced, they go on.
    r#"
ALTER TABLE "{published}" ADD COLUMN Crashes INTEGER NOT NULL DEFAULT 0;
DROP INDEX "{published}.due";
CREATE INDEX "{published}.due" ON "{published}" (Version, DueAt, Id, Name) WHERE DueAt IS NOT NULL;

ALTER TABLE "{received}" ADD COLUMN Crashes INTEGER NOT NULL DEFAULT 0;
DROP INDEX "{received}.due";
CREATE INDEX "{received}.due" ON "{received}" (Version, "Group", (Crashes > 0), DueAt, Id, Name)
WHERE DueAt IS NOT NULL;
"#,
];

const CREATE_SCHEMA: &str = r#"
CREATE TABLE IF NOT EXISTS "{schema}" (
    Version   INTEGER NOT NULL PRIMARY KEY,
    AppliedAt INTEGER NOT NULL
);
"#;

const TABLES_THERE: &str = r"
SELECT count(*) FROM sqlite_schema
WHERE type = 'table' AND lower(name) IN (lower('{published}'), lower('{received}'), lower('{nodes}'), lower('{chores}'))
";

const SCHEMA_THERE: &str = r"
SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower('{schema}')
";

const SCHEMA_VERSION: &str = r#"SELECT coalesce(max(Version), 0) FROM "{schema}""#;

const RECORD_VERSION: &str = r#"INSERT INTO "{schema}" (Version, AppliedAt) VALUES (?1, {now})"#;

const INSERT_PUBLISHED: &str = r#"
INSERT INTO "{table}" (MessageId, Content, Version, Name, Retries, ExpiresAt, StatusName, DueAt, Owner, Claim, Reason,
                       Crashes, Added)
VALUES (?1, ?2, ?3, ?4, ?5, iif(?6 IS NULL, NULL, {now} + ?6), ?7, iif(?9 IS NULL, ?8, {now} + ?9), ?10, ?11, ?12,
        ?13, {now})
ON CONFLICT (MessageId) DO NOTHING
"#;

const INSERT_RECEIVED: &str = r#"
INSERT INTO "{table}" (MessageId, Content, Version, Name, Retries, ExpiresAt, StatusName, DueAt, Owner, Claim, Reason,
                       Crashes, Added, "Group")
VALUES (?1, ?2, ?3, ?4, ?5, iif(?6 IS NULL, NULL, {now} + ?6), ?7, iif(?9 IS NULL, ?8, {now} + ?9), ?10, ?11, ?12,
        ?13, {now}, ?14)
ON CONFLICT (MessageId, "Group") DO NOTHING
"#;

/// `?3` is a JSON array of the topics that are left alone, or null.
const DUE_PUBLISHED: &str = r#"
SELECT Id, MessageId, Version, Name, NULL, Content, StatusName, Retries, Added, DueAt, ExpiresAt, Owner, Reason, Crashes
FROM "{table}" INDEXED BY "{table}.due"
WHERE Version = ?1 AND DueAt <= {now} AND Owner IS NULL
  AND (?3 IS NULL OR Name NOT IN (SELECT value FROM json_each(?3)))
ORDER BY DueAt, Id
LIMIT ?2
"#;

/// `?4` is the group, `?5` whether its suspects are meant.
const DUE_RECEIVED: &str = r#"
SELECT Id, MessageId, Version, Name, "Group", Content, StatusName, Retries, Added, DueAt, ExpiresAt, Owner, Reason, Crashes
FROM "{table}" INDEXED BY "{table}.due"
WHERE Version = ?1 AND "Group" = ?4 AND (Crashes > 0) = ?5 AND DueAt <= {now} AND Owner IS NULL
  AND (?3 IS NULL OR Name NOT IN (SELECT value FROM json_each(?3)))
ORDER BY DueAt, Id
LIMIT ?2
"#;

const HOLD: &str = r#"
UPDATE "{table}"
SET StatusName = 'Queued', Retries = Retries + 1, DueAt = NULL, ExpiresAt = NULL, Owner = ?2, Claim = ?3
WHERE Id = ?1
"#;

const SETTLE: &str = r#"
UPDATE "{table}"
SET StatusName = ?3, Retries = ?4, DueAt = coalesce(?5, {now} + ?6), ExpiresAt = {now} + ?7, Reason = ?8,
    Crashes = ?9,
    Owner = CASE ?3 WHEN 'Queued' THEN Owner END,
    Claim = CASE ?3 WHEN 'Queued' THEN Claim END
WHERE Id = ?1 AND Claim = ?2 AND StatusName = 'Queued'
"#;

const IS_HELD: &str = r#"
SELECT count(*) FROM "{received}" WHERE Id = ?1 AND Claim = ?2 AND StatusName = 'Queued'
"#;

const RELEASE: &str = r#"
UPDATE "{table}" INDEXED BY "{table}.owner"
SET StatusName = 'Scheduled', Retries = max(Retries - 1, 0), DueAt = {now}, Owner = NULL, Claim = NULL
WHERE Owner = ?1 AND Claim = ?2 AND StatusName = 'Queued'
"#;

const GIVE_BACK: &str = r#"
UPDATE "{table}" INDEXED BY "{table}.owner"
SET StatusName = 'Scheduled', Retries = max(Retries - 1, 0), DueAt = {now}, Owner = NULL, Claim = NULL
WHERE Owner = ?1 AND StatusName = 'Queued'
"#;

const TAKE_OVER: &str = r#"
UPDATE "{table}" INDEXED BY "{table}.owner"
SET StatusName = 'Scheduled', Crashes = Crashes + 1, DueAt = {now}, Owner = NULL, Claim = NULL
WHERE Owner IS NOT NULL AND Owner NOT IN (SELECT Node FROM "{nodes}") AND StatusName = 'Queued'
"#;

/// Those that may be deleted; [`DELETE`] follows for each, in the same transaction.
const EXPIRED: &str = r#"
SELECT Id FROM "{table}" INDEXED BY "{table}.expired"
WHERE ExpiresAt <= {now} AND Owner IS NULL
  AND (StatusName = 'Succeeded' OR (StatusName = 'Failed' AND DueAt IS NULL))
ORDER BY ExpiresAt
LIMIT ?1
"#;

const COUNTS: &str = r#"
SELECT StatusName, DueAt IS NULL, count(*)
FROM "{table}"
WHERE Version = ?1 AND StatusName IN ('Scheduled', 'Delayed', 'Queued', 'Succeeded', 'Failed')
GROUP BY 1, 2
"#;

/// `{group}` is the column in the inbox and `NULL` in the outbox, which has none.
const LIST: &str = r#"
SELECT Id, MessageId, Version, Name, {group}, Content, StatusName, Retries, Added, DueAt, ExpiresAt, Owner, Reason, Crashes
FROM "{table}"
WHERE Id > ?1 AND StatusName IN ('Scheduled', 'Delayed', 'Queued', 'Succeeded', 'Failed')
  AND (?3 IS NULL OR Version = ?3) AND (?4 IS NULL OR StatusName = ?4)
  AND (?5 IS NULL OR Name = ?5) AND (?6 IS NULL OR {group} = ?6)
ORDER BY Id
LIMIT ?2
"#;

const FIND: &str = r#"
SELECT Id, MessageId, Version, Name, {group}, Content, StatusName, Retries, Added, DueAt, ExpiresAt, Owner, Reason, Crashes
FROM "{table}"
WHERE MessageId = ?7 AND Id > ?1 AND StatusName IN ('Scheduled', 'Delayed', 'Queued', 'Succeeded', 'Failed')
  AND (?3 IS NULL OR Version = ?3) AND (?4 IS NULL OR StatusName = ?4)
  AND (?5 IS NULL OR Name = ?5) AND (?6 IS NULL OR {group} = ?6)
ORDER BY Id
LIMIT ?2
"#;

const REQUEUE: &str = r#"
UPDATE "{table}"
SET StatusName = ?2, Retries = ?3, DueAt = coalesce(?4, {now} + ?5), ExpiresAt = {now} + ?6, Reason = ?7,
    Crashes = ?8
WHERE Id = ?1 AND Owner IS NULL AND (StatusName = 'Succeeded' OR (StatusName = 'Failed' AND DueAt IS NULL))
"#;

const DELETE: &str = r#"DELETE FROM "{table}" WHERE Id = ?1 AND Owner IS NULL"#;

/// `?2` is a JSON array with an entry for each lane: null for the outbox, otherwise the group and whether its suspects
/// are meant. `?3` is a JSON array of the topics that do not count, or null.
const NEXT_DUE: &str = r#"
SELECT CASE WHEN lane.value IS NULL THEN (
           SELECT DueAt FROM "{published}" INDEXED BY "{published}.due"
           WHERE Version = ?1 AND DueAt IS NOT NULL AND Owner IS NULL
             AND (?3 IS NULL OR Name NOT IN (SELECT value FROM json_each(?3)))
           ORDER BY DueAt LIMIT 1
       ) ELSE (
           SELECT DueAt FROM "{received}" INDEXED BY "{received}.due"
           WHERE Version = ?1 AND "Group" = lane.value ->> 0 AND (Crashes > 0) = lane.value ->> 1
             AND DueAt IS NOT NULL AND Owner IS NULL
             AND (?3 IS NULL OR Name NOT IN (SELECT value FROM json_each(?3)))
           ORDER BY DueAt LIMIT 1
       ) END,
       {now}
FROM json_each(?2) AS lane
ORDER BY lane.key
"#;

const IS_REGISTERED: &str = r#"SELECT count(*) FROM "{nodes}" WHERE Node = ?1"#;

const JOIN: &str = r#"
INSERT INTO "{nodes}" (Node, LeaseUntil) VALUES (?1, {now} + ?2)
ON CONFLICT (Node) DO UPDATE SET LeaseUntil = excluded.LeaseUntil
RETURNING LeaseUntil
"#;

const HEARTBEAT: &str = r#"
UPDATE "{nodes}" SET LeaseUntil = {now} + ?2 WHERE Node = ?1
RETURNING LeaseUntil, {now}
"#;

/// Keeps what a heartbeat was promised: its lease was live then, and nobody else could write since.
const KEEP_PROMISE: &str = r#"UPDATE "{nodes}" SET LeaseUntil = {now} + ?2 WHERE Node = ?1"#;

const SIGNS: &str = r#"SELECT Node, LeaseUntil FROM "{nodes}" WHERE Node <> ?1"#;

const FORGET_DEAD: &str = r#"DELETE FROM "{nodes}" WHERE Node = ?1 AND LeaseUntil = ?2"#;

const FORGET: &str = r#"DELETE FROM "{nodes}" WHERE Node = ?1"#;

/// Writes a row if the node has the chore now: it had it before, or nobody has any more.
const TAKE_CHORE: &str = r#"
INSERT INTO "{chores}" (Chore, Node, HeldUntil) VALUES (?1, ?2, {now} + ?3)
ON CONFLICT (Chore) DO UPDATE SET Node = excluded.Node, HeldUntil = excluded.HeldUntil
WHERE Node = excluded.Node OR HeldUntil <= {now}
"#;

/// After nodes were forgotten: nobody has what they had.
const FREE_CHORES: &str = r#"DELETE FROM "{chores}" WHERE Node NOT IN (SELECT Node FROM "{nodes}")"#;

/// Whether a commit could be refused for a deferred foreign key of some table.
pub(crate) const DEFERS_FOREIGN_KEYS: &str =
    "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%DEFERRED%')";

/// The names of the tables for one prefix.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) prefix: String,
    pub(crate) published: String,
    pub(crate) received: String,
    nodes: String,
    chores: String,
    pub(crate) schema: String,
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            published: format!("{prefix}.{}", Table::Outbox.as_str()),
            received: format!("{prefix}.{}", Table::Inbox.as_str()),
            nodes: format!("{prefix}.nodes"),
            chores: format!("{prefix}.chores"),
            schema: format!("{prefix}.schema"),
        }
    }

    /// Prefixes hold neither quotes nor braces (see `config.rs`), so plain replacement is safe.
    fn fill(&self, template: &str) -> String {
        template
            .replace("{published}", &self.published)
            .replace("{received}", &self.received)
            .replace("{nodes}", &self.nodes)
            .replace("{chores}", &self.chores)
            .replace("{schema}", &self.schema)
            .replace("{now}", NOW)
    }
}

/// Every statement, ready for one prefix.
#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) names: Names,
    pub(crate) published: TableSql,
    pub(crate) received: TableSql,
    pub(crate) next_due: String,
    pub(crate) is_held: String,
    pub(crate) is_registered: String,
    pub(crate) join: String,
    pub(crate) heartbeat: String,
    pub(crate) keep_promise: String,
    pub(crate) signs: String,
    pub(crate) forget_dead: String,
    pub(crate) forget: String,
    pub(crate) take_chore: String,
    pub(crate) free_chores: String,
    pub(crate) tables_there: String,
    pub(crate) schema_there: String,
    pub(crate) schema_version: String,
    pub(crate) create_schema: String,
    pub(crate) record_version: String,
    pub(crate) migrations: Vec<String>,
}

/// The statements on one of the two tables.
#[derive(Debug)]
pub(crate) struct TableSql {
    pub(crate) insert: String,
    pub(crate) due: String,
    pub(crate) hold: String,
    pub(crate) settle: String,
    pub(crate) release: String,
    pub(crate) give_back: String,
    pub(crate) take_over: String,
    pub(crate) expired: String,
    pub(crate) counts: String,
    pub(crate) list: String,
    pub(crate) find: String,
    pub(crate) requeue: String,
    pub(crate) delete: String,
}

impl Sql {
    /// For a prefix that was checked.
    pub(crate) fn new(prefix: &str) -> Self {
        let names = Names::new(prefix);
        Self {
            published: TableSql::new(&names, &names.published, "NULL", INSERT_PUBLISHED, DUE_PUBLISHED),
            received: TableSql::new(&names, &names.received, "\"Group\"", INSERT_RECEIVED, DUE_RECEIVED),
            next_due: names.fill(NEXT_DUE),
            is_held: names.fill(IS_HELD),
            is_registered: names.fill(IS_REGISTERED),
            join: names.fill(JOIN),
            heartbeat: names.fill(HEARTBEAT),
            keep_promise: names.fill(KEEP_PROMISE),
            signs: names.fill(SIGNS),
            forget_dead: names.fill(FORGET_DEAD),
            forget: names.fill(FORGET),
            take_chore: names.fill(TAKE_CHORE),
            free_chores: names.fill(FREE_CHORES),
            tables_there: names.fill(TABLES_THERE),
            schema_there: names.fill(SCHEMA_THERE),
            schema_version: names.fill(SCHEMA_VERSION),
            create_schema: names.fill(CREATE_SCHEMA),
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
    fn new(names: &Names, table: &str, group: &str, insert: &str, due: &str) -> Self {
        let fill = |template: &str| names.fill(&template.replace("{table}", table).replace("{group}", group));
        Self {
            insert: fill(insert),
            due: fill(due),
            hold: fill(HOLD),
            settle: fill(SETTLE),
            release: fill(RELEASE),
            give_back: fill(GIVE_BACK),
            take_over: fill(TAKE_OVER),
            expired: fill(EXPIRED),
            counts: fill(COUNTS),
            list: fill(LIST),
            find: fill(FIND),
            requeue: fill(REQUEUE),
            delete: fill(DELETE),
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn prepared(sql: &Sql) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&sql.create_schema).unwrap();
        sql.migrations.iter().for_each(|script| connection.execute_batch(script).unwrap());
        connection
    }

    fn plan(connection: &Connection, statement: &str) -> String {
        let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        let parameters = vec![rusqlite::types::Null; explain.parameter_count()];
        let steps = explain.query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, String>(3)).unwrap();
        steps.map(|step| step.unwrap()).collect::<Vec<_>>().join("\n")
    }

    /// Whether a step reads a table from one end to the other; a list of topics that is given is none.
    fn scans(plan: &str) -> bool {
        plan.lines().any(|step| step.contains("SCAN") && !step.contains("json_each VIRTUAL TABLE"))
    }

    /// Statistics of a time when the tables were small, which make a scan look cheap.
    fn with_stale_statistics(connection: &Connection, sql: &Sql) {
        for table in [&sql.names.published, &sql.names.received] {
            let group = if table == &sql.names.received { ", \"Group\"" } else { "" };
            let value = if group.is_empty() { "" } else { ", 'g'" };
            connection
                .execute_batch(&format!(
                    "INSERT INTO \"{table}\" (Version, Name, Added, StatusName, MessageId, DueAt, Owner, ExpiresAt{group})
                     VALUES ('v1', 'a', 1, 'Queued', 'm1', 1, 'o', 1{value}), ('v1', 'a', 1, 'Queued', 'm2', 1, 'o', 1{value})"
                ))
                .unwrap();
        }
        connection.execute_batch("ANALYZE").unwrap();
    }

    #[test]
    fn what_runs_often_uses_its_index_whatever_the_statistics_say() {
        let sql = Sql::new("cap");
        let connection = prepared(&sql);
        for stale in [false, true] {
            if stale {
                with_stale_statistics(&connection, &sql);
            }
            for (name, table) in [("cap.published", &sql.published), ("cap.received", &sql.received)] {
                let uses = |statement: &str, index: &str| {
                    let plan = plan(&connection, statement);
                    assert!(plan.contains(&format!("INDEX {name}.{index}")), "{statement}\n{plan}");
                    plan
                };
                let searches = |statement: &str, index: &str| {
                    let plan = uses(statement, index);
                    assert!(!scans(&plan), "{statement}\n{plan}");
                    assert!(!plan.contains("TEMP B-TREE"), "it sorts: {statement}\n{plan}");
                };
                searches(&table.due, "due");
                // What is left alone is known by one list, and not by a look for each record.
                assert!(plan(&connection, &table.due).contains("\nLIST SUBQUERY"), "{}", table.due);
                searches(&table.release, "owner");
                searches(&table.give_back, "owner");
                searches(&table.expired, "expired");
                // It sorts what has one message id: a record for each group.
                uses(&table.find, "message");
                // The whole of a partial index that holds nothing but the records in flight.
                uses(&table.take_over, "owner");
                for by_address in [&table.hold, &table.settle, &table.requeue, &table.delete] {
                    let plan = plan(&connection, by_address);
                    assert!(plan.contains("INTEGER PRIMARY KEY (rowid=?)"), "{by_address}\n{plan}");
                }
            }
            let plan = plan(&connection, &sql.next_due);
            for index in ["cap.published.due", "cap.received.due"] {
                assert!(plan.contains(&format!("INDEX {index}")), "{plan}");
            }
            assert!(plan.contains("(Version=? AND Group=? AND <expr>=? AND DueAt>?)"), "{plan}");
            assert!(!scans(&plan.replace("SCAN lane VIRTUAL TABLE", "")), "{plan}");
        }
    }

    #[test]
    fn the_clock_is_in_utc_and_to_the_millisecond() {
        let connection = Connection::open_in_memory().unwrap();
        let now = || connection.query_row(&format!("SELECT {NOW}"), [], |row| row.get::<_, i64>(0)).unwrap();
        let host = || cap_core::Timestamp::now().as_micros();
        let (before, database, after) = (host(), now(), host());
        assert!(before - 1_000 <= database && database <= after + 1_000, "{before} {database} {after}");
        assert_eq!(database % 1_000, 0);
    }

    #[test]
    fn nothing_is_left_to_be_filled_in() {
        let sql = Sql::new("odd; name");
        let everything = format!("{sql:?}");
        for hole in ["{table}", "{group}", "{now}", "{published}", "{received}", "{nodes}", "{chores}", "{schema}"] {
            assert!(!everything.contains(hole), "{hole}");
        }
        prepared(&sql);
    }
}
