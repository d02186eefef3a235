//! Sending: what a confirm means, whose it is, and that it comes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cap_core::transport::Consumer;
use cap_core::{ErrorKind, Message, headers};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::fixture::TransportFixture;
use super::tools::{
    Outcomes, Scene, ensure_each_once, ensure_refused, id, is, message, message_with, messages, outgoing, tags,
};
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

pub(super) async fn a_durable_confirm_means_that_the_broker_has_it(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (sender, receiver) = (scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    let mut first = scene.consumer(&receiver, "billing", &topic).await?;
    let sent = message(&topic);
    let outcomes = scene.send(&sender, std::slice::from_ref(&sent)).await?;
    scene.confirmed(outcomes).await?;
    // The broker said that it has the message; now it is the only one.
    scene.within("the end of `close`", sender.close()).await??;
    let out = scene.receive(&mut *first, 1).await?;
    let mut second = scene.consumer(&receiver, "billing", &topic).await?;
    drop(first);
    let again = scene.take(&mut *second, 1).await?;
    ensure_each_once("the first consumer", &out, [&sent])?;
    ensure_each_once("the second consumer", &again, [&sent])
}

pub(super) async fn a_volatile_confirm_waits_for_every_group(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let (both, one) = (scene.topic("both")?, scene.topic("one")?);
    let wants = scene.subscription("billing", &[both.as_str(), one.as_str()], 10)?;
    let mut billing = scene.subscribe(&transport, wants).await?;
    let mut shipping = scene.consumer(&transport, "shipping", &both).await?;
    let mut outcome = scene.send(&transport, &[message(&both)]).await?;
    ensure!(outcome.reported().is_none(), "a message was reported before any group had received it");
    scene.take(&mut *billing, 1).await?;
    let held = scene.receive(&mut *shipping, 1).await?;
    // The witness's confirm shows that the broker has dealt with the first group's acknowledgement.
    let witness = scene.send(&transport, &[message(&one)]).await?;
    scene.take(&mut *billing, 1).await?;
    scene.confirmed(witness).await?;
    ensure!(outcome.reported().is_none(), "a message was reported before the second group had acknowledged it");
    scene.ack(&mut *shipping, &held).await?;
    scene.confirmed(outcome).await
}

pub(super) async fn what_goes_away_with_its_group_is_not_confirmed(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut billing = scene.consumer(&transport, "billing", &topic).await?;
    let mut shipping = scene.consumer(&transport, "shipping", &topic).await?;
    let outcomes = scene.send(&transport, &messages(&topic, 4)).await?;
    scene.take(&mut *billing, 4).await?;
    let some = scene.receive(&mut *shipping, 2).await?;
    ensure_eq!(some.len(), 2, "deliveries out");
    drop(shipping);
    for outcome in scene.outcomes(outcomes).await? {
        ensure_refused("a message that one of two groups lost unacknowledged", outcome, ErrorKind::Unavailable)?;
    }
    Ok(())
}

pub(super) async fn a_message_that_no_group_wants_is_unroutable(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let _elsewhere = scene.consumer(&transport, "billing", &scene.topic("orders")?).await?;
    let outcomes = scene.send(&transport, &[message(&scene.topic("nobody")?)]).await?;
    for outcome in scene.outcomes(outcomes).await? {
        ensure_refused("a message that no group wants", outcome, ErrorKind::Unroutable)?;
    }
    Ok(())
}

pub(super) async fn one_that_fails_does_not_hinder_the_others(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let (topic, nobody) = (scene.topic("orders")?, scene.topic("nobody")?);
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let batch = [message(&topic), message(&nobody), message(&topic), message(&nobody), message(&topic)];
    let outcomes = scene.send(&transport, &batch).await?;
    let received = scene.take(&mut *consumer, 3).await?;
    ensure_each_once("the consumer", &received, batch.iter().filter(|message| message.topic == topic))?;
    for (place, outcome) in scene.outcomes(outcomes).await?.into_iter().enumerate() {
        if batch[place].topic == nobody {
            ensure_refused("the message for nobody", outcome, ErrorKind::Unroutable)?;
            continue;
        }
        outcome.map_err(|error| Failure::new(format!("good message {place} of a mixed batch failed: {error}")))?;
    }
    Ok(())
}

pub(super) async fn every_outcome_is_reported_within_the_limit(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let outcomes = scene.send(&transport, &messages(&topic, 20)).await?;
    // Some are out and some are not; none is ever acknowledged.
    scene.receive(&mut *consumer, 10).await?;
    ensure_ok_or_unavailable(scene.outcomes(outcomes).await?)
}

pub(super) async fn every_outcome_is_reported_when_the_transport_closes(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let outcomes = scene.send(&transport, &messages(&topic, 50)).await?;
    scene.receive(&mut *consumer, 10).await?;
    scene.within("the end of `close`", transport.close()).await??;
    ensure_ok_or_unavailable(scene.outcomes(outcomes).await?)
}

pub(super) async fn closing_amid_sends_leaves_no_outcome_in_doubt(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (transport, receiver) = (scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&receiver, "billing", &topic).await?;
    let sent = messages(&topic, 400);
    let (mut outcomes, mut batches) = (Outcomes::none(), Vec::new());
    for batch in sent.chunks(20) {
        let (outgoing, more) = outgoing(batch);
        outcomes.append(more);
        batches.push(outgoing);
    }
    let sending = async {
        for batch in batches {
            transport.send(batch).await;
            // So that the transport is closed between two of them, however quick it is.
            tokio::task::yield_now().await;
        }
    };
    let mut received = Vec::new();
    let closing = async {
        while received.len() < 30 {
            let some = scene.receive(&mut *consumer, 10).await?;
            scene.ack(&mut *consumer, &some).await?;
            received.extend(some);
        }
        scene.within("the end of `close`", transport.close()).await?.map_err(Failure::from)
    };
    let both = async { tokio::join!(sending, closing) };
    let ((), closed) = scene.within_confirm_limit("the end of `send` when the transport closes", both).await?;
    closed?;
    let reported = scene.outcomes(outcomes).await?;
    let confirmed = sent.iter().zip(&reported).filter(|(_, outcome)| outcome.is_ok());
    let mut owed: HashSet<&str> = confirmed.map(|(message, _)| message.id.as_str()).collect();
    owed.retain(|owed| !received.iter().any(|delivery| id(delivery) == *owed));
    while !owed.is_empty() {
        let what = format!("a confirmed message ({} did not come)", owed.len());
        let some = scene.within(&what, consumer.receive(100)).await??;
        scene.ack(&mut *consumer, &some).await?;
        owed.retain(|owed| !some.iter().any(|delivery| id(delivery) == *owed));
    }
    ensure_ok_or_unavailable(reported)
}

fn ensure_ok_or_unavailable(outcomes: Vec<cap_core::Result<()>>) -> CheckResult {
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        ensure_refused("a message that was not acknowledged", outcome, ErrorKind::Unavailable)?;
    }
    Ok(())
}

