//! Receiving: bounded, woken, and safe to give up.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use cap_core::Message;
use cap_core::transport::Delivery;

use super::fixture::TransportFixture;
use super::tools::{Outcomes, ROOMY, Scene, ensure_each_once, id, message, message_with, messages};
use crate::check::CheckResult;
use crate::{ensure, ensure_eq};

pub(super) async fn a_receive_that_is_dropped_loses_nothing(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 300);
    let mut outcomes = Outcomes::none();
    let mut received = Vec::new();
    for (round, batch) in sent.chunks(5).enumerate() {
        outcomes.append(scene.send(&transport, batch).await?);
        for polls in 0..4 {
            // Given up after so many polls, wherever it has got to.
            tokio::select! {
                biased;
                some = consumer.receive(1 + round % 3) => received.extend(some?),
                () = yield_times(polls) => {}
            }
        }
    }
    let missing = sent.len() - received.len().min(sent.len());
    received.extend(scene.receive(&mut *consumer, missing).await?);
    ensure_each_once("a consumer whose receives were dropped", &received, &sent)?;
    scene.ack(&mut *consumer, &received).await?;
    scene.confirmed(outcomes).await
}

async fn yield_times(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

pub(super) async fn no_more_than_the_prefetch_are_out(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut bounded = scene.subscribe(&transport, scene.subscription("billing", &[topic.as_str()], 3)?).await?;
    let mut witness = scene.consumer(&transport, "witness", &topic).await?;
    let sent = messages(&topic, 10);
    let mut outcomes = scene.send(&transport, &sent).await?;
    let mut received = scene.receive(&mut *bounded, 3).await?;
    {
        // While this waits, all ten and one more reach another group: they are there, and are held back.
        let mut more = pin!(bounded.receive(100));
        scene.take(&mut *witness, 10).await?;
        outcomes.append(scene.send(&transport, &[message(&topic)]).await?);
        let also = scene.take(&mut *witness, 1);
        let early = tokio::select! {
            biased;
            some = &mut more => Some(some?.len()),
            taken = also => { taken?; None }
        };
        ensure!(early.is_none(), "with 3 out, which is the prefetch, {early:?} more were handed out");
    }
    scene.ack(&mut *bounded, &received[..1]).await?;
    let next = scene.within("a delivery after one was acknowledged", bounded.receive(100)).await??;
    ensure_eq!(next.len(), 1, "deliveries handed out after one of three was acknowledged");
    scene.ack(&mut *bounded, &received[1..]).await?;
    scene.ack(&mut *bounded, &next).await?;
    received.extend(next);
    while received.len() < 11 {
        let some = scene.within("a delivery", bounded.receive(100)).await??;
        ensure!(some.len() <= 3, "{} were handed out at once, the prefetch is 3", some.len());
        scene.ack(&mut *bounded, &some).await?;
        received.extend(some);
    }
    scene.confirmed(outcomes).await
}

pub(super) async fn receive_honours_its_maximum(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 20);
    let outcomes = scene.send(&transport, &sent).await?;
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let some = scene.within("a delivery", consumer.receive(3)).await??;
        ensure!((1..=3).contains(&some.len()), "at least 1 and at most 3 were asked for, {} came", some.len());
        received.extend(some);
    }
    ensure_each_once("the consumer", &received, &sent)?;
    scene.ack(&mut *consumer, &received).await?;
    scene.confirmed(outcomes).await
}

pub(super) async fn a_waiting_receive_is_woken(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut waits = scene.consumer(&transport, "billing", &topic).await?;
    for _ in 0..20 {
        let sent = message(&topic);
        let (received, outcomes) = {
            let mut receiving = pin!(waits.receive(1));
            ensure!(!is_ready_now(receiving.as_mut()).await, "a receive answered, though nothing was sent");
            let outcomes = scene.send(&transport, std::slice::from_ref(&sent)).await?;
            (scene.within("a delivery to a receive that was waiting", receiving).await??, outcomes)
        };
        ensure_each_once("the consumer that waited", &received, [&sent])?;
        scene.ack(&mut *waits, &received).await?;
        scene.confirmed(outcomes).await?;
    }
    Ok(())
}

/// Polls once.
async fn is_ready_now<T>(mut work: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context).is_ready())).await
}

/// A size of bodies that every transport takes.
fn large(fixture: &dyn TransportFixture) -> usize {
    fixture.capabilities().max_body.unwrap_or(usize::MAX).min(256 * 1024)
}

fn bodies(deliveries: &[Delivery]) -> usize {
    deliveries.iter().map(|delivery| delivery.body.len()).sum()
}

pub(super) async fn no_more_bytes_than_the_budget_are_out(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (transport, sender) = (scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    let size = large(fixture);
    let mut wants = scene.subscription("billing", &[topic.as_str()], ROOMY)?;
    wants.prefetch_bytes = size * 3;
    let mut bounded = scene.subscribe(&transport, wants).await?;
    let mut witness = scene.consumer(&sender, "witness", &topic).await?;
    let sent: Vec<Message> = (0..10).map(|_| message_with(&topic, [], vec![b'1'; size].into())).collect();
    let mut outcomes = Outcomes::none();
    for message in &sent {
        outcomes.append(scene.send(&sender, std::slice::from_ref(message)).await?);
        // All ten reach another group: they are there, and are held back.
        scene.take(&mut *witness, 1).await?;
    }
    let (mut received, mut out) = (Vec::new(), scene.receive(&mut *bounded, 1).await?);
    while received.len() + out.len() < sent.len() {
        let more = tokio::select! {
            biased;
            some = bounded.receive(100) => some?,
            () = yield_times(100) => Vec::new(),
        };
        let nothing = more.is_empty();
        out.extend(more);
        let (count, bytes) = (out.len(), bodies(&out));
        ensure!(bytes <= size * 3, "{count} deliveries with {bytes} bytes are out, {} bytes are allowed", size * 3);
        if nothing {
            scene.ack(&mut *bounded, &out[..1]).await?;
            received.push(out.remove(0));
            out.extend(if out.is_empty() { scene.receive(&mut *bounded, 1).await? } else { Vec::new() });
        }
    }
    scene.ack(&mut *bounded, &out).await?;
    received.append(&mut out);
    scene.confirmed(outcomes).await?;
    let distinct: std::collections::HashSet<&str> = received.iter().map(id).collect();
    ensure_eq!(distinct.len(), sent.len(), "distinct messages among the deliveries");
    Ok(())
}

pub(super) async fn a_message_larger_than_the_budget_arrives(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let size = large(fixture);
    let mut wants = scene.subscription("billing", &[topic.as_str()], ROOMY)?;
    wants.prefetch_bytes = size / 2;
    let mut consumer = scene.subscribe(&transport, wants).await?;
    let sent = [message(&topic), message_with(&topic, [], vec![b'1'; size].into()), message(&topic)];
    let outcomes = scene.send(&transport, &sent).await?;
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let some = scene.within("a delivery, large or small", consumer.receive(100)).await??;
        scene.ack(&mut *consumer, &some).await?;
        received.extend(some);
    }
    ensure_each_once("the consumer", &received, &sent)?;
    scene.confirmed(outcomes).await
}
