//! Taking due records, by updates of single documents, giving them back, and when the next ones are due.

use std::collections::HashMap;
use std::time::Duration;

use cap_core::backend::limit;
use cap_core::lifecycle::Status;
use cap_core::storage::{Claim, ClaimRequest, Claimed, Lane, Record, Table};
use cap_core::{ErrorKind, Version};
use mongodb::bson::{Bson, DateTime, Document, doc};

use crate::commands::{self, Counted, binary};
use crate::error::{Fallible, Fault};
use crate::row::{read_all, until, whole};
use crate::session::{Db, End, all, matched};

/// How many records one transaction gives back.
pub(crate) const GIVEN_BACK: usize = 8 * commands::AT_ONCE;

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
    let next_due = next_due_of(db, commands::waiting(version, lane, except), lane, now);
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
async fn next_due_of(db: &Db, waiting: Document, lane: &Lane, now: DateTime) -> Fallible<Option<Duration>> {
    let records = db.table(lane.table());
    let find = records.find_one(waiting).sort(commands::earliest_first()).projection(doc! { "DueAt": 1 });
    Ok(find.await?.and_then(|found| Some(until(*found.get_datetime("DueAt").ok()?, now))))
}

/// What a claim has won.
async fn won(db: &Db, table: Table, owner: &Bson, token: &Bson) -> Fallible<Vec<Record>> {
    Ok(read_all(all(db.table(table).find(commands::held(owner, token)).await?).await?))
}

/// Looks at the node's lease again after its claim was written. A takeover forgets the node first and looks for what it
/// held afterwards. So if the node is still there, the takeover is yet to come, and will see the claim; if it is not,
/// the claim is given back.
pub(crate) async fn confirm(db: &Db, table: Table, claim: Claim) -> Fallible<()> {
    let Err(fault) = db.registered(claim.node).await else { return Ok(()) };
    if matches!(fault, Fault::Said(ErrorKind::LeaseLost, _)) {
        give_back(db, table, commands::holder(claim.node, Some(claim.token.0)), Counted::No).await?;
    }
    Err(fault)
}

/// Gives back what was claimed with a token; answers how many.
pub(crate) async fn release(db: &Db, table: Table, claim: Claim) -> Fallible<u64> {
    give_back(db, table, commands::holder(claim.node, Some(claim.token.0)), Counted::No).await
}

/// Makes due at once what somebody holds; answers how many that were. What an open transaction has in its hands is
/// left: it is settled when that one commits, and the next takeover's when it does not.
pub(crate) async fn give_back(db: &Db, table: Table, holder: Document, counted: Counted) -> Fallible<u64> {
    let mut filter = holder.clone();
    filter.insert("StatusName", Status::Queued.as_str());
    let found = all(db.table(table).find(filter).projection(doc! { "_id": 1 }).await?).await?;
    let ids: Vec<i64> = found.iter().filter_map(|found| found.get("_id").and_then(whole)).collect();
    let mut number = 0;
    for ids in ids.chunks(GIVEN_BACK) {
        if let Some(given) = try_give_back(db, table, ids, &holder, counted).await? {
            number += given;
            continue;
        }
        for id in ids {
            let given = try_give_back(db, table, std::slice::from_ref(id), &holder, counted).await?;
            number += given.unwrap_or_default();
        }
    }
    Ok(number)
}

/// A transaction, since an update outside of one would wait for those that are open.
async fn try_give_back(
    db: &Db,
    table: Table,
    ids: &[i64],
    holder: &Document,
    counted: Counted,
) -> Fallible<Option<u64>> {
    db.try_transact(&(table, ids, holder, counted), |db, session, (table, ids, holder, counted)| {
        Box::pin(async move {
            let reply = db.update_in(session, *table, commands::give_back(ids, holder, *counted)).await?;
            Ok(End::Commit(matched(&reply)))
        })
    })
    .await
}

/// In how long the next waiting record of each lane is due.
pub(crate) async fn next_due(db: &Db, version: &Version, lanes: &[Lane]) -> Fallible<Vec<Option<Duration>>> {
    let pipeline = commands::next_due(&db.names, version, lanes);
    let found = all(db.collection(&db.names.schema).aggregate(pipeline).await?).await?;
    let now = found.iter().find_map(|found| found.get_datetime("Now").ok()).copied();
    let Some(now) = now else { return Err(db.no_schema()) };
    let mut answers = vec![None; lanes.len()];
    for found in &found {
        let place = found.get("Lane").and_then(whole).and_then(|lane| usize::try_from(lane).ok());
        if let (Some(place), Ok(due)) = (place, found.get_datetime("DueAt"))
            && let Some(answer) = answers.get_mut(place)
        {
            *answer = Some(until(*due, now));
        }
    }
    Ok(answers)
}
