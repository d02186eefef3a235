//! What is special about MongoDB. What every storage must promise is in the conformance suite.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connecting;
mod fencing;
mod net_cap;
mod running;
mod schema;
#[path = "../support/mod.rs"]
mod support;
mod transactions;

use std::time::Duration;

use cap_core::lifecycle::{self, Outcome, Rules, State};
use cap_core::storage::{Claim, ClaimRequest, Inserted, Lane, NewRecord, Query, Record, Settlement, Storage, Table};
use cap_core::{Due, Group, MessageId, NodeId, RetryPolicy, Status, Topic, Version};
use cap_storage_mongo::MongoStorage;

pub(crate) const LEASE: Duration = Duration::from_secs(3600);

pub(crate) fn message(id: &str) -> NewRecord {
    NewRecord {
        message_id: MessageId::try_from(id).unwrap(),
        version: Version::default(),
        topic: Topic::try_from("order.placed").unwrap(),
        group: None,
        content: format!("{{\"Id\":\"{id}\"}}").into(),
        state: lifecycle::scheduled(Due::Now),
    }
}

pub(crate) fn delivery(id: &str) -> NewRecord {
    NewRecord { group: Some(group()), state: lifecycle::received(true), ..message(id) }
}

/// A delivery that nobody works on yet.
pub(crate) fn waiting(id: &str) -> NewRecord {
    NewRecord { state: lifecycle::scheduled(Due::Now), ..delivery(id) }
}

pub(crate) fn group() -> Group {
    Group::try_from("billing.v1").unwrap()
}

pub(crate) fn succeeded() -> State {
    let keep = Duration::from_secs(60);
    let rules = Rules { retry: RetryPolicy::default(), keep_succeeded: keep, keep_dead: keep };
    lifecycle::settle(1, Outcome::Succeeded, &rules, 0.0)
}

pub(crate) async fn node(storage: &MongoStorage) -> NodeId {
    let node = NodeId::generate();
    storage.join(node, LEASE).await.unwrap();
    node
}

pub(crate) fn request(node: NodeId, lane: Lane, limit: usize) -> ClaimRequest {
    ClaimRequest { lane, version: Version::default(), claim: Claim::by(node), limit }
}

pub(crate) async fn listed(storage: &MongoStorage, table: Table) -> Vec<Record> {
    storage.list(table, Query { limit: 1000, ..Query::default() }).await.unwrap()
}

pub(crate) async fn ids(storage: &MongoStorage, table: Table) -> Vec<String> {
    listed(storage, table).await.iter().map(|record| record.message_id.to_string()).collect()
}

/// A record in the inbox, in flight, and the settlement that says it succeeded.
pub(crate) async fn in_flight(storage: &MongoStorage, node: NodeId, id: &str) -> Settlement {
    let claim = Claim::by(node);
    let inserted = storage.insert(Table::Inbox, vec![delivery(id)], Some(claim)).await.unwrap();
    let [Inserted::Stored(record)] = inserted[..] else { panic!("{inserted:?}") };
    Settlement { record, token: claim.token, state: succeeded() }
}

pub(crate) async fn inbox_status(storage: &MongoStorage) -> Vec<Status> {
    listed(storage, Table::Inbox).await.iter().map(|record| record.status).collect()
}
