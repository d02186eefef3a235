//! The consumer of a double.

use std::collections::BTreeMap;
use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cap_core::transport::{Consumer, Delivery, DeliveryTag, Subscription};
use cap_core::{BoxFuture, Result, TopicPattern, Transport, headers};

use super::{Shared, TransportFault as Fault, lock};

/// A consumer that breaks its promises in one way.
#[derive(Debug)]
pub(super) struct FaultyConsumer {
    inner: Box<dyn Consumer>,
    fault: Option<Fault>,
    shared: Arc<Shared>,
    budget: usize,
    out: BTreeMap<DeliveryTag, String>,
    _present: Arc<()>,
}

impl FaultyConsumer {
    pub(super) fn new(
        inner: Box<dyn Consumer>,
        (topics, budget): (Vec<TopicPattern>, usize),
        fault: Option<Fault>,
        shared: Arc<Shared>,
    ) -> Self {
        let present = Arc::new(());
        lock(&shared.subscribed).push((topics, Arc::downgrade(&present)));
        Self { inner, fault, shared, budget, out: BTreeMap::new(), _present: present }
    }

    fn acks_on_receive(&self) -> bool {
        matches!(self.fault, Some(Fault::AcksOnReceive | Fault::LosesWhatIsOutOnACut))
    }

    async fn take(&mut self, max: usize) -> Result<Vec<Delivery>> {
        match self.fault {
            Some(Fault::IgnoresTheMaximum) => self.inner.receive(usize::MAX).await,
            Some(Fault::LosesDroppedReceives) => {
                let taken = self.inner.receive(max).await;
                tokio::task::yield_now().await;
                taken
            }
            Some(Fault::WaitsForRoom) => match self.inner.receive(max).await {
                Ok(taken) if taken.iter().any(|delivery| delivery.body.len() > self.budget) => pending().await,
                taken => taken,
            },
            Some(Fault::MissesWakeUps) => tokio::select! {
                biased;
                taken = self.inner.receive(max) => taken,
                () = ready(()) => pending().await,
            },
            Some(Fault::WaitsForEverWhenClosed) => match self.inner.receive(max).await {
                Err(_) => pending().await,
                taken => taken,
            },
            Some(Fault::CountsOnInAnotherTopic) => loop {
                let taken = self.inner.receive(max).await?;
                let (passed, taken): (Vec<_>, Vec<_>) = taken.into_iter().partition(|one| self.passes_over(one));
                self.inner.ack(passed.iter().map(|delivery| delivery.tag).collect()).await?;
                if !taken.is_empty() {
                    return Ok(taken);
                }
            },
            _ => self.inner.receive(max).await,
        }
    }

    /// Whether a message has the place of one that was done in a topic of this name before.
    fn passes_over(&self, delivery: &Delivery) -> bool {
        let mut places = lock(&self.shared.places);
        let (done, passed) = places.entry(delivery.topic.clone()).or_default();
        let passes = *passed > 0;
        if passes {
            *passed -= 1
        } else {
            *done += 1
        }
        passes
    }

    fn disguise(&self, mut delivery: Delivery) -> Delivery {
        match self.fault {
            Some(Fault::NewOriginOnRedelivery) => {
                let number = self.shared.counter.fetch_add(1, Ordering::SeqCst);
                delivery.origin = Some(number.to_string());
            }
            Some(Fault::TagsAllAlike) => delivery.tag = DeliveryTag(1),
            Some(Fault::NeverMarksRedelivery) => delivery.redelivered = false,
            _ => {}
        }
        delivery
    }

    fn is_out(&self, delta: i64) {
        self.shared.out.fetch_add(delta, Ordering::SeqCst);
    }

    fn forget(&mut self, tags: &[DeliveryTag]) {
        for tag in tags {
            if self.out.remove(tag).is_some() {
                self.is_out(-1);
            }
        }
    }

    fn confirm(&self, tags: &[DeliveryTag]) {
        for id in tags.iter().filter_map(|tag| self.out.get(tag)) {
            let confirm = lock(&self.shared.unconfirmed).remove(id);
            if let Some(confirm) = confirm {
                confirm.report(Ok(()));
            }
        }
    }

    /// What an acknowledgement of these tags acknowledges.
    fn acknowledged_with(&self, tags: Vec<DeliveryTag>) -> Vec<DeliveryTag> {
        match (self.fault, tags.iter().max()) {
            (Some(Fault::AcksAllBefore), Some(last)) => self.out.range(..=*last).map(|(tag, _)| *tag).collect(),
            _ => tags,
        }
    }
}

impl Consumer for FaultyConsumer {
    fn receive(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>>> {
        Box::pin(async move {
            let taken = self.take(max).await?;
            if self.acks_on_receive() {
                self.inner.ack(taken.iter().map(|delivery| delivery.tag).collect()).await?;
            }
            for delivery in &taken {
                let id = delivery.headers.get(headers::MESSAGE_ID).unwrap_or_default().to_owned();
                if self.out.insert(delivery.tag, id).is_none() {
                    self.is_out(1);
                }
            }
            Ok(taken.into_iter().map(|delivery| self.disguise(delivery)).collect())
        })
    }

    fn ack(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.acks_on_receive() || self.fault == Some(Fault::AcksNothing) {
                return Ok(());
            }
            let mut all = self.acknowledged_with(tags);
            if self.fault == Some(Fault::AcksAllBefore) {
                all.retain(|tag| self.out.contains_key(tag));
            }
            if self.fault == Some(Fault::ConfirmsWithTheFirstGroup) {
                self.confirm(&all);
            }
            self.forget(&all);
            self.inner.ack(all).await
        })
    }

    fn release(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.acks_on_receive() {
                return Ok(());
            }
            self.forget(&tags);
            if self.fault == Some(Fault::AcksWhatIsReleased) {
                return self.inner.ack(tags).await;
            }
            self.inner.release(tags).await
        })
    }
}

impl Drop for FaultyConsumer {
    fn drop(&mut self) {
        let left = i64::try_from(self.out.len()).unwrap_or(0);
        self.is_out(-left);
    }
}

/// A consumer that subscribes when it is first asked for a message.
#[derive(Debug)]
pub(super) struct LateConsumer {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) subscription: Subscription,
    pub(super) begun: Option<Box<dyn Consumer>>,
}

impl LateConsumer {
    async fn begin(&mut self) -> Result<&mut Box<dyn Consumer>> {
        if self.begun.is_none() {
            self.begun = Some(self.transport.subscribe(self.subscription.clone()).await?);
        }
        Ok(self.begun.as_mut().expect("it was set just now"))
    }
}

impl Consumer for LateConsumer {
    fn receive(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>>> {
        Box::pin(async move { self.begin().await?.receive(max).await })
    }

    fn ack(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.begin().await?.ack(tags).await })
    }

    fn release(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.begin().await?.release(tags).await })
    }
}
