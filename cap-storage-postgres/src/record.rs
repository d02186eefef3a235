//! Records to and from rows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::{Holder, Range, Settlements, Times, refuse};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{
    Claim, ClaimRequest, Claimed, Inserted, Lane, Lease, NewRecord, Query as ListQuery, Record, Settled, Settlement,
    Sign, Table,
};
use cap_core::{ClaimToken, ErrorKind, Group, MessageId, NodeId, RecordId, Timestamp, Topic, Version};
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgHasArrayType, PgRow, PgTypeInfo};
use sqlx::query::Query;
use sqlx::{Connection, PgConnection, Postgres, Row, Type, ValueRef};
use uuid::Uuid;

use crate::error::{is_lock_timeout, is_taken_address};
use crate::sequence;
use crate::session::take_back;
use crate::sql::{PATIENCE, Sql, Statement, TableSql};

/// Times beyond this many microseconds (some 73 000 years) are cut to it, so that sums with the clock stay in range.
const FAR: i64 = i64::MAX / 4;

/// From 1970, where [`Timestamp`] counts from, to 2000, where PostgreSQL does, in microseconds.
const EPOCHS_APART: i64 = 946_684_800_000_000;

/// What a column of time holds. The earliest that PostgreSQL knows is in 4714 BC.
pub(crate) const RANGE: Range = Range { far: FAR, moments: (-EPOCHS_APART, FAR) };

/// A limit as SQL counts it.
pub(crate) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A count of attempts as SQL counts it.
pub(crate) fn attempts(state: &State) -> i32 {
    i32::try_from(state.attempts()).unwrap_or(i32::MAX)
}

/// A count of crashes as SQL counts it.
pub(crate) fn crashes(state: &State) -> i32 {
    i32::try_from(state.crashes()).unwrap_or(i32::MAX)
}

/// The reason, without what PostgreSQL cannot hold in a text.
pub(crate) fn reason(state: &State) -> Option<String> {
    state.reason().map(|reason| reason.replace('\0', "\u{FFFD}"))
}

/// Refuses what can never work.
pub(crate) fn check(table: Table, records: &[NewRecord], claim: Option<Claim>) -> Fallible<()> {
    refuse(table, records, claim.is_some()).map_or(Ok(()), |reason| Err(Fault::said(ErrorKind::Invalid, reason)))
}

/// What the rows of a batch have in common is sent once, as a kind of row, and each row names its kind.
struct Kinds<K> {
    /// Each row's kind, counted from 1.
    of_rows: Vec<i32>,
    kinds: Vec<K>,
}

impl<K: PartialEq> Kinds<K> {
    /// How many of the latest kinds are looked through: rows of one kind mostly follow each other, and a kind that is
    /// sent twice does no harm.
    const RECENT: usize = 8;

    fn of(rows: impl ExactSizeIterator<Item = K>) -> Self {
        let mut found = Self { of_rows: Vec::with_capacity(rows.len()), kinds: Vec::new() };
        for kind in rows {
            let recent = found.kinds.len().saturating_sub(Self::RECENT);
            let known = found.kinds[recent..].iter().rposition(|known| *known == kind);
            let place = known.map_or(found.kinds.len(), |place| recent + place);
            if known.is_none() {
                found.kinds.push(kind);
            }
            found.of_rows.push(i32::try_from(place + 1).unwrap_or(i32::MAX));
        }
        found
    }

    fn column<'k, T>(&'k self, value: impl FnMut(&'k K) -> T) -> Vec<T> {
        column(&self.kinds, value)
    }
}

/// How long an insert waits for another one of the same id, in milliseconds: it is a duplicate only once that is committed.
const WAIT_FOR_TWIN: &str = "5000";

/// Inserts records that were checked, in one statement, or in two if a handler at work has one of them locked: that one is
/// there, so it is a duplicate.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    sql: &Sql,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
) -> Fallible<Vec<Inserted>> {
    let (mut waits, mut taken) = (false, 0);
    let outcome = loop {
        let outcome = match waits {
            false => insert_within(connection, sql, table, records, claim, Some(PATIENCE)).await,
            true => insert_unknown(connection, sql, table, records, claim).await,
        };
        match outcome {
            Err(fault) if is_locked(&fault) && !waits => waits = true,
            Err(fault) if fault.driver().is_some_and(is_taken_address) && taken < sequence::TRIES => {
                take_back(connection).await?;
                sequence::catch_up(connection, sql, table).await?;
                taken += 1;
                continue;
            }
            outcome => break outcome,
        }
        take_back(connection).await?;
    };
    shrink(connection, records.iter().map(|record| record.content.len()).sum());
    outcome
}

