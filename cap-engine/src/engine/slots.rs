//! Bounds on what is in flight, in records and in bytes: a record in memory holds a slot until its outcome is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// How long a group's waiting records may keep its handlers busy: what waits in this node's memory cannot be worked on
/// by others, so slow handlers keep little.
const WAIT_AHEAD: Duration = Duration::from_millis(500);
const MOST: usize = 2000;
/// How long deliveries wait for slots that are about to be free: taken now, they need no claim later.
const SOON: Duration = Duration::from_millis(20);
/// At most so many suspects are worked on at once.
const SUSPECTS: usize = 128;
/// How large messages are taken for before any was seen, in bytes.
const LARGE: usize = 16 * 1024;

/// The most that are in flight for a subscription of that concurrency, but for what a claim brought beyond it.
pub(crate) fn most_of(concurrency: usize) -> usize {
    concurrency.saturating_mul(2).max(concurrency.saturating_add(MOST))
}

/// The slots of one lane.
#[derive(Debug)]
pub(crate) struct Slots {
    used: AtomicUsize,
    /// The contents of what is in flight, in bytes.
    bytes: AtomicUsize,
    /// At most so many of them: while there are, no more slots are given. One message is always allowed.
    most_bytes: usize,
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
    /// A wait for slots that seemed to be about to be free was in vain, and none was freed since.
    is_stuck: AtomicBool,
    /// A part of them is to be free before more is claimed.
    is_full: AtomicBool,
    /// Told when that part is free.
    opened: Arc<Notify>,
}

impl Slots {
    /// A fixed number.
    pub(crate) fn fixed(capacity: usize, most_bytes: usize) -> Arc<Self> {
        Self::new(capacity, 0, most_bytes, Arc::default())
    }

    /// Twice the concurrency, and as many more as handlers are fast. `opened` is told when a good part of what
    /// [`is_full`](Self::is_full) found used is free.
    pub(crate) fn adaptive(concurrency: usize, most_bytes: usize, opened: Arc<Notify>) -> Arc<Self> {
        let capacity = concurrency.saturating_mul(2).clamp(16, MOST.max(concurrency));
        Self::new(capacity, concurrency, most_bytes, opened)
    }

    /// For suspects: one, and one more for each that turns out to be innocent, so that their number doubles from round to
    /// round.
    pub(crate) fn growing() -> Arc<Self> {
        Self::new(1, 0, usize::MAX, Arc::default())
    }

    /// An attempt on a suspect has ended, and this process lives.
    fn grow(&self) {
        let more = |capacity: usize| (capacity < SUSPECTS).then_some(capacity + 1);
        if self.capacity.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok() {
            self.tell_of_room();
        }
    }

