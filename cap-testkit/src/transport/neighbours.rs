//! One message, one topic, one alarm: what it costs the others, and what is told of it.

use std::collections::HashSet;
use std::sync::Arc;

use cap_core::transport::Consumer;
use cap_core::{Error, ErrorKind, Message, Transport};

use super::fixture::TransportFixture;
use super::tools::{Outcomes, Scene, ensure_refused, id, message, messages};
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

/// Receives and acknowledges until each of these has come, however often.
async fn take_each(scene: &Scene<'_>, consumer: &mut dyn Consumer, sent: &[Message]) -> CheckResult {
    let mut missing: HashSet<&str> = sent.iter().map(|message| message.id.as_str()).collect();
    while !missing.is_empty() {
        let what = format!("a delivery ({} of {} are missing)", missing.len(), sent.len());
        let some = scene.within(&what, consumer.receive(100)).await??;
        scene.ack(consumer, &some).await?;
        missing.retain(|missing| !some.iter().any(|delivery| id(delivery) == *missing));
    }
    Ok(())
}

pub(super) async fn a_message_for_which_the_broker_breaks_off_is_found(fixture: &dyn TransportFixture) -> CheckResult {
    const BAD: usize = 7;
    let scene = Scene::new(fixture);
    let (transport, receiver) = (scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&receiver, "billing", &topic).await?;
    // The second time it is known, or it is found again: it costs nobody anything either way.
    for round in 1..=2 {
        let mut batch = messages(&topic, 20);
        batch[BAD] = fixture.poison(message(&topic));
        let outcomes = scene.send(&transport, &batch).await?;
        let later = messages(&topic, 5);
        let mut all = scene.send(&transport, &later).await?;
        all.append(outcomes);
        let healthy: Vec<Message> = later
            .into_iter()
            .chain(batch.iter().enumerate().filter(|(place, _)| *place != BAD).map(|(_, m)| m.clone()))
            .collect();
        take_each(&scene, &mut *consumer, &healthy).await?;
        for (place, outcome) in
            scene.within("the outcome of each message", scene.outcomes(all)).await??.into_iter().enumerate()
        {
            if place != 5 + BAD {
                outcome.map_err(|error| Failure::new(format!("healthy message {place}, round {round}: {error}")))?;
                continue;
            }
            let kind = outcome.err().map(|error| error.kind());
            let fits = matches!(kind, Some(ErrorKind::Invalid | ErrorKind::Rejected | ErrorKind::Environment));
            ensure!(fits, "the message for which the broker broke off, round {round}: {kind:?}");
        }
    }
    Ok(())
}

pub(super) async fn a_full_queue_is_the_affair_of_its_topic(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let (topic, full) = (scene.topic("orders")?, scene.topic("full")?);
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    scene.within("a queue to be full", fixture.fill(full.clone())).await??;
    let batch = [message(&topic), message(&full), message(&topic), message(&full), message(&topic)];
    let outcomes = scene.send(&transport, &batch).await?;
    let healthy: Vec<Message> = batch.iter().filter(|message| message.topic == topic).cloned().collect();
    take_each(&scene, &mut *consumer, &healthy).await?;
    for (message, outcome) in batch.iter().zip(scene.outcomes(outcomes).await?) {
        if message.topic == full {
            ensure_refused("a message to a full queue", outcome, ErrorKind::Environment)?;
            continue;
        }
        outcome.map_err(|error| Failure::new(format!("a message beside those to a full queue: {error}")))?;
    }
    Ok(())
}

pub(super) async fn an_alarm_is_told_while_it_lasts(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let first = scene.send(&transport, &[message(&topic)]).await?;
    scene.take(&mut *consumer, 1).await?;
    scene.confirmed(first).await?;
    let before = transport.obstacle().map(|error| error.to_string());
    ensure_eq!(before, None, "an obstacle before there is an alarm");

    scene.within("an alarm", fixture.set_alarm(true)).await??;
    let told = tell(&scene, &transport, &topic).await;
    scene.within("the end of an alarm", fixture.set_alarm(false)).await??;
    let (outcomes, obstacle) = told?;
    ensure!(obstacle.is_retryable(), "the obstacle is none that passes: {obstacle}");
    scene.eventually("the end of the obstacle", || async { transport.obstacle().is_none().then_some(()) }).await?;
    let last = message(&topic);
    let confirmed = scene.send(&transport, std::slice::from_ref(&last)).await?;
    take_each(&scene, &mut *consumer, &[last]).await?;
    scene.confirmed(confirmed).await?;
    for outcome in scene.outcomes(outcomes).await?.into_iter().filter(Result::is_err) {
        ensure_refused("a message that was sent during an alarm", outcome, ErrorKind::Unavailable)?;
    }
    Ok(())
}

pub(super) async fn what_was_taken_away_is_made_again_when_a_message_comes_back(
    fixture: &dyn TransportFixture,
) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    scene.within("the end of a binding", fixture.unbind(scene.group("billing")?, topic.clone())).await??;
    let outcomes = scene.send(&transport, &[message(&topic)]).await?;
    for outcome in scene.outcomes(outcomes).await? {
        ensure_refused("the first message after a binding was taken away", outcome, ErrorKind::Unroutable)?;
    }
    let sent = scene
        .eventually("a message that reaches the group again", || async {
            let next = message(&topic);
            let outcomes = scene.send(&transport, std::slice::from_ref(&next)).await.ok()?;
            let is_confirmed = scene.outcomes(outcomes).await.ok()?.iter().all(Result::is_ok);
            is_confirmed.then_some(next)
        })
        .await?;
    take_each(&scene, &mut *consumer, &[sent]).await
}

/// Sends a few, until the transport tells of an obstacle.
async fn tell(
    scene: &Scene<'_>,
    transport: &Arc<dyn Transport>,
    topic: &cap_core::Topic,
) -> CheckResult<(Outcomes, Error)> {
    let mut outcomes = Outcomes::none();
    for _ in 0..20 {
        if transport.obstacle().is_none() {
            outcomes.append(scene.send(transport, &[message(topic)]).await?);
        }
    }
    let obstacle = scene.eventually("an obstacle", || async { transport.obstacle() }).await?;
    let refused = scene.send(transport, &[message(topic)]).await?;
    outcomes.append(refused);
    Ok((outcomes, obstacle))
}
