//! Nodes: their leases, takeovers, and chores.

use std::time::Duration;

use cap_core::storage::{Chore, Lease, Sign, TakenOver};
use cap_core::{ErrorKind, NodeId};
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::row::{Id, RANGE, moment, node};
use crate::session;
use crate::sql::Sql;

/// Registers a node, or renews its lease.
pub(crate) async fn join(connection: &mut PgConnection, sql: &Sql, node: NodeId, lease: Duration) -> Fallible<()> {
    sql.join.query().bind(Id(node.0)).bind(RANGE.span(lease)).execute(connection).await?;
    Ok(())
}

pub(crate) async fn heartbeat(
    connection: &mut PgConnection,
    sql: &Sql,
    node: NodeId,
    lease: Duration,
) -> Fallible<Lease> {
    let query = sql.heartbeat.query().bind(Id(node.0)).bind(RANGE.span(lease));
    held(&query.fetch_all(connection).await?)
}

/// The answer to a heartbeat.
fn held(rows: &[PgRow]) -> Fallible<Lease> {
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

pub(crate) async fn take_over(connection: &mut PgConnection, sql: &Sql, dead: &[Sign]) -> Fallible<TakenOver> {
    let ids: Vec<_> = dead.iter().map(|sign| Id(sign.node.0)).collect();
    let ends: Vec<_> = dead.iter().map(|sign| sign.until.as_micros()).collect();
    let mut tx = session::begin(connection).await?;
    // First the nodes: those that are left live on, and the dead claim nothing more.
    let forgotten = sql.forget_dead.query().bind(ids).bind(ends).fetch_all(&mut *tx).await?;
    let outbox = sql.published.take_over.query().execute(&mut *tx).await?.rows_affected();
    let inbox = sql.received.take_over.query().execute(&mut *tx).await?.rows_affected();
    tx.commit().await?;
    let mut nodes = Vec::with_capacity(forgotten.len());
    for row in &forgotten {
        nodes.extend(node(row, 0)?);
    }
    Ok(TakenOver { nodes, outbox, inbox })
}

/// Answers how many records of each table became due.
pub(crate) async fn leave(connection: &mut PgConnection, sql: &Sql, node: NodeId) -> Fallible<(u64, u64)> {
    let node = &Id(node.0);
    let mut tx = session::begin(connection).await?;
    sql.forget.query().bind(node).execute(&mut *tx).await?;
    let outbox = sql.published.give_back.query().bind(node).execute(&mut *tx).await?.rows_affected();
    let inbox = sql.received.give_back.query().bind(node).execute(&mut *tx).await?.rows_affected();
    tx.commit().await?;
    Ok((outbox, inbox))
}

pub(crate) async fn take_chore(
    connection: &mut PgConnection,
    sql: &Sql,
    chore: Chore,
    node: NodeId,
    term: Duration,
) -> Fallible<bool> {
    let take = sql.take_chore.query().bind(chore.as_str()).bind(node.to_string()).bind(RANGE.span(term));
    match take.fetch_optional(connection).await? {
        Some(row) => Ok(row.try_get(0)?),
        None => Err(Fault::lease_lost(node)),
    }
}
