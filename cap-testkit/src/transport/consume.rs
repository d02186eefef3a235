//! Receiving: bounded, woken, and safe to give up.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use super::fixture::TransportFixture;
use super::tools::{Outcomes, Scene, ensure_each_once, message, messages};
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
