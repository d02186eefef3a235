//! Taking due records, giving them back, and when the next ones are due.

use std::time::Duration;

use cap_core::backend;
use cap_core::lifecycle::Status;
use cap_core::storage::{Claim, ClaimRequest, Claimed, Lane, Record, Table};
use cap_core::{ErrorKind, Topic, Version};
use rusqlite::params;

use crate::error::{Fallible, Fault};
use crate::lease::registered;
use crate::row;
use crate::session::Session;

/// Takes due records, earliest first.
pub(crate) fn claim(session: &mut Session<'_>, request: &ClaimRequest) -> Fallible<Claimed> {
    let (owner, token) = holder(session, request.claim)?;
    let (mut records, cut) = due(session, request)?;
    let hold = session.statement(&session.sql.table(request.lane.table()).hold)?;
    for record in &mut records {
        hold.execute(params![record.id.0, owner, token])?;
        record.status = Status::Queued;
        record.attempts = record.attempts.saturating_add(1);
        record.owner = Some(request.claim.node);
        (record.due, record.expires) = (None, None);
    }
    if records.len() >= request.limit {
        return Ok(Claimed { records, next_due: None });
    }
    let next_due = if cut { Some(Duration::ZERO) } else { next_due_of(session, request)? };
    Ok(Claimed { records, next_due })
}

/// The answer to a claim of a lane in which nothing is due.
pub(crate) fn nothing_due(session: &mut Session<'_>, request: &ClaimRequest) -> Fallible<Option<Claimed>> {
    registered(session, request.claim.node)?;
    Ok(match next_due_of(session, request)? {
        Some(Duration::ZERO) => None,
        next_due => Some(Claimed { records: Vec::new(), next_due }),
    })
}

/// The due records that a claim takes, earliest first, as they are stored; and whether there are more of them, for which
/// it has no room.
fn due(session: &mut Session<'_>, request: &ClaimRequest) -> Fallible<(Vec<Record>, bool)> {
    let statement = session.statement(&session.sql.table(request.lane.table()).due)?;
    let (version, limit) = (request.version.as_str(), backend::limit(request.limit));
    let except = excepted(&request.except)?;
    let mut rows = match &request.lane {
        Lane::Outbox => statement.query(params![version, limit, except])?,
        Lane::Inbox(group) => statement.query(params![version, limit, except, group.as_str(), false])?,
        Lane::Suspects(group) => statement.query(params![version, limit, except, group.as_str(), true])?,
    };
    let (mut records, mut room) = (Vec::new(), request.bytes);
    while let Some(row) = rows.next()? {
        let size = row::size(row)?;
        if size > room && !records.is_empty() {
            return Ok((records, true));
        }
        room = room.saturating_sub(size);
        records.push(row::read(row)?);
    }
    Ok((records, false))
}

/// The columns of a record that `claim` holds, if its node may claim.
pub(crate) fn holder(session: &mut Session<'_>, claim: Claim) -> Fallible<(String, String)> {
    Ok((registered(session, claim.node)?, claim.token.to_string()))
}

/// Gives back what was claimed with a token; answers how many.
pub(crate) fn release(session: &mut Session<'_>, table: Table, claim: Claim) -> Fallible<u64> {
    let release = session.statement(&session.sql.table(table).release)?;
    Ok(release.execute(params![claim.node.to_string(), claim.token.to_string()])? as u64)
}

/// In how long the next record that a claim would take is due.
fn next_due_of(session: &mut Session<'_>, request: &ClaimRequest) -> Fallible<Option<Duration>> {
    let lanes = std::slice::from_ref(&request.lane);
    Ok(next_due(session, &request.version, lanes, &request.except)?.pop().flatten())
}

/// In how long the next waiting record of each lane is due, without those of some topics.
pub(crate) fn next_due(
    session: &mut Session<'_>,
    version: &Version,
    lanes: &[Lane],
    except: &[Topic],
) -> Fallible<Vec<Option<Duration>>> {
    let lanes = json(&lanes.iter().map(lane_in_json).collect::<Vec<_>>())?;
    let statement = session.statement(&session.sql.next_due)?;
    let waits = statement.query_map(params![version.as_str(), lanes, excepted(except)?], read_wait)?;
    Ok(waits.collect::<rusqlite::Result<_>>()?)
}

/// A lane as the statement knows it: the group, and whether its suspects are meant.
fn lane_in_json(lane: &Lane) -> Option<(&str, u8)> {
    match lane {
        Lane::Outbox => None,
        Lane::Inbox(group) => Some((group.as_str(), 0)),
        Lane::Suspects(group) => Some((group.as_str(), 1)),
    }
}

/// The topics that are left alone, as the statements know them.
fn excepted(except: &[Topic]) -> Fallible<Option<String>> {
    if except.is_empty() {
        return Ok(None);
    }
    json(&except.iter().map(Topic::as_str).collect::<Vec<_>>()).map(Some)
}

fn json<T: serde::Serialize>(value: &T) -> Fallible<String> {
    serde_json::to_string(value).map_err(|error| Fault::said(ErrorKind::Internal, error.to_string()))
}

/// From a moment, if there is one, and the present time: how long it is until then.
fn read_wait(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Duration>> {
    let (moment, now): (Option<i64>, i64) = (row.get(0)?, row.get(1)?);
    let wait = moment.map(|moment| u64::try_from(moment.saturating_sub(now)).unwrap_or(0));
    Ok(wait.map(Duration::from_micros))
}