    fn new(capacity: usize, concurrency: usize, most_bytes: usize, opened: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            most_bytes,
            capacity: AtomicUsize::new(capacity),
            concurrency,
            mean_nanos: AtomicU64::new(0),
            large: AtomicUsize::new(LARGE),
            wanted_below: AtomicUsize::new(0),
            freed: Notify::new(),
            idle: Notify::new(),
            is_stuck: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            opened,
        })
    }

    pub(crate) fn capacity(&self) -> usize {
        let fit = self.most_bytes / self.large.load(Ordering::Relaxed).max(1);
        self.capacity.load(Ordering::Relaxed).min(fit.max(1))
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// How many bytes more may be in flight.
    pub(crate) fn bytes_left(&self) -> usize {
        self.most_bytes.saturating_sub(self.bytes.load(Ordering::SeqCst))
    }

    /// How many are free.
    pub(crate) fn left(&self) -> usize {
        self.capacity().saturating_sub(self.used())
    }

    /// More are used than there are: what was claimed was not known to be for them.
    pub(crate) fn is_over(&self) -> bool {
        self.used() > self.capacity()
    }

    /// Whether less than a good part of them (a quarter of the capacity, at most `most`; and of the bytes) is free.
    /// `opened` is told when it is.
    pub(crate) fn is_full(&self, most: usize) -> bool {
        let part = || (self.capacity() / 4).min(most).max(1);
        let has_part = || self.left() >= part() && self.bytes_left() > self.most_bytes / 4;
        if has_part() {
            return false;
        }
        // Said first: what is freed after the look is told.
        self.is_full.store(true, Ordering::SeqCst);
        self.wanted_below.fetch_max(self.capacity().saturating_sub(part()) + 1, Ordering::SeqCst);
        if !has_part() {
            return true;
        }
        self.is_full.store(false, Ordering::SeqCst);
        false
    }

    /// Takes one that may not be free: the record is here already.
    pub(crate) fn occupy(self: &Arc<Self>, bytes: usize) -> Slot {
        self.learn_sizes(std::iter::once(bytes));
        self.used.fetch_add(1, Ordering::SeqCst);
        let mut slot = Slot { slots: Arc::clone(self), bytes: 0 };
        slot.weigh(bytes);
        slot
    }

    /// Takes as many as are free, at most `wanted`.
    pub(crate) fn take(self: &Arc<Self>, wanted: usize) -> Room {
        let capacity = if self.bytes_left() > 0 { self.capacity() } else { 0 };
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
        let is_soon = ahead <= SOON.saturating_mul(u32::try_from(self.concurrency).unwrap_or(1));
        if wanted <= self.capacity() && is_soon && !self.is_stuck.load(Ordering::Relaxed) {
            let is_free = tokio::time::timeout(SOON, freed).await.is_ok();
            self.is_stuck.store(!is_free, Ordering::Relaxed);
        }
        self.take(wanted)
    }

    /// Whether `least` are free. If not, whoever waits is told when they are.
    fn has_room(&self, least: usize) -> bool {
        let capacity = self.capacity();
        self.wanted_below.fetch_max(capacity.saturating_sub(least) + 1, Ordering::SeqCst);
        capacity.saturating_sub(self.used()) >= least && self.bytes_left() > 0
    }

    /// Gives back `number` of them.
    fn free(&self, number: usize) {
        let used = self.used.fetch_sub(number, Ordering::SeqCst) - number;
        self.is_stuck.store(false, Ordering::Relaxed);
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
        if self.is_full.swap(false, Ordering::SeqCst) {
            self.opened.notify_one();
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

    /// How many bytes the records may have together.
    pub(crate) fn bytes_left(&self) -> usize {
        self.slots.bytes_left()
    }

    /// Keeps at most `most`.
    pub(crate) fn truncate(&mut self, most: usize) {
        let surplus = self.left.saturating_sub(most);
        if surplus > 0 {
            self.left -= surplus;
            self.slots.free(surplus);
        }
    }

    /// Whether these are some of `slots`.
    pub(crate) fn is_of(&self, slots: &Arc<Slots>) -> bool {
        Arc::ptr_eq(&self.slots, slots)
    }

    /// Takes one out.
    pub(crate) fn next(&mut self) -> Option<Slot> {
        self.left = self.left.checked_sub(1)?;
        Some(Slot { slots: Arc::clone(&self.slots), bytes: 0 })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

/// One slot; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    bytes: usize,
}

impl Slot {
    /// How large the content is that it is for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A suspect's attempt has come to its end, however, and this process lives: its place is free, and there is one more.
    pub(crate) fn acquit(self) {
        self.slots.grow();
    }

    /// It is for a content of so many bytes.
    pub(crate) fn weigh(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.slots.bytes.fetch_add(bytes, Ordering::SeqCst);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        self.slots.free(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: usize = 64 * 1024 * 1024;

    fn fixed(capacity: usize) -> Arc<Slots> {
        Slots::fixed(capacity, MEMORY)
    }

    #[test]
    fn while_so_many_bytes_are_in_flight_nothing_more_is_taken() {
        let slots = Slots::fixed(8, 1000);
        (0..2000).for_each(|_| slots.learn_sizes(std::iter::once(1)));
        let mut room = slots.take(2);
        let (mut large, mut small) = (room.next().unwrap(), room.next().unwrap());
        large.weigh(5000);
        small.weigh(1);
        assert_eq!((slots.bytes_left(), slots.take(1).len()), (0, 0));
        drop(large);
        assert_eq!(slots.bytes_left(), 999);
        drop(small);
        assert_eq!((slots.bytes_left(), slots.used()), (1000, 0));
    }

    #[test]
    fn suspects_begin_with_one_and_double_from_round_to_round() {
        let slots = Slots::growing();
        for round in [1, 2, 4, 8, 16, 32, 64, SUSPECTS, SUSPECTS] {
            let room = slots.take(usize::MAX);
            assert_eq!(room.len(), round);
            drop(room);
            (0..round).for_each(|_| slots.grow());
        }
    }

    #[test]
    fn slots_are_bounded_and_come_back() {
        let slots = fixed(3);
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
        let slots = fixed(8);
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
        let slots = Slots::adaptive(1, MEMORY, Arc::default());
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
        let slots = fixed(1000);
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
        let slots = Slots::adaptive(4, MEMORY, Arc::default());
        slots.learn(Duration::from_secs(60));
        assert_eq!(slots.capacity(), 8);
        let fast = Slots::adaptive(4, MEMORY, Arc::default());
        fast.learn(Duration::from_micros(10));
        assert_eq!(fast.capacity(), 2004);
    }
}
