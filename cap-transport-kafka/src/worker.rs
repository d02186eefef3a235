//! A consumer's thread: it polls librdkafka, whatever the engine does, so that the group never takes this member for dead.
//!
//! Fetched messages wait in the ledger, at most as many and as large as the subscription allows. When it is full, nothing more is polled for a
//! moment; if it stays full, the partitions are paused and polling goes on. (Pausing at once would throw away what
//! librdkafka has fetched ahead, each time the engine is a little slower than the broker.)
//!
//! Offsets are committed by us and not by librdkafka, because what is committed is more than an offset (see `progress`):
//! at most each `commit_interval`, and before a partition or the consumer goes.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use cap_core::transport::Subscription;
use cap_core::{Error, ErrorKind, Result};
use futures_core::Stream;
use rdkafka::Offset;
use rdkafka::consumer::stream_consumer::MessageStream;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::Message as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::again::{Misplaced, begin_again, commit_now, offsets};
use crate::audit::{self, Finding, Question};
use crate::context::Context;
use crate::error::{creation, unavailable, words};
use crate::groups::Groups;
use crate::place::{Place, Position};
use crate::post::{Orders, Post};
use crate::settings::{STATIC_NAME, Settings};
use crate::{pattern, wire};

/// How long the engine may be slow before the partitions are paused.
const FULL: Duration = Duration::from_millis(500);

/// How long what a log has may be on its way here, before it is looked at once more.
const OVERDUE: Duration = Duration::from_secs(2);

/// The thread of a consumer.
pub(crate) struct Worker {
    pub(crate) post: Arc<Post>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) wanted: Subscription,
    pub(crate) groups: Arc<Groups>,
    pub(crate) closed: watch::Receiver<bool>,
    /// Counts the threads there are.
    pub(crate) count: watch::Sender<usize>,
}

/// Says that a thread has ended, however it did.
struct Ended(Arc<Post>, watch::Sender<usize>);

impl Drop for Ended {
    fn drop(&mut self) {
        let reason = "its thread has ended";
        self.0.give_up(Error::new(ErrorKind::Internal, "receive from", self.0.subject(), reason));
        self.1.send_modify(|count| *count -= 1);
    }
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(self) -> Result<()> {
        let name = format!("cap-kafka {}", self.post.group);
        let subject = self.post.subject();
        self.count.send_modify(|count| *count += 1);
        let ended = Ended(Arc::clone(&self.post), self.count.clone());
        let started = std::thread::Builder::new().name(name).spawn(move || {
            let _ended = ended;
            self.run();
        });
        started.map(drop).map_err(|cause| {
            let reason = format!("no thread could be started: {cause}");
            unavailable("subscribe to", subject, reason).because(cause)
        })
    }

