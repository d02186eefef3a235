//! The transport: a cluster, a producer, and the consumers' threads.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cap_core::backend::Slot;
use cap_core::transport::{Consumer, Outgoing, Subscription, TransportCapabilities};
use cap_core::{BoxFuture, Error, Result, Topic, Transport};
use tokio::sync::watch;

use crate::config::KafkaOptions;
use crate::consumer::KafkaConsumer;
use crate::error::{stopped, unavailable};
use crate::groups::Groups;
use crate::pattern;
use crate::publisher::Publisher;
use crate::settings::Settings;
use crate::topics::Topics;

/// How long consumers may take to commit and to leave their groups when the transport is closed.
const FAREWELL: Duration = Duration::from_secs(5);

/// Kafka as a transport. Cheap to clone: a clone is the same handle, with the same producer, and closing one closes all.
///
/// librdkafka's threads keep the connections, and make them again when they are lost; each consumer has a thread of its
/// own that polls, so that a handle may be used from any runtime.
#[derive(Clone)]
pub struct Kafka {
    shared: Arc<Shared>,
}

impl Kafka {
    /// A transport for the cluster of `brokers` (`host:port`, several with commas between them), with default options and
    /// not yet connected. No I/O, no runtime.
    ///
    /// # Errors
    /// `Invalid` if these are no addresses.
    pub fn new(brokers: impl Into<String>) -> Result<Self> {
        Self::with_options(KafkaOptions::new(brokers))
    }

    /// As [`Kafka::new`], with options.
    ///
    /// # Errors
    /// `Invalid`, naming everything that is wrong with them.
    pub fn with_options(options: KafkaOptions) -> Result<Self> {
        let settings = Arc::new(options.check()?);
        let (closed, _) = watch::channel(false);
        let (workers, _) = watch::channel(0);
        let (publisher, topics, groups) = (Slot::new(), Arc::default(), Arc::default());
        Ok(Self { shared: Arc::new(Shared { settings, closed, publisher, topics, groups, workers }) })
    }

    /// A transport with default options, connected.
    ///
    /// # Errors
    /// Those of [`Kafka::new`] and of [`Transport::connect`]: `Unavailable` if no broker is there, `Rejected` if it
    /// refuses the user or its certificate is not trusted, `Invalid` if settings do not go together.
    pub async fn connect(brokers: impl Into<String>) -> Result<Self> {
        let transport = Self::new(brokers)?;
        Transport::connect(&transport).await?;
        Ok(transport)
    }
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka").field("place", &self.shared.settings.place).finish_non_exhaustive()
    }
}

impl Transport for Kafka {
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
            checks_routes: true,
            max_body: Some(self.shared.settings.max_body()),
        }
    }

    fn connect(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.shared.publisher("connect to").await.map(drop) })
    }

    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            match self.shared.publisher("send to").await {
                Ok(publisher) => publisher.send(&self.shared.topics, &self.shared.settings, messages).await,
                Err(error) => refuse_all(messages, &error),
            }
        })
    }

    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        Box::pin(async move {
            check(&subscription)?;
            let shared = &self.shared;
            let subscribing = async {
                let publisher = shared.publisher("subscribe to").await?;
                let is_awaited = shared.topics.prepare(&publisher, &shared.settings, &subscription).await?;
                let has_name = !shared.groups.is_nameless(&subscription.group);
                match KafkaConsumer::open(shared, subscription.clone(), is_awaited).await {
                    // What its name had was another's: it is a stranger now.
                    Err(_) if has_name && shared.groups.is_nameless(&subscription.group) => {
                        KafkaConsumer::open(shared, subscription, is_awaited).await
                    }
                    opened => opened,
                }
            };
            let consumer = shared.unless_closed("subscribe to", subscribing).await?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn unrouted(&self, topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        Box::pin(async move {
            let publisher = self.shared.publisher("tell which topics do not exist on").await?;
            self.shared.topics.unrouted(&publisher, &self.shared.settings, topics).await
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.closed.send_replace(true);
            let publisher = self.shared.publisher.take().await;
            let sending = async {
                if let Some(publisher) = &publisher {
                    publisher.end().await;
                }
            };
            let mut workers = self.shared.workers.subscribe();
            let leaving = async { drop(workers.wait_for(|count| *count == 0).await) };
            let consuming = tokio::time::timeout(FAREWELL, leaving);
            let ((), consumed) = tokio::join!(sending, consuming);
            if consumed.is_err() {
                tracing::warn!(place = self.describe(), "consumers are still leaving their groups after {FAREWELL:?}");
            }
            Ok(())
        })
    }
}

/// Refuses what Kafka does not allow.
fn check(wanted: &Subscription) -> Result<()> {
    if wanted.prefetch == 0 {
        return Err(Error::invalid(format!("a subscription of group `{}`", wanted.group), "its prefetch is 0"));
    }
    wanted.topics.iter().try_for_each(|topic| pattern::check_pattern("subscribe to", topic))
}

/// Reports messages that there is no producer for. Why there is none may be for good for the connection (a password that
/// was changed), but not for the message.
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
    topics: Arc<Topics>,
    groups: Arc<Groups>,
    /// How many consumers' threads there are.
    workers: watch::Sender<usize>,
}

impl Shared {
    /// Tells when the transport is closed.
    pub(crate) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    pub(crate) fn workers(&self) -> watch::Sender<usize> {
        self.workers.clone()
    }

    pub(crate) fn groups(&self) -> Arc<Groups> {
        Arc::clone(&self.groups)
    }

    async fn publisher(&self, operation: &'static str) -> Result<Arc<Publisher>> {
        let making = self.unless_closed(operation, Publisher::open(&self.settings, &self.topics));
        let publisher = self.publisher.get(Publisher::is_usable, making).await?;
        // Closing takes the publisher away, but perhaps a moment before this one was made.
        if *self.closed.borrow() {
            return Err(stopped(operation, &self.settings.place));
        }
        Ok(publisher)
    }

    async fn unless_closed<T>(&self, operation: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut closed = self.closed();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(stopped(operation, &self.settings.place)),
            done = work => done,
        }
    }
}
