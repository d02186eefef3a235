//! Puts an engine together: everything that can be wrong is told here, before anything runs.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cap_core::storage::{StorageCapabilities, Transact, Wake};
use cap_core::time::FAR;
use cap_core::{
    Error, Group as GroupName, MessageId, Result, RetryPolicy, Storage, Table, Topic, TopicPattern, Transport,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

use crate::engine::cap::Cap;
use crate::engine::consumer::{self, FirstConsumer};
use crate::engine::failures::{self, Failures};
use crate::engine::group::{self, Group, Subscription};
use crate::engine::health::HealthBoard;
use crate::engine::node::Node;
use crate::engine::pulse::Pulse;
use crate::engine::queue::Queue;
use crate::engine::relay::{self, RELAY, Relay};
use crate::engine::replies::Replies;
use crate::engine::scheduler::{Scheduler, lane_of};
use crate::engine::settler::{self, Settler};
use crate::engine::share::Share;
use crate::engine::slots::{self, Slots};
use crate::engine::step::{Step, StepFn, Steps};
use crate::engine::stop::{self, Stop};
use crate::engine::subscribe::Subscribe;
use crate::engine::supervise::supervise;
use crate::engine::suspects::{self, Suspects};
use crate::engine::unhandled::Unhandled;
use crate::engine::{Activity, DeadLetter, Engine, OnDead, collector, keeper, routes};
use crate::handler::{AnyStorage, Handler, RequirementKind, Services, States, TransactionalHandler};
use crate::options::{Options, retry_faults};
use crate::publish::{Batcher, Batches, Preparer, insert_jobs};

/// What loops are called in [`crate::Health`].
const SCHEDULER: &str = "scheduler";
const PUBLISH: &str = "publish";
const WATCH: &str = "watch";

/// A subscription's share of its group's bytes is no smaller than this part of them.
const SHARES: usize = 4;

/// Stands where a builder has no storage yet.
#[derive(Debug, Clone, Copy)]
pub struct NoStorage;

/// Collects what an engine is made of; see [`Cap::builder`].
#[must_use = "nothing runs until `start`"]
pub struct CapBuilder<S> {
    storage: S,
    transport: Option<Arc<dyn Transport>>,
    options: Options,
    subscriptions: Vec<Subscribe>,
    published: Vec<String>,
    states: States,
    handlers_on: Option<Handle>,
    on_dead: Option<OnDead>,
    on_step: Option<Arc<StepFn>>,
}

impl CapBuilder<NoStorage> {
    pub(crate) fn new() -> Self {
        Self {
            storage: NoStorage,
            transport: None,
            options: Options::default(),
            subscriptions: Vec::new(),
            published: Vec::new(),
            states: States::default(),
            handlers_on: None,
            on_dead: None,
            on_step: None,
        }
    }

    /// Where messages are kept.
    pub fn storage<S: Storage>(self, storage: S) -> CapBuilder<Arc<S>> {
        CapBuilder {
            storage: Arc::new(storage),
            transport: self.transport,
            options: self.options,
            subscriptions: self.subscriptions,
            published: self.published,
            states: self.states,
            handlers_on: self.handlers_on,
            on_dead: self.on_dead,
            on_step: self.on_step,
        }
    }
}

impl<S> CapBuilder<S> {
    /// What carries messages.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// Everything that is a number or a name.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Calls `handler` for messages of `topic` (exact, or with the wildcards `*` and `#`), once for `group`. See
    /// [`Subscribe`] for more to say about it.
    pub fn subscribe<Args>(
        self,
        topic: impl Into<String>,
        group: impl Into<String>,
        handler: impl Handler<Args>,
    ) -> Self {
        self.subscription(Subscribe::to(topic, handler).group(group))
    }

    /// Adds a subscription.
    pub fn subscription(mut self, subscription: Subscribe) -> Self {
        self.subscriptions.push(subscription);
        self
    }

    /// Names topics that this service publishes, written as in [`Cap::publish`]; may be called more than once.
    ///
    /// A message to a topic that has no queue stays in the outbox until a consumer of it has been started once, unless
    /// [`Options::unroutable`] says otherwise. If the transport can tell
    /// ([`checks_routes`](cap_core::transport::TransportCapabilities::checks_routes)), [`start`](Self::start) logs those of
    /// these topics that have none, or fails with [`Options::require_routes`]; later, [`Cap::unrouted`] tells. Topics that are not named can be published all the same.
    pub fn publishes<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.published.extend(topics.into_iter().map(Into::into));
        self
    }

    /// A value for handlers that ask for `State<T>`; one of each type.
    pub fn state<T: Clone + Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.insert(state);
        self
    }

    /// Runs the handlers on another runtime than the engine (default: on the one in which [`start`](Self::start) is
    /// called). For handlers that may block their thread, which they should not: then everything else goes on, what
    /// arrives meanwhile is stored, and after two seconds what waits for a handler here goes back into the inbox, for the
    /// group's other nodes. It costs a change of threads for each message.
    ///
    /// The runtime must have its timer and its sockets (`enable_all`), several threads, and outlive the engine.
    ///
    /// ```
    /// use cap_engine::Cap;
    /// use tokio::runtime::Builder;
    ///
    /// let handlers = Builder::new_multi_thread().thread_name("handlers").enable_all().build()?;
    /// let builder = Cap::builder().handlers_on(handlers.handle());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn handlers_on(mut self, runtime: &Handle) -> Self {
        self.handlers_on = Some(runtime.clone());
        self
    }

    /// Called for each message that becomes dead. It should return soon; what it panics with is logged.
    pub fn on_dead(mut self, notify: impl Fn(DeadLetter) + Send + Sync + 'static) -> Self {
        self.on_dead = Some(OnDead(Arc::new(notify)));
        self
    }

    /// Called after each [`Step`] of each message: for tests that wait for signals instead of time.
    pub fn on_step(mut self, listen: impl Fn(Step, &MessageId) + Send + Sync + 'static) -> Self {
        self.on_step = Some(Arc::new(listen));
        self
    }
}

