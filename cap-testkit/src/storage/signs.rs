//! Nodes' signs of life, for tests in which somebody dies.

use std::time::Duration;

use cap_core::storage::{Lease, Sign, Storage, TakenOver};
use cap_core::{NodeId, Result};

/// The last signs of life of all nodes, as they are told to one that joins for it.
///
/// # Errors
/// Those of the storage.
pub async fn signs(storage: &dyn Storage) -> Result<Vec<Sign>> {
    /// Longer than anything that is done here.
    const LEASE: Duration = Duration::from_secs(3600);
    let observer = NodeId::generate();
    storage.join(observer, LEASE).await?;
    let lease = storage.heartbeat(observer, LEASE).await?;
    storage.leave(observer).await?;
    Ok(match lease {
        Lease::Held { others, .. } => others,
        Lease::Lost => Vec::new(),
    })
}

/// Takes over from these nodes, as if they had given no sign of life for their leases.
///
/// # Errors
/// Those of the storage.
pub async fn take_over_from(storage: &dyn Storage, nodes: &[NodeId]) -> Result<TakenOver> {
    let mut dead = signs(storage).await?;
    dead.retain(|sign| nodes.contains(&sign.node));
    storage.take_over(dead).await
}
