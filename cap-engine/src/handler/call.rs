//! One call of a handler: the message, and what the handler may ask and do.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use cap_core::storage::{NewRecord, Settlement};
use cap_core::{Group, Message, MessageId, Result, Topic, headers};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::handler::tx::{AnyStorage, Slot};
use crate::publish::{Preparer, Publish, Reserved, json_bytes};

/// One attempt to handle a message: what its call, its context and its outbox share.
pub(crate) struct Shared {
    pub(crate) message: Message,
    /// What the inbox knows it by: two messages may have one id.
    key: MessageId,
    pub(crate) group: Group,
    pub(crate) attempt: u32,
    pub(crate) success: Settlement,
    pub(crate) services: Arc<Services>,
    /// Cancelled when the node lost its lease.
    fenced: Arc<CancellationToken>,
    /// Cancelled with that one, and when this attempt alone is to end. Made when somebody asks for it.
    cancelled: OnceLock<CancellationToken>,
    collected: Mutex<Collected>,
}

impl Shared {
    pub(crate) fn new(
        message: Message,
        key: MessageId,
        group: Group,
        attempt: u32,
        success: Settlement,
        services: Arc<Services>,
        fenced: Arc<CancellationToken>,
    ) -> Arc<Self> {
        let (cancelled, collected) = (OnceLock::new(), Mutex::default());
        Arc::new(Self { message, key, group, attempt, success, services, fenced, cancelled, collected })
    }

    /// Tells the handler to give up.
    pub(crate) fn cancel(&self) {
        self.cancelled().cancel();
    }

    /// Waits until the node has lost its lease: what it holds may be another's.
    pub(crate) async fn fenced(&self) {
        self.fenced.cancelled().await;
    }

    fn cancelled(&self) -> &CancellationToken {
        self.cancelled.get_or_init(|| self.fenced.child_token())
    }
}

/// What an engine has for its handlers.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) preparer: Preparer,
    pub(crate) states: States,
    pub(crate) storage: AnyStorage,
}

/// What a handler's [`tower::Service`] is called with.
#[derive(Debug, Clone)]
pub struct Call {
    context: Context,
    outbox: Outbox,
    pub(crate) slot: Arc<Slot>,
}

impl Call {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { context: Context(Arc::clone(shared)), outbox: Outbox(Arc::clone(shared)), slot: Arc::default() }
    }

    pub(crate) fn services(&self) -> &Services {
        &self.context.0.services
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.context.0.message
    }

    /// About this attempt.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The messages that go out with this handler's success.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// What a transactional handler writes in its own transaction to settle its record as succeeded.
    pub fn success(&self) -> &Settlement {
        &self.context.0.success
    }
}

/// About this attempt to handle a message; an extractor.
#[derive(Clone)]
pub struct Context(Arc<Shared>);

impl Context {
    /// The message's id: the key for making effects outside of the database idempotent. One that its publisher chose means
    /// something only beside the publisher and the topic.
    pub fn id(&self) -> &MessageId {
        &self.0.message.id
    }

    /// The message's topic.
    pub fn topic(&self) -> &Topic {
        &self.0.message.topic
    }

    /// The effective group.
    pub fn group(&self) -> &Group {
        &self.0.group
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// Whether the handler should give up: the engine stops and its drain time is over, or the node lost its lease and
    /// another may work on the message.
    ///
    /// When the lease is lost the handler is not only told: it is polled once more and then dropped, at the latest when
    /// the lease is over by this node's clock, before another node can have the message. What that does not reach is code
    /// that waits for nothing (between two awaits, or in `spawn_blocking`), tasks that the handler spawned, and what it
    /// has sent elsewhere already; and in a process that was frozen or starved, time goes on for the others. Such code
    /// asks here before each effect, or makes its effects idempotent by [`id`](Self::id).
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled().is_cancelled()
    }