/// Inserts those that are not there already.
async fn insert_unknown(
    connection: &mut PgConnection,
    sql: &Sql,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
) -> Fallible<Vec<Inserted>> {
    let is_known = known(connection, sql.table(table), records).await?;
    let unknown = records.iter().zip(&is_known).filter(|(_, is_known)| !**is_known);
    let unknown: Vec<NewRecord> = unknown.map(|(record, _)| record.clone()).collect();
    // Also when none is left: it says whether the lease is live.
    let mut stored = insert_within(connection, sql, table, &unknown, claim, Some(WAIT_FOR_TWIN)).await?.into_iter();
    let answer = |is_known: bool| if is_known { None } else { stored.next() };
    Ok(is_known.into_iter().map(answer).map(|stored| stored.unwrap_or(Inserted::Duplicate)).collect())
}

/// Which of them are there.
pub(crate) async fn known(connection: &mut PgConnection, sql: &TableSql, records: &[NewRecord]) -> Fallible<Vec<bool>> {
    let rows = sql
        .known
        .query()
        .bind(column(records, |record| record.message_id.as_str()))
        .bind(column(records, |record| record.group.as_ref().map(Group::as_str)))
        .fetch_all(connection)
        .await?;
    let mut is_known = vec![false; records.len()];
    for row in &rows {
        let place = usize::try_from(row.try_get::<i64, _>(0)? - 1).unwrap_or(usize::MAX);
        if let Some(known) = is_known.get_mut(place) {
            *known = true;
        }
    }
    Ok(is_known)
}

/// Inserts records in one statement, which waits for locks as long as `patience` says, in milliseconds.
async fn insert_within(
    connection: &mut PgConnection,
    sql: &Sql,
    table: Table,
    records: &[NewRecord],
    claim: Option<Claim>,
    patience: Option<&'static str>,
) -> Fallible<Vec<Inserted>> {
    let Some(Claim { node, token }) = claim else {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let rows = given(&sql.table(table).insert, records, patience).fetch_all(connection).await?;
        return stored(records, &rows, table == Table::Inbox);
    };
    if let Some(one) = all_in_flight(table, records) {
        let rows = sql
            .insert_in_flight
            .query()
            .bind(column(records, |record| record.message_id.as_str()))
            .bind(column(records, |record| record.topic.as_str()))
            .bind(column(records, |record| &*record.content))
            .bind(one.version.as_str())
            .bind(one.group.as_ref().map(Group::as_str))
            .bind(attempts(&one.state))
            .bind(Id(node.0))
            .bind(Id(token.0))
            .bind(patience.unwrap_or(PATIENCE))
            .fetch_all(&mut *connection)
            .await?;
        if rows.is_empty() && sql.is_registered.query().bind(Id(node.0)).fetch_optional(connection).await?.is_none() {
            return Err(lease_lost(node));
        }
        return stored(records, &rows, false);
    }
    let query = given(&sql.table(table).insert_held, records, patience).bind(Id(node.0)).bind(Id(token.0));
    let rows = query.fetch_all(connection).await?;
    if rows.is_empty() {
        return Err(lease_lost(node));
    }
    stored(records, &rows, table == Table::Inbox)
}

fn is_locked(fault: &Fault) -> bool {
    fault.driver().is_some_and(is_lock_timeout)
}

/// Contents of more than this many bytes together leave buffers behind that are not kept.
const LARGE: usize = 1 << 20;

/// Gives the memory of the connection's buffers back, if so many bytes went through them.
fn shrink(connection: &mut PgConnection, bytes: usize) {
    if bytes > LARGE {
        connection.shrink_buffers();
    }
}

/// The first record of the inbox, if all are in flight and differ only in what a message has of its own.
fn all_in_flight(table: Table, records: &[NewRecord]) -> Option<&NewRecord> {
    let one = records.first()?;
    let alike =
        |record: &NewRecord| record.version == one.version && record.group == one.group && record.state == one.state;
    let is_fresh = one.state.status() == Status::Queued && one.state.crashes() == 0 && one.state.reason().is_none();
    let suits = table == Table::Inbox && is_fresh && records.iter().all(alike);
    suits.then_some(one)
}

