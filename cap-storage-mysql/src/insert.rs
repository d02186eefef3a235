//! Inserts, of the storage's own and over the caller's connection.

use std::collections::{HashMap, HashSet};

use cap_core::backend::{Times, attempts, crashes, refuse};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{Claim, Inserted, NewRecord, Table};
use cap_core::{ClaimToken, ErrorKind, NodeId, RecordId};
use cap_storage_sqlx::{Fallible, Fault, shrink};
use sqlx::mysql::MySqlArguments;
use sqlx::query::Query;
use sqlx::{MySql, MySqlConnection};

use crate::error::Numbered;
use crate::row::{RANGE, integer, literal, octets, out_of_step};
use crate::script::{Answer, Script, bytes, list as listed, number};
use crate::sql::{self, Form, LIST, MOST_ROWS, Sql, Statement, TableSql};

/// How much the server takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    /// At once: its `max_allowed_packet`.
    pub(crate) at_once: u64,
    /// In the column of the contents.
    pub(crate) content: u64,
}

impl Packet {
    /// For everything beside the content, in the row as it is written and as it is read.
    const REST: u64 = 256 << 10;

    /// As long as the server has not been asked: less than any has by default.
    pub(crate) const UNKNOWN: Self = Self { at_once: 4 << 20, content: u64::MAX };

    /// For values beside the content of all rows of a statement.
    fn room(self) -> u64 {
        self.at_once - Self::REST.min(self.at_once / 4)
    }

    pub(crate) fn most_content(self) -> u64 {
        self.room().min(self.content)
    }
}

/// Refuses what can never work, and what the server would not take, ending the connection. `packet` is none if that is
/// not known.
pub(crate) fn check(table: Table, records: &[NewRecord], claim: Option<Claim>, packet: Option<Packet>) -> Fallible<()> {
    if let Some(packet) = packet {
        let most = packet.most_content();
        let is_too_long = |record: &&NewRecord| record.content.len() as u64 > most;
        if let Some(NewRecord { message_id, content, .. }) = records.iter().find(is_too_long) {
            let reason = format!("the content of message {message_id} has {} bytes", content.len());
            return Err(too_much(&reason, packet, most));
        }
        check_reasons(records.iter().map(|record| &record.state), Some(packet))?;
    }
    refuse(table, records, claim.is_some()).map_or(Ok(()), |reason| Err(Fault::said(ErrorKind::Invalid, reason)))
}

/// Refuses reasons that the server would not take. In a script they have twice their length.
pub(crate) fn check_reasons<'s>(states: impl Iterator<Item = &'s State>, packet: Option<Packet>) -> Fallible<()> {
    let Some(packet) = packet else { return Ok(()) };
    let most = packet.room() / 2;
    let mut lengths = states.filter_map(|state| state.reason().map(str::len));
    lengths
        .find(|length| *length as u64 > most)
        .map_or(Ok(()), |length| Err(too_much(&format!("the reason of a record has {length} bytes"), packet, most)))
}

fn too_much(what: &str, packet: Packet, most: u64) -> Fault {
    let advice = if packet.content == most {
        "its column holds no more"
    } else {
        "make its `max_allowed_packet` greater, and restart this service"
    };
    Fault::said(ErrorKind::Rejected, format!("{what}, and the server takes {most} at most: {advice}"))
}

/// Inserts records that were checked, in one transaction.
pub(crate) async fn insert(
    connection: &mut MySqlConnection,
    sql: &Sql,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
    packet: Packet,
) -> Fallible<Vec<Inserted>> {
    if records.is_empty() && claim.is_none() {
        return Ok(Vec::new());
    }
    let inserted = insert_unknown(connection, sql, table, records, claim, packet).await;
    shrink(connection, records.iter().map(|record| record.content.len()).sum());
    inserted
}

