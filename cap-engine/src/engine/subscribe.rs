//! A subscription: which topics a handler gets, for which group, and how it is run.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cap_core::RetryPolicy;
use cap_core::storage::Transact;

use crate::handler::{Call, Handler, HandlerService, Requirement, TransactionalHandler};

/// A handler with its topic, group and limits.
///
/// ```
/// use std::time::Duration;
/// use cap_core::RetryPolicy;
/// use cap_engine::{Context, Subscribe};
///
/// let audit = Subscribe::to("order.#", async |context: Context| println!("{}", context.topic()))
///     .group("audit")
///     .concurrency(8)
///     .timeout(Duration::from_secs(10))
///     .retry(RetryPolicy::fixed(5, Duration::from_secs(30)));
/// ```
#[must_use = "it does nothing until it is given to a builder"]
pub struct Subscribe {
    pub(crate) topic: String,
    pub(crate) group: Option<String>,
    pub(crate) concurrency: usize,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) service: HandlerService,
    pub(crate) requirements: Vec<Requirement>,
    /// Whether the handler may reply.
    pub(crate) replies: bool,
}

impl Subscribe {
    /// Calls `handler` for messages of `topic`: an exact one, or a pattern in which `*` stands for one word and `#` for
    /// any number of words.
    pub fn to<Args>(topic: impl Into<String>, handler: impl Handler<Args>) -> Self {
        Self::to_handler(topic.into(), handler)
    }

    fn to_handler<Args, H: Handler<Args>>(topic: String, handler: H) -> Self {
        let mut requirements = Vec::new();
        H::requires(&mut requirements);
        Self { replies: H::REPLIES, ..Self::with(topic, handler.into_service(), requirements) }
    }

    /// Calls `handler` inside a transaction of `storage` that also settles the record: its writes, what it publishes
    /// and its record's success are one commit.
    pub fn transactional<S, Args, H>(topic: impl Into<String>, storage: &S, handler: H) -> Self
    where
        S: Transact + Clone,
        H: TransactionalHandler<S, Args>,
    {
        Self::transactional_by(topic, Arc::new(storage.clone()), handler)
    }

    pub(crate) fn transactional_by<S, Args, H>(topic: impl Into<String>, storage: Arc<S>, handler: H) -> Self
    where
        S: Transact,
        H: TransactionalHandler<S, Args>,
    {
        let mut requirements = Vec::new();
        H::requires(&mut requirements);
        let service = tower::service_fn(move |call: Call| handler.clone().call(Arc::clone(&storage), call));
        Self { replies: H::REPLIES, ..Self::with(topic.into(), HandlerService::new(service), requirements) }
    }

    /// Calls any [`tower::Service`], such as a handler wrapped in layers.
    pub fn service(topic: impl Into<String>, service: HandlerService) -> Self {
        Self::with(topic.into(), service, Vec::new())
    }

    fn with(topic: String, service: HandlerService, requirements: Vec<Requirement>) -> Self {
        let (group, concurrency, timeout, retry, replies) = (None, 1, None, None, true);
        Self { topic, group, concurrency, timeout, retry, service, requirements, replies }
    }

    /// The group that gets the messages, without prefix and version. Default: the engine's default group.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// How many messages this node handles at once. Default 1: one after another, as they come.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// How long an attempt may take before it is aborted and counts as failed. Default: as long as it needs.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// When a failed attempt is tried again. Default: the engine's retry policy.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = Some(retry);
        self
    }
}

impl fmt::Debug for Subscribe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribe")
            .field("topic", &self.topic)
            .field("group", &self.group)
            .field("concurrency", &self.concurrency)
            .field("timeout", &self.timeout)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