impl<S: Transact> CapBuilder<Arc<S>> {
    /// Calls `handler` inside a transaction of the storage that also settles the record: its writes, what it publishes
    /// and its record's success are one commit (promise 5).
    pub fn subscribe_in_tx<Args>(
        self,
        topic: impl Into<String>,
        group: impl Into<String>,
        handler: impl TransactionalHandler<S, Args>,
    ) -> Self {
        let subscription = Subscribe::transactional_by(topic, Arc::clone(&self.storage), handler).group(group);
        self.subscription(subscription)
    }
}

impl<S: Storage> CapBuilder<Arc<S>> {
    /// Checks everything, makes the tables ready, connects, and starts.
    ///
    /// # Errors
    /// `Invalid` for whatever is missing, doubled or out of bounds, and `Unsupported` if [`Options::require_routes`] is set
    /// and the transport does not tell routes, before anything is touched; then what the storage and the transport say
    /// when they are made ready; `Unroutable` if [`Options::require_routes`] is set and topics that the service
    /// [publishes](Self::publishes) have no queue. The groups of this engine have their queues by then, so that services
    /// that wait for each other's come up when they are started again.
    pub async fn start(self) -> Result<Cap<S>> {
        self.options.validate()?;
        let transport = self.transport.clone().ok_or_else(|| {
            Error::invalid("the builder", "no transport was given: call `.transport(…)` before `.start()`")
        })?;
        check_requirements::<S>(&self.subscriptions, &self.states)?;
        let options = self.options.bounded();
        let groups = groups(&options, self.subscriptions)?;
        let mut preparer = preparer(&options, self.storage.describe());
        let published = published(&preparer, &self.published)?;
        routes::check_support(transport.as_ref(), &options).await?;

        self.storage.prepare().await?;
        preparer.learn(&self.storage.capabilities());
        for name in groups.iter().map(|group| group.name.as_str()).chain(published.iter().map(Topic::as_str)) {
            preparer.check_name(name)?;
        }
        transport.connect().await?;

        let (batcher, batches) = Batcher::new();
        let names = groups.iter().map(|group| group.name.clone());
        let engine = Arc::new(Engine {
            storage: Arc::clone(&self.storage) as Arc<dyn Storage>,
            transport,
            outbox_rules: options.rules(options.retry.clone()),
            replies: Replies::of(&options, &published, &groups),
            published,
            services: Arc::new(Services {
                preparer,
                states: self.states,
                storage: Arc::clone(&self.storage) as AnyStorage,
            }),
            node: Node::new(options.lease, options.heartbeat),
            scheduler: Scheduler::new(options.version.clone(), names, options.poll),
            groups,
            suspects: Suspects::default(),
            runtime: Handle::current(),
            handlers_runtime: self.handlers_on,
            pulse: Pulse::new(),
            relay: Relay::new(options.unroutable_rules()?),
            relay_slots: Slots::fixed(options.relay_in_flight, options.in_flight_bytes),
            outbox_settler: Settler::default(),
            inbox_settler: Settler::default(),
            batcher,
            health: HealthBoard::default(),
            steps: Steps(self.on_step),
            on_dead: self.on_dead,
            stop: Stop::new(),
            tasks: TaskTracker::new(),
            activity: Activity::default(),
            failures: Failures::default(),
            options,
        });
        let consumers = first_consumers(&engine).await?;
        tracing::info!(
            cap.storage = engine.storage.describe(),
            cap.transport = engine.transport.describe(),
            cap.groups = engine.groups.len(),
            cap.version = %engine.options.version,
            "starting"
        );
        routes::check(&engine).await?;
        spawn_loops(&engine, batches, consumers)?;
        tokio::spawn(stop::run(Arc::clone(&engine)));
        Ok(Cap::new(engine, self.storage))
    }
}

