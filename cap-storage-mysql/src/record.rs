//! Records to and from rows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::{Alike, Holder, Range, Settlements, Times, refuse};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{
    Claim, ClaimRequest, Claimed, Inserted, Lane, NewRecord, Query as ListQuery, Record, Settled, Settlement, Table,
};
use cap_core::{ClaimToken, ErrorKind, Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version};
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::mysql::{MySqlArguments, MySqlRow};
use sqlx::query::Query;
use sqlx::{MySql, MySqlConnection, Row};
use uuid::Uuid;

use crate::error::Numbered;
use crate::script::{Answer, Script, bytes, list as listed, null, number, text};
use crate::sql::{self, Form, LIST, MOST_ROWS, Sql, Statement, TableSql};

/// Times in more than this many microseconds (some 5000 years) are cut to it, so that sums with the clock stay within
/// what `DATETIME` holds: the years 1000 to 9999.
const FAR: i64 = 157_680_000_000_000_000;

/// The first and the last moment that are stored, in microseconds since 1970.
const MOMENTS: (i64, i64) = (-30_610_224_000_000_000, 250_000_000_000_000_000);

/// What a column of time holds.
pub(crate) const RANGE: Range = Range { far: FAR, moments: MOMENTS };

/// A limit as SQL counts it.
pub(crate) fn limit(limit: usize) -> String {
    number(Some(i64::try_from(limit).unwrap_or(i64::MAX)))
}

/// A count of attempts as SQL counts it.
pub(crate) fn attempts(state: &State) -> i64 {
    i64::from(i32::try_from(state.attempts()).unwrap_or(i32::MAX))
}

