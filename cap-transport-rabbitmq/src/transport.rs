//! The transport: a broker, its two connections, and the runtime that drives them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use cap_core::backend::Slot;
use cap_core::transport::{Consumer, Outgoing, Subscription, TransportCapabilities};
use cap_core::{BoxFuture, Error, ErrorKind, Group, Result, Topic, TopicPattern, Transport};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::bindings::Bindings;
use crate::config::RabbitMqOptions;
use crate::connection::{CONSUMER, Link};
use crate::consumer::RabbitConsumer;
use crate::driver::{Alive, Driver};
use crate::error::{NOT_FOUND, call, reply, stopped, unavailable};
use crate::publisher::Publisher;
use crate::quarantine::Quarantine;
use crate::settings::Settings;
use crate::sizes::Sizes;
use crate::{routes, topology};

const TELL_ROUTES: &str = "tell which topics have no queue on";
const ENABLE_ROUTES: &str = "AMQP does not tell it: set the option `management_url`, in a build with the feature `management` of \
                             cap-transport-rabbitmq (`rabbitmq-management` of cap)";

/// RabbitMQ as a transport. Cheap to clone: a clone is the same handle, with the same two connections (one to send on,
/// one to consume from), and closing one closes all.
///
/// Connections are made when they are needed and made again when they are lost; a thread of the transport's own drives
/// them, so that a handle may be used from any runtime.
#[derive(Clone)]
pub struct RabbitMq {
    shared: Arc<Shared>,
}

impl RabbitMq {
    /// A transport for the broker at `url`, with default options and not yet connected. No I/O, no runtime.
    ///
    /// # Errors
    /// `Invalid` if it is no AMQP URL.
    pub fn new(url: impl Into<String>) -> Result<Self> {
        Self::with_options(RabbitMqOptions::new(url))
    }

    /// As [`RabbitMq::new`], with options.
    ///
    /// # Errors
    /// `Invalid`, naming everything that is wrong with them.
    pub fn with_options(options: RabbitMqOptions) -> Result<Self> {
        let settings = Arc::new(options.check()?);
        let (closed, _) = watch::channel(false);
        let (publisher, consumers) = (Slot::new(), Slot::new());
        let driver = Driver::new();
        let (sending, quarantine, bindings, sizes) = Default::default();
        let shared = Shared { settings, closed, publisher, sending, quarantine, bindings, consumers, sizes, driver };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A transport with default options, connected.
    ///
    /// # Errors
    /// Those of [`RabbitMq::new`] and of [`Transport::connect`]: `Unavailable` if the broker is not there, `Rejected`
    /// if it refuses the user, the virtual host or the exchange.
    pub async fn connect(url: impl Into<String>) -> Result<Self> {
        let transport = Self::new(url)?;
        Transport::connect(&transport).await?;
        Ok(transport)
    }

    /// Ends bindings: the group's queue gets no more messages of these topics, each written as it was subscribed. What
    /// is in the queue stays. A binding that does not exist is no error.
    ///
    /// Subscribing only ever adds bindings, because it cannot know what other versions of a service still want; and AMQP
    /// cannot list them. So call this when a topic is no longer subscribed by any version that runs.
    ///
    /// # Errors
    /// `Unavailable`, `Environment` (no right to), `Rejected` (the queue or the exchange does not exist), `Stopped`.
    pub async fn unbind(&self, group: &Group, topics: &[TopicPattern]) -> Result<()> {
        let (group, topics) = (group.clone(), topics.to_vec());
        self.with_link("unbind", group, async move |link, settings, group| {
            let subject = || format!("queue `{group}` on {}", settings.place);
            let channel = link.channel().await.map_err(|cause| call("unbind", subject(), cause, ""))?;
            for topic in topics {
                let (queue, exchange) = (group.as_str().into(), settings.exchange.as_str().into());
                let unbound = channel.queue_unbind(queue, exchange, topic.as_str().into(), FieldTable::default()).await;
                unbound.map_err(|cause| call("unbind", format!("{} from topic `{topic}`", subject()), cause, ""))?;
            }
            Ok(())
        })
        .await
    }

    /// How many messages are ready in a group's queue, or `None` if the group has no queue yet: then nothing that is sent
    /// reaches it. Those that are out with consumers are not counted; AMQP does not tell their number, which is why
    /// [`Transport::backlog`] is not offered.
    ///
    /// # Errors
    /// `Unavailable`, `Environment` (no right to), `Stopped`.
    pub async fn ready_messages(&self, group: &Group) -> Result<Option<u64>> {
        self.with_link("look at", group.clone(), async |link, settings, group| {
            let failed = |cause| call("look at", format!("queue `{group}` on {}", settings.place), cause, "");
            let channel = link.channel().await.map_err(failed)?;
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            match channel.queue_declare(group.as_str().into(), options, FieldTable::default()).await {
                Ok(queue) => Ok(Some(u64::from(queue.message_count()))),
                Err(cause) if reply(&cause).is_some_and(|(code, _)| code == NOT_FOUND) => Ok(None),
                Err(cause) => Err(failed(cause)),
            }
        })
        .await
    }

    /// Does something about a group on the connection for consuming, within the connect time limit.
    async fn with_link<T: Send + 'static, F>(
        &self,
        operation: &'static str,
        group: Group,
        work: impl FnOnce(Arc<Link>, Arc<Settings>, Group) -> F + Send + 'static,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let shared = Arc::clone(&self.shared);
        let subject = format!("queue `{group}` on {}", shared.settings.place);
        self.shared
            .run(operation, subject.clone(), async move {
                let link = shared.link().await?;
                let limit = shared.settings.connect_timeout();
                let working = tokio::time::timeout(limit, work(link, Arc::clone(&shared.settings), group));
                let late =
                    |_| Err(unavailable(operation, subject, format!("the broker did not answer within {limit:?}")));
                working.await.unwrap_or_else(late)
            })
            .await
    }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq").field("place", &self.shared.settings.place).finish_non_exhaustive()
    }
}

