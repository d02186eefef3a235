//! Row level security: what policies hide from the storage's role it neither sends nor handles, and nobody is told.
//!
//! So where it is active a record is written, changed and deleted on trial, and taken back: if that does not work, neither
//! would anything else. What policies hide of particular records only, nobody can find out; that they are there is told.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cap_core::ErrorKind;
use cap_core::storage::Table;
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::{PgConnection, Row};

use crate::session;
use crate::sql::Sql;

/// How often it is looked at while the storage works: somebody may make a policy then.
const EVERY: Duration = Duration::from_secs(10);

/// When it was looked at, and whether policies were active then.
#[derive(Debug, Default)]
pub(crate) struct Policies(Mutex<Option<(Instant, bool)>>);

impl Policies {
    /// Whether it is time to look.
    pub(crate) fn is_time(&self) -> bool {
        let looked = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        looked.is_none_or(|(looked, _)| looked.elapsed() >= EVERY)
    }

    /// Refuses policies that hide what the storage writes. That there are some is told once.
    pub(crate) async fn look(&self, connection: &mut PgConnection, sql: &Sql) -> Fallible<()> {
        let active: Vec<String> = sql.policies.query().fetch_one(&mut *connection).await?.try_get(0)?;
        if !active.is_empty() {
            for table in [Table::Outbox, Table::Inbox] {
                try_a_record(connection, sql, table).await?;
            }
        }
        self.note(active);
        Ok(())
    }

    fn note(&self, active: Vec<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !active.is_empty() && !known.is_some_and(|(_, were_active)| were_active) {
            tracing::warn!(
                tables = ?active,
                "row level security is active for the role of this service: records that its policies hide are not sent and not \
                 handled, and nothing tells of them; a role that owns the tables, or has BYPASSRLS, sees all"
            );
        }
        *known = Some((Instant::now(), !active.is_empty()));
    }
}

/// Does what becomes of every record, and takes it back.
async fn try_a_record(connection: &mut PgConnection, sql: &Sql, table: Table) -> Fallible<()> {
    let sql = sql.table(table);
    let mut tx = session::begin(connection).await?;
    sql.try_insert.query().execute(&mut *tx).await?;
    let changed = sql.try_update.query().execute(&mut *tx).await?.rows_affected();
    let deleted = sql.try_delete.query().execute(&mut *tx).await?.rows_affected();
    tx.rollback().await?;
    let hidden = match (changed, deleted) {
        (0, _) => "changes, so that nothing would be sent or handled",
        (_, 0) => "deletions, so that nothing would ever be removed",
        _ => return Ok(()),
    };
    let reason = format!(
        "row level security hides the records of table {:?} from {hidden}: let this role own the table, give it BYPASSRLS, or \
         give it policies for SELECT, INSERT, UPDATE and DELETE that permit all",
        table.as_str(),
    );
    Err(Fault::said(ErrorKind::Rejected, reason))
}