fn preparer(options: &Options, place: String) -> Preparer {
    Preparer {
        version: options.version.clone(),
        service: options.service.clone(),
        topic_prefix: options.topic_prefix.clone(),
        payload_limit: options.payload_limit,
        content_limit: None,
        place,
        ascii_only: false,
        stored_form: options.stored_form,
    }
}

impl Preparer {
    /// What the storage has learnt from its server.
    fn learn(&mut self, capabilities: &StorageCapabilities) {
        self.content_limit = capabilities.max_content;
        self.ascii_only = capabilities.ascii_only;
    }
}

async fn first_consumers(engine: &Engine) -> Result<Vec<FirstConsumer>> {
    let mut consumers = Vec::with_capacity(engine.groups.len());
    for group in &engine.groups {
        let consumer = consumer::subscribe(engine, group).await?;
        consumers.push(Arc::new(Mutex::new(Some(consumer))));
    }
    Ok(consumers)
}

/// The topics that the service says it publishes, each once.
fn published(preparer: &Preparer, names: &[String]) -> Result<Vec<Topic>> {
    let mut topics = Vec::with_capacity(names.len());
    for name in names {
        let topic = preparer.topic(name)?;
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    Ok(topics)
}

fn check_requirements<S: 'static>(subscriptions: &[Subscribe], states: &States) -> Result<()> {
    for subscription in subscriptions {
        for requirement in &subscription.requirements {
            let name = requirement.type_name;
            let missing = match requirement.kind {
                RequirementKind::State if states.holds(requirement.type_id) => continue,
                RequirementKind::Storage if TypeId::of::<S>() == requirement.type_id => continue,
                RequirementKind::State => {
                    format!("it asks for `State<{name}>`, but no `{name}` was given to `.state(…)`")
                }
                RequirementKind::Storage => {
                    format!("it asks for `Tx<{name}>`, but the storage is a `{}`", std::any::type_name::<S>())
                }
            };
            return Err(Error::invalid(format!("the handler of topic `{}`", subscription.topic), missing));
        }
    }
    Ok(())
}

