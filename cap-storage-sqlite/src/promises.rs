//! Leases that are kept while a handler has the file's one writer.
//!
//! A transactional handler works inside the writer's transaction, and a heartbeat could only wait for its end, while the
//! lease runs out. But as long as that transaction is open nobody else can write, and so nobody can take anything over. So
//! a heartbeat that meets a handler at work is answered at once, on a promise: before anybody else can write again, the
//! lease is renewed, inside the same transaction.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cap_core::storage::{Lease, Sign};
use cap_core::{NodeId, RecordId, Timestamp};
use tokio::sync::watch;

/// The database's clock ticks in milliseconds: what ends within so many microseconds may be over by it.
const TICK: i64 = 2_000;

/// The leases of the nodes that joined over one handle.
#[derive(Debug)]
pub(crate) struct Leases {
    state: Mutex<State>,
    at_work: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    granted: HashMap<NodeId, Granted>,
    handler: Option<Handler>,
    promised: HashMap<NodeId, i64>,
    /// What the last heartbeat that the database answered saw of the other nodes. While a handler has the writer, none of
    /// them can give another sign.
    others: Vec<Sign>,
}

/// When a lease ends, and how long it was, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Granted {
    until: i64,
    span: i64,
}

/// A handler at work.
#[derive(Debug)]
struct Handler {
    record: RecordId,
    since: Instant,
    is_told: bool,
}

impl Default for Leases {
    fn default() -> Self {
        Self { state: Mutex::default(), at_work: watch::Sender::new(false) }
    }
}

impl Leases {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database has granted a lease until then.
    pub(crate) fn granted(&self, node: NodeId, until: i64, span: i64) {
        let mut state = self.state();
        let now = now();
        state.granted.retain(|_, granted| granted.until > now);
        state.granted.insert(node, Granted { until, span });
    }

    /// A heartbeat saw these signs of the other nodes.
    pub(crate) fn saw(&self, others: &[Sign]) {
        self.state().others = others.to_vec();
    }

    /// The node has no lease any more.
    pub(crate) fn ended(&self, node: NodeId) {
        self.state().granted.remove(&node);
    }

    /// How long a connection of somebody else's may keep the writer waiting before that is worth a warning: half the
    /// shortest lease.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let shortest = self.state().granted.values().map(|granted| granted.span).min()?;
        Some(Duration::from_micros(shortest.unsigned_abs() / 2))
    }

    /// A handler begins to work, inside the writer's transaction.
    pub(crate) fn begin_work(&self, record: RecordId) {
        self.state().handler = Some(Handler { record, since: Instant::now(), is_told: false });
        self.at_work.send_replace(true);
    }

    /// It has returned. From now on nothing is promised.
    pub(crate) fn end_work(&self) {
        self.state().handler = None;
        self.at_work.send_replace(false);
    }

    /// Waits until a handler is at work and the renewal of the node's lease is promised.
    pub(crate) async fn promise(&self, node: NodeId, span: i64) -> Lease {
        let mut at_work = self.at_work.subscribe();
        loop {
            // Cannot fail: the sender is a field of what is borrowed here.
            let _ = at_work.wait_for(|is_at_work| *is_at_work).await;
            if self.try_promise(node, span) {
                return Lease::Held { now: Timestamp::now(), others: self.state().others.clone() };
            }
            let _ = at_work.wait_for(|is_at_work| !*is_at_work).await;
        }
    }

    /// Promises it if a handler is at work and the lease is live.
    fn try_promise(&self, node: NodeId, span: i64) -> bool {
        let mut state = self.state();
        let State { granted, handler: Some(handler), promised, .. } = &mut *state else { return false };
        let now = now();
        let Some(granted) = granted.get_mut(&node).filter(|granted| granted.until - TICK > now) else { return false };
        *granted = Granted { until: now.saturating_add(span), span };
        promised.insert(node, span);
        let taken = handler.since.elapsed();
        if !handler.is_told && taken >= Duration::from_micros(span.unsigned_abs() / 2) {
            handler.is_told = true;
            tracing::warn!(
                record = %handler.record,
                ?taken,
                "a transactional handler has the file's one writer for longer than half the lease: the lease is kept, \
                 but everybody's claims and settlements wait for it"
            );
        }
        true
    }

    /// What was promised and is not committed yet.
    pub(crate) fn promised(&self) -> Vec<(NodeId, i64)> {
        self.state().promised.iter().map(|(node, span)| (*node, *span)).collect()
    }

    /// All that was promised is committed.
    pub(crate) fn kept(&self) {
        self.state().promised.clear();
    }

    /// It could not be kept: the database decides when it is asked again.
    pub(crate) fn broken(&self) {
        let State { granted, promised, .. } = &mut *self.state();
        for (node, _) in promised.drain() {
            granted.remove(&node);
        }
    }
}

fn now() -> i64 {
    Timestamp::now().as_micros()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: i64 = 60_000_000;

    #[test]
    fn only_a_live_lease_is_promised_and_only_while_a_handler_works() {
        let leases = Leases::default();
        let (live, dead, stranger) = (NodeId::generate(), NodeId::generate(), NodeId::generate());
        leases.granted(live, now() + SPAN, SPAN);
        assert!(!leases.try_promise(live, SPAN), "no handler is at work");
        leases.begin_work(RecordId(1));
        leases.granted(dead, now() + TICK / 2, SPAN);
        assert!(leases.try_promise(live, SPAN));
        assert!(!leases.try_promise(dead, SPAN), "it has run out");
        assert!(!leases.try_promise(stranger, SPAN), "it never joined here");
        leases.end_work();
        assert!(!leases.try_promise(live, SPAN));
        assert_eq!(leases.promised(), [(live, SPAN)]);
        leases.kept();
        assert!(leases.promised().is_empty());
    }

    #[test]
    fn a_lease_is_promised_as_long_as_the_handler_works() {
        let leases = Leases::default();
        let node = NodeId::generate();
        leases.granted(node, now() + TICK + 500_000, 500_000);
        leases.begin_work(RecordId(1));
        assert!(leases.try_promise(node, SPAN));
        let Granted { until, .. } = leases.state().granted[&node];
        assert!(until > now() + SPAN / 2, "the next heartbeat finds the lease that this one was promised");
    }

    #[test]
    fn what_could_not_be_kept_is_not_promised_again() {
        let leases = Leases::default();
        let node = NodeId::generate();
        leases.granted(node, now() + SPAN, SPAN);
        leases.begin_work(RecordId(1));
        assert!(leases.try_promise(node, SPAN));
        leases.broken();
        assert!(!leases.try_promise(node, SPAN));
    }
}
