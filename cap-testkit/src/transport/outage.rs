//! Outages: a broker that is not there, connections that break, a restart.

use std::sync::Arc;

use cap_core::transport::{Consumer, Delivery};
use cap_core::{ErrorKind, Message, Transport};

use super::fixture::TransportFixture;
use super::lifecycle::refused_nowhere;
use super::tools::{Scene, ensure_each_once, ensure_redelivered, id, is, message, messages};
use crate::check::CheckResult;
use crate::ensure;

pub(super) async fn a_broker_that_is_not_there_is_an_error(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let error = refused_nowhere(&scene, fixture).await?;
    let kind = error.kind();
    let is_right = matches!(kind, ErrorKind::Unavailable | ErrorKind::Rejected);
    ensure!(is_right, "connecting where no broker is: found {kind:?}, expected Unavailable or Rejected");
    ensure!(!error.subject().is_empty(), "the error does not say which broker is not there: {error}");
    Ok(())
}

/// Connects, however often it takes, and subscribes.
async fn come_back(scene: &Scene<'_>, transport: &Arc<dyn Transport>, topic: &str) -> CheckResult<Box<dyn Consumer>> {
    let wants = scene.subscription("billing", &[topic], 100)?;
    scene
        .eventually("a connection after the outage", || {
            let wants = wants.clone();
            async move {
                transport.connect().await.ok()?;
                transport.subscribe(wants).await.ok()
            }
        })
        .await
}

pub(super) async fn after_cut_connections_it_sends_and_consumes_again(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 5);
    let outcomes = scene.send(&transport, &sent).await?;
    let first = scene.receive(&mut *consumer, 5).await?;
    ensure_each_once("the first consumer", &first, &sent)?;
    let before = scene.outcomes(outcomes).await?;
    scene.within("the connections to be cut", fixture.cut_connections()).await??;
    // The outcome is unknown, but it is told in time.
    let during = scene.send(&transport, &[message(&topic)]).await?;
    scene.outcomes(during).await?;

    // A broker that confirmed the messages delivers them again, to this consumer or to a new one.
    let owed: Vec<Message> =
        sent.into_iter().zip(before).filter(|(_, outcome)| outcome.is_ok()).map(|(message, _)| message).collect();
    let mut again: Vec<Delivery> = Vec::new();
    while !owed.iter().all(|message| again.iter().any(|delivery| is(delivery, message))) {
        let what = format!("what was not acknowledged before the cut ({} of {} came)", again.len(), owed.len());
        match scene.within(&what, consumer.receive(10)).await? {
            Ok(some) => again.extend(some),
            Err(_) => consumer = come_back(&scene, &transport, topic.as_str()).await?,
        }
    }
    again.retain(|delivery| owed.iter().any(|message| is(delivery, message)));
    ensure_redelivered(&again)?;
    drop(consumer);

    let mut consumer = come_back(&scene, &transport, topic.as_str()).await?;
    let witness = message(&topic);
    let outcomes = scene.send(&transport, std::slice::from_ref(&witness)).await?;
    scene.until(&mut *consumer, &witness).await?;
    scene.confirmed(outcomes).await
}

pub(super) async fn what_was_confirmed_outlives_a_restart_of_the_broker(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let mut sent = messages(&topic, 20);
    let outcomes = scene.send(&transport, &sent).await?;
    scene.confirmed(outcomes).await?;
    // Some are out and some wait when it happens.
    scene.receive(&mut *consumer, 5).await?;
    drop(consumer);
    scene.within("the broker's restart", fixture.restart_broker()).await??;

    let mut consumer = come_back(&scene, &transport, topic.as_str()).await?;
    let witness = message(&topic);
    let outcomes = scene.send(&transport, std::slice::from_ref(&witness)).await?;
    sent.push(witness);
    let mut missing: Vec<&Message> = sent.iter().collect();
    let total = missing.len();
    while !missing.is_empty() {
        let what = format!("what was confirmed before the restart ({} of {total} are missing)", missing.len());
        let some = scene.within(&what, consumer.receive(10)).await??;
        scene.ack(&mut *consumer, &some).await?;
        missing.retain(|message| !some.iter().any(|delivery| id(delivery) == message.id.as_str()));
    }
    scene.confirmed(outcomes).await
}