/// What an insert answers for each record, from the rows that were stored: address, message id and, `by_group`, the
/// group. A row without an address only says that the lease is live.
pub(crate) fn stored(records: &[NewRecord], rows: &[PgRow], by_group: bool) -> Fallible<Vec<Inserted>> {
    let mut stored = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(id) = row.try_get::<Option<i64>, _>(0)? {
            let group = if by_group { row.try_get(2)? } else { None };
            stored.push(((row.try_get::<&str, _>(1)?, group), RecordId(id)));
        }
    }
    let keys = records.iter().map(|record| {
        let group = record.group.as_ref().filter(|_| by_group).map(Group::as_str);
        (record.message_id.as_str(), group)
    });
    // Mostly all of them, as they were given.
    if stored.len() == records.len() && stored.iter().zip(keys.clone()).all(|((row, _), key)| *row == key) {
        return Ok(stored.into_iter().map(|(_, id)| Inserted::Stored(id)).collect());
    }
    // Of two equal ones the first was stored: they are written in their order.
    let mut stored: HashMap<_, _> = stored.into_iter().collect();
    Ok(keys.map(|key| stored.remove(&key).map_or(Inserted::Duplicate, Inserted::Stored)).collect())
}

/// A query over an `insert`, with the columns of the records.
pub(crate) fn given<'q>(
    statement: &Statement,
    records: &'q [NewRecord],
    patience: Option<&'static str>,
) -> Query<'q, Postgres, PgArguments> {
    let kinds = Kinds::of(records.iter().map(|record| (&record.version, &record.group, &record.state)));
    let times = kinds.column(|(_, _, state)| Times::of(state, &RANGE));
    statement
        .query()
        .bind(column(records, |record| record.message_id.as_str()))
        .bind(column(records, |record| record.topic.as_str()))
        .bind(column(records, |record| &*record.content))
        .bind(kinds.column(|(version, _, _)| version.as_str()))
        .bind(kinds.column(|(_, group, _)| group.as_ref().map(Group::as_str)))
        .bind(kinds.column(|(_, _, state)| attempts(state)))
        .bind(kinds.column(|(_, _, state)| state.status().as_str()))
        .bind(column(&times, |times| times.due_at))
        .bind(column(&times, |times| times.due_in))
        .bind(column(&times, |times| times.expires_in))
        .bind(kinds.column(|(_, _, state)| reason(state)))
        .bind(kinds.of_rows.clone())
        .bind(kinds.column(|(_, _, state)| crashes(state)))
        .bind(patience)
}

pub(crate) fn column<'r, R, T>(rows: &'r [R], value: impl FnMut(&'r R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// Takes due records over a `claim`, earliest first.
/// Also answers the server's time.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    sql: &Sql,
    request: &ClaimRequest,
    floor: Option<Timestamp>,
) -> Fallible<(Claimed, Timestamp)> {
    let ClaimRequest { lane, version, claim, limit: most, bytes, except } = request;
    let table = sql.table(lane.table());
    let statement = if matches!(lane, Lane::Suspects(_)) { &table.claim_suspects } else { &table.claim };
    let query = statement.query().bind(Id(claim.node.0)).bind(Id(claim.token.0));
    let query = query.bind(version.as_str()).bind(limit(*most)).bind(limit(*bytes));
    let query = query.bind(column(except, Topic::as_str)).bind(floor.map(Timestamp::as_micros));
    let query = match lane.group() {
        None => query,
        Some(group) => query.bind(group.as_str()),
    };
    let rows = query.fetch_all(&mut *connection).await?;
    let Some((answer, rows)) = rows.split_first() else { return Err(lease_lost(claim.node)) };
    let order: Vec<i64> = answer.try_get(14)?;
    let places: HashMap<i64, usize> = order.into_iter().enumerate().map(|(place, id)| (id, place)).collect();
    let mut records = rows.iter().map(read).collect::<Fallible<Vec<_>>>()?;
    records.sort_unstable_by_key(|record| places.get(&record.id.0).copied());
    let claimed = Claimed { records, next_due: wait(answer, 15)? };
    let now = moment(answer, 16)?.unwrap_or(Timestamp::from_micros(0));
    shrink(connection, claimed.records.iter().map(|record| record.content.len()).sum());
    Ok((claimed, now))
}

