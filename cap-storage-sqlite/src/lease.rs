//! Nodes: their leases, takeovers, and chores. What is promised while a handler has the writer is in `promises`.

use std::time::Duration;

use cap_core::backend::unregistered;
use cap_core::storage::{Chore, Sign, TakenOver};
use cap_core::{ErrorKind, NodeId, Timestamp};
use rusqlite::{OptionalExtension, params};

use crate::error::{Fallible, Fault};
use crate::row::{self, RANGE};
use crate::session::Session;

/// A lease that was renewed: until when, the time now, in microseconds, and the signs of the others.
pub(crate) type Renewed = (i64, i64, Vec<Sign>);

/// Registers a node, or renews its lease; answers until when.
pub(crate) fn join(session: &mut Session<'_>, node: NodeId, span: i64) -> Fallible<i64> {
    let join = session.statement(&session.sql.join)?;
    Ok(join.query_row(params![node.to_string(), span], |row| row.get(0))?)
}

/// Renews a lease; nothing if the node is not registered.
pub(crate) fn heartbeat(session: &mut Session<'_>, node: NodeId, span: i64) -> Fallible<Option<Renewed>> {
    let text = node.to_string();
    let renew = session.statement(&session.sql.heartbeat)?;
    let renewed = renew.query_row(params![text, span], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((until, now)) = renewed else { return Ok(None) };
    let signs = session.statement(&session.sql.signs)?;
    let others = signs.query_map([text], read_sign)?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(Some((until, now, others.into_iter().flatten().collect())))
}

fn read_sign(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Sign>> {
    let (node, until): (String, i64) = (row.get(0)?, row.get(1)?);
    Ok(row::node(&node).map(|node| Sign { node, until: Timestamp::from_micros(until) }))
}

/// First the nodes: those that are left live on, at this one moment, for both tables.
pub(crate) fn take_over(session: &mut Session<'_>, dead: &[Sign]) -> Fallible<TakenOver> {
    let sql = session.sql;
    let mut nodes = Vec::new();
    for Sign { node, until } in dead {
        let forget = session.statement(&sql.forget_dead)?;
        if forget.execute(params![node.to_string(), until.as_micros()])? > 0 {
            nodes.push(*node);
        }
    }
    session.execute(&sql.free_chores)?;
    Ok(TakenOver {
        nodes,
        outbox: session.execute(&sql.published.take_over)? as u64,
        inbox: session.execute(&sql.received.take_over)? as u64,
    })
}

pub(crate) fn leave(session: &mut Session<'_>, node: NodeId) -> Fallible<()> {
    let node = node.to_string();
    for statement in [&session.sql.forget, &session.sql.published.give_back, &session.sql.received.give_back] {
        session.statement(statement)?.execute([&node])?;
    }
    session.execute(&session.sql.free_chores)?;
    Ok(())
}

pub(crate) fn take_chore(session: &mut Session<'_>, chore: Chore, node: NodeId, term: Duration) -> Fallible<bool> {
    let node = registered(session, node)?;
    let take = session.statement(&session.sql.take_chore)?;
    Ok(take.execute(params![chore.as_str(), node, RANGE.span(term)])? > 0)
}

/// The node as a column holds it, if it is registered.
pub(crate) fn registered(session: &mut Session<'_>, node: NodeId) -> Fallible<String> {
    let text = node.to_string();
    let known: i64 = session.statement(&session.sql.is_registered)?.query_row([&text], |row| row.get(0))?;
    if known == 0 {
        return Err(Fault::said(ErrorKind::LeaseLost, unregistered(node)));
    }
    Ok(text)
}
