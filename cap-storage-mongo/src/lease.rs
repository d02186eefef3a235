//! Nodes: their leases, takeovers, and chores.

use std::time::Duration;

use cap_core::backend::limit;
use cap_core::storage::{Chore, Lease, Sign, Table, TakenOver};
use cap_core::{ErrorKind, NodeId};
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{Hint, ReturnDocument};

use crate::claim::{GIVEN_BACK, give_back};
use crate::commands::{self, AT_ONCE, Counted, binary};
use crate::error::{Fallible, Fault, text_of};
use crate::row::{span, timestamp, uuid, whole};
use crate::session::{Db, End, all};

/// Registers a node, or renews its lease.
pub(crate) async fn join(db: &Db, node: NodeId, lease: Duration) -> Fallible<()> {
    // Before the collections are made, this would make one.
    db.clock().await?;
    let nodes = db.collection(&db.names.nodes);
    nodes.update_one(commands::by_node(node), commands::begin_lease(span(lease))).upsert(true).await?;
    Ok(())
}

pub(crate) async fn heartbeat(db: &Db, node: NodeId, lease: Duration) -> Fallible<Lease> {
    let nodes = db.collection(&db.names.nodes);
    let renew = nodes
        .find_one_and_update(commands::by_node(node), commands::renew_lease(span(lease), db.lsids.list()))
        .return_document(ReturnDocument::After);
    let Some(renewed) = renew.await? else { return Ok(Lease::Lost) };
    let Ok(now) = renewed.get_datetime("Seen") else {
        return Err(Fault::said(ErrorKind::Corrupt, format!("the document of node {node} has no times")));
    };
    let (filter, fields) = commands::signs(node);
    let others = all(nodes.find(filter).projection(fields).await?).await?;
    let sign = |other: &Document| {
        let node = other.get("_id").and_then(uuid).map(NodeId)?;
        Some(Sign { node, until: timestamp(*other.get_datetime("LeaseUntil").ok()?) })
    };
    Ok(Lease::Held { now: timestamp(*now), others: others.iter().filter_map(sign).collect() })
}

/// First the nodes: those that are left live on, and a claim of the dead that is written from now on is given back by
/// itself.
pub(crate) async fn take_over(db: &Db, dead: &[Sign]) -> Fallible<TakenOver> {
    // Before the collections are made, this says so.
    db.clock().await?;
    let mut nodes = Vec::new();
    for sign in dead {
        let dead = commands::dead_node(sign);
        let found = all(db.collection(&db.names.nodes).find(dead.clone()).await?).await?;
        end_sessions(db, &found).await;
        if !found.is_empty() && forget(db, sign.node, dead).await? {
            nodes.push(sign.node);
        }
    }
    let outbox = take_from_dead(db, Table::Outbox).await?;
    let inbox = take_from_dead(db, Table::Inbox).await?;
    count_crashes(db).await?;
    Ok(TakenOver { nodes, outbox, inbox })
}

/// Has the server end the transactions of dead nodes, which would keep what they have written locked for a minute. If it
/// cannot be done, the takeover is only slower.
async fn end_sessions(db: &Db, dead: &[Document]) {
    let sessions: Vec<_> = dead.iter().flat_map(|node| db.lsids.foreign(node)).collect();
    if sessions.is_empty() {
        return;
    }
    if let Err(error) = db.database.run_command(commands::kill_sessions(sessions)).await {
        let reason = text_of(&error);
        tracing::warn!(
            error.message = reason,
            "the transactions of dead nodes could not be ended, and hold their locks for a minute"
        );
    }
}

/// Makes due what is held by nodes that are no more; answers how many records that were. The owners are asked for
/// before the nodes: whoever holds something had joined before, so a live one is found.
async fn take_from_dead(db: &Db, table: Table) -> Fallible<u64> {
    let hint = Hint::Name(commands::OWNER.to_owned());
    let found = all(db.table(table).aggregate(commands::owners()).hint(hint).await?).await?;
    let owners: Vec<Bson> = found.into_iter().filter_map(|mut found| found.remove("_id")).collect();
    if owners.is_empty() {
        return Ok(0);
    }
    let nodes = db.collection(&db.names.nodes);
    let live = nodes.find(doc! { "_id": commands::among(&owners) }).await?;
    let live: Vec<Bson> = all(live).await?.into_iter().filter_map(|mut node| node.remove("_id")).collect();
    let dead: Vec<Bson> = owners.into_iter().filter(|owner| !live.contains(owner)).collect();
    if dead.is_empty() {
        return Ok(0);
    }
    give_back(db, table, doc! { "Owner": commands::among(&dead) }, Counted::AsCrash).await
}

/// Puts what nodes of the version before have made due into its lane.
async fn count_crashes(db: &Db) -> Fallible<()> {
    let records = db.table(Table::Inbox);
    let find = records.find(commands::without_crashes()).projection(doc! { "_id": 1 }).limit(limit(GIVEN_BACK));
    let found = all(find.hint(Hint::Name(commands::LANE.to_owned())).await?).await?;
    let ids: Vec<i64> = found.iter().filter_map(|found| found.get("_id").and_then(whole)).collect();
    for ids in ids.chunks(AT_ONCE) {
        db.try_transact(&ids, |db, session, ids| {
            Box::pin(async move {
                db.update_in(session, Table::Inbox, commands::set_crashes(ids)).await?;
                Ok(End::Commit(()))
            })
        })
        .await?;
    }
    Ok(())
}

pub(crate) async fn leave(db: &Db, node: NodeId) -> Fallible<()> {
    forget(db, node, commands::by_node(node)).await?;
    for table in [Table::Outbox, Table::Inbox] {
        give_back(db, table, commands::holder(node, None), Counted::No).await?;
    }
    Ok(())
}

/// Forgets a node and frees its chores, in one commit; answers whether it was there.
async fn forget(db: &Db, node: NodeId, filter: Document) -> Fallible<bool> {
    db.transact(&(node, filter), |db, session, (node, filter)| {
        Box::pin(async move {
            let nodes = db.collection(&db.names.nodes);
            let deleted = nodes.delete_one(filter.clone()).session(&mut *session).await?.deleted_count;
            if deleted == 0 {
                return Ok(End::Abort(false));
            }
            let chores = db.collection(&db.names.chores);
            chores.delete_many(doc! { "Node": binary(node.0) }).session(session).await?;
            Ok(End::Commit(true))
        })
    })
    .await
}

pub(crate) async fn take_chore(db: &Db, chore: Chore, node: NodeId, term: Duration) -> Fallible<bool> {
    let now = db.registered(node).await?;
    let (chores, owner) = (db.collection(&db.names.chores), binary(node.0));
    let take =
        chores.update_one(commands::free_chore(chore.as_str(), &owner, now), commands::take_chore(&owner, span(term)));
    match take.upsert(true).await.map_err(Fault::from) {
        Ok(_) => {}
        // It is there and matches not: another node has it.
        Err(fault) if fault.is_duplicate_key() => return Ok(false),
        Err(fault) => return Err(fault),
    }
    // As with a claim: a node that was forgotten meanwhile must not keep it.
    if let Err(fault) = db.registered(node).await {
        if matches!(fault, Fault::Said(ErrorKind::LeaseLost, _)) {
            chores.delete_one(doc! { "_id": chore.as_str(), "Node": owner }).await?;
        }
        return Err(fault);
    }
    Ok(true)
}
