//! Bounds on what is in flight: a record in memory holds a slot until its outcome is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::id::{ClaimToken, MessageId, RecordId};
use crate::name::{Group, Topic};
use crate::storage::{Claim, NewRecord, Record};

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

    /// Of a record that was inserted with a claim.
    pub(crate) fn fresh(record: RecordId, inserted: &NewRecord, claim: Claim, lane: usize, slot: Slot) -> Self {
        Self {
            record,
            token: claim.token,
            message_id: inserted.message_id.clone(),
            topic: inserted.topic.clone(),
            group: inserted.group.clone(),
            attempts: 1,
            lane,
            _slot: slot,
        }
    }
}

/// How long a group's waiting records may keep its handlers busy: what waits in this node's memory cannot be worked on
/// by others, so slow handlers keep little.
const WAIT_AHEAD: Duration = Duration::from_millis(500);
const MOST: usize = 2000;
/// How long deliveries wait for slots that are about to be free: taken now, they need no claim later.
const SOON: Duration = Duration::from_millis(20);
/// What is in flight in one lane may take so much memory: there are fewer slots for large messages.
const MEMORY: usize = 64 * 1024 * 1024;
/// How large messages are taken for before any was seen, in bytes.
const LARGE: usize = 16 * 1024;

/// The slots of one lane.
#[derive(Debug)]
pub(crate) struct Slots {
    used: AtomicUsize,
    /// At most so many, fixed for the relay; for a group it follows how long its handlers take.
    capacity: AtomicUsize,
    concurrency: usize,
    mean_nanos: AtomicU64,
    /// The largest recent message, in bytes; falls slowly.
    large: AtomicUsize,
    /// Whoever waits for room is told once fewer than this many are used; 0 while nobody waits.
    wanted_below: AtomicUsize,
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
            large: AtomicUsize::new(LARGE),
            wanted_below: AtomicUsize::new(0),
            freed: Notify::new(),
            idle: Notify::new(),
        })
    }

    pub(crate) fn capacity(&self) -> usize {
        let fit = MEMORY / self.large.load(Ordering::Relaxed).max(1);
        self.capacity.load(Ordering::Relaxed).min(fit.max(1))
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// Takes as many as are free, at most `wanted`.
    pub(crate) fn take(self: &Arc<Self>, wanted: usize) -> Room {
        let capacity = self.capacity();
        let mut taken = 0;
        let _ = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            taken = capacity.saturating_sub(used).min(wanted);
            Some(used + taken)
        });
        Room { slots: Arc::clone(self), left: taken }
    }

    /// Takes at most `wanted`, waiting until a good part of them (a quarter of the capacity, at most half of
    /// `wanted`) is free, so that claims are not made one by one.
    pub(crate) async fn take_many(self: &Arc<Self>, wanted: usize) -> Room {
        loop {
            let freed = self.freed.notified();
            let least = (self.capacity() / 4).min(wanted / 2).max(1);
            if self.has_room(least) {
                let room = self.take(wanted);
                if room.left > 0 {
                    return room;
                }
            }
            freed.await;
        }
    }

    /// Takes at most `wanted`. If not so many are free, but soon will be at the pace of the handlers, it waits for them
    /// for a moment.
    pub(crate) async fn take_soon(self: &Arc<Self>, wanted: usize) -> Room {
        let freed = async {
            loop {
                let freed = self.freed.notified();
                if self.has_room(wanted) {
                    return;
                }
                freed.await;
            }
        };
        let ahead = self.mean().saturating_mul(u32::try_from(wanted).unwrap_or(u32::MAX));
        if wanted <= self.capacity() && ahead <= SOON.saturating_mul(u32::try_from(self.concurrency).unwrap_or(1)) {
            let _ = tokio::time::timeout(SOON, freed).await;
        }
        self.take(wanted)
    }

    /// Whether `least` are free. If not, whoever waits is told when they are.
    fn has_room(&self, least: usize) -> bool {
        let capacity = self.capacity();
        self.wanted_below.fetch_max(capacity.saturating_sub(least) + 1, Ordering::SeqCst);
        capacity.saturating_sub(self.used()) >= least
    }

    /// Gives back `number` of them.
    fn free(&self, number: usize) {
        let used = self.used.fetch_sub(number, Ordering::SeqCst) - number;
        if used < self.wanted_below.load(Ordering::SeqCst) {
            self.tell_of_room();
        }
        if used == 0 {
            self.idle.notify_waiters();
        }
    }

    /// All who wait look again, and say again how much they want.
    fn tell_of_room(&self) {
        self.wanted_below.store(0, Ordering::SeqCst);
        self.freed.notify_waiters();
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

    /// Learns how large messages are, from those of a batch, in bytes.
    pub(crate) fn learn_sizes(&self, sizes: impl Iterator<Item = usize>) {
        let Some(bytes) = sizes.max() else { return };
        let before = self.large.load(Ordering::Relaxed);
        if bytes != before {
            self.large.store(bytes.max(before - before / 64), Ordering::Relaxed);
        }
    }

    fn mean(&self) -> Duration {
        Duration::from_nanos(self.mean_nanos.load(Ordering::Relaxed))
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
        let before = self.capacity.swap(capacity, Ordering::SeqCst);
        if capacity > before && self.wanted_below.load(Ordering::SeqCst) > 0 {
            self.tell_of_room();
        }
    }
}

