//! All SQL, complete. `{…}` stands for a name, for the clock or for a value; [`Sql::new`] fills the first two in once for
//! a prefix, a [`Script`](crate::script::Script) the values for one call. The migrations are in `migrations/`.
//!
//! Invariants of both tables: `DueAt` is set exactly while a record waits; `Owner` is set exactly while it is `Queued`;
//! `ExpiresAt` is set exactly when it is terminal. `Claim` holds the token of the claim, and until the first one that of
//! the batch it was inserted with; `Suspect` is 1 exactly when `Crashes` is above 0. Content is written by `INSERT` alone.
//!
//! Habits, each for a reason:
//! - A call is one or two scripts: several statements in one round trip, from `BEGIN` to `COMMIT`. Values in them are
//!   numbers and hexadecimal literals, which no sql_mode and no charset of a session reads in another way. What may be
//!   large or many, as contents are, is a parameter of a prepared statement.
//! - Each transaction says that it is `READ COMMITTED`: under `REPEATABLE READ` a claim would lock the gaps that others
//!   insert into. The session stays as it is.
//! - Rows are locked in the order node, index of the lane (skipping what is locked), primary key. Whoever waits holds
//!   nothing that is further back in this order, so nobody waits in a circle.
//! - Whoever writes an owner shares a lock on the node's row, so that a takeover, which deletes the row first, waits for
//!   claims under way and then sees what they took.
//! - What a handler's open transaction may have locked is looked at without a lock, or with one that skips it, before
//!   anything is written: nobody waits for a handler.
//! - Indexes are forced: in a small table the optimizer would rather read all, and wait for rows that others have locked.
//! - A list of values has at most [`LIST`] of them: MariaDB makes a join of longer ones, with plans of its own.

use std::sync::Arc;

use cap_core::storage::Table;
use sqlx::mysql::MySqlArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, MySql};

/// The server's clock in UTC, one value for a statement, whatever the session's time zone.
const NOW: &str = "UTC_TIMESTAMP(6)";

/// Where [`Timestamp`](cap_core::Timestamp) counts from.
const EPOCH: &str = "TIMESTAMP'1970-01-01 00:00:00.000000'";

/// So many microseconds after 1970.
pub(crate) fn at(micros: i64) -> String {
    format!("{EPOCH} + INTERVAL {micros} MICROSECOND")
}

/// So many microseconds from now.
pub(crate) fn from_now(micros: i64) -> String {
    format!("{NOW} + INTERVAL {micros} MICROSECOND")
}

/// The schema, one script for each version, from 1.
pub(crate) const MIGRATIONS: &[&str] = &[include_str!("migrations/1.sql"), include_str!("migrations/2.sql")];

/// The most values in a list.
pub(crate) const LIST: usize = 500;

/// The most rows in one `INSERT`. A batch is cut into powers of two, so that few statements serve any size.
pub(crate) const MOST_ROWS: usize = 256;

pub(crate) const BEGIN: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ WRITE";

/// Of reading alone.
pub(crate) const BEGIN_READING: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ ONLY";

/// Whatever the session's `completion_type` is.
pub(crate) const COMMIT: &str = "COMMIT AND NO CHAIN NO RELEASE";

pub(crate) const ROLLBACK: &str = "ROLLBACK AND NO CHAIN NO RELEASE";

/// The connection's own session, after a transaction has failed.
pub(crate) const END_SESSION: &str = "ROLLBACK; KILL CONNECTION_ID()";

/// For a handler's own work, at the level that the session has.
pub(crate) const BEGIN_HANDLER: &str = "START TRANSACTION READ WRITE";

/// The same where sessions have a limit of our own.
pub(crate) const BEGIN_HANDLER_UNHURRIED: &str = "
SET SESSION innodb_lock_wait_timeout = DEFAULT, lock_wait_timeout = DEFAULT; START TRANSACTION READ WRITE
";

/// What the sessions of a pool of the storage's own are: how long a statement waits for a row, and for a table that is being
/// altered; and what the driver's own `COMMIT` means.
pub(crate) fn session(seconds: u64) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "SET SESSION innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}, completion_type = 'NO_CHAIN', \
         unique_checks = 1"
    ))
}