fn groups(options: &Options, subscriptions: Vec<Subscribe>) -> Result<Vec<Arc<Group>>> {
    let mut by_group: BTreeMap<GroupName, Vec<Subscribe>> = BTreeMap::new();
    for subscription in subscriptions {
        let name = subscription.group.as_ref().unwrap_or(&options.default_group);
        by_group.entry(options.group(name)?).or_default().push(subscription);
    }
    let groups = by_group.into_iter().enumerate();
    groups.map(|(index, (name, members))| grouped(options, index, name, members).map(Arc::new)).collect()
}

fn grouped(options: &Options, index: usize, name: GroupName, members: Vec<Subscribe>) -> Result<Group> {
    let opened = Arc::new(Notify::new());
    let bytes = (options.in_flight_bytes / 2).max(1);
    // A handler that hangs on large messages leaves most of the room to the others.
    let share = (bytes / members.len().clamp(1, SHARES)).max(1);
    // What is there of each is bounded by its share.
    let most = members.iter().fold(0_usize, |sum, member| sum.saturating_add(slots::most_of(member.concurrency)));
    let mut subscriptions: Vec<Arc<Subscription>> = Vec::with_capacity(members.len());
    for member in members {
        let made = made(options, member, share, &opened)?;
        if subscriptions.iter().any(|other| other.pattern == made.pattern) {
            return Err(Error::invalid(
                format!("the subscription of topic `{}` by group `{name}`", made.pattern),
                "there is another one with the same topic and group",
            ));
        }
        subscriptions.push(Arc::new(made));
    }
    subscriptions.sort_by_key(|subscription| subscription.pattern.exact().is_none());
    Ok(Group {
        name,
        lane: lane_of(index),
        subscriptions,
        slots: Slots::fixed(most, bytes),
        opened,
        unhandled: Unhandled::new(options.unhandled_limit),
        rules: options.inbox_rules(options.retry.clone()),
    })
}

fn made(options: &Options, subscription: Subscribe, bytes: usize, opened: &Arc<Notify>) -> Result<Subscription> {
    TopicPattern::try_from(subscription.topic.as_str())?;
    let pattern = match &options.topic_prefix {
        Some(prefix) => TopicPattern::try_from(format!("{prefix}.{}", subscription.topic).as_str())?,
        None => TopicPattern::try_from(subscription.topic.as_str())?,
    };
    let refuse = |reason: String| Err(Error::invalid(format!("the subscription of topic `{pattern}`"), reason));
    if subscription.concurrency == 0 || subscription.concurrency > Semaphore::MAX_PERMITS {
        return refuse(format!("concurrency {}: it must be at least 1", subscription.concurrency));
    }
    if subscription.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return refuse("timeout 0: no handler can be that fast".into());
    }
    let retry: RetryPolicy = subscription.retry.unwrap_or_else(|| options.retry.clone());
    let faults = retry_faults(&retry);
    if !faults.is_empty() {
        return refuse(faults.join("; "));
    }
    Ok(Subscription {
        pattern,
        service: subscription.service,
        rules: options.inbox_rules(retry),
        timeout: subscription.timeout.map(|timeout| timeout.min(FAR)),
        share: Share::new(subscription.concurrency, bytes, Arc::clone(opened)),
        replies: subscription.replies,
        queue: Queue::new(subscription.concurrency),
    })
}

