//! What the checks of the transport suite share: names, sending, receiving, and limits on waiting.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cap_core::transport::{Confirm, Consumer, Delivery, DeliveryTag, Outgoing, Subscription};
use cap_core::{ErrorKind, Group, Headers, Message, MessageId, Result, Topic, TopicPattern, Transport, headers};
use tokio::sync::oneshot;

use super::fixture::TransportFixture;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

/// Enough for every check that does not look at the prefetch itself.
pub(super) const ROOMY: usize = 2_000;

/// Where a check plays.
pub(super) struct Scene<'a> {
    fixture: &'a dyn TransportFixture,
}

impl<'a> Scene<'a> {
    pub(super) fn new(fixture: &'a dyn TransportFixture) -> Self {
        Self { fixture }
    }

    /// A connected handle of its own.
    pub(super) async fn open(&self) -> CheckResult<Arc<dyn Transport>> {
        let transport = self.within("a handle to open", self.fixture.open()).await??;
        self.within("connect", transport.connect()).await??;
        Ok(transport)
    }

    /// The topic `name` of this scene.
    pub(super) fn topic(&self, name: &str) -> CheckResult<Topic> {
        Ok(Topic::try_from(self.fixture.unique(name).as_str())?)
    }

    /// The topic or pattern of these words, below the word `name` of this scene.
    pub(super) fn below(&self, name: &str, words: &str) -> String {
        format!("{}.{words}", self.fixture.unique(name))
    }

    pub(super) fn group(&self, name: &str) -> CheckResult<Group> {
        Ok(Group::try_from(self.fixture.unique(name).as_str())?)
    }

    pub(super) fn subscription(&self, group: &str, topics: &[&str], prefetch: usize) -> CheckResult<Subscription> {
        let topics = topics.iter().map(|topic| TopicPattern::try_from(*topic)).collect::<Result<_>>()?;
        Ok(Subscription { group: self.group(group)?, topics, prefetch, prefetch_bytes: 64 * 1024 * 1024 })
    }

    /// A consumer of `group` for one exact topic.
    pub(super) async fn consumer(
        &self,
        transport: &Arc<dyn Transport>,
        group: &str,
        topic: &Topic,
    ) -> CheckResult<Box<dyn Consumer>> {
        self.subscribe(transport, self.subscription(group, &[topic.as_str()], ROOMY)?).await
    }

    pub(super) async fn subscribe(
        &self,
        transport: &Arc<dyn Transport>,
        subscription: Subscription,
    ) -> CheckResult<Box<dyn Consumer>> {
        Ok(self.within("a subscription", transport.subscribe(subscription)).await??)
    }

    /// How long a check waits for what must come.
    pub(super) fn patience(&self) -> Duration {
        self.fixture.patience()
    }

    /// Waits for what must come, as long as the fixture's patience lasts.
    pub(super) async fn within<T>(&self, what: &str, work: impl Future<Output = T>) -> CheckResult<T> {
        let patience = self.patience();
        self.limited(what, patience, Instant::now() + patience, work).await
    }

    /// Waits for outcomes, which may take as long as the transport may wait for the broker and the groups.
    pub(super) async fn within_confirm_limit<T>(&self, what: &str, work: impl Future<Output = T>) -> CheckResult<T> {
        let limit = self.fixture.confirm_limit() + self.patience();
        self.limited(what, limit, Instant::now() + limit, work).await
    }

    async fn limited<T>(
        &self,
        what: &str,
        limit: Duration,
        deadline: Instant,
        work: impl Future<Output = T>,
    ) -> CheckResult<T> {
        let late = |_| Failure::new(format!("{what} did not come within {limit:?}"));
        tokio::time::timeout_at(deadline.into(), work).await.map_err(late)
    }

    /// Hands messages to the transport; it may take them over as slowly as it confirms.
    pub(super) async fn send(&self, transport: &Arc<dyn Transport>, messages: &[Message]) -> CheckResult<Outcomes> {
        let (outgoing, outcomes) = outgoing(messages);
        self.within_confirm_limit("the end of `send`", transport.send(outgoing)).await?;
        Ok(outcomes)
    }

    /// The outcome of each message.
    pub(super) async fn outcomes(&self, outcomes: Outcomes) -> CheckResult<Vec<Result<()>>> {
        let count = outcomes.0.len();
        let all = async {
            let mut reported = Vec::with_capacity(count);
            for outcome in outcomes.0 {
                let outcome = outcome.await;
                reported.push(outcome.map_err(|_| Failure::new("a confirm vanished without a report"))?);
            }
            Ok(reported)
        };
        self.within_confirm_limit(&format!("the outcome of each of {count} messages"), all).await?
    }

    /// Fails unless each message is confirmed.
    pub(super) async fn confirmed(&self, outcomes: Outcomes) -> CheckResult {
        for (place, outcome) in self.outcomes(outcomes).await?.into_iter().enumerate() {
            outcome.map_err(|error| Failure::new(format!("message {place} was to be confirmed, but: {error}")))?;
        }
        Ok(())
    }

    /// Receives until there are `count` deliveries; acknowledges nothing.
    pub(super) async fn receive(&self, consumer: &mut dyn Consumer, count: usize) -> CheckResult<Vec<Delivery>> {
        let mut received: Vec<Delivery> = Vec::with_capacity(count);
        let deadline = Instant::now() + self.patience();
        while received.len() < count {
            let missing = count - received.len();
            let what = format!("a delivery ({} of {count} came)", received.len());
            let some = self.limited(&what, self.patience(), deadline, consumer.receive(missing)).await??;
            ensure!(!some.is_empty(), "`receive` answered without a delivery");
            ensure!(some.len() <= missing, "`receive` was asked for {missing} and gave {}", some.len());
            received.extend(some);
        }
        Ok(received)
    }

