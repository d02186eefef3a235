//! Taking due records, giving them back, and when the next ones are due.

use std::collections::HashMap;
use std::time::Duration;

use cap_core::backend::limit;
use cap_core::storage::{Claim, ClaimRequest, Claimed, Lane};
use cap_core::{Group, NodeId, Timestamp, Topic, Version};
use cap_storage_sqlx::{Fallible, Fault, shrink};
use sqlx::{PgConnection, Row};

use crate::row::{Id, column, moment, read, wait};
use crate::sql::{Sql, TableSql};

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
    let Some((answer, rows)) = rows.split_first() else { return Err(Fault::lease_lost(claim.node)) };
    let order: Vec<i64> = answer.try_get(14)?;
    let places: HashMap<i64, usize> = order.into_iter().enumerate().map(|(place, id)| (id, place)).collect();
    let mut records = rows.iter().map(read).collect::<Fallible<Vec<_>>>()?;
    records.sort_unstable_by_key(|record| places.get(&record.id.0).copied());
    let claimed = Claimed { records, next_due: wait(answer, 15)? };
    let now = moment(answer, 16)?.unwrap_or(Timestamp::from_micros(0));
    shrink(connection, claimed.records.iter().map(|record| record.content.len()).sum());
    Ok((claimed, now))
}

/// Locks the node, so that a claim that is on its way has ended, or finds it locked.
pub(crate) async fn lock_node(connection: &mut PgConnection, sql: &Sql, node: NodeId) -> Fallible<()> {
    sql.lock_node.query().bind(Id(node.0)).execute(connection).await?;
    Ok(())
}

/// Gives back what was claimed with a token; answers how many.
pub(crate) async fn release(connection: &mut PgConnection, sql: &TableSql, claim: Claim) -> Fallible<u64> {
    let query = sql.release.query().bind(Id(claim.node.0)).bind(Id(claim.token.0));
    Ok(query.execute(connection).await?.rows_affected())
}

/// In how long the next waiting record of each lane is due.
pub(crate) async fn next_due(
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