/// What comes before a statement, so that it is carried out whatever the session says of large joins, of what a `SELECT`
/// without a limit answers, and of changes without a key. MariaDB reads the first comment, MySQL the second, which follows
/// the verb.
pub(crate) const TERMS: [&str; 2] = [
    "/*M! SET STATEMENT sql_big_selects = 1, sql_select_limit = DEFAULT, sql_safe_updates = 0 FOR */ ",
    " /*+ SET_VAR(sql_big_selects = ON) SET_VAR(sql_select_limit = 18446744073709551615) SET_VAR(sql_safe_updates = OFF) */",
];

/// The statements of a template with their [`TERMS`].
fn on_terms(template: &str) -> String {
    let on_terms = |statement: &str| {
        let verb = ["SELECT ", "UPDATE ", "DELETE "].into_iter().find(|verb| statement.trim_start().starts_with(verb));
        let Some(verb) = verb else { return statement.to_owned() };
        let [before, after] = TERMS;
        statement.replacen(verb.trim_end(), &[before, verb.trim_end(), after].concat(), 1)
    };
    template.split(';').map(on_terms).collect::<Vec<_>>().join(";")
}

/// It is gone when the transaction is, whoever ended it.
pub(crate) const MARK_HANDLER: &str = "SAVEPOINT cap_handler";

/// Fails if the transaction is not what it was begun as.
pub(crate) const STILL_OPEN: &str = "RELEASE SAVEPOINT cap_handler";

/// Outside of a transaction the second of the two fails.
pub(crate) const MARK_PUBLISH: &str = "SAVEPOINT cap_publish; ROLLBACK TO SAVEPOINT cap_publish";

pub(crate) const KEEP_PUBLISH: &str = "RELEASE SAVEPOINT cap_publish";

pub(crate) const UNDO_PUBLISH: &str = "ROLLBACK TO SAVEPOINT cap_publish; RELEASE SAVEPOINT cap_publish";

pub(crate) const SERVER: &str = "SELECT VERSION(), @@max_allowed_packet";

/// Migrations take as long as they need, and meet what older servers have let in: dates of zeros.
pub(crate) const MIGRATION_SESSION: &str = "
SET SESSION autocommit = 1, innodb_lock_wait_timeout = DEFAULT, lock_wait_timeout = DEFAULT, sql_safe_updates = 0,
    sql_big_selects = 1, sql_select_limit = DEFAULT, unique_checks = 1, group_concat_max_len = 65536,
    sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION';
SET SESSION TRANSACTION READ WRITE
";

/// For at most a week. The name is the server's: it tells database and prefix apart.
pub(crate) const LOCK_MIGRATION: &str =
    "SELECT GET_LOCK(CONCAT('cap:', MD5(CONCAT(DATABASE(), '/', {prefix}))), 604800)";

pub(crate) const UNLOCK_MIGRATION: &str = "DO RELEASE_LOCK(CONCAT('cap:', MD5(CONCAT(DATABASE(), '/', {prefix}))))";

const CREATE_VERSIONS: &str = "
CREATE TABLE IF NOT EXISTS {versions} (
    `Version`   INT         NOT NULL PRIMARY KEY,
    `AppliedAt` DATETIME(6) NOT NULL
) ENGINE = InnoDB";

const SCHEMA_VERSION: &str = "SELECT CAST(COALESCE(MAX(`Version`), 0) AS SIGNED) FROM {versions}";

/// A script that was cut off is applied once more.
const RECORD_VERSION: &str = "
INSERT INTO {versions} (`Version`, `AppliedAt`) VALUES ({version}, {now}) ON DUPLICATE KEY UPDATE `Version` = `Version`";

/// Fails unless all tables are there.
const TABLES_THERE: &str = "
SELECT 1 FROM {published} LIMIT 0; SELECT 1 FROM {received} LIMIT 0; SELECT 1 FROM {nodes} LIMIT 0;
SELECT 1 FROM {chores} LIMIT 0
";

/// The charsets of what people write, and the most bytes of a content.
const TEXTS: &str = "
SELECT COUNT(CASE WHEN CHARACTER_SET_NAME <> 'utf8mb4' THEN 1 END),
       CAST(MIN(CASE COLUMN_NAME WHEN 'Content' THEN CHARACTER_OCTET_LENGTH END) AS SIGNED)
FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME IN ({tables}) AND COLUMN_NAME IN ('Content', 'Reason')";

