//! The sequences that give rows their addresses.
//!
//! One may stand behind its table: after logical replication (a blue-green upgrade), which copies rows and no sequences, or a
//! restore of data only. Then the next addresses are taken, as many as there are rows.

use cap_core::storage::Table;
use cap_storage_sqlx::Fallible;
use sqlx::{PgConnection, Row};

use crate::error::is_no_right;
use crate::session::take_back;
use crate::sql::{Sql, TableSql};

/// How often a row is inserted again whose address was taken.
pub(crate) const TRIES: u32 = 3;

/// Why a row could not be inserted in the end.
pub(crate) const BEHIND: &str = "the address that the table's sequence gave it is taken, time and again: does somebody \
     restore older rows just now? Let it end, and restart this service";

/// As many addresses are passed over one by one. More than that are not given while somebody sets the sequence, so that none
/// is given twice.
const FEW: i64 = 100_000;

/// As many are passed over at once where the role may not set the sequence.
const MANY: i64 = 1_000_000;

/// Brings the sequence of a table up to it.
pub(crate) async fn catch_up(connection: &mut PgConnection, sql: &Sql, table: Table) -> Fallible<()> {
    let sql = sql.table(table);
    let behind = behind(connection, sql).await?;
    if behind <= 0 {
        return Ok(());
    }
    let has_right = behind <= FEW || set(connection, sql).await?;
    if behind <= FEW || !has_right {
        sql.advance.query().bind(behind.min(MANY)).fetch_one(connection).await?;
    }
    let advice =
        if has_right { "" } else { "; let this role set it, too: GRANT UPDATE ON ALL SEQUENCES IN SCHEMA …" };
    tracing::warn!(%table, behind, "the sequence of the table's addresses stood behind its rows, and was set{advice}");
    Ok(())
}

/// By how much the table is ahead.
async fn behind(connection: &mut PgConnection, sql: &TableSql) -> Fallible<i64> {
    let row = sql.last.query().fetch_one(&mut *connection).await?;
    let (greatest, last): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    if let Some(last) = last {
        return Ok(greatest - last);
    }
    if greatest == 0 {
        return Ok(0);
    }
    match sql.before_first.query().fetch_one(&mut *connection).await {
        Ok(row) => Ok(greatest - row.try_get::<i64, _>(0)?),
        Err(error) if is_no_right(&error) => {
            take_back(connection).await?;
            Ok(greatest)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the role may do so.
async fn set(connection: &mut PgConnection, sql: &TableSql) -> Fallible<bool> {
    match sql.catch_up.query().fetch_one(&mut *connection).await {
        Ok(_) => Ok(true),
        Err(error) if is_no_right(&error) => {
            take_back(connection).await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
