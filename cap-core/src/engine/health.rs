//! Which loop is well, and which is ill since when.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::error::Error;
use crate::id::NodeId;

/// An engine's health at one moment.
#[derive(Debug, Clone)]
pub struct Health {
    /// The node's id while it holds a lease.
    pub node: Option<NodeId>,
    /// Each loop by its name (`relay`, `consumer billing.v1`, …).
    pub loops: BTreeMap<String, LoopHealth>,
}

/// One loop's health.
#[derive(Debug, Clone)]
pub enum LoopHealth {
    /// It works.
    Well,
    /// It fails and tries again.
    Ill {
        /// Since when without a success.
        since: SystemTime,
        /// How often it has failed since.
        failures: u64,
        /// Why, the last time.
        error: Error,
    },
}

impl Health {
    /// Whether the node holds its lease and every loop is well.
    pub fn is_well(&self) -> bool {
        self.node.is_some() && self.ill().next().is_none()
    }

    /// The loops that are ill, with the last error of each.
    pub fn ill(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.loops.iter().filter_map(|(name, health)| match health {
            LoopHealth::Well => None,
            LoopHealth::Ill { error, .. } => Some((name.as_str(), error)),
        })
    }
}

/// Where loops report.
#[derive(Debug, Default)]
pub(crate) struct HealthBoard(Mutex<BTreeMap<String, LoopHealth>>);

impl HealthBoard {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LoopHealth>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn well(&self, name: &str) {
        let mut board = self.lock();
        match board.get_mut(name) {
            Some(LoopHealth::Well) => {}
            Some(ill) => {
                tracing::info!(r#loop = name, "works again");
                *ill = LoopHealth::Well;
            }
            None => {
                board.insert(name.to_owned(), LoopHealth::Well);
            }
        }
    }

    /// A loop begins: well, unless it has failed before and not yet worked since.
    pub(crate) fn begins(&self, name: &str) {
        self.lock().entry(name.to_owned()).or_insert(LoopHealth::Well);
    }

    pub(crate) fn ill(&self, name: &str, error: Error) {
        tracing::warn!(r#loop = name, %error, "failed and will try again");
        let mut board = self.lock();
        let (since, failures) = match board.get(name) {
            Some(LoopHealth::Ill { since, failures, .. }) => (*since, failures + 1),
            _ => (SystemTime::now(), 1),
        };
        board.insert(name.to_owned(), LoopHealth::Ill { since, failures, error });
    }

    pub(crate) fn snapshot(&self) -> BTreeMap<String, LoopHealth> {
        self.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illness_counts_from_its_first_failure_and_ends_with_a_success() {
        let board = HealthBoard::default();
        let error = || Error::new(crate::ErrorKind::Unavailable, "reach", "the broker", "it is down");
        board.ill("relay", error());
        let LoopHealth::Ill { since: first, .. } = board.snapshot()["relay"].clone() else { panic!() };
        board.ill("relay", error());
        let LoopHealth::Ill { since, failures, .. } = board.snapshot()["relay"].clone() else { panic!() };
        assert_eq!((since, failures), (first, 2));
        board.well("relay");
        assert!(matches!(board.snapshot()["relay"], LoopHealth::Well));
    }
}
