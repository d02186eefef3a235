//! Records, nodes and looks for tests of a storage's own: of what is special about it, beside the checks.
//!
//! Everything here panics when the storage does not do what it is asked: these are tests.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::time::Duration;

use cap_core::lifecycle::{self, Outcome, Rules, State};
use cap_core::storage::{Claim, ClaimRequest, Inserted, Lane, NewRecord, Query, Record, Settlement, Storage, Table};
use cap_core::{Due, Group, MessageId, NodeId, RetryPolicy, Status, Topic, Version};

/// A lease that no test outlives.
pub const LEASE: Duration = Duration::from_secs(3600);

/// A record for the outbox, due at once.
pub fn message(id: &str) -> NewRecord {
    NewRecord {
        message_id: MessageId::try_from(id).unwrap(),
        version: Version::default(),
        topic: Topic::try_from("order.placed").unwrap(),
        group: None,
        content: format!("{{\"Id\":\"{id}\"}}").into(),
        state: lifecycle::scheduled(Due::Now),
    }
}

/// A record for the inbox, in flight: it needs a claim.
pub fn delivery(id: &str) -> NewRecord {
    NewRecord { group: Some(group()), state: lifecycle::received(true), ..message(id) }
}

/// A delivery that nobody works on yet.
pub fn waiting(id: &str) -> NewRecord {
    NewRecord { state: lifecycle::scheduled(Due::Now), ..delivery(id) }
}

/// The group of all deliveries here.
pub fn group() -> Group {
    Group::try_from("billing.v1").unwrap()
}

/// The state after a first attempt that succeeded.
pub fn succeeded() -> State {
    let keep = Duration::from_secs(60);
    let rules = Rules { retry: RetryPolicy::default(), keep_succeeded: keep, keep_dead: keep };
    lifecycle::settle(&lifecycle::Begun::first(), Outcome::Succeeded, &rules, 0.0)
}

/// A node that has joined.
pub async fn node(storage: &dyn Storage) -> NodeId {
    let node = NodeId::generate();
    storage.join(node, LEASE).await.unwrap();
    node
}

/// A claim by a node.
pub fn request(node: NodeId, lane: Lane, limit: usize) -> ClaimRequest {
    ClaimRequest::new(lane, Version::default(), Claim::by(node), limit)
}

/// All records of a table.
pub async fn listed(storage: &dyn Storage, table: Table) -> Vec<Record> {
    storage.list(table, Query { limit: 1000, ..Query::default() }).await.unwrap()
}

/// The message ids of all records of a table.
pub async fn ids(storage: &dyn Storage, table: Table) -> Vec<String> {
    listed(storage, table).await.iter().map(|record| record.message_id.to_string()).collect()
}

/// A record in the inbox, in flight, and the settlement that says it succeeded.
pub async fn in_flight(storage: &dyn Storage, node: NodeId, id: &str) -> Settlement {
    let claim = Claim::by(node);
    let inserted = storage.insert(Table::Inbox, vec![delivery(id)], Some(claim)).await.unwrap();
    let [Inserted::Stored(record)] = inserted[..] else { panic!("{inserted:?}") };
    Settlement { record, token: claim.token, state: succeeded() }
}

/// The statuses of all records of the inbox.
pub async fn inbox_status(storage: &dyn Storage) -> Vec<Status> {
    listed(storage, Table::Inbox).await.iter().map(|record| record.status).collect()
}
