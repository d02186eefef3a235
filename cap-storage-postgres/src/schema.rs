//! The schema: applied in versions, checked, printed.

use cap_core::ErrorKind;
use cap_core::storage::Table;
use cap_storage_sqlx::{Fallible, Fault, LeftBehind, tell_of_takeover};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::session;
use crate::sql::{self, MIGRATIONS, Sql, Statement};

/// Our tables beside that of the versions.
const TABLES: [&str; 4] = [Table::Outbox.as_str(), Table::Inbox.as_str(), "nodes", "chores"];

/// The schema version that this code knows.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the tables to [`VERSION`]. Of several nodes that start at once one does it, under an advisory lock, and the
/// others find it done. Where nothing is to be done nothing but reading is needed.
pub(crate) async fn apply(connection: &mut PgConnection, sql: &Sql) -> Fallible<()> {
    if version(connection, sql).await? == VERSION {
        return check(connection, sql).await;
    }
    let mut tx = session::begin(connection).await?;
    run(&mut tx, sql::NO_TIME_LIMIT).await?;
    sqlx::query(sql::LOCK_MIGRATION).persistent(false).bind(lock_key(&sql.names.plain)).execute(&mut *tx).await?;
    migrate(&mut tx, sql).await?;
    check(&mut tx, sql).await?;
    Ok(tx.commit().await?)
}

async fn migrate(connection: &mut PgConnection, sql: &Sql) -> Fallible<()> {
    let found = version(connection, sql).await?;
    if found > VERSION {
        return Err(newer(sql, found));
    }
    let left = if found == 0 { left_behind(connection, sql).await? } else { Vec::new() };
    let zone: Option<String> = sqlx::query_scalar(sql::CAP_ZONE).persistent(false).fetch_one(&mut *connection).await?;
    if !is_there(connection, sql).await? {
        sql.create_schema.query().execute(&mut *connection).await?;
    }
    sql.create_versions.query().execute(&mut *connection).await?;
    for (version, script) in (1..).zip(&sql.migrations).filter(|(version, _)| *version > found) {
        run_script(connection, script).await?;
        sql.record_version.query().bind(version).execute(&mut *connection).await?;
        tracing::info!(version, schema = %sql.names.plain, "applied a schema migration");
    }
    tell_of_takeover(&left, zone.as_deref(), "cap.time_zone");
    Ok(())
}

/// Whether the tables are there, of exactly [`VERSION`].
pub(crate) async fn check(connection: &mut PgConnection, sql: &Sql) -> Fallible<()> {
    let found = version(connection, sql).await?;
    if found > VERSION {
        return Err(newer(sql, found));
    }
    if found < VERSION || tables(connection, sql, &TABLES).await? < TABLES.len() as i64 {
        return Err(Fault::said(
            ErrorKind::Schema,
            format!(
                "the tables of schema {:?} are of schema version {found} or incomplete, and this code needs version \
                 {VERSION}; apply what the printed schema has after version {found}, or let `migrate` be true",
                sql.names.plain
            ),
        ));
    }
    Ok(())
}

/// Whether the database can store ASCII alone, as far as we know: its encoding is not Unicode. (One without an encoding
/// stores whatever it is given.)
pub(crate) async fn is_ascii_only(connection: &mut PgConnection) -> Fallible<bool> {
    let encoding: String = sqlx::query_scalar(sql::ENCODING).persistent(false).fetch_one(connection).await?;
    Ok(!["UTF8", "SQL_ASCII"].contains(&&*encoding))
}

/// The script that makes everything from nothing, or from the tables of .NET CAP. Where some version is there already,
/// what comes after it will do.
pub(crate) fn print(schema: &str) -> String {
    let sql = Sql::new(schema);
    let mut script = format!(
        "-- Schema version {VERSION} of CAP for Rust.\nBEGIN;\n\n{};\n{};\n\n",
        sql.create_schema.text(),
        sql.create_versions.text().trim()
    );
    for (version, migration) in (1..=VERSION).zip(&sql.migrations) {
        script.push_str(migration.text());
        script.push('\n');
        script.push_str(&sql.record_version.text().replace("$1", &version.to_string()));
        script.push_str(";\n");
    }
    script.push_str("\nCOMMIT;\n");
    script
}

