//! Writing outcomes.

use std::collections::HashSet;

use cap_core::backend::{Holder, Settlements, Times, attempts, crashes};
use cap_core::lifecycle::{State, Status};
use cap_core::storage::{Settled, Settlement};
use cap_core::{ClaimToken, RecordId};
use cap_storage_sqlx::Fallible;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};

use crate::row::{Id, Kinds, RANGE, column, is_locked, reason, uuid};
use crate::session::take_back;
use crate::sql::{PATIENCE, Statement, TableSql};

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