/// The zone that .NET CAP's times are read in, if somebody has named it.
pub(crate) const CAP_ZONE: &str = "SELECT CAST(@cap_time_zone AS BINARY)";

/// How many rows of each status .NET CAP has left.
const STATUSES: &str =
    "SELECT CAST(`StatusName` AS BINARY), COUNT(*) FROM {table} GROUP BY `StatusName` ORDER BY `StatusName`";

/// The names of a table's columns come first in each row.
const COLUMNS_THERE: &str = "SHOW COLUMNS FROM {table}";

/// What [`read`](crate::row::read) reads. Text is sent as it is stored, whatever the session's charset.
const RECORD: &str = "
       `Id`, `MessageId`, CAST(`Version` AS BINARY), CAST(`Name` AS BINARY), {group}, {content_read},
       CAST(`StatusName` AS BINARY), COALESCE(`Retries`, 0), TIMESTAMPDIFF(MICROSECOND, {epoch}, `Added`),
       TIMESTAMPDIFF(MICROSECOND, {epoch}, `DueAt`), TIMESTAMPDIFF(MICROSECOND, {epoch}, `ExpiresAt`), `Owner`,
       CAST(`Reason` AS BINARY), `Crashes`";

const CONTENT: &str = "CAST(`Content` AS BINARY)";

/// Content that is longer than its share of what a claim may take is read afterwards, if it is taken.
const CONTENT_IN_SHARE: &str = "CASE WHEN LENGTH(`Content`) <= {share} THEN CAST(`Content` AS BINARY) END";

/// A single row of the outbox that waits for its first attempt, which is what most business transactions publish. A
/// duplicate is an error.
const PUBLISH: &str = "
INSERT INTO {published} (`Version`, `Name`, `Content`, `Retries`, `Added`, `StatusName`, `MessageId`, `DueAt`)
VALUES (?, ?, ?, 0, {now}, ?, ?, {now} + INTERVAL ? MICROSECOND)";

/// The rows follow, one [`ROW`] for each record.
const INSERT: &str = "
INSERT INTO {table} (`Version`, `Name`, {group_column}`Content`, `Retries`, `Added`, `ExpiresAt`, `StatusName`,
                     `MessageId`, `DueAt`, `Owner`, `Claim`, `Reason`, `Crashes`, `Suspect`)
VALUES ";

const ROW: &str = "
(?, ?, {group_given}?, ?, {now}, {now} + INTERVAL ? MICROSECOND, ?,
 ?, COALESCE({epoch} + INTERVAL ? MICROSECOND, {now} + INTERVAL ? MICROSECOND), ?, ?, ?, ?, ?)";

/// A row of a record that is in flight from the beginning, as deliveries are: of these there are many.
const ROW_IN_FLIGHT: &str = "
(?, ?, {group_given}?, ?, {now}, NULL, 'Queued', ?, NULL, ?, ?, NULL, 0, 0)";

/// One row that is in flight, and an error if the node is not registered: then there is no time that it could be added.
const INSERT_HELD: &str = "
INSERT INTO {table} (`Version`, `Name`, {group_column}`Content`, `Retries`, `Added`, `StatusName`, `MessageId`, `Owner`,
                     `Claim`)
VALUES ({version}, {topic}, {group_literal}{content}, {attempts},
        (SELECT {now} FROM {nodes} WHERE `Node` = {node} LOCK IN SHARE MODE),
        'Queued', {message_id}, {node}, {token})";

/// Nothing is written over a row that is there already. `INSERT IGNORE` would do the same, and hide every other error.
const OR_NOTHING: &str = "
ON DUPLICATE KEY UPDATE `Id` = `Id`";

/// Which of a batch are there already. It locks nothing.
const KNOWN: &str = "
SELECT `MessageId`, {group} FROM {table} FORCE INDEX ({message_index}) WHERE `MessageId` IN ({message_ids})";

/// Whether a whole batch was stored: then all its rows are between two addresses. One row answers for all.
const ALL_STORED: &str = "
SELECT JSON_ARRAYAGG(`Id`) FROM (
    SELECT `Id`
    FROM {table} FORCE INDEX (PRIMARY)
    WHERE `Id` BETWEEN {first} AND {last} AND `Claim` = {token}
    ORDER BY `Id`
    LIMIT {limit}
) AS found";