impl Transport for RabbitMq {
    fn describe(&self) -> String {
        self.shared.settings.place.clone()
    }

    fn capabilities(&self) -> TransportCapabilities {
        TransportCapabilities {
            durable: true,
            keeps_backlog: true,
            ordered: true,
            wildcards: true,
            reports_backlog: false,
            checks_routes: self.shared.settings.management.is_some(),
            max_body: Some(self.shared.settings.max_body()),
        }
    }

    fn connect(&self) -> BoxFuture<'_, Result<()>> {
        let shared = Arc::clone(&self.shared);
        let connecting = async move { shared.publisher().await.map(drop) };
        Box::pin(self.shared.run("connect to", self.describe(), connecting))
    }

    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()> {
        let deadline = Instant::now() + self.shared.settings.confirm_timeout();
        let shared = Arc::clone(&self.shared);
        let sending = async move {
            match shared.publisher().await {
                Ok(publisher) => publisher.send(messages, deadline).await,
                Err(error) => refuse_all(messages, &error),
            }
            Ok(())
        };
        // If nothing can be run, or no longer, the confirms are dropped and report it themselves.
        Box::pin(async move { drop(self.shared.run("send to", self.describe(), sending).await) })
    }

    fn obstacle(&self) -> Option<Error> {
        let link = self.shared.sending.lock().unwrap_or_else(PoisonError::into_inner).upgrade()?;
        Some(unavailable("send to", self.describe(), link.alarm()?))
    }

    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        let group = subscription.group.clone();
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            topology::check(&subscription)?;
            let opening = async move |link, _, _| RabbitConsumer::open(shared, link, subscription).await;
            let consumer = self.with_link("subscribe to", group, opening).await?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn unrouted(&self, topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        Box::pin(async move {
            let refuse = |kind, reason: String| Error::new(kind, TELL_ROUTES, self.describe(), reason);
            let Some(management) = self.shared.settings.management.clone() else {
                return Err(refuse(ErrorKind::Unsupported, ENABLE_ROUTES.into()));
            };
            let asking = async move { Ok(tokio::task::spawn_blocking(move || management.bindings()).await) };
            let bindings = match self.shared.run(TELL_ROUTES, self.describe(), asking).await? {
                Ok(answer) => answer?,
                Err(ended) => return Err(refuse(ErrorKind::Internal, ended.to_string())),
            };
            Ok(routes::unrouted(topics, &bindings))
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.closed.send_replace(true);
            let (publisher, link) = (self.shared.publisher.take().await, self.shared.consumers.take().await);
            let Some(runtime) = self.shared.driver.started() else {
                return Ok(());
            };
            let ending = runtime.spawn(async move {
                let sending = async {
                    if let Some(publisher) = &publisher {
                        publisher.end().await;
                    }
                };
                let consuming = async {
                    if let Some(link) = &link {
                        link.end().await;
                    }
                };
                tokio::join!(sending, consuming);
            });
            let _ = ending.await;
            Ok(())
        })
    }
}