/// Slots that were taken together; what is left of them is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    slots: Arc<Slots>,
    left: usize,
}

impl Room {
    /// How many slots are left.
    pub(crate) fn len(&self) -> usize {
        self.left
    }

    /// Keeps at most `most`.
    pub(crate) fn truncate(&mut self, most: usize) {
        let surplus = self.left.saturating_sub(most);
        if surplus > 0 {
            self.left -= surplus;
            self.slots.free(surplus);
        }
    }

    /// Takes one out.
    pub(crate) fn next(&mut self) -> Option<Slot> {
        self.left = self.left.checked_sub(1)?;
        Some(Slot(Arc::clone(&self.slots)))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

/// One slot; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.free(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_come_back() {
        let slots = Slots::fixed(3);
        let mut taken = slots.take(5);
        assert_eq!((taken.len(), slots.take(1).len()), (3, 0));
        let one = taken.next();
        drop(taken);
        assert_eq!(slots.used(), 1);
        drop(one);
        assert_eq!(slots.used(), 0);
    }

    #[tokio::test]
    async fn who_waits_for_room_is_told_once_enough_is_free() {
        let slots = Slots::fixed(8);
        let mut all = slots.take(8);
        let mut waiting = Box::pin(slots.take_many(8));
        assert!(futures_now(&mut waiting).is_none());
        let one = all.next();
        drop(one);
        assert!(futures_now(&mut waiting).is_none(), "one of eight is no good part");
        all.truncate(5);
        assert_eq!(futures_now(&mut waiting).map(|room| room.len()), Some(3));
    }

    #[tokio::test]
    async fn who_waits_for_slots_gets_them_though_the_capacity_falls_meanwhile() {
        let slots = Slots::adaptive(1);
        let taken = slots.take(usize::MAX);
        let mut waiting = Box::pin(slots.take_many(500));
        assert!(futures_now(&mut waiting).is_none());
        slots.learn(Duration::from_secs(60));
        drop(taken);
        let got = futures_now(&mut waiting).map(|room| room.len());
        assert_eq!(got, Some(slots.capacity()));
    }

    #[test]
    fn large_messages_have_fewer_slots() {
        let slots = Slots::fixed(1000);
        assert_eq!(slots.capacity(), 1000);
        slots.learn_sizes([10, 4 * 1024 * 1024].into_iter());
        assert_eq!(slots.capacity(), 16);
        (0..2000).for_each(|_| slots.learn_sizes(std::iter::once(500)));
        assert_eq!(slots.capacity(), 1000);
    }

    fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn slow_handlers_keep_little_and_fast_ones_much() {
        let slots = Slots::adaptive(4);
        slots.learn(Duration::from_secs(60));
        assert_eq!(slots.capacity(), 8);
        let fast = Slots::adaptive(4);
        fast.learn(Duration::from_micros(10));
        assert_eq!(fast.capacity(), 2004);
    }
}
