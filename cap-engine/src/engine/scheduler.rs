//! Wakes a lane when something in it is due: at once when told, at a due time without a tick, and by looking into the
//! storage where nobody tells.
//!
//! Nobody tells of a commit that the caller makes after publishing in his own transaction. The scheduler expects it: it
//! wakes the relay, whose claim finds what is committed, again and again at growing intervals, always a quarter of the
//! time since, so that a message is found soon after its commit. As long as a message has not come that way the intervals
//! stay short (see [`commits`](super::commits)).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::storage::Lane;
use cap_core::time::FAR;
use cap_core::{Group, MessageId, Result, Storage, Table, Version};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engine::commits::{self, Commits};

/// The outbox's place among the lanes.
pub(crate) const OUTBOX: usize = 0;

/// The place of the group that is the engine's `index`th.
pub(crate) const fn lane_of(index: usize) -> usize {
    OUTBOX + 1 + 2 * index
}

/// The place of a group's suspects, given the group's.
pub(crate) const fn suspects_of(lane: usize) -> usize {
    lane + 1
}

/// The shortest interval between two claims for expected commits: short for one that comes after a quiet time, so that
/// it is found at once; longer when several are expected, and when many are, which then share a claim.
const SHORTEST: Duration = Duration::from_micros(200);
const SHORTEST_OF_SEVERAL: Duration = Duration::from_millis(1);
const SHORTEST_OF_MANY: Duration = Duration::from_millis(4);
/// After so long without another expected commit it is quiet.
const QUIET: Duration = Duration::from_millis(10);
/// More expected commits than this since the last claim are many.
const SEVERAL: u32 = 4;

#[derive(Debug)]
pub(crate) struct Scheduler {
    lanes: Vec<(Lane, Notify)>,
    version: Version,
    poll: Duration,
    plan: Mutex<Plan>,
    changed: Notify,
}

#[derive(Debug)]
struct Plan {
    due: Vec<Option<Instant>>,
    next_look: Instant,
    expected: Option<Expected>,
    commits: Commits,
}

/// Commits that are expected.
#[derive(Debug)]
struct Expected {
    /// When the last of them was announced.
    since: Instant,
    after_quiet: bool,
    /// How many were announced since the relay was last woken for them.
    announced: u32,
    next: Instant,
}

impl Expected {
    fn shortest(&self) -> Duration {
        match self.announced {
            _ if self.after_quiet => SHORTEST,
            0..=SEVERAL => SHORTEST_OF_SEVERAL,
            _ => SHORTEST_OF_MANY,
        }
    }
}

impl Plan {
    /// Whether a claim is to be made now for expected commits; then the next one is planned.
    fn looks_for_commits(&mut self, now: Instant, poll: Duration) -> bool {
        let Some(expected) = self.expected.as_mut().filter(|expected| expected.next <= now) else { return false };
        let shortest = expected.shortest();
        let mut pause = ((now - expected.since) / 4).max(shortest);
        if self.commits.is_waiting(now) {
            pause = pause.min(commits::LONGEST);
        }
        expected.announced = 0;
        expected.next = now + pause;
        if pause >= poll.max(shortest) {
            // From here on the poll does as well.
            self.expected = None;
        }
        true
    }
}

impl Scheduler {
    /// The lanes are the outbox, and two of each group.
    pub(crate) fn new(version: Version, groups: impl IntoIterator<Item = Group>, poll: Duration) -> Self {
        let inbox = groups.into_iter().flat_map(|group| [Lane::Inbox(group.clone()), Lane::Suspects(group)]);
        let lanes: Vec<_> = std::iter::once(Lane::Outbox).chain(inbox).map(|lane| (lane, Notify::new())).collect();
        let plan = Plan {
            due: vec![None; lanes.len()],
            next_look: Instant::now(),
            expected: None,
            commits: Commits::default(),
        };
        Self { lanes, version, poll, plan: Mutex::new(plan), changed: Notify::new() }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lane(&self, index: usize) -> &Lane {
        &self.lanes[index].0
    }

    /// Waits until the lane is woken. A wake-up while nobody waits is kept.
    pub(crate) async fn woken(&self, lane: usize) {
        self.lanes[lane].1.notified().await;
    }

    /// Something may be due in the lane.
    pub(crate) fn wake(&self, lane: usize) {
        self.lanes[lane].1.notify_one();
    }

    /// Something may be due in any lane of the table.
    pub(crate) fn wake_table(&self, table: Table) {
        self.lanes.iter().filter(|(lane, _)| lane.table() == table).for_each(|(_, notify)| notify.notify_one());
    }

    /// Something in the lane is due after `delay`.
    pub(crate) fn wake_in(&self, lane: usize, delay: Duration) {
        if delay.is_zero() {
            return self.wake(lane);
        }
        let moment = Instant::now() + delay.min(FAR);
        let mut plan = self.plan();
        if plan.due[lane].is_none_or(|due| due > moment) {
            plan.due[lane] = Some(moment);
            drop(plan);
            self.changed.notify_one();
        }
    }

    /// A transaction that this engine cannot see may commit outbox records soon; those of these messages would be due then.
    pub(crate) fn expect_commit(&self, messages: impl IntoIterator<Item = MessageId>) {
        let now = Instant::now();
        let mut plan = self.plan();
        plan.commits.expect(messages, now);
        let expected = plan.expected.get_or_insert(Expected {
            since: now.checked_sub(2 * QUIET).unwrap_or(now),
            after_quiet: true,
            announced: 0,
            next: now + self.poll.max(QUIET),
        });
        expected.after_quiet = now - expected.since > QUIET;
        expected.since = now;
        expected.announced = expected.announced.saturating_add(1);
        let soon = now + expected.shortest();
        if expected.next > soon {
            expected.next = soon;
            drop(plan);
            self.changed.notify_one();
        }
    }

    /// Runs until `stop`, or until a look fails.
    /// `looked` is called after each look that was answered.
    pub(crate) async fn run(
        &self,
        storage: &Arc<dyn Storage>,
        stop: &CancellationToken,
        looked: impl Fn(),
    ) -> Result<()> {
        self.plan().next_look = Instant::now();
        loop {
            let next = {
                let plan = self.plan();
                let expected = plan.expected.as_ref().map(|expected| expected.next);
                plan.due.iter().copied().chain([expected]).flatten().fold(plan.next_look, Instant::min)
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.changed.notified() => continue,
                () = stop.cancelled() => return Ok(()),
            }
            self.wake_due_lanes();
            self.wake_for_expected();
            if self.plan().next_look <= Instant::now() {
                self.look(storage).await?;
                looked();
            }
        }
    }

    /// The relay has claimed these.
    pub(crate) fn claimed<'m>(&self, messages: impl IntoIterator<Item = &'m MessageId>) {
        self.plan().commits.came(messages);
    }