/// Which of a batch were stored: those that have its token.
const STORED: &str = "
SELECT `Id`, `MessageId`, {group}
FROM {table} FORCE INDEX ({message_index})
WHERE `MessageId` IN ({message_ids}) AND `Claim` = {token}";

/// Answers no row when the node is not registered.
const LOCK_LEASE: &str = "SELECT 1 FROM {nodes} WHERE `Node` = {node} LOCK IN SHARE MODE";

/// The length of the content comes last.
const DUE: &str = "
SELECT {record}, LENGTH(`Content`)
FROM {table} FORCE INDEX ({due_index})
WHERE `Version` = {version} AND {in_lane} AND `DueAt` <= {now}{and_no_topic_of}
ORDER BY `DueAt`, `Id`
LIMIT {limit}
FOR UPDATE SKIP LOCKED";

/// What [`DUE`] left out. The rows are locked.
const CONTENTS: &str =
    "SELECT `Id`, CAST(`Content` AS BINARY) FROM {table} FORCE INDEX (PRIMARY) WHERE `Id` IN ({ids})";

const HOLD: &str = "
UPDATE {table} FORCE INDEX (PRIMARY)
SET `StatusName` = 'Queued', `Retries` = COALESCE(`Retries`, 0) + 1, `DueAt` = NULL, `ExpiresAt` = NULL,
    `Owner` = {node}, `Claim` = {token}
WHERE `Id` IN ({ids})";

/// In how many microseconds the next waiting record of the lane is due.
const NEXT_IN_LANE: &str = "
SELECT (
    SELECT TIMESTAMPDIFF(MICROSECOND, {now}, `DueAt`)
    FROM {table} FORCE INDEX ({due_index})
    WHERE `Version` = {version} AND {in_lane} AND `DueAt` IS NOT NULL{and_no_topic_of}
    ORDER BY `DueAt` LIMIT 1
)";

/// Which of the records are held, and under which tokens. Waits for nobody: the lock of another node's handler on what
/// was lost to it is none of our business.
const HELD: &str =
    "SELECT `Id`, `Claim` FROM {table} FORCE INDEX (PRIMARY) WHERE `Id` IN ({ids}) AND `StatusName` = 'Queued'";

/// The same once they are locked.
const LOCK_HELD: &str = "
SELECT `Id`, `Claim` FROM {table} FORCE INDEX (PRIMARY) WHERE `Id` IN ({ids}) AND `StatusName` = 'Queued' FOR UPDATE";

/// The same without those that another has locked.
const LOCK_FREE: &str = "
SELECT `Id`, `Claim` FROM {table} FORCE INDEX (PRIMARY)
WHERE `Id` IN ({ids}) AND `StatusName` = 'Queued' FOR UPDATE SKIP LOCKED";

/// Locks them, with an error if another has locked one of them.
const LOCK_HELD_AT_ONCE: &str = "
SELECT COUNT(*) FROM {table} FORCE INDEX (PRIMARY)
WHERE `Id` IN ({ids}) AND `StatusName` = 'Queued' FOR UPDATE NOWAIT";

/// One for each outcome that some have in common.
const SETTLE: &str = "
UPDATE {table} FORCE INDEX (PRIMARY)
SET `Retries` = {attempts}, `Reason` = {reason}, `DueAt` = {due}, `ExpiresAt` = {expires}, `Owner` = {owner},
    `Claim` = {claim}, `Crashes` = {crashes}, `Suspect` = {suspect}, `StatusName` = {status}
WHERE `Id` IN ({ids}) AND `Claim` = {token} AND `StatusName` = 'Queued'";

/// Waits for claims of this node that are under way: what they take is seen afterwards, in another transaction, so that a
/// heartbeat never waits for what that waits for.
const LOCK_NODE: &str = "SELECT 1 FROM {nodes} WHERE `Node` = {node} FOR UPDATE";

const HELD_UNDER_TOKEN: &str = "
SELECT `Id` FROM {table} FORCE INDEX ({owner_index})
WHERE `Owner` = {node} AND `Claim` = {token} AND `StatusName` = 'Queued'
ORDER BY `Id`";

const HELD_BY_NODE: &str = "
SELECT `Id` FROM {table} FORCE INDEX ({owner_index})
WHERE `Owner` = {node} AND `StatusName` = 'Queued'
ORDER BY `Id`";