/// Of the inbox, what is there already is left out beforehand: an insert would wait for the lock of the handler that is at
/// work on it.
async fn insert_unknown(
    connection: &mut MySqlConnection,
    sql: &Sql,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
    packet: Packet,
) -> Fallible<Vec<Inserted>> {
    let batch = Batch::new(table, records, claim, packet);
    let mut script = Script::begin();
    if let Some(Claim { node, .. }) = claim {
        if let [record] = records
            && batch.form() == Form::InFlight
            && record.content.len() <= MOST_LITERAL
        {
            return batch.store_held(connection, &sql.table(table).insert_held, record, node).await;
        }
        script = script.then(&sql.lock_lease, &[("node", &literal(node))]);
    }
    let begun = match table {
        Table::Outbox => script.run(connection).await?,
        Table::Inbox => batch.look_for(script, &sql.table(table).known).run(connection).await?,
    };
    // The two statements of the beginning, the lease, and what is known.
    let mut answers = begun.iter().skip(BEGIN_STATEMENTS);
    if let Some(Claim { node, .. }) = claim
        && answers.next().is_none_or(|lease| lease.rows.is_empty())
    {
        return Err(Fault::lease_lost(node));
    }
    let known = batch.keys_of(answers)?;
    if known.is_empty() {
        return batch.store(connection, sql.table(table), sql::COMMIT).await;
    }
    let unknown: Vec<NewRecord> =
        records.iter().filter(|record| !known.contains(&batch.key(record))).cloned().collect();
    let batch_of_unknown = Batch { records: &unknown, ..batch };
    let mut stored = batch_of_unknown.store(connection, sql.table(table), sql::COMMIT).await?.into_iter();
    let answer = |record| if known.contains(&batch.key(record)) { None } else { stored.next() };
    Ok(records.iter().map(answer).map(|stored| stored.unwrap_or(Inserted::Duplicate)).collect())
}

/// How many statements begin a transaction.
const BEGIN_STATEMENTS: usize = 2;

/// The longest content that becomes a literal, in bytes.
const MOST_LITERAL: usize = 64 << 10;

/// Inserts records of the outbox that were checked, over the caller's connection. On an error nothing of them is left;
/// the caller's transaction is as it was before, unless the server has rolled it back itself.
pub(crate) async fn publish(
    connection: &mut MySqlConnection,
    sql: &Sql,
    records: &[NewRecord],
    packet: Packet,
) -> Fallible<Vec<Inserted>> {
    let batch = Batch::new(Table::Outbox, records, None, packet);
    match records {
        [] => Ok(Vec::new()),
        [record] => {
            let query = batch.publish_query(sql, record);
            store_one(connection, query).await
        }
        _ => batch.store_all_or_none(connection, &sql.published).await,
    }
}

/// A message, and its group in the inbox.
type Key = (Vec<u8>, Option<Vec<u8>>);

/// Records on their way into a table.
#[derive(Clone, Copy)]
struct Batch<'r> {
    table: Table,
    records: &'r [NewRecord],
    /// Who holds those that are in flight.
    owner: Option<NodeId>,
    token: ClaimToken,
    packet: Packet,
}

impl<'r> Batch<'r> {
    fn new(table: Table, records: &'r [NewRecord], claim: Option<Claim>, packet: Packet) -> Self {
        let (owner, token) = match claim {
            None => (None, ClaimToken::generate()),
            Some(Claim { node, token }) => (Some(node), token),
        };
        Self { table, records, owner, token, packet }
    }

    /// The insert of a single record of the outbox.
    fn publish_query<'q>(&self, sql: &'q Sql, record: &'q NewRecord) -> Query<'q, MySql, MySqlArguments> {
        let NewRecord { message_id, version, topic, content, state, .. } = record;
        let (0, 0, None, None, Times { due_at: None, due_in: Some(due_in), .. }) =
            (attempts(state), crashes(state), state.expires(), state.reason(), Times::of(state, &RANGE))
        else {
            return self.bind(sql.published.insert.query(), record, Form::Any);
        };
        let query = sql.publish.query().bind(version.as_str().as_bytes()).bind(topic.as_str().as_bytes());
        let query = query.bind(content.as_bytes()).bind(state.status().as_str().as_bytes());
        query.bind(message_id.as_str().as_bytes()).bind(due_in)
    }

