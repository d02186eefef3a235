//! What holds a topic's messages is deleted and made again while the group is there.

use std::sync::Arc;

use cap_core::transport::{Consumer, Subscription};
use cap_core::{Message, Topic, Transport};

use super::fixture::TransportFixture;
use super::tools::{Scene, id, messages};
use crate::check::CheckResult;

/// How many come and are done before the topic is made again, and how many are sent then: fewer, as many, and more, since a
/// broker that counts may take some of them for those that are done.
const ROUNDS: [(usize, usize); 3] = [(6, 2), (6, 6), (6, 15)];

pub(super) async fn what_is_sent_after_a_topic_was_made_again_arrives(fixture: &dyn TransportFixture) -> CheckResult {
    for (round, (before, after)) in ROUNDS.into_iter().enumerate() {
        let scene = Scene::new(fixture);
        let transport = scene.open().await?;
        let topic = scene.topic(&format!("orders-{round}"))?;
        let wants = scene.subscription(&format!("billing-{round}"), &[topic.as_str()], 100)?;
        let mut consumer = scene.subscribe(&transport, wants.clone()).await?;
        let outcomes = scene.send(&transport, &messages(&topic, before)).await?;
        scene.confirmed(outcomes).await?;
        scene.take(&mut *consumer, before).await?;
        scene.within("the topic to be made again", fixture.remake_topic(topic.clone())).await??;

        let sent = deliver(&scene, &transport, &topic, after).await?;
        let consumer = collect(&scene, &transport, &wants, consumer, &sent).await?;
        drop(consumer);
        scene.within("the end of `close`", transport.close()).await??;
    }
    Ok(())
}

/// Sends as a relay does, until each is confirmed.
async fn deliver(
    scene: &Scene<'_>,
    transport: &Arc<dyn Transport>,
    topic: &Topic,
    count: usize,
) -> CheckResult<Vec<Message>> {
    let sent = messages(topic, count);
    let mut left = sent.clone();
    let sending = async {
        while !left.is_empty() {
            let outcomes = scene.send(transport, &left).await?;
            let outcomes = scene.outcomes(outcomes).await?;
            left = left
                .into_iter()
                .zip(outcomes)
                .filter_map(|(message, outcome)| outcome.err().map(|_| message))
                .collect();
        }
        CheckResult::Ok(())
    };
    scene.within_confirm_limit("a confirm for what is sent to a topic that was made again", sending).await??;
    Ok(sent)
}

/// Receives as an engine does, which subscribes again when a consumer is over, until all have come.
async fn collect(
    scene: &Scene<'_>,
    transport: &Arc<dyn Transport>,
    wants: &Subscription,
    mut consumer: Box<dyn Consumer>,
    sent: &[Message],
) -> CheckResult<Box<dyn Consumer>> {
    let mut missing: Vec<&Message> = sent.iter().collect();
    while !missing.is_empty() {
        let what =
            format!("what was sent after a topic was made again ({} of {} are missing)", missing.len(), sent.len());
        let is_over = match scene.within(&what, consumer.receive(10)).await? {
            Ok(some) => {
                missing.retain(|message| !some.iter().any(|delivery| id(delivery) == message.id.as_str()));
                consumer.ack(some.iter().map(|delivery| delivery.tag).collect()).await.is_err()
            }
            Err(_) => true,
        };
        if is_over {
            let again = || {
                let wants = wants.clone();
                async move { transport.subscribe(wants).await.ok() }
            };
            consumer = scene.eventually("a subscription after the topic was made again", again).await?;
        }
    }
    Ok(consumer)
}