    fn wake_for_expected(&self) {
        if self.plan().looks_for_commits(Instant::now(), self.poll) {
            self.wake(OUTBOX);
        }
    }

    fn wake_due_lanes(&self) {
        let now = Instant::now();
        let mut plan = self.plan();
        for (lane, due) in plan.due.iter_mut().enumerate() {
            if due.is_some_and(|due| due <= now) {
                *due = None;
                self.wake(lane);
            }
        }
    }

    async fn look(&self, storage: &Arc<dyn Storage>) -> Result<()> {
        let lanes = self.lanes.iter().map(|(lane, _)| lane.clone()).collect();
        self.plan().next_look = Instant::now() + self.poll;
        let answers = storage.next_due(self.version.clone(), lanes).await?;
        for (lane, due) in answers.into_iter().enumerate().take(self.lanes.len()) {
            if let Some(delay) = due {
                self.wake_in(lane, delay);
            }
        }
        Ok(())
    }
}

/// Tokio's timer counts in milliseconds; what is sooner is slept by a thread of its pool.
async fn sleep_until(moment: Instant) {
    let pause = moment.saturating_duration_since(Instant::now());
    if pause >= Duration::from_millis(1) {
        return tokio::time::sleep_until(moment).await;
    }
    if !pause.is_zero() {
        // It cannot fail but at the end of the runtime.
        let _ = tokio::task::spawn_blocking(move || std::thread::sleep(pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_due_at_the_end_of_time_stops_nobody() {
        let group = Group::from_stored("g.v1");
        let scheduler = Scheduler::new(Version::default(), [group.clone()], Duration::MAX.min(FAR));
        let lane = lane_of(0);
        assert_eq!(*scheduler.lane(lane), Lane::Inbox(group.clone()));
        assert_eq!(*scheduler.lane(suspects_of(lane)), Lane::Suspects(group));
        scheduler.wake_in(lane, Duration::MAX);
        scheduler.expect_commit([MessageId::generate()]);
        scheduler.wake_in(lane, Duration::ZERO);
        scheduler.woken(lane).await;
    }

    /// The claims for expected commits until `end`, with these pauses between them.
    fn pauses(scheduler: &Scheduler, end: Instant) -> Vec<Duration> {
        let mut plan = scheduler.plan();
        let mut pauses = Vec::new();
        while let Some(now) = plan.expected.as_ref().map(|expected| expected.next).filter(|next| *next < end) {
            assert!(plan.looks_for_commits(now, scheduler.poll));
            pauses.extend(plan.expected.as_ref().map(|expected| expected.next - now));
        }
        pauses
    }

    #[tokio::test]
    async fn a_transaction_that_is_open_for_long_is_found_as_soon_as_a_short_one() {
        let scheduler = Scheduler::new(Version::default(), [], Duration::from_secs(1));
        let (open, short) = (MessageId::generate(), MessageId::generate());
        let began = Instant::now();
        scheduler.expect_commit([open.clone(), short.clone()]);
        scheduler.claimed([&short]);
        let late = pauses(&scheduler, began + Duration::from_secs(20));
        assert!(late.iter().all(|pause| *pause <= Duration::from_millis(30)), "{:?}", late.iter().max());
        assert!(late.len() < 2_000, "{} claims", late.len());

        // Once it has come, claims for it become fewer and end.
        scheduler.claimed([&open]);
        let after = pauses(&scheduler, began + Duration::from_secs(60));
        assert!(after.len() < 20, "{after:?}");
        assert!(scheduler.plan().expected.is_none());
    }

    #[tokio::test]
    async fn what_is_never_committed_is_not_looked_for_for_ever() {
        let scheduler = Scheduler::new(Version::default(), [], Duration::from_secs(1));
        scheduler.expect_commit([MessageId::generate()]);
        pauses(&scheduler, Instant::now() + Duration::from_secs(120));
        assert!(scheduler.plan().expected.is_none());
    }
}