    /// Appends a look at which of them are there already.
    fn look_for(&self, mut script: Script, known: &Statement) -> Script {
        for records in self.records.chunks(LIST) {
            let ids = listed(records.iter().map(|record| bytes(record.message_id.as_str().as_bytes())));
            script = script.then(known, &[("message_ids", &ids)]);
        }
        script
    }

    /// What the rows of the answers name.
    fn keys_of<'a>(&self, answers: impl Iterator<Item = &'a Answer>) -> Fallible<HashSet<Key>> {
        let mut keys = HashSet::new();
        for row in answers.flat_map(|answer| &answer.rows) {
            keys.insert((octets(row, 0)?.unwrap_or_default().to_vec(), octets(row, 1)?.map(<[u8]>::to_vec)));
        }
        Ok(keys)
    }

    fn key(&self, record: &NewRecord) -> Key {
        let group = record.group.as_ref().filter(|_| self.table == Table::Inbox);
        let group = group.map(|group| group.as_str().as_bytes().to_vec());
        (record.message_id.as_str().as_bytes().to_vec(), group)
    }

    /// A record that is in flight, in one round trip. On an error its transaction is left open.
    async fn store_held(
        &self,
        connection: &mut MySqlConnection,
        insert: &Statement,
        record: &NewRecord,
        node: NodeId,
    ) -> Fallible<Vec<Inserted>> {
        let NewRecord { message_id, version, topic, group, content, state } = record;
        let group = group.as_ref().map_or_else(|| number(None), |group| bytes(group.as_str().as_bytes()));
        let values = [
            ("version", &*bytes(version.as_str().as_bytes())),
            ("topic", &bytes(topic.as_str().as_bytes())),
            ("lane", &group),
            ("content", &bytes(content.as_bytes())),
            ("attempts", &number(Some(i64::from(attempts(state))))),
            ("message_id", &bytes(message_id.as_str().as_bytes())),
            ("node", &literal(node)),
            ("token", &bytes(self.token.0.as_bytes())),
        ];
        match Script::begin().then(insert, &values).commit().run(connection).await {
            Ok(answers) => {
                let [.., insert, _commit] = &answers[..] else { return Err(out_of_step()) };
                Ok(vec![Inserted::Stored(RecordId(i64::try_from(insert.inserted).unwrap_or(i64::MAX)))])
            }
            Err(fault) if fault.is_duplicate_message() => {
                Script::default().plain(sql::ROLLBACK).run(connection).await?;
                Ok(vec![Inserted::Duplicate])
            }
            Err(fault) if fault.is_without_value() => Err(Fault::lease_lost(node)),
            Err(fault) => Err(fault),
        }
    }

    /// In a savepoint of the caller's transaction, or in a transaction of its own if there is none.
    async fn store_all_or_none(&self, connection: &mut MySqlConnection, sql: &TableSql) -> Fallible<Vec<Inserted>> {
        let (end, undo) = match Script::default().plain(sql::MARK_PUBLISH).run(connection).await {
            Ok(_) => (sql::KEEP_PUBLISH, sql::UNDO_PUBLISH),
            Err(fault) if fault.is_outside_of_transaction() => {
                Script::begin().run(connection).await?;
                (sql::COMMIT, sql::ROLLBACK)
            }
            Err(fault) => return Err(fault),
        };
        let stored = self.store(connection, sql, end).await;
        if stored.is_err() {
            // Fails if the server has rolled back more than that itself; the first error is the one to tell.
            drop(Script::default().plain(undo).run(connection).await);
        }
        stored
    }

    async fn store(&self, connection: &mut MySqlConnection, sql: &TableSql, end: &str) -> Fallible<Vec<Inserted>> {
        if self.records.is_empty() {
            Script::default().plain(end).run(connection).await?;
            return Ok(Vec::new());
        }
        let first = self.write(connection, sql).await?;
        // What is in flight has its token until we settle it, so that it can be looked for after the commit, too.
        let (with_it, after_it) = if self.form() == Form::InFlight { (end, "") } else { ("", end) };
        let stored = match self.all_stored(connection, sql, first, with_it).await? {
            Some(all) => all,
            None => self.stored(connection, sql).await?,
        };
        Script::default().plain(after_it).run(connection).await?;
        Ok(stored)
    }

    /// Writes those that are not there; answers the first address, 0 if there is none.
    async fn write(&self, connection: &mut MySqlConnection, sql: &TableSql) -> Fallible<i64> {
        let form = self.form();
        let mut first = None;
        let mut rest = self.records;
        while !rest.is_empty() {
            let (insert, number) = self.insert_of(sql, form, rest)?;
            let (these, others) = rest.split_at(number);
            let query = these.iter().fold(insert.query(), |query, record| self.bind(query, record, form));
            let inserted = query.execute(&mut *connection).await?;
            first.get_or_insert(inserted.last_insert_id());
            rest = others;
        }
        Ok(i64::try_from(first.unwrap_or(0)).unwrap_or(i64::MAX))
    }

    /// Mostly nothing was there already: then as many rows as there are records have this batch's token, and their
    /// addresses ascend as the records do. `first` is the first of them. The look ends at the last: where it
    /// locks what it reads, in a caller's transaction that is `SERIALIZABLE`, others still publish meanwhile. `end` is
    /// carried out after it.
    async fn all_stored(
        &self,
        connection: &mut MySqlConnection,
        sql: &TableSql,
        first: i64,
        end: &str,
    ) -> Fallible<Option<Vec<Inserted>>> {
        /// How far apart two addresses of a batch may be: servers in a cluster count in steps, and others insert
        /// meanwhile. What is farther off is found by its message id.
        const STEP: i64 = 8;
        if first == 0 {
            Script::default().plain(end).run(connection).await?;
            return Ok(None);
        }
        let number = i64::try_from(self.records.len()).unwrap_or(i64::MAX);
        let last = first.saturating_add(number.saturating_mul(STEP));
        let values = [
            ("first", &*first.to_string()),
            ("last", &last.to_string()),
            ("token", &bytes(self.token.0.as_bytes())),
            ("limit", &number.to_string()),
        ];
        let answers = Script::default().then(&sql.all_stored, &values).plain(end).run(connection).await?;
        let Some(row) = answers.first().and_then(|found| found.rows.first()) else { return Err(out_of_step()) };
        // A server may cut a long answer off.
        let found: Option<Vec<i64>> = octets(row, 0)?.and_then(|found| serde_json::from_slice(found).ok());
        let Some(mut found) = found.filter(|found| found.len() == self.records.len()) else { return Ok(None) };
        found.sort_unstable();
        Ok(Some(found.into_iter().map(|id| Inserted::Stored(RecordId(id))).collect()))
    }

    async fn stored(&self, connection: &mut MySqlConnection, sql: &TableSql) -> Fallible<Vec<Inserted>> {
        let token = bytes(self.token.0.as_bytes());
        let mut script = Script::default();
        for records in self.records.chunks(LIST) {
            let ids = listed(records.iter().map(|record| bytes(record.message_id.as_str().as_bytes())));
            script = script.then(&sql.stored, &[("message_ids", &ids), ("token", &token)]);
        }
        let found = script.run(connection).await?;
        let mut stored = HashMap::with_capacity(self.records.len());
        for row in found.iter().flat_map(|answer| &answer.rows) {
            stored.insert((octets(row, 1)?.unwrap_or_default(), octets(row, 2)?), RecordId(integer(row, 0)?));
        }
        let mut answers = Vec::with_capacity(self.records.len());
        for record in self.records {
            let group = record.group.as_ref().filter(|_| self.table == Table::Inbox);
            let key = (record.message_id.as_str().as_bytes(), group.map(|group| group.as_str().as_bytes()));
            // Of two equal ones the first was stored: they are written in their order.
            answers.push(stored.remove(&key).map_or(Inserted::Duplicate, Inserted::Stored));
        }
        Ok(answers)
    }

    fn form(&self) -> Form {
        let is_in_flight = |record: &NewRecord| {
            let state = &record.state;
            let is_plain = state.due().is_none() && state.expires().is_none() && state.reason().is_none();
            let is_plain = is_plain && state.crashes() == 0;
            state.status() == Status::Queued && is_plain
        };
        if self.owner.is_some() && self.records.iter().all(is_in_flight) { Form::InFlight } else { Form::Any }
    }

    /// The greatest power of two of the records that there is a statement for, and that the server takes at once.
    fn insert_of<'s>(&self, sql: &'s TableSql, form: Form, records: &[NewRecord]) -> Fallible<(&'s Statement, usize)> {
        let mut power = records.len().min(MOST_ROWS).ilog2();
        let size = |record: &NewRecord| (record.content.len() + record.state.reason().map_or(0, str::len)) as u64;
        let sum = |power: u32| records[..1 << power].iter().map(size).sum::<u64>();
        while power > 0 && sum(power) > self.packet.room() {
            power -= 1;
        }
        let Some(insert) = sql.insert_or_nothing(form, power) else {
            return Err(Fault::said(ErrorKind::Internal, format!("there is no statement for {} rows", 1 << power)));
        };
        Ok((insert, 1 << power))
    }

    /// The columns of a row. Text goes as bytes: as such it is stored unchanged, whatever charset the session has.
    fn bind<'q>(
        &self,
        query: Query<'q, MySql, MySqlArguments>,
        record: &'q NewRecord,
        form: Form,
    ) -> Query<'q, MySql, MySqlArguments> {
        let NewRecord { message_id, version, topic, group, content, state } = record;
        let is_held = state.status() == Status::Queued;
        let owner = self.owner.filter(|_| is_held).map(|node| node.0.into_bytes().to_vec());
        let query = query.bind(version.as_str().as_bytes()).bind(topic.as_str().as_bytes());
        let query = match self.table {
            Table::Outbox => query,
            Table::Inbox => query.bind(group.as_ref().map(|group| group.as_str().as_bytes())),
        };
        let query = query.bind(content.as_bytes()).bind(attempts(state));
        let message_id = message_id.as_str().as_bytes();
        let token = self.token.0.into_bytes().to_vec();
        if form == Form::InFlight {
            return query.bind(message_id).bind(owner).bind(token);
        }
        let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
        let query = query.bind(expires_in).bind(state.status().as_str().as_bytes()).bind(message_id);
        let query = query.bind(due_at).bind(due_in).bind(owner).bind(token).bind(state.reason().map(str::as_bytes));
        query.bind(crashes(state)).bind(i64::from(state.crashes() > 0))
    }
}

/// One statement: a duplicate is an error of it, which leaves the transaction as it was.
async fn store_one(
    connection: &mut MySqlConnection,
    insert: Query<'_, MySql, MySqlArguments>,
) -> Fallible<Vec<Inserted>> {
    match insert.execute(connection).await.map_err(Fault::from) {
        Ok(done) => Ok(vec![Inserted::Stored(RecordId(i64::try_from(done.last_insert_id()).unwrap_or(i64::MAX)))]),
        Err(fault) if fault.is_duplicate_message() => Ok(vec![Inserted::Duplicate]),
        Err(fault) => Err(fault),
    }
}
