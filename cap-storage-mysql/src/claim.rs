//! Taking due records, giving them back, and when the next ones are due.

use std::collections::HashMap;
use std::time::Duration;

use cap_core::lifecycle::Status;
use cap_core::storage::{Claim, ClaimRequest, Claimed, Lane, Record, Table};
use cap_core::{Group, RecordId, Topic, Version};
use cap_storage_sqlx::{Fallible, Fault, shrink};
use sqlx::MySqlConnection;
use sqlx::mysql::MySqlRow;

use crate::row::{
    CONTENT, LENGTH, addresses, affected, content, ids, integer, limit, literal, maybe_integer, octets, out_of_step,
    read, wait,
};
use crate::script::{Script, bytes, list as listed, number, text};
use crate::sql::{BEGIN, LIST, Sql};

/// Takes due records, earliest first.
pub(crate) async fn claim(connection: &mut MySqlConnection, sql: &Sql, request: &ClaimRequest) -> Fallible<Claimed> {
    let ClaimRequest { lane, version, claim: Claim { node, token }, limit: most, bytes: most_bytes, except } = request;
    let table = sql.table(lane.table());
    let (owner, token) = (literal(*node), bytes(token.0.as_bytes()));
    let (version, most_literal) = (text(Some(version.as_str())), limit(*most));
    // So that all of them together have no more than they may.
    let share = limit(if *most > 1 { most_bytes / most } else { usize::MAX });
    let excepted = and_no_topic_of(except);
    let lane = InLane::of(lane);
    let mut of_lane = lane.values().to_vec();
    of_lane.extend([
        ("version", &*version),
        ("limit", &most_literal),
        ("share", &share),
        ("and_no_topic_of", &excepted),
    ]);

    let script = Script::begin().then(&sql.lock_lease, &[("node", &owner)]).then(&table.due, &of_lane);
    let answers = script.run(connection).await?;
    let [.., lease, due] = &answers[..] else { return Err(out_of_step()) };
    if lease.rows.is_empty() {
        return Err(Fault::lease_lost(*node));
    }
    let Taken { mut records, without_content, is_cut, bytes } = Taken::of(&due.rows, *most_bytes)?;
    for record in &mut records {
        // As the next statement makes it.
        record.status = Status::Queued;
        record.attempts = record.attempts.saturating_add(1);
        (record.due, record.expires) = (None, None);
        record.owner = Some(*node);
    }

    let mut script = Script::default();
    for ids in without_content.chunks(LIST) {
        script = script.then(&table.contents, &[("ids", &addresses(ids))]);
    }
    for records in records.chunks(LIST) {
        let ids = listed(records.iter().map(|record| record.id.to_string()));
        script = script.then(&table.hold, &[("node", &owner), ("token", &token), ("ids", &ids)]);
    }
    let is_all = records.len() < *most && !is_cut;
    if is_all {
        script = script.then(&table.next, &of_lane);
    }
    let answers = script.commit().run(connection).await?;
    let contents = answers.get(..without_content.len().div_ceil(LIST)).unwrap_or_default();
    let places: HashMap<RecordId, usize> =
        records.iter().enumerate().map(|(place, record)| (record.id, place)).collect();
    for row in contents.iter().flat_map(|answer| &answer.rows) {
        if let Some(place) = places.get(&RecordId(integer(row, 0)?)) {
            records[*place].content = content(row, 1)?;
        }
    }
    let next_due = match &answers[..] {
        [.., next, _commit] if is_all => wait(next)?,
        _ => is_cut.then_some(Duration::ZERO),
    };
    drop(answers);
    shrink(connection, bytes);
    Ok(Claimed { records, next_due })
}

/// What of the due rows a claim takes.
struct Taken {
    records: Vec<Record>,
    /// Those whose content is still to be read.
    without_content: Vec<RecordId>,
    /// Whether the bytes are why it takes no more.
    is_cut: bool,
    /// How many there are.
    bytes: usize,
}

impl Taken {
    /// The first, and as many as have no more than `most` bytes together with it.
    fn of(due: &[MySqlRow], most: usize) -> Fallible<Self> {
        let mut taken = Self { records: Vec::new(), without_content: Vec::new(), is_cut: false, bytes: 0 };
        for row in due {
            let length = maybe_integer(row, LENGTH)?;
            let bytes = taken.bytes.saturating_add(length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0));
            if bytes > most && !taken.records.is_empty() {
                taken.is_cut = true;
                break;
            }
            taken.bytes = bytes;
            let record = read(row)?;
            if length.is_some() && octets(row, CONTENT)?.is_none() {
                taken.without_content.push(record.id);
            }
            taken.records.push(record);
        }
        Ok(taken)
    }
}

/// What a statement on one lane is told about it.
struct InLane {
    group: String,
    suspects: String,
}

impl InLane {
    fn of(lane: &Lane) -> Self {
        let suspects = i64::from(matches!(lane, Lane::Suspects(_)));
        Self { group: text(lane.group().map(Group::as_str)), suspects: number(Some(suspects)) }
    }

    fn values(&self) -> [(&'static str, &str); 2] {
        [("lane", &self.group), ("suspects", &self.suspects)]
    }
}

/// The condition that leaves records of these topics alone.
fn and_no_topic_of(topics: &[Topic]) -> String {
    let condition = |topics: &[Topic]| {
        let names = listed(topics.iter().map(|topic| text(Some(topic.as_str()))));
        format!(" AND `Name` NOT IN ({names})")
    };
    topics.chunks(LIST).map(condition).collect()
}

pub(crate) async fn release(connection: &mut MySqlConnection, sql: &Sql, table: Table, claim: Claim) -> Fallible<u64> {
    let (node, token) = (literal(claim.node), bytes(claim.token.0.as_bytes()));
    let table = sql.table(table);
    let script = Script::begin().then(&sql.lock_node, &[("node", &node)]).commit().plain(BEGIN);
    let held = script.then(&table.held_under_token, &[("node", &node), ("token", &token)]).run(connection).await?;
    let held = ids(held.last().map(std::slice::from_ref).unwrap_or_default())?;
    let mut script = Script::default();
    for ids in held.chunks(LIST) {
        script = script.then(&table.give_back, &[("node", &node), ("ids", &addresses(ids))]);
    }
    Ok(affected(&script.commit().run(connection).await?))
}

/// In how long the next waiting record of each lane is due.
pub(crate) async fn next_due(
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
        let lane = InLane::of(lane);
        let [group, suspects] = lane.values();
        script = script.then(next, &[("version", &version), group, suspects, ("and_no_topic_of", "")]);
    }
    let answers = script.commit().run(connection).await?;
    answers.iter().filter(|answer| !answer.rows.is_empty()).map(wait).collect()
}