/// What a node gives back itself: the attempt does not count. The claims have ended, and the node begins none: of those
/// whose ids were read some may be settled, and none is held under another token.
const GIVE_BACK: &str = "
UPDATE {table} FORCE INDEX (PRIMARY)
SET `StatusName` = 'Scheduled', `Retries` = GREATEST(COALESCE(`Retries`, 0) - 1, 0), `DueAt` = {now}, `Owner` = NULL,
    `Claim` = NULL
WHERE `Id` IN ({ids}) AND `Owner` = {node} AND `StatusName` = 'Queued'";

/// Owners that are no nodes any more.
const DEAD_OWNERS: &str = "
SELECT `Owner` FROM (SELECT DISTINCT `Owner` FROM {table} FORCE INDEX ({owner_index}) WHERE `Owner` IS NOT NULL) AS owners
WHERE NOT EXISTS (SELECT 1 FROM {nodes} WHERE {nodes}.`Node` = owners.`Owner`)";

const HELD_BY_DEAD: &str = "
SELECT `Id` FROM {table} FORCE INDEX ({owner_index})
WHERE `Owner` IN ({owners}) AND `StatusName` = 'Queued'
ORDER BY `Id`";

/// Without those that another has locked.
const LOCK_HELD_BY: &str = "
SELECT `Id` FROM {table} FORCE INDEX (PRIMARY)
WHERE `Id` IN ({ids}) AND `Owner` IN ({owners}) AND `StatusName` = 'Queued'
FOR UPDATE SKIP LOCKED";

const TAKE_OVER: &str = "
UPDATE {table} FORCE INDEX (PRIMARY)
SET `StatusName` = 'Scheduled', `DueAt` = {now}, `Crashes` = `Crashes` + 1, `Suspect` = 1, `Owner` = NULL, `Claim` = NULL
WHERE `Id` IN ({ids})";

const EXPIRED: &str = "
SELECT `Id` FROM {table} FORCE INDEX ({expired_index})
WHERE `ExpiresAt` <= {now} AND (`StatusName` = 'Succeeded' OR (`StatusName` = 'Failed' AND `DueAt` IS NULL))
ORDER BY `ExpiresAt`
LIMIT {limit}
FOR UPDATE SKIP LOCKED";

/// One for each record: MariaDB takes no hint for a `DELETE`, and reads all of a small table for a list.
const COLLECT: &str = "DELETE FROM {table} WHERE `Id` = {id}";

const COUNTS: &str = "
SELECT CAST(`StatusName` AS BINARY), `DueAt` IS NULL, COUNT(*)
FROM {table}
WHERE `Version` = {version}
GROUP BY 1, 2";

const LIST_PAGE: &str = "
SELECT {record}
FROM {table}
WHERE `Id` > {after} AND `StatusName` IN ('Scheduled', 'Delayed', 'Queued', 'Succeeded', 'Failed')
  AND ({version} IS NULL OR `Version` = {version}) AND ({status} IS NULL OR `StatusName` = {status})
  AND ({topic} IS NULL OR `Name` = {topic}) AND ({group_asked} IS NULL OR {group} = {group_asked})
ORDER BY `Id`
LIMIT {limit}";

const FIND: &str = "
SELECT {record}
FROM {table} FORCE INDEX ({message_index})
WHERE `MessageId` = {message_id}
  AND `Id` > {after} AND `StatusName` IN ('Scheduled', 'Delayed', 'Queued', 'Succeeded', 'Failed')
  AND ({version} IS NULL OR `Version` = {version}) AND ({status} IS NULL OR `StatusName` = {status})
  AND ({topic} IS NULL OR `Name` = {topic}) AND ({group_asked} IS NULL OR {group} = {group_asked})
ORDER BY `Id`
LIMIT {limit}";

const REQUEUE: &str = "
UPDATE {table} FORCE INDEX (PRIMARY)
SET `Retries` = {attempts}, `Reason` = {reason}, `DueAt` = {due}, `ExpiresAt` = {expires}, `Crashes` = {crashes},
    `Suspect` = {suspect}, `StatusName` = {status}
WHERE `Id` IN ({ids}) AND `Owner` IS NULL
  AND (`StatusName` = 'Succeeded' OR (`StatusName` = 'Failed' AND `DueAt` IS NULL))";

