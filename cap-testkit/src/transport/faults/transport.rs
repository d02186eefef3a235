//! The transport of a double.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cap_core::transport::{Confirm, Consumer, Outgoing, Subscription, TransportCapabilities};
use cap_core::{
    BoxFuture, Error, ErrorKind, Group, Headers, Message, MessageId, Result, Topic, TopicPattern, Transport, headers,
};
use tokio::sync::{mpsc, oneshot};

use super::consumer::{FaultyConsumer, LateConsumer};
use super::{FaultyFixture, MAX_BODY, Pretence, SECRET, Shared, TransportFault as Fault, lock};

/// A transport that breaks its promises in one way.
pub(super) struct FaultyTransport {
    inner: Arc<dyn Transport>,
    /// Another handle, which is not closed when this one is.
    spare: Arc<dyn Transport>,
    fault: Option<Fault>,
    pretence: Pretence,
    shared: Arc<Shared>,
    connected: AtomicBool,
    closed: Arc<AtomicBool>,
    calls: AtomicU64,
    pump: Mutex<Option<mpsc::UnboundedSender<Vec<Outgoing>>>>,
    /// What was asked for routes and answered.
    told: Mutex<HashMap<Vec<Topic>, Vec<Topic>>>,
}

impl FaultyTransport {
    pub(super) fn new(
        inner: Arc<dyn Transport>,
        spare: Arc<dyn Transport>,
        fixture: &FaultyFixture,
        shared: Arc<Shared>,
    ) -> Self {
        let (fault, pretence) = (fixture.fault, fixture.pretence);
        let (connected, closed, calls, pump, told) = Default::default();
        Self { inner, spare, fault, pretence, shared, connected, closed, calls, pump, told }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn refusal(&self, operation: &'static str) -> Error {
        Error::new(ErrorKind::Rejected, operation, self.describe(), "it was done before")
    }

    async fn send_faulty(&self, fault: Fault, mut messages: Vec<Outgoing>) {
        match fault {
            Fault::ConfirmsOnSend => messages = messages.into_iter().map(confirmed_early).collect(),
            Fault::ReversesBatches => messages.reverse(),
            Fault::ConfirmsWithTheFirstGroup => {
                messages = messages.into_iter().map(|one| self.keep_confirm(one)).collect()
            }
            Fault::SendsOneInAHundredTwice => messages = self.double_one_in_a_hundred(messages),
            Fault::LosesOneInAHundred => messages = self.lose_one_in_a_hundred(messages),
            Fault::ConfirmsAfterClose if self.is_closed() => {
                return messages.into_iter().for_each(|outgoing| outgoing.confirm.report(Ok(())));
            }
            Fault::WaitsForEachConfirm => return self.send_one_by_one(messages, false).await,
            Fault::FailsTheBatchWithOne => return self.send_one_by_one(messages, true).await,
            Fault::DiesWithItsFirstRuntime => {
                let pump = lock(&self.pump).clone();
                // Where nobody takes them the confirms are dropped, which reports them.
                return drop(pump.map(|pump| pump.send(messages)));
            }
            _ => {}
        }
        let closed = &self.closed;
        let changed = messages.into_iter().map(|outgoing| Outgoing {
            message: changed(fault, outgoing.message),
            confirm: changed_confirm(fault, outgoing.confirm, Arc::clone(closed)),
        });
        self.inner.send(changed.collect()).await;
    }

    /// Leaves the confirm to the first consumer that acknowledges.
    fn keep_confirm(&self, outgoing: Outgoing) -> Outgoing {
        let id = outgoing.message.id.as_str().to_owned();
        lock(&self.shared.unconfirmed).insert(id, outgoing.confirm);
        Outgoing { message: outgoing.message, confirm: Confirm::new(|_| {}) }
    }

    fn double_one_in_a_hundred(&self, messages: Vec<Outgoing>) -> Vec<Outgoing> {
        let mut doubled = Vec::with_capacity(messages.len() + 1);
        for outgoing in messages {
            if self.shared.counter.fetch_add(1, Ordering::SeqCst).is_multiple_of(100) {
                let message = outgoing.message.clone();
                doubled.push(Outgoing { message, confirm: Confirm::new(|_| {}) });
            }
            doubled.push(outgoing);
        }
        doubled
    }

    fn lose_one_in_a_hundred(&self, messages: Vec<Outgoing>) -> Vec<Outgoing> {
        let mut kept = Vec::with_capacity(messages.len());
        for outgoing in messages {
            match self.calls.fetch_add(1, Ordering::SeqCst) % 100 {
                99 => outgoing.confirm.report(Ok(())),
                _ => kept.push(outgoing),
            }
        }
        kept
    }

    async fn send_one_by_one(&self, messages: Vec<Outgoing>, stops_on_failure: bool) {
        let mut failed = false;
        for Outgoing { message, confirm } in messages {
            if failed {
                drop(confirm);
                continue;
            }
            let (report, outcome) = oneshot::channel();
            let probe = Confirm::new(move |result| drop(report.send(result)));
            self.inner.send(vec![Outgoing { message, confirm: probe }]).await;
            if stops_on_failure {
                let mut outcome = outcome;
                match outcome.try_recv() {
                    Ok(result) => {
                        failed = result.is_err();
                        confirm.report(result);
                    }
                    Err(_) => drop(tokio::spawn(pass_on(outcome, confirm))),
                }
                continue;
            }
            pass_on(outcome, confirm).await;
        }
    }

    /// What is subscribed to instead.
    fn changed_subscription(&self, mut subscription: Subscription) -> Result<Subscription> {
        let name = subscription.group.as_str();
        match self.fault {
            Some(Fault::GroupsShareOneQueue) => subscription.group = "everyone".parse()?,
            Some(Fault::MembersGetCopies) => {
                let member = self.shared.counter.fetch_add(1, Ordering::SeqCst);
                subscription.group = format!("{name}-{member}").parse()?;
            }
            Some(Fault::StarMatchesManyWords) => {
                let widened = subscription.topics.iter().map(|topic| topic.as_str().replace('*', "#"));
                subscription.topics = patterns(widened)?;
            }
            Some(Fault::MatchesByPrefix) => {
                let exact = subscription.topics.iter().map(|topic| topic.as_str().to_owned());
                let longer = subscription.topics.iter().map(|topic| format!("{topic}.#"));
                subscription.topics = patterns(exact.chain(longer))?;
            }
            Some(Fault::IgnoresThePrefetch) => subscription.prefetch = usize::MAX,
            Some(Fault::CountsMessagesOnly) => subscription.prefetch_bytes = usize::MAX,
            _ => {}
        }
        Ok(subscription)
    }

    async fn unrouted_faulty(&self, fault: Fault, topics: Vec<Topic>) -> Result<Vec<Topic>> {
        match fault {
            Fault::TellsRoutesAfterClose => self.spare.unrouted(topics).await,
            Fault::TakesBindingsForTopics => {
                Ok(self.without_subscription(topics, |topic, pattern, _| pattern.as_str() == topic.as_str()))
            }
            Fault::TakesConsumersForRoutes => {
                Ok(self.without_subscription(topics, |topic, pattern, is_present| is_present && pattern.matches(topic)))
            }
            Fault::SortsTheUnrouted => {
                let mut unrouted = self.inner.unrouted(topics).await?;
                unrouted.sort();
                Ok(unrouted)
            }
            Fault::RemembersRoutes => {
                let told = lock(&self.told).get(&topics).cloned();
                if let Some(told) = told {
                    return Ok(told);
                }
                let unrouted = self.inner.unrouted(topics.clone()).await?;
                lock(&self.told).insert(topics, unrouted.clone());
                Ok(unrouted)
            }
            Fault::ProbesForRoutes => {
                self.inner.send(topics.iter().map(probe).collect()).await;
                self.inner.unrouted(topics).await
            }
            _ => self.inner.unrouted(topics).await,
        }
    }

    /// The topics that no subscription suits; `suits` is told whether its consumer is there.
    fn without_subscription(
        &self,
        mut topics: Vec<Topic>,
        suits: impl Fn(&Topic, &TopicPattern, bool) -> bool,
    ) -> Vec<Topic> {
        let subscribed = lock(&self.shared.subscribed);
        topics.retain(|topic| {
            let mut all = subscribed.iter();
            !all.any(|(patterns, consumer)| {
                patterns.iter().any(|pattern| suits(topic, pattern, consumer.strong_count() > 0))
            })
        });
        topics
    }

    fn refused_subscription(&self, subscription: &Subscription) -> Option<Error> {
        let is_poor = self.pretence == Pretence::Poor && !self.has(Fault::TakesUndeclaredPatterns);
        if is_poor && subscription.topics.iter().any(|topic| topic.exact().is_none()) {
            return Some(Error::unsupported("subscribe to a pattern on", self.describe()));
        }
        let is_known = !lock(&self.shared.groups).insert(subscription.group.clone());
        (is_known && self.has(Fault::RefusesASecondSubscription)).then(|| self.refusal("subscribe to"))
    }
}

fn patterns(texts: impl Iterator<Item = String>) -> Result<Vec<TopicPattern>> {
    texts.map(|text| TopicPattern::try_from(text.as_str())).collect()
}

async fn pass_on(outcome: oneshot::Receiver<Result<()>>, confirm: Confirm) {
    if let Ok(result) = outcome.await {
        confirm.report(result);
    }
}

fn probe(topic: &Topic) -> Outgoing {
    let (id, headers) = (MessageId::generate(), Headers::new());
    let message = Message { id, topic: topic.clone(), headers, payload: Bytes::new() };
    Outgoing { message, confirm: Confirm::new(|_| {}) }
}

fn confirmed_early(outgoing: Outgoing) -> Outgoing {
    outgoing.confirm.report(Ok(()));
    Outgoing { message: outgoing.message, confirm: Confirm::new(|_| {}) }
}

fn changed(fault: Fault, mut message: Message) -> Message {
    let cut = |body: &Bytes, limit: usize| body.slice(..body.len().min(limit));
    match fault {
        Fault::DropsCapHeaders => {
            let kept = |name: &str| name == headers::MESSAGE_ID || !name.starts_with("cap-");
            message.headers = message.headers.iter().filter(|(name, _)| kept(name)).collect::<Headers>();
        }
        Fault::ActsOnHeaders => {
            let kept = |name: &str| !name.eq_ignore_ascii_case("bcc");
            message.headers = message.headers.iter().filter(|(name, _)| kept(name)).collect::<Headers>();
        }
        Fault::TakesBodiesForText => message.payload = String::from_utf8_lossy(&message.payload).into_owned().into(),
        Fault::CutsBodiesAt64Kib => message.payload = cut(&message.payload, 64 * 1024),
        Fault::CutsBodiesAtTheLimit => message.payload = cut(&message.payload, MAX_BODY),
        _ => {}
    }
    message
}

fn changed_confirm(fault: Fault, confirm: Confirm, closed: Arc<AtomicBool>) -> Confirm {
    Confirm::new(move |outcome| {
        let kind = outcome.as_ref().err().map(Error::kind);
        match (fault, kind) {
            (Fault::ConfirmsWhatItLost, Some(ErrorKind::Unavailable)) => confirm.report(Ok(())),
            (Fault::ConfirmsTheUnroutable, Some(ErrorKind::Unroutable)) => confirm.report(Ok(())),
            (Fault::ForgetsTheUnavailable, Some(ErrorKind::Unavailable)) => std::mem::forget(confirm),
            (Fault::ForgetsConfirmsOnClose, _) if closed.load(Ordering::SeqCst) => std::mem::forget(confirm),
            _ => confirm.report(outcome),
        }
    })
}

impl fmt::Debug for FaultyTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyTransport")
            .field("inner", &self.inner)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

impl Transport for FaultyTransport {
    fn describe(&self) -> String {
        if self.has(Fault::ShowsItsSecret) {
            return format!("double://user:{SECRET}@here");
        }
        self.inner.describe()
    }