    /// Waits until the handler should give up; see [`is_cancelled`](Self::is_cancelled).
    pub async fn cancelled(&self) {
        self.0.cancelled().cancelled().await;
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", self.id())
            .field("topic", self.topic())
            .field("group", self.group())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

/// Messages that go out with the handler's success; an extractor.
///
/// In a transactional handler they are part of its commit. In any other they are inserted before the record is
/// settled, under ids that depend only on the handled message, the group and the payload: if a crash makes the
/// handler run again and it publishes the same, that is no second message. If the handler fails nothing is published.
#[derive(Clone)]
pub struct Outbox(Arc<Shared>);

#[derive(Default)]
struct Collected {
    records: Vec<NewRecord>,
    /// Whether any were taken, to be committed.
    was_taken: bool,
}

impl Outbox {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }

    /// Adds a message whose payload is `payload` as JSON; answers its id.
    ///
    /// # Errors
    /// `Invalid` for a topic or payload that cannot be published.
    pub fn publish<T: Serialize + ?Sized>(&self, topic: &str, payload: &T) -> Result<MessageId> {
        self.add(Publish::json(topic, payload), Reserved::default())
    }

    /// Adds a message with headers, delay and the like; answers its id.
    ///
    /// # Errors
    /// As [`Outbox::publish`].
    pub fn publish_one(&self, publish: Publish) -> Result<MessageId> {
        self.add(publish, Reserved::default())
    }

    /// Adds the reply to the handled message, if it asks for one.
    pub(crate) fn reply(&self, payload: Bytes) -> Result<()> {
        let origin = &self.0.message;
        let Some(topic) = origin.callback() else { return Ok(()) };
        let sequence =
            origin.headers.get(headers::CORRELATION_SEQUENCE).and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        let reserved =
            Reserved { correlation_id: Some(origin.id.to_string()), correlation_sequence: sequence.saturating_add(1) };
        let mut reply = json_bytes(topic, payload);
        reply.topic_is_final();
        self.add(reply, reserved).map(|_| ())
    }

    fn add(&self, publish: Publish, reserved: Reserved) -> Result<MessageId> {
        let records = &mut self.collected().records;
        let index = records.len().to_string();
        let publish = publish.traced_as(&self.0.message.headers).id_or_derived(|topic, payload| {
            MessageId::derive(&[
                self.0.key.as_str().as_bytes(),
                self.0.group.as_str().as_bytes(),
                index.as_bytes(),
                topic.as_bytes(),
                payload,
            ])
        });
        let record = self.0.services.preparer.prepare_with(publish, reserved)?;
        let id = record.message_id.clone();
        records.push(record);
        Ok(id)
    }

    /// Takes what was published, the reply added.
    pub(crate) fn take_with_reply(&self, reply: Option<Bytes>) -> Result<Vec<NewRecord>> {
        if let Some(reply) = reply {
            self.reply(reply)?;
        }
        Ok(self.take())
    }

    /// Takes what was published so far.
    pub(crate) fn take(&self) -> Vec<NewRecord> {
        let mut collected = self.collected();
        collected.was_taken |= !collected.records.is_empty();
        std::mem::take(&mut collected.records)
    }

    /// Whether anything was taken.
    pub(crate) fn was_taken(&self) -> bool {
        self.collected().was_taken
    }

    fn collected(&self) -> MutexGuard<'_, Collected> {
        self.0.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("origin", &self.0.message.id).finish_non_exhaustive()
    }
}

/// The values that handlers ask for with `State<S>`, by type.
#[derive(Default)]
pub(crate) struct States(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl States {
    pub(crate) fn insert<S: Clone + Send + Sync + 'static>(&mut self, state: S) {
        self.0.insert(TypeId::of::<S>(), Box::new(state));
    }

    pub(crate) fn get<S: Clone + 'static>(&self) -> Option<S> {
        self.0.get(&TypeId::of::<S>())?.downcast_ref().cloned()
    }

    pub(crate) fn holds(&self, state: TypeId) -> bool {
        self.0.contains_key(&state)
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "States({})", self.0.len())
    }
}