/// What of a state a statement writes, as expressions: those of the holes in `settle` and `requeue`.
struct Expressions([(&'static str, String); 7]);

impl Expressions {
    fn of(state: &State) -> Self {
        let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
        let due = due_at.map(sql::at).or(due_in.map(sql::from_now));
        let is_held = state.status() == Status::Queued;
        let kept = |column: &str| if is_held { column.to_owned() } else { null() };
        Self([
            ("status", text(Some(state.status().as_str()))),
            ("attempts", number(Some(attempts(state)))),
            ("due", due.unwrap_or_else(null)),
            ("expires", expires_in.map_or_else(null, sql::from_now)),
            ("reason", text(state.reason())),
            ("owner", kept("`Owner`")),
            ("claim", kept("`Claim`")),
        ])
    }

    fn with<'l>(&'l self, others: &[(&'l str, &'l str)]) -> Vec<(&'l str, &'l str)> {
        self.0.iter().map(|(name, literal)| (*name, literal.as_str())).chain(others.iter().copied()).collect()
    }
}

/// How much the server takes at once, in bytes: its `max_allowed_packet`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet(pub(crate) u64);

impl Packet {
    /// For everything beside the content, in the row as it is written and as it is read.
    const REST: u64 = 256 << 10;

    /// As long as the server has not been asked: less than any has by default.
    pub(crate) const UNKNOWN: Self = Self(4 << 20);

    fn most_content(self) -> u64 {
        self.0.saturating_sub(Self::REST)
    }
}

/// Refuses what can never work, and what the server would not take, ending the connection. `packet` is none if that is
/// not known.
pub(crate) fn check(table: Table, records: &[NewRecord], claim: Option<Claim>, packet: Option<Packet>) -> Fallible<()> {
    let most = packet.map_or(u64::MAX, Packet::most_content);
    if let Some(NewRecord { message_id, content, .. }) =
        records.iter().find(|record| record.content.len() as u64 > most)
    {
        let reason = format!(
            "the content of message {message_id} has {} bytes, and the server takes {most} at most: make its \
             `max_allowed_packet` greater, and restart this service",
            content.len()
        );
        return Err(Fault::said(ErrorKind::Rejected, reason));
    }
    refuse(table, records, claim.is_some()).map_or(Ok(()), |reason| Err(Fault::said(ErrorKind::Invalid, reason)))
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
    let batch = Batch::new(table, records, claim, packet);
    let table = sql.table(table);
    let Some(Claim { node, .. }) = claim else {
        Script::begin().run(connection).await?;
        return batch.store(connection, table, sql::COMMIT).await;
    };
    if let [record] = records
        && batch.form() == Form::InFlight
        && record.content.len() <= MOST_LITERAL
    {
        return batch.store_held(connection, &table.insert_held, record, node).await;
    }
    let begun = Script::begin().then(&sql.lock_lease, &[("node", &literal(node))]).run(connection).await?;
    if begun.last().is_none_or(|lease| lease.rows.is_empty()) {
        return Err(lease_lost(node));
    }
    batch.store(connection, table, sql::COMMIT).await
}

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

/// Records on their way into a table.
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
        let (0, None, None, Times { due_at: None, due_in: Some(due_in), .. }) =
            (attempts(state), state.expires(), state.reason(), Times::of(state, &RANGE))
        else {
            return self.bind(sql.published.insert.query(), record, Form::Any);
        };
        let query = sql.publish.query().bind(version.as_str().as_bytes()).bind(topic.as_str().as_bytes());
        let query = query.bind(content.as_bytes()).bind(state.status().as_str().as_bytes());
        query.bind(message_id.as_str().as_bytes()).bind(due_in)
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
            ("attempts", &number(Some(attempts(state)))),
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
            Err(fault) if fault.is_without_value() => Err(lease_lost(node)),
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
            state.status() == Status::Queued && is_plain
        };
        if self.owner.is_some() && self.records.iter().all(is_in_flight) { Form::InFlight } else { Form::Any }
    }

    /// The greatest power of two of the records that there is a statement for, and that the server takes at once.
    fn insert_of<'s>(&self, sql: &'s TableSql, form: Form, records: &[NewRecord]) -> Fallible<(&'s Statement, usize)> {
        let mut power = records.len().min(MOST_ROWS).ilog2();
        let size = |power: u32| records[..1 << power].iter().map(|record| record.content.len() as u64).sum::<u64>();
        while power > 0 && size(power) > self.packet.most_content() {
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
        query.bind(due_at).bind(due_in).bind(owner).bind(token).bind(state.reason().map(str::as_bytes))
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

/// Takes due records, earliest first.
pub(crate) async fn claim(connection: &mut MySqlConnection, sql: &Sql, request: &ClaimRequest) -> Fallible<Claimed> {
    let ClaimRequest { lane, version, claim: Claim { node, token }, limit: most } = request;
    let table = sql.table(lane.table());
    let (owner, token) = (literal(*node), bytes(token.0.as_bytes()));
    let (version, group, most_literal) = (text(Some(version.as_str())), text(group_of(lane)), limit(*most));
    let of_lane = [("version", version.as_str()), ("lane", &group), ("limit", &most_literal)];

    let script = Script::begin().then(&sql.lock_lease, &[("node", &owner)]).then(&table.due, &of_lane);
    let answers = script.run(connection).await?;
    let [.., lease, due] = &answers[..] else { return Err(out_of_step()) };
    if lease.rows.is_empty() {
        return Err(lease_lost(*node));
    }
    let mut records = due.rows.iter().map(read).collect::<Fallible<Vec<_>>>()?;
    for record in &mut records {
        // As the next statement makes it.
        record.status = Status::Queued;
        record.attempts = record.attempts.saturating_add(1);
        (record.due, record.expires) = (None, None);
        record.owner = Some(*node);
    }

    let mut script = Script::default();
    for records in records.chunks(LIST) {
        let ids = listed(records.iter().map(|record| record.id.to_string()));
        script = script.then(&table.hold, &[("node", &owner), ("token", &token), ("ids", &ids)]);
    }
    let is_all = records.len() < *most;
    if is_all {
        script = script.then(&table.next, &of_lane);
    }
    let answers = script.commit().run(connection).await?;
    let next_due = match &answers[..] {
        [.., next, _commit] if is_all => wait(next)?,
        _ => None,
    };
    Ok(Claimed { records, next_due })
}

/// In how long the next waiting record of each lane is due.
pub(crate) async fn waits(
    connection: &mut MySqlConnection,
    sql: &Sql,
    version: &Version,
    lanes: &[Lane],
) -> Fallible<Vec<Option<Duration>>> {
    if lanes.is_empty() {
        return Ok(Vec::new());
    }
    let version = text(Some(version.as_str()));
    let mut script = Script::begin_reading();
    for lane in lanes {
        let next = &sql.table(lane.table()).next;
        script = script.then(next, &[("version", &version), ("lane", &text(group_of(lane)))]);
    }
    let answers = script.commit().run(connection).await?;
    answers.iter().filter(|answer| !answer.rows.is_empty()).map(wait).collect()
}

fn group_of(lane: &Lane) -> Option<&str> {
    match lane {
        Lane::Outbox => None,
        Lane::Inbox(group) => Some(group.as_str()),
    }
}

/// An answer of one number: in how many microseconds something is, if it ever is.
pub(crate) fn wait(answer: &Answer) -> Fallible<Option<Duration>> {
    let Some(row) = answer.rows.first() else { return Ok(None) };
    let wait = maybe_integer(row, 0)?;
    Ok(wait.map(|wait| Duration::from_micros(u64::try_from(wait).unwrap_or(0))))
}

/// Which transaction settlements are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Within {
    /// One of their own.
    Own,
    /// That which a handler works in, and which is marked afterwards.
    Handler,
}

/// Writes outcomes, with one statement for each that some have in common.
pub(crate) async fn settle(
    connection: &mut MySqlConnection,
    sql: &TableSql,
    settlements: &[Settlement],
    within: Within,
) -> Fallible<Vec<Settled>> {
    if settlements.is_empty() {
        return Ok(Vec::new());
    }
    let batch = Settlements::new(settlements);
    match within {
        Within::Own => settle_at_once(connection, sql, &batch).await,
        Within::Handler => settle_held(connection, sql, &batch, "", sql::MARK_HANDLER).await,
    }
}

/// Mostly all are still held, and what is held nobody else locks. Then as many rows are found as there are outcomes; if
/// they are fewer it is not known which, so of several nothing is committed before they are counted.
async fn settle_at_once(
    connection: &mut MySqlConnection,
    sql: &TableSql,
    batch: &Settlements<'_>,
) -> Fallible<Vec<Settled>> {
    let all: Vec<&Settlement> = batch.first().collect();
    let is_one = all.len() == 1;
    let script = write(Script::begin(), sql, &sql.lock_held_at_once, &all);
    let script = if is_one { script.commit() } else { script };
    match script.run(connection).await.map(|answers| affected(&answers)) {
        Ok(written) if written == all.len() as u64 => {
            let end = if is_one { "" } else { sql::COMMIT };
            Script::default().plain(end).run(connection).await?;
            Ok(batch.answer(all.into_iter().map(holder)))
        }
        Ok(_) if is_one => Ok(batch.answer([])),
        Err(fault) if !fault.is_locked() => Err(fault),
        Ok(_) | Err(_) => {
            Script::default().plain(sql::ROLLBACK).run(connection).await?;
            settle_held(connection, sql, batch, sql::BEGIN, sql::COMMIT).await
        }
    }
}

/// In two round trips: a look at what is held, and the outcomes of that.
async fn settle_held(
    connection: &mut MySqlConnection,
    sql: &TableSql,
    batch: &Settlements<'_>,
    begin: &str,
    end: &str,
) -> Fallible<Vec<Settled>> {
    let mut script = Script::default().plain(begin);
    for ids in ordered(batch.first().map(|settlement| settlement.record)).chunks(LIST) {
        script = script.then(&sql.held, &[("ids", &addresses(ids))]);
    }
    let held = holders(&script.run(connection).await?)?;
    let script = write(Script::default(), sql, &sql.lock_held, &batch.of(&held));
    Ok(batch.answer(holders(&script.plain(end).run(connection).await?)?))
}

fn holder(settlement: &Settlement) -> Holder {
    (settlement.record, settlement.token)
}

/// Locks the records of these settlements, and writes what becomes of those that are still held.
fn write(mut script: Script, sql: &TableSql, lock: &Statement, settlements: &[&Settlement]) -> Script {
    for ids in ordered(settlements.iter().map(|settlement| settlement.record)).chunks(LIST) {
        script = script.then(lock, &[("ids", &addresses(ids))]);
    }
    for alike in Alike::group(settlements.iter().copied()) {
        let (state, token) = (Expressions::of(alike.state), bytes(alike.token.0.as_bytes()));
        for ids in alike.records.chunks(LIST) {
            script = script.then(&sql.settle, &state.with(&[("ids", &addresses(ids)), ("token", &token)]));
        }
    }
    script
}

/// Which records are held under which tokens, from the answers to `held`.
fn holders(answers: &[Answer]) -> Fallible<HashSet<Holder>> {
    let mut holders = HashSet::new();
    for row in answers.iter().flat_map(|answer| &answer.rows) {
        if let Some(token) = uuid(row, 1)? {
            holders.insert((RecordId(integer(row, 0)?), ClaimToken(token)));
        }
    }
    Ok(holders)
}

/// Reads the rows of a query.
pub(crate) async fn list(connection: &mut MySqlConnection, sql: &TableSql, query: &ListQuery) -> Fallible<Vec<Record>> {
    let message_id = query.message_id.as_ref().map(|id| bytes(id.as_str().as_bytes()));
    let statement = if message_id.is_some() { &sql.find } else { &sql.list };
    let values = [
        ("message_id", message_id.unwrap_or_default()),
        ("after", number(Some(query.after.map_or(i64::MIN, |after| after.0)))),
        ("limit", limit(query.limit)),
        ("version", text(query.version.as_ref().map(Version::as_str))),
        ("status", text(query.status.map(Status::as_str))),
        ("topic", text(query.topic.as_ref().map(Topic::as_str))),
        ("group_asked", text(query.group.as_ref().map(Group::as_str))),
    ];
    let values: Vec<(&str, &str)> = values.iter().map(|(name, literal)| (*name, literal.as_str())).collect();
    let answers = Script::begin_reading().then(statement, &values).commit().run(connection).await?;
    answers.iter().flat_map(|answer| &answer.rows).map(read).collect()
}

/// Gives terminal records a new state; answers how many.
pub(crate) async fn requeue(
    connection: &mut MySqlConnection,
    statement: &Statement,
    records: &[RecordId],
    state: &State,
) -> Fallible<u64> {
    if records.is_empty() {
        return Ok(0);
    }
    let expressions = Expressions::of(state);
    let mut script = Script::begin();
    for ids in ordered(records.iter().copied()).chunks(LIST) {
        script = script.then(statement, &expressions.with(&[("ids", &addresses(ids))]));
    }
    Ok(affected(&script.commit().run(connection).await?))
}

/// Deletes records, in the transaction that `script` begins; answers how many.
pub(crate) async fn delete(
    connection: &mut MySqlConnection,
    mut script: Script,
    statement: &Statement,
    records: Vec<RecordId>,
) -> Fallible<u64> {
    let mut deleted = 0;
    for (place, id) in ordered(records.into_iter()).into_iter().enumerate() {
        if place > 0 && place.is_multiple_of(LIST) {
            deleted += affected(&std::mem::take(&mut script).run(connection).await?);
        }
        script = script.then(statement, &[("id", &id.to_string())]);
    }
    deleted += affected(&script.commit().run(connection).await?);
    Ok(deleted)
}

/// How many rows were found by all statements together.
pub(crate) fn affected(answers: &[Answer]) -> u64 {
    answers.iter().map(|answer| answer.affected).sum()
}

/// In the order in which rows are locked, each once.
pub(crate) fn ordered(records: impl Iterator<Item = RecordId>) -> Vec<RecordId> {
    let mut records: Vec<RecordId> = records.collect();
    records.sort_unstable();
    records.dedup();
    records
}

pub(crate) fn addresses(records: &[RecordId]) -> String {
    listed(records.iter().map(RecordId::to_string))
}

/// The addresses in the first column of all answers.
pub(crate) fn ids(answers: &[Answer]) -> Fallible<Vec<RecordId>> {
    let rows = answers.iter().flat_map(|answer| &answer.rows);
    rows.map(|row| Ok(RecordId(integer(row, 0)?))).collect()
}

pub(crate) fn literal(node: NodeId) -> String {
    bytes(node.0.as_bytes())
}

pub(crate) fn lease_lost(node: NodeId) -> Fault {
    let reason = format!("node {node} has no live lease: it ran out, or the node never joined");
    Fault::said(ErrorKind::LeaseLost, reason)
}

pub(crate) fn out_of_step() -> Fault {
    Fault::said(ErrorKind::Unavailable, "the server answered fewer statements than it was sent")
}

/// One row of `due`, `list` or `find`. A column that holds what we would never write there, because somebody else wrote
/// it, is read as well as it can be: one odd row must not hide its neighbours.
fn read(row: &MySqlRow) -> Fallible<Record> {
    let id = RecordId(integer(row, 0)?);
    let text = |column: usize| Ok::<_, Fault>(octets(row, column)?.map(String::from_utf8_lossy));
    Ok(Record {
        id,
        message_id: MessageId::from_stored(text(1)?.as_deref(), id),
        version: Version::from_stored(&text(2)?.unwrap_or_default()),
        topic: Topic::from_stored(&text(3)?.unwrap_or_default()),
        group: text(4)?.map(|group| Group::from_stored(&group)),
        content: Arc::from(text(5)?.unwrap_or_default()),
        status: text(6)?.unwrap_or_default().parse().unwrap_or(Status::Failed),
        attempts: u32::try_from(integer(row, 7)?).unwrap_or(0),
        added: moment(row, 8)?.unwrap_or(Timestamp::from_micros(0)),
        due: moment(row, 9)?,
        expires: moment(row, 10)?,
        owner: uuid(row, 11)?.map(NodeId),
        reason: text(12)?.map(|reason| reason.into_owned()),
    })
}

pub(crate) fn integer(row: &MySqlRow, column: usize) -> Fallible<i64> {
    Ok(maybe_integer(row, column)?.unwrap_or(0))
}

fn maybe_integer(row: &MySqlRow, column: usize) -> Fallible<Option<i64>> {
    Ok(row.try_get_unchecked(column)?)
}

pub(crate) fn octets(row: &MySqlRow, column: usize) -> Fallible<Option<&[u8]>> {
    Ok(row.try_get_unchecked(column)?)
}

/// A UUID: the driver's own feature for them would bring `sqlx-sqlite` into the lock file.
pub(crate) fn uuid(row: &MySqlRow, column: usize) -> Fallible<Option<Uuid>> {
    Ok(octets(row, column)?.and_then(|octets| Uuid::from_slice(octets).ok()))
}

fn moment(row: &MySqlRow, column: usize) -> Fallible<Option<Timestamp>> {
    Ok(maybe_integer(row, column)?.map(Timestamp::from_micros))
}
