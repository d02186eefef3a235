//! Nodes: their leases, takeovers, and chores.

use std::time::Duration;

use cap_core::storage::{Chore, Lease, Sign, TakenOver};
use cap_core::{NodeId, RecordId};
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::MySqlConnection;

use crate::row::{RANGE, addresses, affected, ids, literal, moment, out_of_step, uuid};
use crate::script::{Answer, Script, bytes, list, number};
use crate::sql::{self, LIST, Sql, Statement, TableSql};

/// How long to wait before each look at what a dead node holds.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(20)];

/// Registers a node, or renews its lease.
pub(crate) async fn join(connection: &mut MySqlConnection, sql: &Sql, node: NodeId, lease: Duration) -> Fallible<()> {
    let lease = number(Some(RANGE.span(lease)));
    Script::begin().then(&sql.join, &[("node", &literal(node)), ("lease", &lease)]).commit().run(connection).await?;
    Ok(())
}

pub(crate) async fn heartbeat(
    connection: &mut MySqlConnection,
    sql: &Sql,
    node: NodeId,
    lease: Duration,
) -> Fallible<Lease> {
    let (own, lease) = (literal(node), number(Some(RANGE.span(lease))));
    let script = Script::begin().then(&sql.heartbeat, &[("node", &own), ("lease", &lease)]);
    let answers = script.then(&sql.signs, &[]).commit().run(connection).await?;
    let [.., renewed, signs, _commit] = &answers[..] else { return Err(out_of_step()) };
    if renewed.affected == 0 {
        return Ok(Lease::Lost);
    }
    held(signs, node)
}

/// The answer to a heartbeat, from the signs of all nodes.
fn held(signs: &Answer, own: NodeId) -> Fallible<Lease> {
    let (mut now, mut others) = (None, Vec::with_capacity(signs.rows.len()));
    for row in &signs.rows {
        now = moment(row, 2)?;
        let (Some(node), Some(until)) = (uuid(row, 0)?.map(NodeId), moment(row, 1)?) else { continue };
        if node != own {
            others.push(Sign { node, until });
        }
    }
    Ok(now.map_or(Lease::Lost, |now| Lease::Held { now, others }))
}

pub(crate) async fn take_over(connection: &mut MySqlConnection, sql: &Sql, dead: &[Sign]) -> Fallible<TakenOver> {
    // First the nodes: those that are left live on, and the dead claim nothing more.
    let nodes = forget_dead(connection, sql, dead).await?;
    let outbox = take_from_dead(connection, &sql.published).await?;
    let inbox = take_from_dead(connection, &sql.received).await?;
    Script::default().commit().run(connection).await?;
    Ok(TakenOver { nodes, outbox, inbox })
}

/// Begins a transaction, and forgets in it those of these nodes that have given no other sign of life.
async fn forget_dead(connection: &mut MySqlConnection, sql: &Sql, dead: &[Sign]) -> Fallible<Vec<NodeId>> {
    if dead.is_empty() {
        Script::begin().run(connection).await?;
        return Ok(Vec::new());
    }
    let signs = dead.iter().map(|sign| format!("({}, {})", literal(sign.node), sql::at(sign.until.as_micros())));
    let signs = signs.collect::<Vec<_>>().join(", ");
    let found = Script::begin().then(&sql.dead_nodes, &[("signs", &signs)]).run(connection).await?;
    let mut nodes = Vec::new();
    for row in found.iter().flat_map(|answer| &answer.rows) {
        nodes.extend(uuid(row, 0)?.map(NodeId));
    }
    if !nodes.is_empty() {
        let gone = list(nodes.iter().map(|node| literal(*node)));
        Script::default().then(&sql.forget, &[("nodes_gone", &gone)]).run(connection).await?;
    }
    Ok(nodes)
}

/// The dead are named first, so that a record which a live node claims meanwhile is no longer theirs when its turn
/// comes.
async fn take_from_dead(connection: &mut MySqlConnection, sql: &TableSql) -> Fallible<u64> {
    let dead = Script::default().then(&sql.dead_owners, &[]).run(connection).await?;
    let mut owners = Vec::new();
    for row in dead.iter().flat_map(|answer| &answer.rows) {
        owners.extend(uuid(row, 0)?.map(|owner| bytes(owner.as_bytes())));
    }
    if owners.is_empty() {
        return Ok(0);
    }
    let owners = list(owners.into_iter());
    let held = Script::default().then(&sql.held_by_dead, &[("owners", &owners)]).run(connection).await?;
    let mut taken = 0;
    for ids in ids(&held)?.chunks(LIST) {
        taken += take(connection, sql, &sql.take_over, &owners, ids.to_vec()).await?;
    }
    Ok(taken)
}

/// Takes these records from their owners, but for what stays locked. A claim that passes by locks a record for a moment, and a handler for as
/// long as it works: what it has is left for the next takeover, so that nobody waits for it here.
async fn take(
    connection: &mut MySqlConnection,
    sql: &TableSql,
    statement: &Statement,
    owners: &str,
    mut records: Vec<RecordId>,
) -> Fallible<u64> {
    let mut taken = 0;
    for pause in LOOKS {
        tokio::time::sleep(pause).await;
        let named = addresses(&records);
        let script = Script::default().then(&sql.lock_held_by, &[("owners", owners), ("ids", &named)]);
        let locked = ids(&script.run(connection).await?)?;
        if !locked.is_empty() {
            // A node that leaves is its own heir, and named once more.
            let values = [("ids", &*addresses(&locked)), ("node", owners)];
            let script = Script::default().then(statement, &values);
            taken += affected(&script.run(connection).await?);
        }
        records.retain(|record| !locked.contains(record));
        if records.is_empty() {
            break;
        }
    }
    Ok(taken)
}

pub(crate) async fn leave(connection: &mut MySqlConnection, sql: &Sql, node: NodeId) -> Fallible<()> {
    let node = literal(node);
    Script::begin().then(&sql.forget, &[("nodes_gone", &node)]).run(connection).await?;
    for table in [&sql.published, &sql.received] {
        let held = Script::default().then(&table.held_by_node, &[("node", &node)]).run(connection).await?;
        for ids in ids(&held)?.chunks(LIST) {
            take(connection, table, &table.give_back, &node, ids.to_vec()).await?;
        }
    }
    Script::default().commit().run(connection).await?;
    Ok(())
}

pub(crate) async fn take_chore(
    connection: &mut MySqlConnection,
    sql: &Sql,
    chore: Chore,
    node: NodeId,
    term: Duration,
) -> Fallible<bool> {
    let owner = literal(node);
    let (chore, term) = (bytes(chore.as_str().as_bytes()), number(Some(RANGE.span(term))));
    let lease = Script::begin().then(&sql.lock_lease, &[("node", &owner)]).run(connection).await?;
    if lease.last().is_none_or(|lease| lease.rows.is_empty()) {
        return Err(Fault::lease_lost(node));
    }
    let values = [("chore", &*chore), ("node", &owner), ("term", &term)];
    let script = Script::default().then(&sql.know_chore, &values).then(&sql.take_chore, &values).commit();
    let answers = script.run(connection).await?;
    let [.., taken, _commit] = &answers[..] else { return Err(out_of_step()) };
    Ok(taken.affected > 0)
}
