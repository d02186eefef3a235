//! Bounds on what is in flight: a record in memory holds a slot until its outcome is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::id::{ClaimToken, MessageId, RecordId};
use crate::name::{Group, Topic};
use crate::storage::{Claim, Record};

/// A claimed record that this node works on, without its content.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) record: RecordId,
    pub(crate) token: ClaimToken,
    pub(crate) message_id: MessageId,
    pub(crate) topic: Topic,
    pub(crate) group: Option<Group>,
    pub(crate) attempts: u32,
    pub(crate) lane: usize,
    /// Free again when this is dropped.
    pub(crate) _slot: Slot,
}

impl Held {
    pub(crate) fn new(record: &Record, claim: Claim, lane: usize, slot: Slot) -> Self {
        Self {
            record: record.id,
            token: claim.token,
            message_id: record.message_id.clone(),
            topic: record.topic.clone(),
            group: record.group.clone(),
            attempts: record.attempts,
            lane,
            _slot: slot,
        }
    }
}

/// How long a group's waiting records may keep its handlers busy: what waits in this node's memory cannot be worked on
/// by others, so slow handlers keep little.
const WAIT_AHEAD: Duration = Duration::from_millis(500);
const MOST: usize = 1000;

/// The slots of one lane.
#[derive(Debug)]
pub(crate) struct Slots {
    used: AtomicUsize,
    /// At most so many, fixed for the relay; for a group it follows how long its handlers take.
    capacity: AtomicUsize,
    concurrency: usize,
    mean_nanos: AtomicU64,
    freed: Notify,
    idle: Notify,
}

impl Slots {
    /// A fixed number.
    pub(crate) fn fixed(capacity: usize) -> Arc<Self> {
        Self::new(capacity, 0)
    }

    /// Twice the concurrency, and as many more as handlers are fast.
    pub(crate) fn adaptive(concurrency: usize) -> Arc<Self> {
        Self::new(concurrency.saturating_mul(2).clamp(16, MOST.max(concurrency)), concurrency)
    }

    fn new(capacity: usize, concurrency: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            capacity: AtomicUsize::new(capacity),
            concurrency,
            mean_nanos: AtomicU64::new(0),
            freed: Notify::new(),
            idle: Notify::new(),
        })
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed)
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Takes as many as are free, at most `wanted`.
    pub(crate) fn take(self: &Arc<Self>, wanted: usize) -> Vec<Slot> {
        let capacity = self.capacity();
        let mut taken = 0;
        let _ = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            taken = capacity.saturating_sub(used).min(wanted);
            Some(used + taken)
        });
        (0..taken).map(|_| Slot(Arc::clone(self))).collect()
    }

    /// Takes at most `wanted`, waiting until a good part of them (a quarter of the capacity, at most half of
    /// `wanted`) is free, so that claims are not made one by one.
    pub(crate) async fn take_many(self: &Arc<Self>, wanted: usize) -> Vec<Slot> {
        loop {
            let freed = self.freed.notified();
            // Anew each time: the capacity may have fallen below what was asked for before.
            let capacity = self.capacity();
            let least = (capacity / 4).min(wanted / 2).max(1);
            if capacity.saturating_sub(self.used()) >= least {
                let slots = self.take(wanted);
                if !slots.is_empty() {
                    return slots;
                }
            }
            freed.await;
        }
    }

    /// Waits until none is used.
    pub(crate) async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.used() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Learns how long a handler took (a moving mean over about eight).
    pub(crate) fn learn(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let old = self.mean_nanos.load(Ordering::Relaxed);
        let mean = if old == 0 { nanos } else { old - old / 8 + nanos / 8 }.max(1);
        self.mean_nanos.store(mean, Ordering::Relaxed);
        let ahead = u64::try_from(WAIT_AHEAD.as_nanos()).unwrap_or(u64::MAX) / mean;
        let waiting = usize::try_from(ahead).unwrap_or(MOST).saturating_mul(self.concurrency).min(MOST);
        let capacity = self.concurrency.saturating_add(waiting.max(self.concurrency));
        self.capacity.store(capacity, Ordering::Relaxed);
    }
}

/// One slot; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        let before = self.0.used.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_waiters();
        if before == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_come_back() {
        let slots = Slots::fixed(3);
        let taken = slots.take(5);
        assert_eq!((taken.len(), slots.take(1).len()), (3, 0));
        drop(taken);
        assert_eq!(slots.used(), 0);
    }

    #[tokio::test]
    async fn who_waits_for_slots_gets_them_though_the_capacity_falls_meanwhile() {
        let slots = Slots::adaptive(1);
        let taken = slots.take(usize::MAX);
        let waiting = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.take_many(500).await.len() }
        });
        tokio::task::yield_now().await;
        slots.learn(Duration::from_secs(60));
        drop(taken);
        let got = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("it waits for ever").unwrap();
        assert!((1..=slots.capacity()).contains(&got), "{got} of {}", slots.capacity());
    }

    #[test]
    fn slow_handlers_keep_little_and_fast_ones_much() {
        let slots = Slots::adaptive(4);
        slots.learn(Duration::from_secs(60));
        assert_eq!(slots.capacity(), 8);
        let fast = Slots::adaptive(4);
        fast.learn(Duration::from_micros(10));
        assert_eq!(fast.capacity(), 1004);
    }
}