    /// As [`Self::receive`], and acknowledges.
    pub(super) async fn take(&self, consumer: &mut dyn Consumer, count: usize) -> CheckResult<Vec<Delivery>> {
        let received = self.receive(consumer, count).await?;
        self.ack(consumer, &received).await?;
        Ok(received)
    }

    pub(super) async fn ack(&self, consumer: &mut dyn Consumer, deliveries: &[Delivery]) -> CheckResult {
        Ok(self.within("the end of `ack`", consumer.ack(tags(deliveries))).await??)
    }

    /// Receives until the witness comes, which was sent last; what came before it. Acknowledges everything.
    pub(super) async fn until(&self, consumer: &mut dyn Consumer, witness: &Message) -> CheckResult<Vec<Delivery>> {
        let mut before = Vec::new();
        loop {
            let mut next = self.take(consumer, 1).await?;
            if next.iter().any(|delivery| is(delivery, witness)) {
                return Ok(before);
            }
            before.append(&mut next);
        }
    }

    /// Calls until the answer is right; for what a broker may tell a moment later.
    pub(super) async fn eventually<T, F>(&self, what: &str, mut call: impl FnMut() -> F) -> CheckResult<T>
    where
        F: Future<Output = Option<T>>,
    {
        let again = async {
            loop {
                if let Some(answer) = call().await {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        };
        self.within(what, again).await
    }
}

/// The outcomes of messages that were sent, in their order.
pub(super) struct Outcomes(Vec<oneshot::Receiver<Result<()>>>);

impl Outcomes {
    /// The outcome of the only message, if it is reported already.
    pub(super) fn reported(&mut self) -> Option<Result<()>> {
        self.0.first_mut().and_then(|outcome| outcome.try_recv().ok())
    }

    pub(super) fn append(&mut self, mut others: Outcomes) {
        self.0.append(&mut others.0);
    }

    pub(super) fn none() -> Self {
        Self(Vec::new())
    }
}

/// The messages with confirms that report to the outcomes.
pub(super) fn outgoing(messages: &[Message]) -> (Vec<Outgoing>, Outcomes) {
    let mut outcomes = Outcomes::none();
    let outgoing = messages.iter().map(|message| {
        let (report, outcome) = oneshot::channel();
        outcomes.0.push(outcome);
        let confirm = Confirm::new(move |result| drop(report.send(result)));
        Outgoing { message: message.clone(), confirm }
    });
    (outgoing.collect(), outcomes)
}

/// A message as the engine prepares one, with its id and topic among the headers.
pub(super) fn message(topic: &Topic) -> Message {
    message_with(topic, [], Bytes::from_static(br#"{"total":12}"#))
}

/// As [`message`], with more headers and another payload.
pub(super) fn message_with<const N: usize>(topic: &Topic, more: [(&str, &str); N], payload: Bytes) -> Message {
    let id = MessageId::generate();
    let own = [(headers::MESSAGE_ID, id.as_str()), (headers::MESSAGE_NAME, topic.as_str())];
    let headers = own.into_iter().chain(more).collect::<Headers>();
    Message { id, topic: topic.clone(), headers, payload }
}

pub(super) fn messages(topic: &Topic, count: usize) -> Vec<Message> {
    (0..count).map(|_| message(topic)).collect()
}

/// The message id that a delivery carries.
pub(super) fn id(delivery: &Delivery) -> &str {
    delivery.headers.get(headers::MESSAGE_ID).unwrap_or("none")
}

pub(super) fn is(delivery: &Delivery, message: &Message) -> bool {
    id(delivery) == message.id.as_str()
}

pub(super) fn tags(deliveries: &[Delivery]) -> Vec<DeliveryTag> {
    deliveries.iter().map(|delivery| delivery.tag).collect()
}

/// Fails unless the deliveries are those of the messages, each once, in any order.
pub(super) fn ensure_each_once<'m>(
    who: &str,
    deliveries: &[Delivery],
    messages: impl IntoIterator<Item = &'m Message>,
) -> CheckResult {
    let found: HashSet<&str> = deliveries.iter().map(id).collect();
    ensure_eq!(found.len(), deliveries.len(), "{who} received messages twice: distinct among its deliveries");
    let sent: HashSet<&str> = messages.into_iter().map(|message| message.id.as_str()).collect();
    let missing = sent.difference(&found).count();
    let foreign = found.difference(&sent).count();
    ensure!(missing == 0, "{who}: {missing} of {} messages did not come", sent.len());
    ensure!(foreign == 0, "{who} received {foreign} messages that were not for it");
    Ok(())
}

/// Fails unless each delivery says that it was delivered before.
pub(super) fn ensure_redelivered(deliveries: &[Delivery]) -> CheckResult {
    let unmarked = deliveries.iter().filter(|delivery| !delivery.redelivered).count();
    ensure!(unmarked == 0, "{unmarked} of {} redeliveries are not marked as such", deliveries.len());
    Ok(())
}

/// Fails unless the call was refused as it should be.
pub(super) fn ensure_refused<T>(what: &str, answer: Result<T>, expected: ErrorKind) -> CheckResult {
    match answer {
        Ok(_) => Err(Failure::new(format!("{what} succeeded, {expected:?} was expected"))),
        Err(error) if error.kind() == expected => Ok(()),
        Err(error) => Err(Failure::new(format!("{what}: found {:?}, expected {expected:?}: {error}", error.kind()))),
    }
}