/// In how long the next waiting record of each lane is due.
pub(crate) async fn waits(
    connection: &mut PgConnection,
    sql: &Sql,
    version: &Version,
    lanes: &[Lane],
    floors: &[Option<Timestamp>],
) -> Fallible<Vec<Option<Duration>>> {
    let groups = column(lanes, |lane| lane.group().map(Group::as_str));
    let suspects = column(lanes, |lane| matches!(lane, Lane::Suspects(_)));
    let query = sql.next_due.query().bind(version.as_str()).bind(groups).bind(suspects);
    let query = query.bind(column(floors, |floor| floor.map(Timestamp::as_micros)));
    query.fetch_all(connection).await?.iter().map(|row| wait(row, 0)).collect()
}

/// A column with a moment, if there is one, and the present time behind it: how long it is until then.
pub(crate) fn wait(row: &PgRow, column: usize) -> Fallible<Option<Duration>> {
    let (Some(moment), Some(now)) = (moment(row, column)?, moment(row, column + 1)?) else { return Ok(None) };
    let wait = moment.as_micros().saturating_sub(now.as_micros());
    Ok(Some(Duration::from_micros(u64::try_from(wait).unwrap_or(0))))
}

/// The answer to a heartbeat.
pub(crate) fn lease(rows: &[PgRow]) -> Fallible<Lease> {
    let Some(first) = rows.first() else { return Ok(Lease::Lost) };
    let Some(now) = moment(first, 0)? else { return Err(Fault::said(ErrorKind::Corrupt, "the server has no clock")) };
    let mut others = Vec::with_capacity(rows.len());
    for row in rows {
        if let (Some(node), Some(until)) = (node(row, 1)?, moment(row, 2)?) {
            others.push(Sign { node, until });
        }
    }
    Ok(Lease::Held { now, others })
}

/// Writes outcomes in one statement. Those that another transaction has locked, such as that of a handler which was given
/// up, are not waited for.
pub(crate) async fn settle(
    connection: &mut PgConnection,
    sql: &TableSql,
    settlements: &[Settlement],
) -> Fallible<Vec<Settled>> {
    match settle_within(connection, sql, settlements, Some(PATIENCE)).await {
        Err(fault) if is_locked(&fault) => {
            take_back(connection).await?;
            settle_unlocked(connection, sql, settlements).await
        }
        outcome => outcome,
    }
}

/// Writes them in one statement, which waits for locks as long as `patience` says, in milliseconds, or as long as the
/// session does.
pub(crate) async fn settle_within(
    connection: &mut PgConnection,
    sql: &TableSql,
    settlements: &[Settlement],
    patience: Option<&'static str>,
) -> Fallible<Vec<Settled>> {
    let Some(first) = settlements.first() else { return Ok(Vec::new()) };
    let state = &first.state;
    let mut ids = column(settlements, |settlement| settlement.record.0);
    ids.sort_unstable();
    let is_repeated = ids.windows(2).any(|pair| pair[0] == pair[1]);
    let alike = state.status() != Status::Queued && settlements.iter().all(|settlement| settlement.state == *state);
    if is_repeated || !alike {
        let batch = Settlements::new(settlements);
        let outcomes = Outcomes::of(&batch);
        let rows = outcomes.given(&sql.settle).bind(patience).fetch_all(connection).await?;
        return Ok(batch.answer(outcomes.written(&rows)?));
    }
    let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
    let settled = sql
        .settle_alike
        .query()
        .bind(column(settlements, |settlement| settlement.record.0))
        .bind(column(settlements, |settlement| Id(settlement.token.0)))
        .bind(state.status().as_str())
        .bind(attempts(state))
        .bind(due_at)
        .bind(due_in)
        .bind(expires_in)
        .bind(reason(state))
        .bind(crashes(state))
        .bind(patience)
        .fetch_one(connection)
        .await?;
    let settled: Vec<i64> = settled.try_get::<Option<_>, _>(0)?.unwrap_or_default();
    if settled.len() == settlements.len() {
        return Ok(vec![Settled::Written; settled.len()]);
    }
    let written: HashSet<i64> = settled.into_iter().collect();
    let answer = |settlement: &Settlement| match written.contains(&settlement.record.0) {
        true => Settled::Written,
        false => Settled::Lost,
    };
    Ok(column(settlements, answer))
}

