//! Which loop is well, and which is ill since when.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use cap_core::{Error, Group, NodeId, Timestamp, Topic};
use serde::{Serialize, Serializer};

use crate::engine::Engine;
use crate::engine::relay::BROKER;

/// An engine's health at one moment. It serialises for a probe's answer.
///
/// ```
/// # fn example(cap: &cap_engine::Cap) -> Result<(), serde_json::Error> {
/// let health = cap.health();
/// let (live_status, ready_status) = (if health.live { 200 } else { 503 }, if health.ready { 200 } else { 503 });
/// println!("{live_status} {ready_status} {}", serde_json::to_string(&health)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// False if only a new process can help. Whatever ails a loop, it mends by itself once its server is back.
    pub live: bool,
    /// The engine does its work now: the node holds its lease, every loop is well, and nobody wants it to stop.
    pub ready: bool,
    /// The node's id while it holds a lease.
    #[serde(serialize_with = "text")]
    pub node: Option<NodeId>,
    /// Each loop by its name (`relay`, `consumer billing.v1`, …), and `broker` for what sending meets.
    pub loops: BTreeMap<String, LoopHealth>,
    /// Messages that wait for something that no loop can mend: of topics whose queue is full or missing, or that no
    /// subscription of this node matches. They are no illness: all others go on.
    pub waiting: Vec<Waiting>,
}

/// Messages that wait, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Waiting {
    /// Their topic.
    pub topic: Topic,
    /// The group that they wait in; none in the outbox.
    pub group: Option<Group>,
    /// Since when, as far as this process knows.
    #[serde(serialize_with = "moment")]
    pub since: SystemTime,
    /// What they wait for.
    pub reason: String,
}

/// One loop's health.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum LoopHealth {
    /// It works.
    Well,
    /// It fails and tries again.
    Ill {
        /// Since when without a success.
        #[serde(serialize_with = "moment")]
        since: SystemTime,
        /// How often it has failed since.
        failures: u64,
        /// Why, the last time.
        error: Error,
    },
}

fn text<S: Serializer>(node: &Option<NodeId>, serializer: S) -> Result<S::Ok, S::Error> {
    node.map(|node| node.to_string()).serialize(serializer)
}

/// RFC 3339.
fn moment<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Timestamp::from(*time))
}

impl Health {
    /// The loops that are ill, with the last error of each.
    pub fn ill(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.loops.iter().filter_map(|(name, health)| match health {
            LoopHealth::Well => None,
            LoopHealth::Ill { error, .. } => Some((name.as_str(), error)),
        })
    }

    pub(crate) fn of(engine: &Engine) -> Self {
        let mut loops = engine.health.snapshot();
        if let Some(error) = engine.transport.obstacle() {
            loops.insert(BROKER.into(), LoopHealth::Ill { since: SystemTime::now(), failures: 1, error });
        }
        let node = engine.node.current().map(|epoch| epoch.id);
        let are_well = loops.values().all(|health| matches!(health, LoopHealth::Well));
        let is_stopping = engine.stop.requested.is_cancelled();
        Self {
            live: is_stopping || engine.pulse.is_kept(),
            ready: node.is_some() && are_well && !is_stopping,
            node,
            loops,
            waiting: waiting(engine),
        }
    }
}

fn waiting(engine: &Engine) -> Vec<Waiting> {
    let refused = engine.relay.topics().since().into_iter();
    let outbox =
        refused.map(|(topic, since, error)| Waiting { topic, group: None, since, reason: error.reason().to_owned() });
    let inbox = engine.groups.iter().flat_map(|group| {
        let reason = "no subscription of this node matches: they wait for a node that has one";
        let group_name = group.name.clone();
        group.unhandled.since().into_iter().map(move |(topic, since)| Waiting {
            topic,
            group: Some(group_name.clone()),
            since,
            reason: reason.into(),
        })
    });
    outbox.chain(inbox).collect()
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
                tracing::info!("cap.loop" = name, "works again");
                *ill = LoopHealth::Well;
            }
            None => {
                board.insert(name.to_owned(), LoopHealth::Well);
            }
        }
    }

    /// Whether it is not known to be ill.
    pub(crate) fn is_well(&self, name: &str) -> bool {
        !matches!(self.lock().get(name), Some(LoopHealth::Ill { .. }))
    }

    /// A loop begins: well, unless it has failed before and not yet worked since.
    pub(crate) fn begins(&self, name: &str) {
        self.lock().entry(name.to_owned()).or_insert(LoopHealth::Well);
    }

    pub(crate) fn ill(&self, name: &str, error: Error) {
        tracing::warn!("cap.loop" = name, error.message = %error, "failed and will try again");
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
        let error = || Error::new(cap_core::ErrorKind::Unavailable, "reach", "the broker", "it is down");
        board.ill("relay", error());
        let LoopHealth::Ill { since: first, .. } = board.snapshot()["relay"].clone() else { panic!() };
        board.ill("relay", error());
        let LoopHealth::Ill { since, failures, .. } = board.snapshot()["relay"].clone() else { panic!() };
        assert_eq!((since, failures), (first, 2));
        assert!(!board.is_well("relay"));
        let json = serde_json::to_value(board.snapshot()).unwrap();
        assert_eq!(json["relay"]["state"], "ill");
        assert_eq!(json["relay"]["error"]["reason"], "it is down");
        board.well("relay");
        assert!(board.is_well("relay"));
        assert_eq!(serde_json::to_value(board.snapshot()).unwrap()["relay"]["state"], "well");
    }
}
