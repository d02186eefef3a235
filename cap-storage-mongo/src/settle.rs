//! Settlements, of which none waits for a record that an open transaction has written.

use std::collections::HashSet;

use cap_core::backend::{Alike, Holder, Settlements};
use cap_core::storage::{Settled, Settlement, Table};
use cap_core::{ClaimToken, RecordId};
use mongodb::ClientSession;
use mongodb::bson::{Document, doc};
use tokio::time::Instant;

use crate::commands::{self, AT_ONCE, binary};
use crate::error::{Fallible, Fault};
use crate::row::{uuid, whole};
use crate::session::{Db, End, matched};

fn statements(settlements: &[&Settlement]) -> Vec<Document> {
    let written = |alike: Alike<'_>| {
        let ids: Vec<i64> = alike.records.iter().map(|record| record.0).collect();
        commands::settle(&ids, &binary(alike.token.0), alike.state)
    };
    Alike::group(settlements.iter().copied()).into_iter().flat_map(written).collect()
}

/// Writes outcomes, in one transaction. Those that another transaction has locked are left out.
pub(crate) async fn settle(db: &Db, table: Table, settlements: &[Settlement]) -> Fallible<Vec<Settled>> {
    let batch = Settlements::new(settlements);
    let mut left: Vec<&Settlement> = batch.first().collect();
    let mut locked = HashSet::new();
    let written = loop {
        if left.is_empty() {
            break HashSet::new();
        }
        if let Some(written) = settle_many(db, table, &batch, &left).await? {
            break written;
        }
        let found = find_locked(db, table, &left).await?;
        left.retain(|settlement| !found.contains(&holder(settlement)));
        locked.extend(found);
        if Instant::now() >= db.deadline {
            return Err(Fault::Conflict);
        }
    };
    let mut answers = batch.answer(written);
    for (answer, settlement) in answers.iter_mut().zip(settlements) {
        if locked.contains(&holder(settlement)) {
            *answer = Settled::Locked;
        }
    }
    Ok(answers)
}

fn holder(settlement: &Settlement) -> Holder {
    (settlement.record, settlement.token)
}

/// Mostly all are still held; only when they are not, it is asked which. Answers nothing if one is locked.
async fn settle_many(
    db: &Db,
    table: Table,
    batch: &Settlements<'_>,
    all: &[&Settlement],
) -> Fallible<Option<HashSet<Holder>>> {
    let context = (table, batch, all);
    let are_all_written = db.try_transact(&context, |db, session, (table, _, all)| {
        Box::pin(async move {
            let reply = db.update_in(session, *table, statements(all)).await?;
            let is_complete = matched(&reply) == all.len() as u64;
            Ok(if is_complete { End::Commit(true) } else { End::Abort(false) })
        })
    });
    match are_all_written.await? {
        None => return Ok(None),
        Some(true) => return Ok(Some(all.iter().map(|settlement| holder(settlement)).collect())),
        Some(false) => {}
    }
    let settle_held = db.try_transact(&context, |db, session, (table, batch, all)| {
        Box::pin(async move {
            let mut held = held(db, session, *table, all).await?;
            held.retain(|held| all.iter().any(|settlement| holder(settlement) == *held));
            let ours = batch.of(&held);
            let written: HashSet<Holder> = ours.iter().map(|settlement| holder(settlement)).collect();
            if written.is_empty() {
                return Ok(End::Abort(written));
            }
            let reply = db.update_in(session, *table, statements(&ours)).await?;
            if matched(&reply) != written.len() as u64 {
                return Err(Fault::Conflict);
            }
            Ok(End::Commit(written))
        })
    });
    settle_held.await
}

/// Which of them another transaction has locked: tried, and taken back, in ever smaller parts.
async fn find_locked(db: &Db, table: Table, settlements: &[&Settlement]) -> Fallible<HashSet<Holder>> {
    let mut locked = HashSet::new();
    let mut parts = vec![settlements];
    while let Some(part) = parts.pop() {
        // The whole is known to be locked somewhere.
        let is_free = part.len() < settlements.len() || settlements.len() == 1;
        if is_free && is_free_of_locks(db, table, part).await? {
            continue;
        }
        match part {
            [only] => drop(locked.insert(holder(only))),
            part => {
                let (one, other) = part.split_at(part.len() / 2);
                parts.extend([one, other]);
            }
        }
    }
    Ok(locked)
}

async fn is_free_of_locks(db: &Db, table: Table, settlements: &[&Settlement]) -> Fallible<bool> {
    let context = (table, settlements);
    let tried = db.try_transact(&context, |db, session, (table, settlements)| {
        Box::pin(async move {
            db.update_in(session, *table, statements(settlements)).await?;
            Ok(End::Abort(()))
        })
    });
    Ok(tried.await?.is_some())
}

/// Which of them are still held, as this transaction sees it.
async fn held(
    db: &Db,
    session: &mut ClientSession,
    table: Table,
    settlements: &[&Settlement],
) -> Fallible<HashSet<Holder>> {
    let ids: Vec<i64> = settlements.iter().map(|settlement| settlement.record.0).collect();
    let mut held = HashSet::new();
    for ids in ids.chunks(AT_ONCE) {
        let records = db.table(table);
        let find = records.find(commands::all_held(ids)).projection(doc! { "Claim": 1 });
        let mut cursor = find.session(&mut *session).await?;
        while cursor.advance(session).await? {
            let found = cursor.deserialize_current()?;
            if let (Some(id), Some(token)) = (found.get("_id").and_then(whole), found.get("Claim").and_then(uuid)) {
                held.insert((RecordId(id), ClaimToken(token)));
            }
        }
    }
    Ok(held)
}
