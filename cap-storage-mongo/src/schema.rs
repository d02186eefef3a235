//! The schema: applied in versions, checked, printed.

use std::time::Duration;

use cap_core::ErrorKind;
use cap_core::storage::Table;
use mongodb::bson::{Bson, DateTime, Document, doc};
use uuid::Uuid;

use crate::commands::{self, LOCK, Names, binary};
use crate::error::{Fallible, Fault, code};
use crate::session::Db;

/// The schema version that this code knows.
pub(crate) const VERSION: i64 = 2;

/// How long to wait before the lock is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// A collection of that name is there.
const EXISTS: i32 = 48;

/// Brings the collections to [`VERSION`]. Of several nodes that start at once one does it, under a lock that runs out,
/// and the others find it done. Where nothing is to be done nothing but reading is needed.
///
/// MongoDB makes collections and indexes outside of transactions. So each step may be done again: after a crash in the
/// middle, or by two nodes when one took longer for a step than the lock lasts.
pub(crate) async fn apply(db: &Db) -> Fallible<()> {
    let holder = binary(Uuid::new_v4());
    loop {
        if version(db).await? == VERSION {
            return check(db).await;
        }
        if lock(db, &holder).await? {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let migrated = migrate(db, &holder).await;
    db.collection(&db.names.schema).delete_one(doc! { "_id": LOCK, "Holder": &holder }).await?;
    migrated?;
    check(db).await
}

async fn lock(db: &Db, holder: &Bson) -> Fallible<bool> {
    let hello = db.database.run_command(doc! { "hello": 1 }).await?;
    let now = hello.get_datetime("localTime").copied().unwrap_or(commands::EARLY);
    take_lock(db, holder, now).await
}

async fn take_lock(db: &Db, holder: &Bson, now: DateTime) -> Fallible<bool> {
    let schema = db.collection(&db.names.schema);
    let take = schema.update_one(commands::free_lock(holder, now), commands::take_lock(holder)).upsert(true);
    match take.await.map_err(Fault::from) {
        Ok(_) => Ok(true),
        Err(fault) if fault.is_duplicate_key() => Ok(false),
        Err(fault) => Err(fault),
    }
}

async fn migrate(db: &Db, holder: &Bson) -> Fallible<()> {
    let found = version(db).await?;
    if found > VERSION {
        return Err(newer(db, found));
    }
    let left = if found == 0 { left_behind(db).await? } else { Vec::new() };
    for (version, commands) in (1..).zip(commands::migrations(&db.names)).filter(|(version, _)| *version > found) {
        for command in commands {
            lock(db, holder).await?;
            step(db, command).await?;
        }
        tracing::info!(version, prefix = %db.names.prefix, "applied a schema migration");
    }
    for (table, rows) in left {
        tracing::info!(cap.table = %table, cap.rows = %rows, "took over the documents of .NET CAP");
    }
    Ok(())
}

async fn step(db: &Db, command: Document) -> Fallible<()> {
    match db.database.run_command(command).await {
        Ok(reply) => crate::error::check_reply(&reply),
        Err(error) if code(&error) == Some(EXISTS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the collections are there, of exactly [`VERSION`].
pub(crate) async fn check(db: &Db) -> Fallible<()> {
    let found = version(db).await?;
    if found > VERSION {
        return Err(newer(db, found));
    }
    if found == VERSION && is_complete(db).await? {
        return Ok(());
    }
    Err(Fault::said(
        ErrorKind::Schema,
        format!(
            "the collections {}.* are of schema version {found} or incomplete, and this code needs version {VERSION}; \
             apply what the printed schema has after version {found}, or let `migrate` be true",
            db.names.prefix
        ),
    ))
}

async fn is_complete(db: &Db) -> Fallible<bool> {
    for table in [Table::Outbox, Table::Inbox] {
        if !collections(db).await?.iter().any(|name| name == db.names.of(table)) {
            return Ok(false);
        }
        let indexes = db.table(table).list_index_names().await?;
        if commands::indexes(table).iter().any(|index| !indexes.iter().any(|found| found == index)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The script that makes everything from nothing, or from the collections of .NET CAP. Where some version is there
/// already, what comes after it will do.
pub(crate) fn print(database: &str, prefix: &str) -> String {
    let names = Names::new(prefix);
    let mut script = format!(
        "// Schema version {VERSION} of CAP for Rust, for mongosh. Where a collection is there already, `create` fails \
         and can be passed over.\nuse {database}\n"
    );
    for (version, commands) in (1..=VERSION).zip(commands::migrations(&names)) {
        script.push_str(&format!("\n// Version {version}\n"));
        for command in commands {
            let command = Bson::from(command).into_canonical_extjson();
            script.push_str(&format!("db.runCommand(EJSON.parse({:?}))\n", command.to_string()));
        }
    }
    script
}

fn newer(db: &Db, found: i64) -> Fault {
    Fault::said(
        ErrorKind::Schema,
        format!(
            "the collections {}.* are of schema version {found}, and this code knows version {VERSION}: update this \
             service, nothing was changed",
            db.names.prefix
        ),
    )
}

/// Collections without a version are taken over if their documents have all of .NET CAP's fields, and left alone
/// otherwise. Answers how many documents of each status those have that are there; their times are moments in any zone.
async fn left_behind(db: &Db) -> Fallible<Vec<(Table, String)>> {
    let mut left = Vec::new();
    for table in [Table::Outbox, Table::Inbox] {
        let strange = commands::not_of_net_cap(table);
        let name = db.names.of(table);
        if db.table(table).find_one(strange).await?.is_some() {
            let reason = format!(
                "a collection {name} is there, but nothing that says its schema version (this code makes version \
                 {VERSION}), and it has documents without the fields of .NET CAP's: choose another prefix or database, \
                 nothing was changed"
            );
            return Err(Fault::said(ErrorKind::Schema, reason));
        }
        let found = crate::session::all(db.table(table).aggregate(commands::statuses()).await?).await?;
        let rows = found.iter().map(|found| {
            let number = found.get("number").and_then(crate::row::whole).unwrap_or_default();
            format!("{number} {}", found.get_str("_id").unwrap_or("without a status"))
        });
        if !found.is_empty() {
            left.push((table, rows.collect::<Vec<_>>().join(", ")));
        }
    }
    Ok(left)
}

/// 0 when there is no schema, or that of .NET CAP.
async fn version(db: &Db) -> Fallible<i64> {
    let found = db.aggregate_one(&db.names.schema, commands::clock()).await?;
    Ok(found.as_ref().and_then(|found| found.get("Version")).and_then(crate::row::whole).unwrap_or(0))
}

async fn collections(db: &Db) -> Fallible<Vec<String>> {
    Ok(db.database.list_collection_names().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_schema_has_every_version_and_each_of_its_commands() {
        let script = print("shop", "bus");
        assert!(script.contains("use shop\n"), "{script}");
        let migrations = commands::migrations(&Names::new("bus"));
        assert_eq!(migrations.len(), usize::try_from(VERSION).unwrap());
        let commands: usize = migrations.iter().map(Vec::len).sum();
        assert_eq!(script.matches("db.runCommand(").count(), commands);
        assert!(script.contains("bus.published") && script.contains(&format!("// Version {VERSION}")), "{script}");
    }
}