fn newer(sql: &Sql, found: i64) -> Fault {
    Fault::said(
        ErrorKind::Schema,
        format!(
            "the tables of schema {:?} are of schema version {found}, and this code knows version {VERSION}: update \
             this service, nothing was changed",
            sql.names.plain
        ),
    )
}

/// Tables without a version are taken over if they have all of .NET CAP's columns, and left alone otherwise. Answers what
/// rows they have.
async fn left_behind(connection: &mut PgConnection, sql: &Sql) -> Fallible<Vec<LeftBehind>> {
    let mut left = Vec::new();
    for (table, columns) in [(Table::Outbox, 8), (Table::Inbox, 9)] {
        if tables(connection, sql, &[table.as_str()]).await? == 0 {
            continue;
        }
        let known: i64 = sqlx::query_scalar(sql::CAP_COLUMNS_THERE)
            .persistent(false)
            .bind(&sql.names.plain)
            .bind(table.as_str())
            .fetch_one(&mut *connection)
            .await?;
        if known < columns {
            let reason = format!(
                "a table \"{}\".\"{table}\" is there, but none that says its schema version (this code makes version \
                 {VERSION}), and it has not the columns of .NET CAP's: choose another schema, nothing was changed",
                sql.names.plain,
                table = table.as_str(),
            );
            return Err(Fault::said(ErrorKind::Schema, reason));
        }
        tracing::info!(%table, schema = %sql.names.plain, "takes over the table of .NET CAP");
        let rows = sql.table(table).statuses.query().fetch_all(&mut *connection).await?;
        let rows = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        left.push(LeftBehind { table, rows: rows.collect::<Result<_, sqlx::Error>>()? });
    }
    Ok(left)
}

/// 0 when there are no tables, or those of .NET CAP.
async fn version(connection: &mut PgConnection, sql: &Sql) -> Fallible<i64> {
    if tables(connection, sql, &["schema"]).await? == 0 {
        return Ok(0);
    }
    let row = sql.schema_version.query().fetch_one(connection).await?;
    Ok(row.try_get(0)?)
}

async fn is_there(connection: &mut PgConnection, sql: &Sql) -> Fallible<bool> {
    let found: i64 =
        sqlx::query_scalar(sql::SCHEMA_THERE).persistent(false).bind(&sql.names.plain).fetch_one(connection).await?;
    Ok(found > 0)
}

async fn tables(connection: &mut PgConnection, sql: &Sql, names: &[&str]) -> Fallible<i64> {
    let query = sqlx::query_scalar(sql::TABLES_THERE).persistent(false).bind(&sql.names.plain).bind(names);
    Ok(query.fetch_one(connection).await?)
}

/// Several statements in one round trip.
async fn run_script(connection: &mut PgConnection, script: &Statement) -> Fallible<()> {
    sqlx::raw_sql(AssertSqlSafe(script.text())).execute(connection).await?;
    Ok(())
}

async fn run(connection: &mut PgConnection, statements: &'static str) -> Fallible<()> {
    sqlx::raw_sql(statements).execute(connection).await?;
    Ok(())
}

/// A number of our own for each schema (FNV-1a), as advisory locks have numbers for names.
fn lock_key(schema: &str) -> i64 {
    let name = ["cap-storage-postgres:", schema].concat();
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    i64::from_ne_bytes(hash.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_schema_is_one_transaction_with_every_version() {
        let script = print("my bus");
        assert!(script.contains("BEGIN;") && script.trim_end().ends_with("COMMIT;"));
        assert!(script.contains("CREATE TABLE IF NOT EXISTS \"my bus\".\"published\""));
        assert!(script.contains(&format!("VALUES ({VERSION}::integer, statement_timestamp())")), "{script}");
    }

    #[test]
    fn schemas_have_locks_of_their_own() {
        assert_eq!(lock_key("cap"), lock_key("cap"));
        assert_ne!(lock_key("cap"), lock_key("bus"));
    }
}
