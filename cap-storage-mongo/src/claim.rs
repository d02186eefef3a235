//! Claims: what is due is looked for, and taken by updates of single documents.

use std::collections::HashMap;
use std::time::Duration;

use cap_core::storage::{ClaimRequest, Claimed, Lane, Record, Table};
use mongodb::bson::{Bson, DateTime, Document, doc};

use crate::commands::{self, binary};
use crate::error::Fallible;
use crate::record::{confirm, limit, read_all, until, whole};
use crate::session::{Db, all};

/// How often a claim looks again when others took what it had seen.
const ROUNDS: usize = 8;

/// Takes due records, earliest first.
pub(crate) async fn claim(db: &Db, request: &ClaimRequest) -> Fallible<Claimed> {
    let ClaimRequest { lane, version, claim, limit: most, bytes, except } = request;
    let table = lane.table();
    let now = db.registered(claim.node).await?;
    let (owner, token) = (binary(claim.node.0), binary(claim.token.0));
    let mut order: HashMap<i64, usize> = HashMap::new();
    let (mut taken, mut room) = (0, *bytes);
    for _ in 0..ROUNDS {
        let due = due(db, lane, commands::due(version, lane, except, now), most - taken).await?;
        let (ids, size) = how_many_have_room(&due, room, taken == 0);
        for id in &ids {
            let place = order.len();
            order.entry(*id).or_insert(place);
        }
        let won = db.update(db.names.of(table), commands::claim(&ids, now, &owner, &token)).await?;
        taken += usize::try_from(won).unwrap_or(ids.len());
        if taken > 0 {
            room = room.saturating_sub(size);
        }
        // If others took some of them, what they left comes next.
        if won == ids.len() as u64 {
            break;
        }
    }
    let confirmed = confirm(db, table, *claim);
    let next_due = next_due(db, commands::waiting(version, lane, except), lane, now);
    // None of them is dropped under way.
    let (records, confirmed, next_due) = match (order.is_empty(), taken < *most) {
        (true, true) => (Ok(Vec::new()), Ok(()), next_due.await),
        (true, false) => return Ok(Claimed::default()),
        (false, true) => tokio::join!(won(db, table, &owner, &token), confirmed, next_due),
        (false, false) => {
            let (records, confirmed) = tokio::join!(won(db, table, &owner, &token), confirmed);
            (records, confirmed, Ok(None))
        }
    };
    confirmed?;
    let mut records = records?;
    records.sort_unstable_by_key(|record| order.get(&record.id.0).copied());
    Ok(Claimed { records, next_due: next_due? })
}

/// The addresses of those that are due, the earliest first, and how long their contents are.
async fn due(db: &Db, lane: &Lane, filter: Document, most: usize) -> Fallible<Vec<(i64, usize)>> {
    if most == 0 {
        return Ok(Vec::new());
    }
    let records = db.table(lane.table());
    let find = records.find(filter).sort(commands::earliest_first()).projection(commands::size()).limit(limit(most));
    let number = |found: &Document, name: &str| found.get(name).and_then(whole);
    let size = |found: &Document| number(found, "Size").and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    let found = all(find.await?).await?;
    Ok(found.iter().filter_map(|found| Some((number(found, "_id")?, size(found)))).collect())
}

/// Those for which there is room, with the bytes that they take together; the first whatever its size, if it `may`.
fn how_many_have_room(due: &[(i64, usize)], room: usize, may: bool) -> (Vec<i64>, usize) {
    let mut bytes = 0_usize;
    let fit = due.iter().enumerate().take_while(|(place, (_, size))| {
        bytes = bytes.saturating_add(*size);
        bytes <= room || (may && *place == 0)
    });
    let ids: Vec<i64> = fit.map(|(_, (id, _))| *id).collect();
    let size = due[..ids.len()].iter().fold(0_usize, |sum, (_, size)| sum.saturating_add(*size));
    (ids, size)
}

/// In how long the next of those that wait is due.
async fn next_due(db: &Db, waiting: Document, lane: &Lane, now: DateTime) -> Fallible<Option<Duration>> {
    let records = db.table(lane.table());
    let find = records.find_one(waiting).sort(commands::earliest_first()).projection(doc! { "DueAt": 1 });
    Ok(find.await?.and_then(|found| Some(until(*found.get_datetime("DueAt").ok()?, now))))
}

/// What a claim has won.
async fn won(db: &Db, table: Table, owner: &Bson, token: &Bson) -> Fallible<Vec<Record>> {
    Ok(read_all(all(db.table(table).find(commands::held(owner, token)).await?).await?))
}
