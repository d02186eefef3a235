//! Wakes a lane when something in it is due: at once when told, at a due time without a tick, and by looking into the
//! storage where nobody tells.
//!
//! Nobody tells of a commit that the caller makes after publishing in his own transaction. The scheduler expects it:
//! it looks again and again at growing intervals, always a quarter of the time since, so that a message is found soon
//! after its commit and a transaction that is open for long costs few looks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::name::Version;
use crate::storage::{Lane, Storage, Table};

/// The outbox's place among the lanes.
pub(crate) const OUTBOX: usize = 0;

/// The shortest interval between two looks for an expected commit: short when one is expected after a quiet time, so
/// that it is found at once; longer when many are, which then share looks.
const SHORTEST_LOOK: Duration = Duration::from_micros(200);
const SHORTEST_LOOK_OF_MANY: Duration = Duration::from_millis(1);
/// After so long without another expected commit it is quiet.
const QUIET: Duration = Duration::from_millis(10);

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
    expected_since: Option<Instant>,
    shortest: Duration,
    next_look: Instant,
}

impl Scheduler {
    /// `groups` are the inbox lanes, after the outbox.
    pub(crate) fn new(version: Version, groups: impl IntoIterator<Item = Lane>, poll: Duration) -> Self {
        let lanes: Vec<_> = std::iter::once(Lane::Outbox).chain(groups).map(|lane| (lane, Notify::new())).collect();
        let plan = Plan {
            due: vec![None; lanes.len()],
            expected_since: None,
            shortest: SHORTEST_LOOK,
            next_look: Instant::now(),
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
        let moment = Instant::now() + delay;
        let mut plan = self.plan();
        if plan.due[lane].is_none_or(|due| due > moment) {
            plan.due[lane] = Some(moment);
            drop(plan);
            self.changed.notify_one();
        }
    }

    /// A transaction that this engine cannot see may commit an outbox record soon.
    pub(crate) fn expect_commit(&self) {
        let now = Instant::now();
        let mut plan = self.plan();
        let quiet = plan.expected_since.is_none_or(|since| now - since > QUIET);
        plan.shortest = if quiet { SHORTEST_LOOK } else { SHORTEST_LOOK_OF_MANY };
        plan.expected_since = Some(now);
        let soon = now + plan.shortest;
        if plan.next_look > soon {
            plan.next_look = soon;
            drop(plan);
            self.changed.notify_one();
        }
    }

    /// Runs until `stop`, or until a look fails.
    pub(crate) async fn run(&self, storage: &Arc<dyn Storage>, stop: &CancellationToken) -> Result<()> {
        self.plan().next_look = Instant::now();
        loop {
            let next = {
                let plan = self.plan();
                plan.due.iter().flatten().copied().fold(plan.next_look, Instant::min)
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.changed.notified() => continue,
                () = stop.cancelled() => return Ok(()),
            }
            self.wake_due_lanes();
            if self.plan().next_look <= Instant::now() {
                self.look(storage).await?;
            }
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
        // Planned before the question: an expectation that arises meanwhile moves it forward again.
        {
            let mut plan = self.plan();
            let now = Instant::now();
            let pause = match plan.expected_since {
                Some(since) => ((now - since) / 4).clamp(plan.shortest, self.poll.max(plan.shortest)),
                None => self.poll,
            };
            if pause >= self.poll {
                plan.expected_since = None;
            }
            plan.next_look = now + pause;
        }
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