pub(super) async fn many_confirms_are_outstanding_at_once(fixture: &dyn TransportFixture) -> CheckResult {
    const BATCH: usize = 1_000;
    const SINGLES: usize = 50;
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let begun = Instant::now();
    for _ in 0..SINGLES {
        let outcome = scene.send(&transport, &[message(&topic)]).await?;
        scene.take(&mut *consumer, 1).await?;
        scene.confirmed(outcome).await?;
    }
    let one_by_one = begun.elapsed() / u32::try_from(SINGLES).unwrap_or(1);

    let begun = Instant::now();
    let sent = messages(&topic, BATCH);
    let (outgoing, outcomes) = outgoing(&sent);
    // A transport that waits for each confirm cannot send the second message before the first is acknowledged, which
    // happens when all have come. One whose broker confirms by itself is told by the time it takes.
    let sending = async {
        transport.send(outgoing).await;
        Ok(())
    };
    let receiving = scene.receive(&mut *consumer, BATCH);
    let both = async { tokio::try_join!(sending, receiving) };
    let ((), received) = scene.within_confirm_limit("a batch while none of it is acknowledged", both).await??;
    scene.ack(&mut *consumer, &received).await?;
    scene.confirmed(outcomes).await?;
    let took = begun.elapsed();
    let bound = (one_by_one * u32::try_from(BATCH / 2).unwrap_or(1)).max(Duration::from_secs(1));
    ensure!(took < bound, "{BATCH} messages took {took:?}, as long as one after the other ({one_by_one:?} each)");
    ensure_each_once("the consumer", &received, &sent)
}

pub(super) async fn messages_of_one_sender_arrive_in_order(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    // The ordering key is Kafka's; other transports carry it as any other header.
    let key = [(headers::KAFKA_KEY, "customer-1")];
    let sent: Vec<Message> = (0..300).map(|_| message_with(&topic, key, b"1".as_slice().into())).collect();
    let mut outcomes = Outcomes::none();
    for batch in sent.chunks(70) {
        outcomes.append(scene.send(&transport, batch).await?);
    }
    let received = scene.take(&mut *consumer, sent.len()).await?;
    let misplaced = received.iter().zip(&sent).position(|(delivery, message)| !is(delivery, message));
    ensure!(misplaced.is_none(), "deliveries are not in the order sent, first at place {misplaced:?}");
    scene.confirmed(outcomes).await
}

pub(super) async fn concurrent_senders_and_consumers_lose_and_duplicate_nothing(
    fixture: &dyn TransportFixture,
) -> CheckResult {
    let scene = Scene::new(fixture);
    let topic = scene.topic("orders")?;
    let mut tasks = JoinSet::new();
    let (seen, mut all_seen) = mpsc::unbounded_channel();
    let mut handles = Vec::new();
    for _ in 0..3 {
        let transport = scene.open().await?;
        let wants = scene.subscription("billing", &[topic.as_str()], 20)?;
        let consumer = scene.subscribe(&transport, wants).await?;
        handles.push(transport);
        tasks.spawn(consume_until_stopped(consumer, seen.clone()));
    }
    let sent = messages(&topic, 1_000);
    let mut outcomes = Outcomes::none();
    for share in sent.chunks(250) {
        let transport = scene.open().await?;
        for batch in share.chunks(50) {
            let (outgoing, more) = outgoing(batch);
            outcomes.append(more);
            let transport = Arc::clone(&transport);
            tasks.spawn(async move { transport.send(outgoing).await });
        }
    }
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let what = format!("a delivery ({} of {} came)", received.len(), sent.len());
        received.extend(scene.within(&what, all_seen.recv()).await?);
    }
    scene.confirmed(outcomes).await?;
    while let Ok(more) = all_seen.try_recv() {
        received.push(more);
    }
    let distinct: HashSet<&String> = received.iter().collect();
    ensure_eq!(received.len(), sent.len(), "deliveries of {} messages", sent.len());
    ensure_eq!(distinct.len(), sent.len(), "distinct messages among the deliveries");
    Ok(())
}

async fn consume_until_stopped(mut consumer: Box<dyn Consumer>, seen: mpsc::UnboundedSender<String>) {
    while let Ok(deliveries) = consumer.receive(7).await {
        for delivery in &deliveries {
            let _ = seen.send(id(delivery).to_owned());
        }
        if consumer.ack(tags(&deliveries)).await.is_err() {
            return;
        }
    }
}
