//! What operators ask for, and deleting what has expired.

use cap_core::backend::limit;
use cap_core::lifecycle::State;
use cap_core::storage::{Counts, Query, Record, Table};
use cap_core::{RecordId, Version};
use mongodb::bson::doc;

use crate::commands;
use crate::error::Fallible;
use crate::row::{addresses, read_all, whole};
use crate::session::{Db, all};

/// How many records of a version there are of each kind.
pub(crate) async fn counts(db: &Db, table: Table, version: &Version) -> Fallible<Counts> {
    db.clock().await?;
    let mut counts = Counts::default();
    for found in all(db.table(table).aggregate(commands::counts(version)).await?).await? {
        let Ok(kind) = found.get_document("_id") else { continue };
        let number = found.get("number").and_then(whole).unwrap_or_default();
        if let Ok(status) = kind.get_str("status").unwrap_or_default().parse() {
            counts.add(status, kind.get_bool("dead").unwrap_or_default(), number.unsigned_abs());
        }
    }
    Ok(counts)
}

/// A page of records.
pub(crate) async fn list(db: &Db, table: Table, query: &Query) -> Fallible<Vec<Record>> {
    if query.limit == 0 {
        return Ok(Vec::new());
    }
    let records = db.table(table);
    let find = records.find(commands::list(query)).sort(doc! { "_id": 1 }).limit(limit(query.limit));
    Ok(read_all(all(find.await?).await?))
}

/// Gives terminal records a new state; answers how many.
pub(crate) async fn requeue(db: &Db, table: Table, records: &[RecordId], state: &State) -> Fallible<u64> {
    db.update(db.names.of(table), commands::requeue(&addresses(records), state)).await
}

/// Deletes records that nobody holds; answers how many.
pub(crate) async fn delete(db: &Db, table: Table, records: &[RecordId]) -> Fallible<u64> {
    db.delete(db.names.of(table), commands::delete(&addresses(records))).await
}

/// Deletes expired records, the longest expired first.
pub(crate) async fn collect(db: &Db, table: Table, most: usize) -> Fallible<u64> {
    if most == 0 {
        return Ok(0);
    }
    let now = db.clock().await?;
    let records = db.table(table);
    let find = records
        .find(commands::expired(now))
        .sort(doc! { "ExpiresAt": 1 })
        .projection(doc! { "_id": 1 })
        .limit(limit(most));
    let found = all(find.await?).await?;
    let ids: Vec<i64> = found.iter().filter_map(|found| found.get("_id").and_then(whole)).collect();
    db.delete(db.names.of(table), commands::collect(&ids, now)).await
}
