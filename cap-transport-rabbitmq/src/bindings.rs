//! The bindings of the groups that this process consumes for: made again now and then, and as soon as a message tells by
//! coming back that one is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cap_core::transport::Subscription;
use cap_core::{Result, Topic, TopicPattern};
use tokio::sync::Notify;

use crate::connection::Link;
use crate::error::call;
use crate::settings::Settings;
use crate::topology;

/// What comes back while bindings are being made, or so soon after, is answered by the next time.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// It doubles up to this while bindings cannot be made.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// All of them, of one handle.
#[derive(Default)]
pub(crate) struct Bindings(Mutex<Vec<Weak<Watched>>>);

/// A consumer's.
pub(crate) struct Watched {
    topics: Vec<TopicPattern>,
    missed: Notify,
}

impl Bindings {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Watched>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a consumer, told of for as long as it keeps what is answered.
    pub(crate) fn watch(&self, topics: Vec<TopicPattern>) -> Arc<Watched> {
        let watched = Arc::new(Watched { topics, missed: Notify::new() });
        let mut all = self.lock();
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&watched));
        watched
    }

    /// A message of this topic came back: no queue is bound for it. Where a consumer wants it, one should be; and what took
    /// that binding away may have taken others, whose messages do not come back as long as another group gets them.
    pub(crate) fn missed(&self, topic: &Topic) {
        let all: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        let wants = |watched: &Arc<Watched>| watched.topics.iter().any(|pattern| pattern.matches(topic));
        if all.iter().any(wants) {
            all.iter().for_each(|watched| watched.missed.notify_one());
        }
    }
}

/// Makes the bindings of a consumer again and again, for as long as this is not aborted: one that somebody takes away costs
/// the group what is published until then. It has channels of its own, since a refusal ends one.
pub(crate) async fn keep(link: Arc<Link>, settings: Arc<Settings>, wanted: Subscription, watched: Arc<Watched>) {
    let mut pause = LEAST_PAUSE;
    loop {
        let was_missed = tokio::select! {
            () = watched.missed.notified() => true,
            () = tokio::time::sleep(settings.bind_every()) => false,
        };
        match bind(&link, &settings, &wanted).await {
            Ok(()) => {
                pause = LEAST_PAUSE;
                if was_missed {
                    tracing::warn!(messaging.consumer.group.name = %wanted.group, "a message came back that a group wants: the bindings were made again");
                }
            }
            Err(error) => {
                pause = (pause * 2).min(MAX_PAUSE);
                tracing::warn!(error.message = %error, "cannot tell whether the group's bindings are there");
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn bind(link: &Link, settings: &Settings, wanted: &Subscription) -> Result<()> {
    let subject = || format!("queue `{}` on {}", wanted.group, settings.place);
    let channel = link.channel().await.map_err(|cause| call("bind", subject(), cause, ""))?;
    let bound = match topology::declare_exchange(&channel, settings).await {
        Ok(()) => topology::bind_queue(&channel, settings, wanted).await,
        refused => refused,
    };
    link.end_channel(channel);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn if_a_consumer_that_is_there_wants_the_topic_all_are_told() {
        let bindings = Bindings::default();
        let patterns = |text: &str| vec![TopicPattern::try_from(text).unwrap()];
        let (orders, bills) = (bindings.watch(patterns("order.*")), bindings.watch(patterns("bill")));
        drop(bindings.watch(patterns("gone")));
        bindings.missed(&"gone".parse().unwrap());
        for watched in [&orders, &bills] {
            let told = tokio::time::timeout(Duration::ZERO, watched.missed.notified()).await;
            assert!(told.is_err(), "told of what nobody wants any more");
        }
        bindings.missed(&"order.paid".parse().unwrap());
        orders.missed.notified().await;
        bills.missed.notified().await;
        bindings.watch(patterns("x"));
        assert_eq!(bindings.lock().len(), 3, "who is gone is forgotten");
    }
}
