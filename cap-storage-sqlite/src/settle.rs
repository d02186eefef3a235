//! Writing outcomes.

use cap_core::backend::Times;
use cap_core::storage::{Settled, Settlement};
use rusqlite::{Statement, ToSql};

use crate::error::Fallible;
use crate::row::RANGE;

/// Writes outcomes over a prepared `settle`. What those that are alike have in common is bound once.
pub(crate) fn settle(statement: &mut Statement<'_>, settlements: &[Settlement]) -> Fallible<Vec<Settled>> {
    let mut before: Option<&Settlement> = None;
    let mut answers = Vec::with_capacity(settlements.len());
    for settlement in settlements {
        let Settlement { record, token, state } = settlement;
        statement.raw_bind_parameter(1, record.0)?;
        if before.is_none_or(|before| before.token != *token) {
            statement.raw_bind_parameter(2, token.to_string())?;
        }
        if before.is_none_or(|before| before.state != *state) {
            let Times { due_at, due_in, expires_in } = Times::of(state, &RANGE);
            let (status, attempts, crashes) = (state.status().as_str(), state.attempts(), state.crashes());
            let values: [&dyn ToSql; 7] =
                [&status, &attempts, &due_at, &due_in, &expires_in, &state.reason(), &crashes];
            (3..).zip(values).try_for_each(|(place, value)| statement.raw_bind_parameter(place, value))?;
        }
        before = Some(settlement);
        let written = statement.raw_execute()? > 0;
        answers.push(if written { Settled::Written } else { Settled::Lost });
    }
    Ok(answers)
}