/// What is held is `Queued`. (Asked for its owner, MariaDB would go by that index.)
const DELETE: &str = "DELETE FROM {table} WHERE `Id` = {id} AND `StatusName` <> 'Queued'";

const JOIN: &str = "
INSERT INTO {nodes} (`Node`, `LeaseUntil`) VALUES ({node}, {now} + INTERVAL {lease} MICROSECOND)
ON DUPLICATE KEY UPDATE `LeaseUntil` = {now} + INTERVAL {lease} MICROSECOND";

/// Finds no row when the node is not registered.
const HEARTBEAT: &str = "
UPDATE {nodes} SET `LeaseUntil` = {now} + INTERVAL {lease} MICROSECOND WHERE `Node` = {node}";

/// The signs of life of all nodes, and the server's clock.
const SIGNS: &str = "
SELECT `Node`, TIMESTAMPDIFF(MICROSECOND, {epoch}, `LeaseUntil`), TIMESTAMPDIFF(MICROSECOND, {epoch}, {now})
FROM {nodes}";

/// Those of these nodes that have given no other sign of life.
const DEAD_NODES: &str = "
SELECT `Node` FROM {nodes} WHERE (`Node`, `LeaseUntil`) IN ({signs}) ORDER BY `Node` FOR UPDATE";

/// The nodes, and the chores they had.
const FORGET: &str = "
DELETE FROM {nodes} WHERE `Node` IN ({nodes_gone});
DELETE FROM {chores} WHERE `Node` IN ({nodes_gone})";

/// Makes the row of a chore that nobody has had yet: free, as its time is over.
const KNOW_CHORE: &str = "
INSERT INTO {chores} (`Chore`, `Node`, `HeldUntil`) VALUES ({chore}, {node}, {now})
ON DUPLICATE KEY UPDATE `Chore` = `Chore`";

/// Finds no row when it is another node's turn.
const TAKE_CHORE: &str = "
UPDATE {chores} SET `Node` = {node}, `HeldUntil` = {now} + INTERVAL {term} MICROSECOND
WHERE `Chore` = {chore} AND (`Node` = {node} OR `HeldUntil` <= {now})";

/// A statement or a part of a script, whose text was made from templates of this file and a prefix that was checked.
#[derive(Debug, Clone)]
pub(crate) struct Statement(Arc<str>);

impl Statement {
    /// A query that the driver prepares once for each connection.
    pub(crate) fn query<'q>(&self) -> Query<'q, MySql, MySqlArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(&self.0)))
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

/// The names of the tables of one prefix: each is one name with a dot in it, as in .NET CAP.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) prefix: String,
    /// Quoted.
    pub(crate) published: String,
    pub(crate) received: String,
    nodes: String,
    chores: String,
    versions: String,
}

impl Names {
    /// Prefixes hold neither quotes nor braces (see `config.rs`).
    pub(crate) fn new(prefix: &str) -> Self {
        let name = |table: &str| format!("`{prefix}.{table}`");
        Self {
            prefix: prefix.to_owned(),
            published: name(Table::Outbox.as_str()),
            received: name(Table::Inbox.as_str()),
            nodes: name("nodes"),
            chores: name("chores"),
            versions: name("schema"),
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
            .replace("{published_name}", self.published.trim_matches('`'))
            .replace("{received_name}", self.received.trim_matches('`'))
            .replace("{nodes}", &self.nodes)
            .replace("{chores}", &self.chores)
            .replace("{versions}", &self.versions)
            .replace("{epoch}", EPOCH)
            .replace("{now}", NOW);
        Statement(text.into())
    }
}

/// Every statement, ready for one prefix.
#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) names: Names,
    pub(crate) published: TableSql,
    pub(crate) received: TableSql,
    pub(crate) publish: Statement,
    pub(crate) lock_lease: Statement,
    pub(crate) lock_node: Statement,
    pub(crate) join: Statement,
    pub(crate) heartbeat: Statement,
    pub(crate) signs: Statement,
    pub(crate) dead_nodes: Statement,
    pub(crate) forget: Statement,
    pub(crate) know_chore: Statement,
    pub(crate) take_chore: Statement,
    pub(crate) create_versions: Statement,
    pub(crate) schema_version: Statement,
    pub(crate) record_version: Statement,
    pub(crate) tables_there: Statement,
    pub(crate) texts: Statement,
    pub(crate) migrations: Vec<Statement>,
}