fn spawn_loops(engine: &Arc<Engine>, batches: Batches, consumers: Vec<FirstConsumer>) -> Result<()> {
    let quiesce = || engine.stop.quiesce.clone();
    let finish = || engine.stop.finish.clone();
    let spawn = &engine.tasks;

    keeper::start(engine)?;
    spawn.spawn(supervise(
        Arc::clone(engine),
        SCHEDULER.into(),
        finish(),
        body(engine, |engine| async move {
            let looked = || engine.health.well(SCHEDULER);
            engine.scheduler.run(&engine.storage, &engine.stop.finish, looked).await
        }),
    ));
    let batches = Arc::new(tokio::sync::Mutex::new(batches));
    spawn.spawn(supervise(
        Arc::clone(engine),
        PUBLISH.into(),
        finish(),
        body(engine, move |engine| publish_loop(engine, Arc::clone(&batches))),
    ));
    for table in [Table::Outbox, Table::Inbox] {
        spawn.spawn(supervise(
            Arc::clone(engine),
            format!("settle {table}"),
            finish(),
            body(engine, move |engine| settler::run(engine, table)),
        ));
    }
    for (group, first) in engine.groups.iter().zip(consumers) {
        let consumed = Arc::clone(group);
        engine.stop.consumer_tasks.spawn(supervise(
            Arc::clone(engine),
            format!("consumer {}", group.name),
            engine.stop.consumers.clone(),
            body(engine, move |engine| consumer::run(engine, Arc::clone(&consumed), Arc::clone(&first))),
        ));
        let claimed = Arc::clone(group);
        spawn.spawn(supervise(
            Arc::clone(engine),
            format!("group {}", group.name),
            quiesce(),
            body(engine, move |engine| group::run(engine, Arc::clone(&claimed))),
        ));
        let suspected = Arc::clone(group);
        spawn.spawn(supervise(
            Arc::clone(engine),
            suspects::name(group),
            quiesce(),
            body(engine, move |engine| suspects::run(engine, Arc::clone(&suspected))),
        ));
    }
    spawn.spawn(failures::run(Arc::clone(engine)));
    spawn.spawn(supervise(Arc::clone(engine), RELAY.into(), quiesce(), body(engine, relay::run)));
    spawn.spawn(supervise(Arc::clone(engine), "collector".into(), quiesce(), body(engine, collector::run)));
    if engine.storage.capabilities().watches {
        spawn.spawn(supervise(Arc::clone(engine), WATCH.into(), finish(), body(engine, watch_loop)));
    }
    Ok(())
}

/// A loop's body, which the supervisor may begin again and again.
fn body<F, Fut>(engine: &Arc<Engine>, run: F) -> impl FnMut() -> Fut + Send + use<F, Fut>
where
    F: Fn(Arc<Engine>) -> Fut + Send,
{
    let engine = Arc::clone(engine);
    move || run(Arc::clone(&engine))
}

async fn publish_loop(engine: Arc<Engine>, batches: Arc<tokio::sync::Mutex<Batches>>) -> Result<()> {
    let mut batches = batches.lock().await;
    let mut open = true;
    loop {
        let jobs = tokio::select! {
            biased;
            () = engine.stop.quiesce.cancelled(), if open => {
                open = false;
                batches.close();
                continue;
            }
            jobs = batches.gather() => jobs,
        };
        let Some(jobs) = jobs else { return Ok(()) };
        insert_jobs(&engine.storage, jobs, &|records| engine.published(records)).await;
        engine.health.well(PUBLISH);
    }
}

async fn watch_loop(engine: Arc<Engine>) -> Result<()> {
    let woken = Arc::downgrade(&engine);
    let wake = Wake::new(move |table| {
        if let Some(engine) = woken.upgrade() {
            engine.scheduler.wake_table(table);
        }
    });
    let listening = Arc::downgrade(&engine);
    let wake = wake.on_listening(move || {
        if let Some(engine) = listening.upgrade() {
            engine.health.well(WATCH);
        }
    });
    tokio::select! {
        ended = engine.storage.watch(wake) => ended,
        () = engine.stop.finish.cancelled() => Ok(()),
    }
}

impl<S: fmt::Debug> fmt::Debug for CapBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapBuilder")
            .field("storage", &self.storage)
            .field("transport", &self.transport)
            .field("options", &self.options)
            .field("subscriptions", &self.subscriptions)
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

/// The least time that `wait_idle` leaves between two questions to the storage.
pub(crate) const IDLE_LOOK: Duration = Duration::from_millis(50);
