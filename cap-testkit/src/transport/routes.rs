//! Routes: which topics have no queue, told without sending anything.

use std::sync::Arc;

use cap_core::{ErrorKind, Topic, Transport};

use super::fixture::TransportFixture;
use super::tools::{ROOMY, Scene, ensure_refused, message};
use crate::check::CheckResult;
use crate::ensure_eq;

async fn unrouted(scene: &Scene<'_>, transport: &Arc<dyn Transport>, topics: &[Topic]) -> CheckResult<Vec<Topic>> {
    Ok(scene.within("the routes", transport.unrouted(topics.to_vec())).await??)
}

pub(super) async fn exactly_what_would_be_unroutable_is_unrouted(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (receiver, asker) = (scene.open().await?, scene.open().await?);
    let with_patterns = fixture.capabilities().wildcards;
    let words_and_routes = [
        ("order.placed", true),
        ("order", false),
        ("zebra", false),
        ("order.paid", with_patterns),
        ("order.Placed", with_patterns),
        ("order.placed.eu", false),
        ("bill", with_patterns),
        ("bill.sent.eu", with_patterns),
        ("billing", false),
    ];
    let (mut topics, mut expected) = (Vec::new(), Vec::new());
    for (words, is_routed) in words_and_routes {
        let topic = Topic::try_from(scene.below("shop", words).as_str())?;
        topics.push(topic.clone());
        if !is_routed {
            expected.push(topic);
        }
    }
    let wanted: &[&str] = if with_patterns { &["order.placed", "order.*", "bill.#"] } else { &["order.placed"] };
    let mut consumers = Vec::new();
    for (place, words) in wanted.iter().enumerate() {
        let wants = scene.subscription(&format!("billing{place}"), &[&scene.below("shop", words)], ROOMY)?;
        consumers.push(scene.subscribe(&receiver, wants).await?);
    }
    ensure_eq!(unrouted(&scene, &asker, &topics).await?, expected, "topics without a queue");
    ensure_eq!(unrouted(&scene, &asker, &[]).await?, [], "topics without a queue among none");
    Ok(())
}

pub(super) async fn routes_are_told_as_they_are_now(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (receiver, asker) = (scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    let asked = std::slice::from_ref(&topic);
    ensure_eq!(unrouted(&scene, &asker, asked).await?, asked, "topics without a queue before anyone subscribed");
    let consumer = scene.consumer(&receiver, "billing", &topic).await?;
    ensure_eq!(unrouted(&scene, &asker, asked).await?, [], "topics without a queue when a group has subscribed");
    drop(consumer);
    // Whether the group keeps its queue when it is away is the transport's own; a message shows it.
    let told = unrouted(&scene, &asker, asked).await?;
    let outcomes = scene.send(&asker, &[message(&topic)]).await?;
    for outcome in scene.outcomes(outcomes).await? {
        let is_unroutable = outcome.is_err_and(|error| error.kind() == ErrorKind::Unroutable);
        let expected = if is_unroutable { asked } else { &[] };
        ensure_eq!(told, expected, "topics without a queue when the group is away");
    }
    Ok(())
}

pub(super) async fn asking_for_routes_sends_nothing(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (receiver, asker) = (scene.open().await?, scene.open().await?);
    let (topic, nobody) = (scene.topic("orders")?, scene.topic("nobody")?);
    let mut consumer = scene.consumer(&receiver, "billing", &topic).await?;
    let asked = [topic.clone(), nobody.clone()];
    for _ in 0..3 {
        ensure_eq!(unrouted(&scene, &asker, &asked).await?, std::slice::from_ref(&nobody), "topics without a queue");
    }
    let witness = message(&topic);
    let outcomes = scene.send(&asker, std::slice::from_ref(&witness)).await?;
    let before = scene.until(&mut *consumer, &witness).await?;
    ensure_eq!(before.len(), 0, "deliveries that came of asking");
    scene.confirmed(outcomes).await
}

pub(super) async fn routes_are_refused(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let answer = scene.within("the routes", transport.unrouted(vec![scene.topic("orders")?])).await?;
    ensure_refused("asking for routes", answer, ErrorKind::Unsupported)
}