/// The statements on one of the two tables.
#[derive(Debug)]
pub(crate) struct TableSql {
    pub(crate) columns_there: Statement,
    pub(crate) statuses: Statement,
    /// A single row, for which a duplicate is an error.
    pub(crate) insert: Statement,
    pub(crate) insert_held: Statement,
    /// Of 1, 2, 4 and so on rows.
    inserts: Vec<Statement>,
    /// The same for records in flight.
    inserts_in_flight: Vec<Statement>,
    pub(crate) known: Statement,
    pub(crate) all_stored: Statement,
    pub(crate) stored: Statement,
    pub(crate) due: Statement,
    pub(crate) contents: Statement,
    pub(crate) hold: Statement,
    pub(crate) next: Statement,
    pub(crate) held: Statement,
    pub(crate) lock_held: Statement,
    pub(crate) lock_free: Statement,
    pub(crate) lock_held_at_once: Statement,
    pub(crate) settle: Statement,
    pub(crate) held_under_token: Statement,
    pub(crate) held_by_node: Statement,
    pub(crate) give_back: Statement,
    pub(crate) dead_owners: Statement,
    pub(crate) held_by_dead: Statement,
    pub(crate) lock_held_by: Statement,
    pub(crate) take_over: Statement,
    pub(crate) expired: Statement,
    pub(crate) collect: Statement,
    pub(crate) counts: Statement,
    pub(crate) list: Statement,
    pub(crate) find: Statement,
    pub(crate) requeue: Statement,
    pub(crate) delete: Statement,
}

