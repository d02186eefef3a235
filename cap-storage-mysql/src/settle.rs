//! Settlements.

use std::collections::HashSet;

use cap_core::backend::{Alike, Holder, Settlements};
use cap_core::storage::{Settled, Settlement};
use cap_core::{ClaimToken, RecordId};
use cap_storage_sqlx::Fallible;
use sqlx::MySqlConnection;

use crate::error::Numbered;
use crate::row::{Expressions, addresses, affected, integer, ordered, uuid};
use crate::script::{Answer, Script, bytes};
use crate::sql::{self, LIST, Statement, TableSql};

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
        Within::Own => settle_at_once(connection, sql, &batch, settlements).await,
        Within::Handler => settle_held(connection, sql, &batch, "", sql::MARK_HANDLER).await,
    }
}

/// Mostly all are still held, and what is held nobody else locks. Then as many rows are found as there are outcomes; if
/// they are fewer it is not known which, so of several nothing is committed before they are counted.
async fn settle_at_once(
    connection: &mut MySqlConnection,
    sql: &TableSql,
    batch: &Settlements<'_>,
    settlements: &[Settlement],
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
            settle_free(connection, sql, batch, settlements).await
        }
    }
}

/// In two round trips: what is held is locked, but for what another has locked, and then its outcomes are written. The
/// others are looked at.
async fn settle_free(
    connection: &mut MySqlConnection,
    sql: &TableSql,
    batch: &Settlements<'_>,
    settlements: &[Settlement],
) -> Fallible<Vec<Settled>> {
    let mut script = Script::begin();
    for ids in ordered(batch.first().map(|settlement| settlement.record)).chunks(LIST) {
        script = script.then(&sql.lock_free, &[("ids", &addresses(ids))]);
    }
    let free = holders(&script.run(connection).await?)?;
    let mut script = Script::default();
    let missed = batch.first().filter(|settlement| !free.contains(&holder(settlement)));
    for ids in ordered(missed.map(|settlement| settlement.record)).chunks(LIST) {
        script = script.then(&sql.held, &[("ids", &addresses(ids))]);
    }
    let script = outcomes(script, sql, &batch.of(&free));
    let mut held = holders(&script.commit().run(connection).await?)?;
    let mut answers = batch.answer(free);
    for (answer, settlement) in answers.iter_mut().zip(settlements) {
        if *answer == Settled::Lost && held.remove(&holder(settlement)) {
            *answer = Settled::Locked;
        }
    }
    Ok(answers)
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
    outcomes(script, sql, settlements)
}

/// Writes what becomes of these.
fn outcomes(mut script: Script, sql: &TableSql, settlements: &[&Settlement]) -> Script {
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