/// Writes the outcome of a record that was seen at this place; answers whether it was there, and held.
pub(crate) async fn settle_at(
    connection: &mut PgConnection,
    sql: &TableSql,
    Settlement { record, token, state }: &Settlement,
    place: &str,
) -> Fallible<bool> {
    let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
    let query = sql.settle_place.query().bind(place).bind(record.0).bind(Id(token.0)).bind(state.status().as_str());
    let query = query.bind(attempts(state)).bind(due_at).bind(due_in).bind(expires_in).bind(reason(state));
    Ok(query.bind(crashes(state)).execute(connection).await?.rows_affected() > 0)
}

/// Writes those that nobody has locked, and looks at who holds the others.
async fn settle_unlocked(
    connection: &mut PgConnection,
    sql: &TableSql,
    settlements: &[Settlement],
) -> Fallible<Vec<Settled>> {
    let batch = Settlements::new(settlements);
    let outcomes = Outcomes::of(&batch);
    let rows = outcomes.given(&sql.settle_unlocked).fetch_all(&mut *connection).await?;
    let written = outcomes.written(&rows)?;
    let missed: Vec<i64> =
        batch.first().filter(|missed| !written.contains(&holder(missed))).map(|missed| missed.record.0).collect();
    let mut answers = batch.answer(written);
    let mut held = HashSet::new();
    for row in sql.held.query().bind(missed).fetch_all(connection).await? {
        if let Some(token) = uuid(&row, 1)? {
            held.insert((RecordId(row.try_get(0)?), ClaimToken(token)));
        }
    }
    for (answer, settlement) in answers.iter_mut().zip(settlements) {
        if *answer == Settled::Lost && held.remove(&holder(settlement)) {
            *answer = Settled::Locked;
        }
    }
    Ok(answers)
}

fn holder(settlement: &Settlement) -> Holder {
    (settlement.record, settlement.token)
}

/// Settlements as the parameters of a `settle`.
struct Outcomes<'s> {
    records: Vec<i64>,
    kinds: Kinds<(ClaimToken, &'s State)>,
}

impl<'s> Outcomes<'s> {
    fn of(batch: &Settlements<'s>) -> Self {
        let first: Vec<&'s Settlement> = batch.first().collect();
        Self {
            records: column(&first, |settlement| settlement.record.0),
            kinds: Kinds::of(first.iter().map(|settlement| (settlement.token, &settlement.state))),
        }
    }

    fn given(&self, statement: &Statement) -> Query<'_, Postgres, PgArguments> {
        let kinds = &self.kinds;
        let times = kinds.column(|(_, state)| Times::of(state, &RANGE));
        statement
            .query()
            .bind(&self.records)
            .bind(&kinds.of_rows)
            .bind(kinds.column(|(token, _)| Id(token.0)))
            .bind(kinds.column(|(_, state)| state.status().as_str()))
            .bind(kinds.column(|(_, state)| attempts(state)))
            .bind(column(&times, |times| times.due_at))
            .bind(column(&times, |times| times.due_in))
            .bind(column(&times, |times| times.expires_in))
            .bind(kinds.column(|(_, state)| reason(state)))
            .bind(kinds.column(|(_, state)| crashes(state)))
    }

    /// What the rows of the answer say is written.
    fn written(&self, rows: &[PgRow]) -> Fallible<HashSet<Holder>> {
        let mut written = HashSet::with_capacity(rows.len());
        for row in rows {
            // Kinds count from 1.
            let kind = usize::try_from(row.try_get::<i32, _>(1)? - 1).unwrap_or(usize::MAX);
            let Some((token, _)) = self.kinds.kinds.get(kind) else { continue };
            written.insert((RecordId(row.try_get(0)?), *token));
        }
        Ok(written)
    }
}

/// Reads the rows of a query over a `list` or `find`.
pub(crate) async fn list(connection: &mut PgConnection, sql: &TableSql, query: &ListQuery) -> Fallible<Vec<Record>> {
    let statement = if query.message_id.is_some() { &sql.find } else { &sql.list };
    let list = statement
        .query()
        .bind(query.after.map_or(i64::MIN, |after| after.0))
        .bind(limit(query.limit))
        .bind(query.version.as_ref().map(Version::as_str))
        .bind(query.status.map(Status::as_str))
        .bind(query.topic.as_ref().map(Topic::as_str))
        .bind(query.group.as_ref().map(Group::as_str));
    let list = match &query.message_id {
        None => list,
        Some(id) => list.bind(id.as_str()),
    };
    list.fetch_all(connection).await?.iter().map(read).collect()
}

