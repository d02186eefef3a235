//! The schema: applied in versions, checked, printed.

use cap_core::ErrorKind;
use cap_core::storage::Table;
use cap_storage_sqlx::{Fallible, Fault, LeftBehind, tell_of_takeover};
use sqlx::MySqlConnection;
use sqlx::mysql::MySqlRow;

use crate::error::Numbered;
use crate::insert::Packet;
use crate::row;
use crate::script::{Script, text};
use crate::server;
use crate::sql::{self, MIGRATIONS, Sql, Statement};
use crate::storage::Learnt;

/// The columns of .NET CAP's tables; the first one only the inbox has.
const CAP_COLUMNS: [&str; 9] =
    ["Group", "Id", "Version", "Name", "Content", "Retries", "Added", "ExpiresAt", "StatusName"];

/// The schema version that this code knows.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the tables to [`VERSION`]. Of several nodes that start at once one does it, under a lock of the server's, and
/// the others find it done. Where nothing is to be done nothing but reading is needed. A migration that was cut off is
/// finished: its version is recorded last, and each of its statements may be run again.
pub(crate) async fn apply(connection: &mut MySqlConnection, sql: &Sql) -> Fallible<Learnt> {
    let at_once = server::ask(connection).await?;
    if version(connection, sql).await? == VERSION {
        check_tables(connection, sql).await?;
        return learn(connection, sql, at_once).await;
    }
    let prefix = text(Some(&sql.names.prefix));
    Script::default().plain(sql::MIGRATION_SESSION).run(connection).await?;
    let locked = Script::default().plain_with(sql::LOCK_MIGRATION, &[("prefix", &prefix)]).run(connection).await?;
    let is_locked = locked.iter().flat_map(|answer| &answer.rows).next().map(|row| row::integer(row, 0)).transpose()?;
    if is_locked != Some(1) {
        return Err(Fault::said(
            ErrorKind::Unavailable,
            "another node migrates the tables, and does not come to an end",
        ));
    }
    migrate(connection, sql).await?;
    Script::default().plain_with(sql::UNLOCK_MIGRATION, &[("prefix", &prefix)]).run(connection).await?;
    check_tables(connection, sql).await?;
    learn(connection, sql, at_once).await
}

/// What the tables can hold. They may have been made by somebody else, or altered.
async fn learn(connection: &mut MySqlConnection, sql: &Sql, at_once: u64) -> Fallible<Learnt> {
    let names = [&sql.names.published, &sql.names.received].map(|name| text(Some(name.trim_matches('`'))));
    let script = Script::default().then(&sql.texts, &[("tables", &names.join(","))]);
    let answers = script.run(connection).await?;
    let Some(row) = answers.first().and_then(|answer| answer.rows.first()) else { return Err(row::out_of_step()) };
    let content = row::maybe_integer(row, 1)?.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(u64::MAX);
    Ok(Learnt { packet: Packet { at_once, content }, ascii_only: row::integer(row, 0)? > 0 })
}

async fn migrate(connection: &mut MySqlConnection, sql: &Sql) -> Fallible<()> {
    let found = version(connection, sql).await?;
    if found > VERSION {
        return Err(newer(sql, found));
    }
    let left = if found == 0 { left_behind(connection, sql).await? } else { Vec::new() };
    let zone = Script::default().plain(sql::CAP_ZONE).run(connection).await?;
    let zone = zone.first().and_then(|answer| answer.rows.first()).map(|row| octets(row, 0)).transpose()?;
    Script::default().then(&sql.create_versions, &[]).run(connection).await?;
    for (version, script) in (1..).zip(&sql.migrations).filter(|(version, _)| *version > found) {
        for statement in statements(script) {
            Script::default().plain(statement).run(connection).await?;
        }
        let version_literal = i64::to_string(&version);
        Script::default().then(&sql.record_version, &[("version", &version_literal)]).run(connection).await?;
        tracing::info!(version, prefix = %sql.names.prefix, "applied a schema migration");
    }
    tell_of_takeover(&left, zone.filter(|zone| !zone.is_empty()).as_deref(), "@cap_time_zone");
    Ok(())
}

/// They end where a line ends with a semicolon.
fn statements(script: &Statement) -> impl Iterator<Item = &str> {
    script.text().split(";\n").map(str::trim).filter(|statement| !statement.is_empty())
}

/// Whether the server will do, and the tables are there, of exactly [`VERSION`].
pub(crate) async fn check(connection: &mut MySqlConnection, sql: &Sql) -> Fallible<Learnt> {
    let at_once = server::ask(connection).await?;
    check_tables(connection, sql).await?;
    learn(connection, sql, at_once).await
}

async fn check_tables(connection: &mut MySqlConnection, sql: &Sql) -> Fallible<()> {
    let found = version(connection, sql).await?;
    if found > VERSION {
        return Err(newer(sql, found));
    }
    if found < VERSION || !is_complete(connection, sql).await? {
        return Err(Fault::said(
            ErrorKind::Schema,
            format!(
                "the tables of prefix {:?} are of schema version {found} or incomplete, and this code needs version \
                 {VERSION}; apply what the printed schema has after version {found}, or let `migrate` be true",
                sql.names.prefix
            ),
        ));
    }
    Ok(())
}

