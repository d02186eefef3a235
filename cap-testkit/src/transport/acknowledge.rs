//! Acknowledging and giving back.

use std::collections::HashSet;

use super::fixture::TransportFixture;
use super::tools::{Scene, ensure_each_once, ensure_redelivered, id, is, message, messages, tags};
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

pub(super) async fn what_is_acknowledged_is_gone(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut first = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 5);
    let mut outcomes = scene.send(&transport, &sent).await?;
    let received = scene.take(&mut *first, 5).await?;
    ensure_each_once("the first consumer", &received, &sent)?;
    let mut second = scene.consumer(&transport, "billing", &topic).await?;
    drop(first);
    let witness = message(&topic);
    outcomes.append(scene.send(&transport, std::slice::from_ref(&witness)).await?);
    let before = scene.until(&mut *second, &witness).await?;
    ensure_eq!(before.len(), 0, "acknowledged messages that were delivered again");
    scene.confirmed(outcomes).await
}

pub(super) async fn a_dropped_consumer_gives_back_what_it_did_not_acknowledge(
    fixture: &dyn TransportFixture,
) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut first = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 5);
    let outcomes = scene.send(&transport, &sent).await?;
    let received = scene.receive(&mut *first, 5).await?;
    let marked = received.iter().filter(|delivery| delivery.redelivered).count();
    ensure_eq!(marked, 0, "first deliveries that are marked as redelivered");
    let mut second = scene.consumer(&transport, "billing", &topic).await?;
    drop(first);
    let again = scene.take(&mut *second, 5).await?;
    ensure_each_once("the second consumer", &again, &sent)?;
    ensure_redelivered(&again)?;
    scene.confirmed(outcomes).await
}

pub(super) async fn acknowledging_out_of_order_leaves_the_others(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut first = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 4);
    let outcomes = scene.send(&transport, &sent).await?;
    let received = scene.receive(&mut *first, 4).await?;
    // The last, then the third; the first two stay as they are.
    scene.ack(&mut *first, &received[3..]).await?;
    scene.ack(&mut *first, &received[2..3]).await?;
    let mut second = scene.consumer(&transport, "billing", &topic).await?;
    drop(first);
    let mut open: Vec<&str> = received[..2].iter().map(id).collect();
    while !open.is_empty() {
        // A broker that keeps one offset for many messages may deliver the others again as well.
        let again = scene.take(&mut *second, 1).await.map_err(|failure| {
            let left = open.len();
            Failure::new(format!("acknowledging two later messages lost {left} earlier ones: {failure}"))
        })?;
        open.retain(|open| *open != id(&again[0]));
    }
    scene.confirmed(outcomes).await
}

pub(super) async fn a_released_delivery_comes_again(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 3);
    let outcomes = scene.send(&transport, &sent).await?;
    let received = scene.receive(&mut *consumer, 3).await?;
    let released = &received[1..2];
    scene.within("the end of `release`", consumer.release(tags(released))).await??;
    let again = scene.receive(&mut *consumer, 1).await?;
    ensure!(id(&again[0]) == id(&released[0]), "another message came again than the one that was released");
    ensure_redelivered(&again)?;
    // The others are still out, and may be acknowledged.
    let others: Vec<_> = received.iter().filter(|delivery| id(delivery) != id(&released[0])).cloned().collect();
    scene.ack(&mut *consumer, &others).await?;
    scene.ack(&mut *consumer, &again).await?;
    let witness = message(&topic);
    let witnessed = scene.send(&transport, std::slice::from_ref(&witness)).await?;
    let before = scene.until(&mut *consumer, &witness).await?;
    let known = before.iter().filter(|delivery| sent.iter().any(|message| is(delivery, message))).count();
    ensure_eq!(known, 0, "messages that came once more after they were acknowledged");
    scene.confirmed(witnessed).await?;
    scene.confirmed(outcomes).await
}

pub(super) async fn members_that_come_and_go_lose_nothing(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut member = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 200);
    let outcomes = scene.send(&transport, &sent).await?;
    let mut acknowledged: HashSet<String> = HashSet::new();
    while acknowledged.len() < sent.len() {
        let what = format!("a delivery ({} of {} are acknowledged)", acknowledged.len(), sent.len());
        let some = scene.within(&what, member.receive(20)).await??;
        // The later half is done, the earlier one is left to whoever comes next.
        let done = &some[some.len() / 2..];
        scene.ack(&mut *member, done).await?;
        acknowledged.extend(done.iter().map(|delivery| id(delivery).to_owned()));
        let next = scene.consumer(&transport, "billing", &topic).await?;
        drop(std::mem::replace(&mut member, next));
    }
    scene.confirmed(outcomes).await
}
