//! The schema: applied in versions, checked, printed.

use cap_core::ErrorKind;
use rusqlite::Connection;

use crate::error::{Fallible, Fault};
use crate::sql::{MIGRATIONS, Sql};

/// How many tables there are beside that of the versions.
const TABLES: i64 = 4;

/// The schema version that this code knows.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the tables to [`VERSION`]. Runs inside an immediate transaction, so that of several nodes that start at once
/// one does it and the others find it done.
pub(crate) fn apply(connection: &Connection, sql: &Sql) -> Fallible<()> {
    let found = version(connection, sql)?;
    if found > VERSION {
        return Err(newer(sql, found));
    }
    if found == 0 && tables(connection, sql)? > 0 {
        return Err(Fault::said(
            ErrorKind::Schema,
            format!(
                "tables named `{}` and so on are there, but none that says their version (this code makes version \
                 {VERSION}); they are not of this library, or `{}` was deleted: choose another prefix, or put it back",
                sql.names.published, sql.names.schema
            ),
        ));
    }
    connection.execute_batch(&sql.create_schema)?;
    for (version, script) in (1..).zip(&sql.migrations).filter(|(version, _)| *version > found) {
        connection.execute_batch(script)?;
        connection.execute(&sql.record_version, [version])?;
        tracing::info!(version, table = %sql.names.published, "applied a schema migration");
    }
    check(connection, sql)
}

/// Whether the tables are there, of exactly [`VERSION`].
pub(crate) fn check(connection: &Connection, sql: &Sql) -> Fallible<()> {
    let found = version(connection, sql)?;
    if found > VERSION {
        return Err(newer(sql, found));
    }
    if found < VERSION || tables(connection, sql)? < TABLES {
        return Err(Fault::said(
            ErrorKind::Schema,
            format!(
                "the tables of prefix `{}` are of schema version {found} or incomplete, and this code needs version \
                 {VERSION}; apply what the printed schema has after version {found}, or let `migrate` be true",
                sql.names.prefix
            ),
        ));
    }
    Ok(())
}

/// The script that makes everything from nothing. Where some version is there already, what comes after it will do.
pub(crate) fn print(prefix: &str) -> String {
    let sql = Sql::new(prefix);
    let mut script = format!("-- Schema version {VERSION} of CAP for Rust.\nBEGIN IMMEDIATE;\n{}", sql.create_schema);
    for (version, migration) in (1..=VERSION).zip(&sql.migrations) {
        script.push_str(&format!("\n-- Version {version}{migration}"));
        script.push_str(&sql.record_version.replace("?1", &version.to_string()));
        script.push_str(";\n");
    }
    script.push_str("\nCOMMIT;\n");
    script
}

fn newer(sql: &Sql, found: i64) -> Fault {
    Fault::said(
        ErrorKind::Schema,
        format!(
            "the tables of prefix `{}` are of schema version {found}, and this code knows version {VERSION}: update \
             this service, nothing was changed",
            sql.names.prefix
        ),
    )
}

/// 0 when there are no tables.
fn version(connection: &Connection, sql: &Sql) -> Fallible<i64> {
    if count(connection, &sql.schema_there)? == 0 {
        return Ok(0);
    }
    Ok(count(connection, &sql.schema_version)?)
}

fn tables(connection: &Connection, sql: &Sql) -> Fallible<i64> {
    Ok(count(connection, &sql.tables_there)?)
}

fn count(connection: &Connection, statement: &str) -> rusqlite::Result<i64> {
    connection.query_row(statement, [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(result: Fallible<()>) -> String {
        match result {
            Err(Fault::Said(ErrorKind::Schema, text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_printed_schema_is_what_is_checked_and_applying_it_again_changes_nothing() {
        let connection = Connection::open_in_memory().unwrap();
        let sql = Sql::new("bus");
        assert!(said(check(&connection, &sql)).contains("version 0"));
        connection.execute_batch(&print("bus")).unwrap();
        check(&connection, &sql).unwrap();
        apply(&connection, &sql).unwrap();
        assert_eq!(version(&connection, &sql).unwrap(), VERSION);
    }

    /// The tables as the first version made them, with a row.
    fn of_version_1(sql: &Sql) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&sql.create_schema).unwrap();
        connection.execute_batch(&sql.migrations[0]).unwrap();
        connection.execute(&sql.record_version, [1]).unwrap();
        connection
            .execute_batch(
                "INSERT INTO \"cap.published\" (Version, Name, Added, StatusName) VALUES ('v1', 'a', 1, 'Succeeded')",
            )
            .unwrap();
        connection
    }

    fn has_the_row(connection: &Connection) -> bool {
        count(connection, "SELECT count(*) FROM \"cap.published\"").unwrap() == 1
    }

    #[test]
    fn tables_of_an_older_version_are_upgraded_and_keep_their_rows() {
        let sql = Sql::new("cap");
        let connection = of_version_1(&sql);
        assert!(said(check(&connection, &sql)).contains("after version 1"));
        apply(&connection, &sql).unwrap();
        check(&connection, &sql).unwrap();
        assert!(has_the_row(&connection));
    }

    #[test]
    fn nodes_of_the_version_before_go_on_while_they_are_replaced() {
        let sql = Sql::new("cap");
        let connection = of_version_1(&sql);
        connection.execute_batch(&sql.migrations[1]).unwrap();
        connection.execute(&sql.record_version, [2]).unwrap();
        // What version 2 claims, inserts and waits for, as its statements have it.
        let mut claim = connection
            .prepare(
                "SELECT Id FROM \"cap.received\" INDEXED BY \"cap.received.due\"
                 WHERE Version = 'v1' AND \"Group\" = 'g' AND DueAt <= 5 AND Owner IS NULL ORDER BY DueAt, Id LIMIT 9",
            )
            .unwrap();
        let mut insert = connection
            .prepare(
                "INSERT INTO \"cap.received\" (MessageId, Version, Name, StatusName, DueAt, Added, \"Group\")
                 VALUES (?1, 'v1', 'a', 'Scheduled', ?2, 1, 'g') ON CONFLICT (MessageId, \"Group\") DO NOTHING",
            )
            .unwrap();
        insert.execute(("m1", 3)).unwrap();
        apply(&connection, &sql).unwrap();
        insert.execute(("m2", 2)).unwrap();
        let found: Vec<i64> = claim.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(found, [2, 1]);
    }

    #[test]
    fn what_the_printed_schema_has_after_a_version_upgrades_that_version() {
        let sql = Sql::new("cap");
        let connection = of_version_1(&sql);
        let script = print("cap");
        let (_, rest) = script.split_once("-- Version 2").unwrap();
        connection.execute_batch(&format!("BEGIN; --{rest}")).unwrap();
        check(&connection, &sql).unwrap();
        assert!(has_the_row(&connection));
    }

    #[test]
    fn a_newer_schema_is_refused_with_both_versions() {
        let connection = Connection::open_in_memory().unwrap();
        let sql = Sql::new("cap");
        apply(&connection, &sql).unwrap();
        connection.execute(&sql.record_version, [VERSION + 6]).unwrap();
        for refused in [apply(&connection, &sql), check(&connection, &sql)] {
            let text = said(refused);
            assert!(text.contains(&format!("version {}", VERSION + 6)), "{text}");
            assert!(text.contains(&format!("version {VERSION}")), "{text}");
        }
    }

    #[test]
    fn tables_of_the_same_name_that_are_not_ours_are_left_alone() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE \"CAP.Published\" (Id INTEGER)").unwrap();
        let text = said(apply(&connection, &Sql::new("cap")));
        assert!(text.contains("cap.schema"), "{text}");
    }
}