/// Gives terminal records a new state over a `requeue`; answers how many.
pub(crate) async fn requeue(
    connection: &mut PgConnection,
    statement: &Statement,
    records: &[RecordId],
    state: &State,
) -> Fallible<u64> {
    let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
    let query = statement.query().bind(addresses(records)).bind(state.status().as_str()).bind(attempts(state));
    let query = query.bind(due_at).bind(due_in).bind(expires_in).bind(reason(state)).bind(crashes(state));
    Ok(query.execute(connection).await?.rows_affected())
}

pub(crate) fn addresses(records: &[RecordId]) -> Vec<i64> {
    column(records, |record| record.0)
}

pub(crate) fn lease_lost(node: NodeId) -> Fault {
    let reason = format!("node {node} is not registered: it was taken over from, or it never joined");
    Fault::said(ErrorKind::LeaseLost, reason)
}

/// One row of `claim`, `list` or `find`. A column that holds what we would never write there, because somebody else
/// wrote it, is read as well as it can be: one odd row must not hide its neighbours.
pub(crate) fn read(row: &PgRow) -> Fallible<Record> {
    let id = RecordId(row.try_get(0)?);
    let text = |column: usize| row.try_get::<Option<&str>, _>(column);
    Ok(Record {
        id,
        message_id: MessageId::from_stored(text(1)?, id),
        version: Version::from_stored(text(2)?.unwrap_or_default()),
        topic: Topic::from_stored(text(3)?.unwrap_or_default()),
        group: text(4)?.map(Group::from_stored),
        content: Arc::from(text(5)?.unwrap_or_default()),
        status: text(6)?.unwrap_or_default().parse().unwrap_or(Status::Failed),
        attempts: u32::try_from(row.try_get::<i32, _>(7)?).unwrap_or(0),
        added: moment(row, 8)?.unwrap_or(Timestamp::from_micros(0)),
        due: moment(row, 9)?,
        expires: moment(row, 10)?,
        owner: node(row, 11)?,
        reason: text(12)?.map(str::to_owned),
        crashes: u32::try_from(row.try_get::<i32, _>(13)?).unwrap_or(0),
    })
}

/// A UUID as a parameter: the driver's own feature for them would bring `sqlx-sqlite` into the lock file.
pub(crate) struct Id(pub(crate) Uuid);

/// PostgreSQL's numbers of the types `uuid` and `uuid[]`.
const UUID: PgTypeInfo = PgTypeInfo::with_oid(Oid(2950));
const UUID_ARRAY: PgTypeInfo = PgTypeInfo::with_oid(Oid(2951));

impl Type<Postgres> for Id {
    fn type_info() -> PgTypeInfo {
        UUID
    }
}

impl PgHasArrayType for Id {
    fn array_type_info() -> PgTypeInfo {
        UUID_ARRAY
    }
}

impl Encode<'_, Postgres> for Id {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

/// A column of a timestamp type, with a zone (kept in UTC) or without (which we write in UTC).
pub(crate) fn moment(row: &PgRow, column: usize) -> Fallible<Option<Timestamp>> {
    let Some(bytes) = binary(row, column)? else { return Ok(None) };
    let micros = i64::from_be_bytes(bytes);
    Ok(Some(Timestamp::from_micros(micros.saturating_add(EPOCHS_APART))))
}

/// The node that a column of type `uuid` names.
pub(crate) fn node(row: &PgRow, column: usize) -> Fallible<Option<NodeId>> {
    Ok(uuid(row, column)?.map(NodeId))
}

fn uuid(row: &PgRow, column: usize) -> Fallible<Option<Uuid>> {
    Ok(binary(row, column)?.map(Uuid::from_bytes))
}

/// A value of a type that the driver has no features for, as the server sent it.
fn binary<const N: usize>(row: &PgRow, column: usize) -> Fallible<Option<[u8; N]>> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    let wrong = |_| Fault::said(ErrorKind::Corrupt, format!("column {column} is not of the type that it should be"));
    bytes.try_into().map(Some).map_err(wrong)
}