impl Sql {
    /// For a prefix that was checked.
    pub(crate) fn new(prefix: &str) -> Self {
        let names = Names::new(prefix);
        Self {
            published: TableSql::new(&names, Table::Outbox),
            received: TableSql::new(&names, Table::Inbox),
            publish: names.fill(PUBLISH),
            lock_lease: names.fill(&on_terms(LOCK_LEASE)),
            lock_node: names.fill(&on_terms(LOCK_NODE)),
            join: names.fill(JOIN),
            heartbeat: names.fill(&on_terms(HEARTBEAT)),
            signs: names.fill(&on_terms(SIGNS)),
            dead_nodes: names.fill(&on_terms(DEAD_NODES)),
            forget: names.fill(&on_terms(FORGET)),
            know_chore: names.fill(KNOW_CHORE),
            take_chore: names.fill(&on_terms(TAKE_CHORE)),
            create_versions: names.fill(CREATE_VERSIONS),
            schema_version: names.fill(&on_terms(SCHEMA_VERSION)),
            record_version: names.fill(RECORD_VERSION),
            texts: names.fill(&on_terms(TEXTS)),
            tables_there: names.fill(&on_terms(TABLES_THERE)),
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
    fn new(names: &Names, table: Table) -> Self {
        // What only the inbox has: the column as it is read and compared, where it is written, and the lane's condition.
        let [group, group_column, group_given, group_literal, in_lane] = match table {
            Table::Outbox => ["NULL", "", "", "", "TRUE"],
            Table::Inbox => [
                "CAST(`Group` AS BINARY)",
                "`Group`, ",
                "?, ",
                "{lane}, ",
                "`Group` = {lane} AND `Suspect` = {suspects}",
            ],
        };
        let fill = |template: &str| {
            let index = |of: &str| format!("`{}_{of}`", table.as_str());
            let template = template
                .replace("{record}", RECORD)
                .replace("{content_read}", CONTENT)
                .replace("{table}", names.of(table))
                .replace("{group}", group)
                .replace("{group_column}", group_column)
                .replace("{group_given}", group_given)
                .replace("{group_literal}", group_literal)
                .replace("{in_lane}", in_lane)
                .replace("{message_index}", &index("message"))
                .replace("{due_index}", &index("due"))
                .replace("{owner_index}", &index("owner"))
                .replace("{expired_index}", &index("expired"));
            names.fill(&on_terms(&template))
        };
        let rows = |row: &str, number: usize| [INSERT, &vec![row; number].join(",")].concat();
        let inserts = |row: &str| {
            let sizes = (0..=MOST_ROWS.ilog2()).map(|power| 1 << power);
            sizes.map(|size| fill(&[&rows(row, size), OR_NOTHING].concat())).collect()
        };
        Self {
            columns_there: fill(COLUMNS_THERE),
            statuses: fill(STATUSES),
            insert: fill(&rows(ROW, 1)),
            insert_held: fill(INSERT_HELD),
            inserts: inserts(ROW),
            inserts_in_flight: inserts(ROW_IN_FLIGHT),
            known: fill(KNOWN),
            all_stored: fill(ALL_STORED),
            stored: fill(STORED),
            due: fill(&DUE.replace("{record}", &RECORD.replace("{content_read}", CONTENT_IN_SHARE))),
            contents: fill(CONTENTS),
            hold: fill(HOLD),
            next: fill(NEXT_IN_LANE),
            held: fill(HELD),
            lock_held: fill(LOCK_HELD),
            lock_free: fill(LOCK_FREE),
            lock_held_at_once: fill(LOCK_HELD_AT_ONCE),
            settle: fill(SETTLE),
            held_under_token: fill(HELD_UNDER_TOKEN),
            held_by_node: fill(HELD_BY_NODE),
            give_back: fill(GIVE_BACK),
            dead_owners: fill(DEAD_OWNERS),
            held_by_dead: fill(HELD_BY_DEAD),
            lock_held_by: fill(LOCK_HELD_BY),
            take_over: fill(TAKE_OVER),
            expired: fill(EXPIRED),
            collect: fill(COLLECT),
            counts: fill(COUNTS),
            list: fill(LIST_PAGE),
            find: fill(FIND),
            requeue: fill(REQUEUE),
            delete: fill(DELETE),
        }
    }

    /// That inserts `2^power` rows and leaves those out that are there already.
    pub(crate) fn insert_or_nothing(&self, form: Form, power: u32) -> Option<&Statement> {
        let inserts = match form {
            Form::Any => &self.inserts,
            Form::InFlight => &self.inserts_in_flight,
        };
        inserts.get(power as usize)
    }
}

/// What is known of the rows of an insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Any,
    /// Each is in flight: it has an owner, and neither times nor a reason.
    InFlight,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that a script fills in.
    const VALUES: &[&str] = &[
        "{attempts}",
        "{after}",
        "{chore}",
        "{content}",
        "{claim}",
        "{due}",
        "{expires}",
        "{first}",
        "{group_asked}",
        "{id}",
        "{and_no_topic_of}",
        "{crashes}",
        "{share}",
        "{signs}",
        "{suspect}",
        "{suspects}",
        "{tables}",
        "{ids}",
        "{owner}",
        "{lane}",
        "{last}",
        "{lease}",
        "{limit}",
        "{message_id}",
        "{message_ids}",
        "{node}",
        "{nodes_gone}",
        "{owners}",
        "{reason}",
        "{status}",
        "{term}",
        "{token}",
        "{topic}",
        "{version}",
        "{prefix}",
        "{1,128}",
    ];

    #[test]
    fn nothing_is_left_to_be_filled_in_but_values() {
        let mut everything = format!("{:?}", Sql::new("odd; name"));
        assert!(everything.contains("`odd; name.published`"));
        for value in VALUES {
            everything = everything.replace(value, "");
        }
        let hole = everything.split('{').skip(1).find(|part| {
            part.find('}').is_some_and(|end| end > 0 && part[..end].chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        });
        assert_eq!(hole, None, "a hole is left");
    }

    #[test]
    fn only_an_insert_writes_content() {
        let sql = Sql::new("cap");
        for table in [&sql.published, &sql.received] {
            for statement in [&table.hold, &table.settle, &table.requeue, &table.take_over, &table.give_back] {
                assert!(!statement.text().contains("`Content` ="), "{}", statement.text());
            }
        }
    }

    #[test]
    fn there_is_an_insert_for_each_power_of_two() {
        let sql = Sql::new("cap");
        let rows = |power| {
            sql.published.insert_or_nothing(Form::Any, power).map(|insert| insert.text().matches("COALESCE").count())
        };
        assert_eq!((rows(0), rows(3), rows(8), rows(9)), (Some(1), Some(8), Some(MOST_ROWS), None));
    }
}