    fn run(self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(cause) => {
                let reason = format!("no runtime could be started: {cause}");
                return self.post.give_up(unavailable("subscribe to", self.post.subject(), reason).because(cause));
            }
        };
        let guard = runtime.enter();
        match self.subscribe() {
            Ok(consumer) => {
                runtime.block_on(self.drive(&consumer));
                self.leave(&consumer);
                // Leaves the group, in good order if the broker answers.
                drop(consumer);
            }
            Err(error) => self.post.give_up(error),
        }
        drop(guard);
        // An audit that is still under way is of no more use.
        runtime.shutdown_background();
    }

    fn subscribe(&self) -> Result<StreamConsumer<Context>> {
        let context = Context {
            post: Arc::clone(&self.post),
            settings: Arc::clone(&self.settings),
            wanted: self.wanted.clone(),
            groups: Arc::clone(&self.groups),
        };
        let mut config = self.settings.consumer(&self.wanted);
        if self.groups.is_nameless(&self.wanted.group) {
            config.remove(STATIC_NAME);
        }
        let consumer: StreamConsumer<Context> =
            config.create_with_context(context).map_err(|cause| creation(&self.settings, cause))?;
        let topics: BTreeSet<String> = self.wanted.topics.iter().map(pattern::subscribed).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let refused = |cause| {
            let subject = self.post.subject();
            Error::new(ErrorKind::Invalid, "subscribe to", subject, words(&cause)).because(cause)
        };
        consumer.subscribe(&topics).map_err(refused)?;
        Ok(consumer)
    }

    async fn drive(&self, consumer: &StreamConsumer<Context>) {
        let mut closed = self.closed.clone();
        let mut messages = consumer.stream();
        let mut flow = Flow::Open;
        let mut next_commit = Instant::now();
        let mut audit = Audit { next: Instant::now(), running: None };
        loop {
            let orders = self.post.orders();
            if orders.ends {
                return;
            }
            if let Err(error) = self.seek(consumer, &orders.seeks) {
                return self.post.give_up(error);
            }
            let before = flow;
            flow = self.regulate(consumer, flow, &orders);
            if matches!((before, flow), (Flow::Open, Flow::Full(_))) {
                self.post.lock().ledger.excuse();
            }
            let now = Instant::now();
            let patience = self.settings.rejoin_timeout();
            let too_late = orders.placeless.map(|since| since + patience);
            if too_late.is_some_and(|end| now >= end) {
                return self.post.give_up(self.placeless(patience));
            }
            if orders.may_commit && now >= next_commit {
                self.commit(consumer);
                next_commit = now + self.settings.commit_interval();
            }
            if orders.is_changed {
                audit.next = now;
            }
            self.begin_audit(&mut audit, now, flow);
            let wake = match flow {
                Flow::Full(since) => Some(since + FULL),
                _ => None,
            };
            let commit = (orders.may_commit && now < next_commit).then_some(next_commit);
            let next_audit = audit.running.is_none().then_some(audit.next);
            let timer = wake.into_iter().chain(commit).chain(too_late).chain(next_audit).min();
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => return,
                () = self.post.bell.notified() => {}
                () = sleep_until(timer) => {}
                findings = audit.findings() => self.judge(consumer, &mut audit, findings),
                () = self.pull(&mut messages, orders.room), if !matches!(flow, Flow::Full(_)) => {}
            }
        }
    }

    /// Looks now and then whether the logs are still the ones that the positions were made in, and whether what is in them
    /// comes.
    fn begin_audit(&self, audit: &mut Audit, now: Instant, flow: Flow) {
        if audit.running.is_some() || now < audit.next {
            return;
        }
        audit.next = now + self.settings.audit_interval();
        let mut state = self.post.lock();
        if !matches!(flow, Flow::Open) {
            state.ledger.excuse();
        }
        let asked = state.ledger.questions();
        drop(state);
        if asked.is_empty() {
            return;
        }
        let (settings, wanted) = (Arc::clone(&self.settings), self.wanted.clone());
        audit.running = Some(tokio::task::spawn_blocking(move || audit::look(&settings, &wanted, asked)));
    }

    /// Gives the consumer up if a position does not count for the log that is there, or if librdkafka fetches no more what is
    /// in it: a new one, with another client, does.
    fn judge(&self, consumer: &StreamConsumer<Context>, audit: &mut Audit, findings: Vec<Finding>) {
        let mut state = self.post.lock();
        let mut stalled = None;
        let judge = |finding: Finding| {
            let Finding { asked, verdict, has_awaited, .. } = &finding;
            if *has_awaited {
                audit.next = audit.next.min(Instant::now() + OVERDUE);
            }
            if state.ledger.is_stalled(asked, *has_awaited) {
                stalled = Some(asked.clone());
            }
            let again = state.ledger.judge(&asked.place, asked.anchors, *verdict)?;
            Some(Misplaced::found(finding, again))
        };
        let misplaced: Vec<Misplaced> = findings.into_iter().filter_map(judge).collect();
        drop(state);
        begin_again(consumer, &self.post, misplaced);
        if let Some(Question { place: Place { topic, partition }, awaits, .. }) = stalled {
            let offset = awaits.unwrap_or_default();
            let reason = format!(
                "partition {partition} of `{topic}`: what the log has at {offset} does not come (was the topic made \
                 again?): another client fetches it"
            );
            tracing::error!(messaging.destination.name = %topic, partition, messaging.consumer.group.name = %self.post.group, offset, "{reason}");
            self.post.give_up(unavailable("receive from", self.post.subject(), reason));
        }
    }

    /// Why a consumer that lost its place is over. A new one joins under another id, and if the group does not take it
    /// either, `subscribe` says so.
    fn placeless(&self, patience: Duration) -> Error {
        let fault = self.post.fault().map(|fault| format!("; last: {}", fault.reason)).unwrap_or_default();
        let reason = format!("it lost its partitions, and the group has given it none again for {patience:?}{fault}");
        unavailable("receive from", self.post.subject(), reason)
    }

    /// Polls: hands events to the context, and messages to the ledger, as many as it has room for.
    async fn pull(&self, messages: &mut MessageStream<'_, Context>, room: usize) {
        std::future::poll_fn(|cx| {
            let (mut seen, mut arrived) = (0, 0);
            while seen < room.max(1) {
                match Pin::new(&mut *messages).poll_next(cx) {
                    Poll::Ready(Some(Ok(record))) => {
                        let key = (record.offset(), wire::born(&record));
                        let mut state = self.post.lock();
                        let delivery = || wire::delivery(&record);
                        arrived += usize::from(state.ledger.arrive(record.topic(), record.partition(), key, delivery));
                        if state.ledger.room() == 0 {
                            seen = room;
                        }
                    }
                    // The context was told, with the reason.
                    Poll::Ready(Some(Err(_))) => {}
                    Poll::Ready(None) | Poll::Pending => break,
                }
                seen += 1;
            }
            if arrived > 0 {
                self.post.arrived().notify_one();
            }
            if seen > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Fetches once more from where deliveries were given back.
    fn seek(&self, consumer: &StreamConsumer<Context>, seeks: &[Position]) -> Result<()> {
        for position in seeks {
            let Place { topic, partition } = &position.place;
            let sought = consumer.seek(topic, *partition, Offset::Offset(position.offset), Duration::ZERO);
            if let Err(cause) = sought {
                // They come again to the next consumer.
                let reason = format!("deliveries of `{topic}` were given back, and cannot be fetched again: {cause}");
                return Err(unavailable("receive from", self.post.subject(), reason).because(cause));
            }
        }
        Ok(())
    }

    /// Pauses when the engine is slow, and goes on when half of what it may hold is free again.
    fn regulate(&self, consumer: &StreamConsumer<Context>, flow: Flow, orders: &Orders) -> Flow {
        let paused = |outcome: KafkaResult<()>| {
            if let Err(error) = outcome {
                tracing::warn!(error.message = %error, messaging.consumer.group.name = %self.post.group, "partitions could not be paused or resumed");
            }
        };
        let assigned = || consumer.assignment().unwrap_or_default();
        match flow {
            Flow::Open | Flow::Full(_) if orders.room > 0 => Flow::Open,
            Flow::Open => Flow::Full(Instant::now()),
            Flow::Full(since) if since.elapsed() < FULL => flow,
            Flow::Full(_) => {
                paused(consumer.pause(&assigned()));
                Flow::Paused
            }
            Flow::Paused if orders.is_half_free => {
                paused(consumer.resume(&assigned()));
                Flow::Open
            }
            Flow::Paused => {
                if orders.is_changed {
                    paused(consumer.pause(&assigned()));
                }
                Flow::Paused
            }
        }
    }

    /// Commits without waiting for it. The driver does not tell what becomes of it, but librdkafka's log does (see `context`).
    fn commit(&self, consumer: &StreamConsumer<Context>) {
        let mut state = self.post.lock();
        let positions = state.ledger.commit();
        if positions.is_empty() {
            return;
        }
        state.sent.clone_from(&positions);
        drop(state);
        if let Err(error) = consumer.commit(&offsets(&positions), CommitMode::Async) {
            tracing::debug!(error.message = %error, messaging.consumer.group.name = %self.post.group, "offsets could not be committed; they will be");
            self.post.lock().ledger.uncommit(positions);
        }
    }

    /// Commits what is acknowledged, for good.
    fn leave(&self, consumer: &StreamConsumer<Context>) {
        let mut state = self.post.lock();
        // What may still be on its way is confirmed by this one.
        let sent = std::mem::take(&mut state.sent);
        state.ledger.uncommit(sent);
        let positions = state.ledger.commit();
        drop(state);
        commit_now(consumer, &self.post, &positions);
    }
}

/// The next audit, and the one that is under way.
struct Audit {
    next: Instant,
    running: Option<JoinHandle<Vec<Finding>>>,
}

impl Audit {
    /// What the one that is under way has found.
    async fn findings(&mut self) -> Vec<Finding> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let findings = running.await.unwrap_or_default();
        self.running = None;
        findings
    }
}

#[derive(Debug, Clone, Copy)]
enum Flow {
    Open,
    /// There is no room since then.
    Full(Instant),
    Paused,
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