/// Reports messages that there is no connection for. Why there is none may be for good for the connection (a password
/// that was changed), but not for the message.
fn refuse_all(messages: Vec<Outgoing>, error: &Error) {
    for Outgoing { message, confirm } in messages {
        let subject = format!("message {} to topic `{}`", message.id, message.topic);
        confirm.report(Err(unavailable("send", subject, error.to_string()).because(error.clone())));
    }
}

/// What all clones of a handle, and its consumers, have in common.
pub(crate) struct Shared {
    pub(crate) settings: Arc<Settings>,
    closed: watch::Sender<bool>,
    publisher: Slot<Publisher>,
    /// The connection of the publisher, to ask it without waiting.
    sending: Mutex<Weak<Link>>,
    quarantine: Arc<Quarantine>,
    pub(crate) bindings: Arc<Bindings>,
    consumers: Slot<Link>,
    /// How large the messages of the groups are that were consumed.
    sizes: Mutex<HashMap<Group, Arc<Mutex<Sizes>>>>,
    driver: Driver,
}

impl Shared {
    /// Tells when the transport is closed.
    pub(crate) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    /// What is known of the sizes of a group's messages, and is learnt further by all its consumers.
    pub(crate) fn sizes(&self, group: &Group) -> Arc<Mutex<Sizes>> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sizes.entry(group.clone()).or_default())
    }

    async fn publisher(&self) -> Result<Arc<Publisher>> {
        let making = self.unless_closed(async {
            let (_, alive) = self.start("connect to", &self.settings.place)?;
            let (quarantine, bindings) = (Arc::clone(&self.quarantine), Arc::clone(&self.bindings));
            let publisher = Publisher::open(&self.settings, self.closed(), quarantine, bindings, alive).await?;
            *self.sending.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(publisher.link());
            Ok(publisher)
        });
        self.publisher.get(Publisher::is_usable, making).await
    }

    async fn link(&self) -> Result<Arc<Link>> {
        let making = self.unless_closed(async {
            let (_, alive) = self.start("connect to", &self.settings.place)?;
            Link::open(&self.settings, CONSUMER, alive).await
        });
        self.consumers.get(Link::is_open, making).await
    }

    async fn unless_closed<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut closed = self.closed();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(stopped("connect to", &self.settings.place)),
            done = work => done,
        }
    }

    fn start(&self, operation: &'static str, subject: &str) -> Result<(Handle, Alive)> {
        self.driver.start().map_err(|cause| {
            let reason = format!("no thread could be started: {cause}");
            unavailable(operation, subject, reason).because(cause)
        })
    }

    /// Does work on the transport's own runtime: neither its end nor a dropped future of the caller's leaves it half done.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        subject: String,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if *self.closed.borrow() {
            return Err(stopped(operation, subject));
        }
        let (runtime, _) = self.start(operation, &subject)?;
        match runtime.spawn(work).await {
            Ok(done) => done,
            Err(ended) if ended.is_panic() => Err(Error::new(ErrorKind::Internal, operation, subject, "it panicked")),
            Err(_) => Err(stopped(operation, subject)),
        }
    }
}