    fn capabilities(&self) -> TransportCapabilities {
        let declared = self.inner.capabilities();
        let calls = self.calls.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Some(Fault::DeclaresABacklogItDoesNotKeep) => TransportCapabilities { keeps_backlog: true, ..declared },
            Some(Fault::VariesItsCapabilities) if calls % 2 == 1 => TransportCapabilities::default(),
            _ if self.pretence == Pretence::Poor => TransportCapabilities::default(),
            _ => declared,
        }
    }

    fn connect(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if self.connected.swap(true, Ordering::SeqCst) && self.has(Fault::RefusesToConnectAgain) {
                return Err(self.refusal("connect to"));
            }
            if self.has(Fault::DiesWithItsFirstRuntime) && lock(&self.pump).is_none() {
                let (pump, mut batches) = mpsc::unbounded_channel();
                *lock(&self.pump) = Some(pump);
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move {
                    while let Some(batch) = batches.recv().await {
                        inner.send(batch).await;
                    }
                });
            }
            self.inner.connect().await
        })
    }

    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()> {
        match self.fault {
            Some(fault) => Box::pin(self.send_faulty(fault, messages)),
            None => self.inner.send(messages),
        }
    }

    fn obstacle(&self) -> Option<Error> {
        self.inner.obstacle()
    }

    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        Box::pin(async {
            if let Some(refusal) = self.refused_subscription(&subscription) {
                return Err(refusal);
            }
            let subscription = self.changed_subscription(subscription)?;
            if self.has(Fault::SubscribesLate) {
                let transport = Arc::clone(&self.inner);
                return Ok(Box::new(LateConsumer { transport, subscription, begun: None }) as Box<dyn Consumer>);
            }
            let closed = self.is_closed() && self.has(Fault::SubscribesAfterClose);
            let transport = if closed { &self.spare } else { &self.inner };
            let (topics, budget) = (subscription.topics.clone(), subscription.prefetch_bytes);
            let inner = transport.subscribe(subscription).await?;
            let shared = Arc::clone(&self.shared);
            Ok(Box::new(FaultyConsumer::new(inner, (topics, budget), self.fault, shared)) as Box<dyn Consumer>)
        })
    }

    fn backlog(&self, group: Group) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async {
            if self.pretence == Pretence::Poor && !self.has(Fault::TellsAnUndeclaredBacklog) {
                return Err(Error::unsupported("tell the backlog of a group on", self.describe()));
            }
            let held = self.inner.backlog(group).await?;
            let out = u64::try_from(self.shared.out.load(Ordering::SeqCst)).unwrap_or(0);
            Ok(if self.has(Fault::BacklogLeavesOutWhatIsOut) { held.saturating_sub(out) } else { held })
        })
    }

    fn unrouted(&self, topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        Box::pin(async {
            if self.pretence == Pretence::Poor && !self.has(Fault::TellsUndeclaredRoutes) {
                return Err(Error::unsupported("tell which topics have no queue on", self.describe()));
            }
            match self.fault {
                Some(fault) => self.unrouted_faulty(fault, topics).await,
                None => self.inner.unrouted(topics).await,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if self.closed.swap(true, Ordering::SeqCst) && self.has(Fault::RefusesToCloseAgain) {
                return Err(self.refusal("close"));
            }
            if self.has(Fault::ClosesEveryHandle) {
                let handles = lock(&self.shared.handles).clone();
                for handle in handles {
                    handle.close().await?;
                }
            }
            self.inner.close().await
        })
    }
}
