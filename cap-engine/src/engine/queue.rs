//! A subscription's queue: its jobs begin in their order, as many at once as it may. There is a runner for each job that
//! is worked on; one that has ended its job takes the next, and goes when there is none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::lifecycle;
use cap_core::lifecycle::Outcome;

use crate::engine::Engine;
use crate::engine::execute::execute;
use crate::engine::group::{Job, Subscription};

/// After so many jobs a runner lets others have their turn: handlers that never wait would keep the runtime from looking
/// at its sockets, where the answers of the database are.
const TURN: u32 = 4;

/// Bounded by the slots that its jobs hold.
pub(crate) struct Queue {
    concurrency: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    runners: usize,
}

impl Queue {
    pub(crate) fn new(concurrency: usize) -> Self {
        Self { concurrency, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Takes a job on, or gives it back if nothing more may begin.
    pub(crate) fn push(self: &Arc<Self>, engine: &Arc<Engine>, job: Job) {
        let mut state = self.queue.state();
        // Looked at under the lock: what comes after the queue was given back would be seen by nobody.
        if engine.stop.quiesce.is_cancelled() || self.share.is_shut() {
            drop(state);
            return self.give_back(engine, job);
        }
        state.jobs.push_back(job);
        if state.runners < self.queue.concurrency {
            state.runners += 1;
            drop(state);
            Runner::start(Arc::clone(engine), Arc::clone(self));
        }
    }

    /// Gives back what has not begun, when nothing more may begin here.
    pub(crate) fn give_back_all(&self, engine: &Engine) {
        let jobs = std::mem::take(&mut self.queue.state().jobs);
        jobs.into_iter().for_each(|job| self.give_back(engine, job));
    }

    fn give_back(&self, engine: &Engine, job: Job) {
        let outcome = Outcome::GivenBack(Duration::ZERO);
        let state = lifecycle::settle(&job.held.begun, outcome, &self.rules, 0.0);
        engine.inbox_settler.settle(job.held, state);
    }
}

struct Runner {
    engine: Arc<Engine>,
    subscription: Arc<Subscription>,
    has_begun: bool,
    is_done: bool,
}

impl Runner {
    fn start(engine: Arc<Engine>, subscription: Arc<Subscription>) {
        let tasks = engine.tasks.clone();
        let runtime = engine.handlers_runtime.as_ref().unwrap_or(&engine.runtime).clone();
        let mut runner = Self { engine, subscription, has_begun: false, is_done: false };
        let running = async move {
            runner.has_begun = true;
            let mut turn = 0;
            let mut service = runner.subscription.service.clone();
            let polled = runner.engine.pulse.runner(format!("`{}`", runner.subscription.pattern));
            while let Some(job) = runner.next() {
                execute(&runner.engine, &runner.subscription, &mut service, &polled, job).await;
                turn += 1;
                if turn % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tasks.spawn_on(running, &runtime);
    }

    /// The next job; without one this runner is no more.
    fn next(&mut self) -> Option<Job> {
        let mut state = self.subscription.queue.state();
        let job = state.jobs.pop_front();
        if job.is_none() {
            state.runners -= 1;
            self.is_done = true;
        }
        job
    }
}

impl Drop for Runner {
    /// Handlers that panic are caught: if it ends otherwise there is a fault in the engine, and what it held is known to
    /// nobody now. Under a new id it is taken over; the queue goes on.
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.engine.node.renew(&format!("a runner of topic `{}` panicked", self.subscription.pattern));
        let mut state = self.subscription.queue.state();
        // Dropped before it began: the runtime is at its end, and drops whatever is started on it.
        if state.jobs.is_empty() || !self.has_begun {
            state.runners -= 1;
            return;
        }
        drop(state);
        if tokio::runtime::Handle::try_current().is_ok() {
            Self::start(Arc::clone(&self.engine), Arc::clone(&self.subscription));
        }
    }
}