/// The script that makes everything from nothing, or from the tables of .NET CAP. Where some version is there already,
/// what comes after it will do.
pub(crate) fn print(prefix: &str) -> String {
    let sql = Sql::new(prefix);
    let mut script =
        format!("-- Schema version {VERSION} of CAP for Rust.\n\n{};\n\n", sql.create_versions.text().trim());
    for (version, migration) in (1..=VERSION).zip(&sql.migrations) {
        script.push_str(migration.text());
        script.push('\n');
        script.push_str(&sql.record_version.text().replace("{version}", &version.to_string()));
        script.push_str(";\n");
    }
    script
}

fn newer(sql: &Sql, found: i64) -> Fault {
    Fault::said(
        ErrorKind::Schema,
        format!(
            "the tables of prefix {:?} are of schema version {found}, and this code knows version {VERSION}: update this \
             service, nothing was changed",
            sql.names.prefix
        ),
    )
}

/// Tables without a version are taken over if they have all of .NET CAP's columns, and left alone otherwise. Answers what
/// rows they have.
async fn left_behind(connection: &mut MySqlConnection, sql: &Sql) -> Fallible<Vec<LeftBehind>> {
    let mut left = Vec::new();
    for (table, needed) in [(Table::Outbox, &CAP_COLUMNS[1..]), (Table::Inbox, &CAP_COLUMNS)] {
        let Some(columns) = columns(connection, sql, table).await? else { continue };
        let has = |column: &&str| columns.iter().any(|found| found.eq_ignore_ascii_case(column));
        if !needed.iter().all(has) {
            let reason = format!(
                "a table `{}.{table}` is there, but none that says its schema version (this code makes version \
                 {VERSION}), and it has not the columns of .NET CAP's: choose another prefix, nothing was changed",
                sql.names.prefix,
                table = table.as_str(),
            );
            return Err(Fault::said(ErrorKind::Schema, reason));
        }
        tracing::info!(%table, prefix = %sql.names.prefix, "takes over the table of .NET CAP");
        let answers = Script::default().then(&sql.table(table).statuses, &[]).run(connection).await?;
        let rows = answers.iter().flat_map(|answer| &answer.rows);
        let rows = rows.map(|row| Ok((octets(row, 0)?, row::integer(row, 1)?)));
        left.push(LeftBehind { table, rows: rows.collect::<Fallible<_>>()? });
    }
    Ok(left)
}

/// Text as it is stored; empty if there is none.
fn octets(row: &MySqlRow, column: usize) -> Fallible<String> {
    Ok(row::octets(row, column)?.map(String::from_utf8_lossy).unwrap_or_default().into_owned())
}

/// None when there is no such table.
async fn columns(connection: &mut MySqlConnection, sql: &Sql, table: Table) -> Fallible<Option<Vec<String>>> {
    let script = Script::default().then(&sql.table(table).columns_there, &[]);
    let answers = match script.run(connection).await {
        Err(fault) if fault.is_missing() => return Ok(None),
        answers => answers?,
    };
    let rows = answers.iter().flat_map(|answer| &answer.rows);
    rows.map(|row| octets(row, 0)).collect::<Fallible<_>>().map(Some)
}

/// 0 when there are no tables, or those of .NET CAP.
async fn version(connection: &mut MySqlConnection, sql: &Sql) -> Fallible<i64> {
    match Script::default().then(&sql.schema_version, &[]).run(connection).await {
        Err(fault) if fault.is_missing() => Ok(0),
        answers => {
            let answers = answers?;
            let row = answers.iter().flat_map(|answer| &answer.rows).next();
            row.map_or(Err(row::out_of_step()), |row| row::integer(row, 0))
        }
    }
}

async fn is_complete(connection: &mut MySqlConnection, sql: &Sql) -> Fallible<bool> {
    match Script::default().then(&sql.tables_there, &[]).run(connection).await {
        Err(fault) if fault.is_missing() => Ok(false),
        answers => answers.map(|_| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_schema_has_every_version() {
        let script = print("my bus");
        assert!(script.contains("CREATE TABLE IF NOT EXISTS `my bus.published`"), "{script}");
        assert!(script.contains("TABLE_NAME = 'my bus.received'"), "{script}");
        assert!(script.contains(&format!("VALUES ({VERSION}, UTC_TIMESTAMP(6)) ON")), "{script}");
    }

    #[test]
    fn a_migration_falls_into_statements_at_the_ends_of_lines() {
        for script in &Sql::new("cap").migrations {
            for statement in statements(script) {
                let begins = statement.lines().find(|line| !line.is_empty() && !line.starts_with("--"));
                let verb = begins.and_then(|line| line.split(' ').next()).unwrap_or_default();
                assert!(["CREATE", "SET", "PREPARE", "EXECUTE", "DEALLOCATE", "UPDATE"].contains(&verb), "{statement}");
            }
        }
    }
}
