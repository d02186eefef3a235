//! What no storage may take, and of whom.

use crate::id::NodeId;
use crate::lifecycle::Status;
use crate::storage::{NewRecord, Table};

/// Why these records can never be stored, if so (`insert/7` of [`Storage`](crate::Storage)): one is to be in flight and
/// nobody claims it, or belongs into the inbox and has no group. The error of it is of kind `Invalid`.
pub fn refuse(table: Table, records: &[NewRecord], are_claimed: bool) -> Option<String> {
    records.iter().find_map(|NewRecord { message_id, group, state, .. }| {
        if state.status() == Status::Queued && !are_claimed {
            return Some(format!(
                "message {message_id} is to be in flight, and nobody claims it: it would never be due"
            ));
        }
        let is_homeless = table == Table::Inbox && group.is_none();
        is_homeless.then(|| format!("message {message_id} has no group, and each inbox record belongs to one"))
    })
}

/// Why a storage does nothing for this node: the reason of an error of kind `LeaseLost`.
pub fn unregistered(node: NodeId) -> String {
    format!("node {node} is not registered: it was taken over from, or it never joined")
}
