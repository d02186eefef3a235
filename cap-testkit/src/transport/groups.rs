//! Groups: who gets what, and from when on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cap_core::pattern::MATCH_TABLE;
use cap_core::{ErrorKind, Group, Topic, Transport};

use super::fixture::TransportFixture;
use super::tools::{ROOMY, Scene, ensure_each_once, ensure_refused, message, messages};
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

pub(super) async fn each_group_gets_each_message_once(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (sender, receiver) = (scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    let mut billing = scene.consumer(&sender, "billing", &topic).await?;
    let mut shipping = scene.consumer(&receiver, "shipping", &topic).await?;
    let mut sent = messages(&topic, 40);
    let mut outcomes = scene.send(&sender, &sent).await?;
    let witness = message(&topic);
    outcomes.append(scene.send(&sender, std::slice::from_ref(&witness)).await?);
    let at_billing = scene.take(&mut *billing, 41).await?;
    let at_shipping = scene.take(&mut *shipping, 41).await?;
    sent.push(witness);
    ensure_each_once("the first group", &at_billing, &sent)?;
    ensure_each_once("the second group", &at_shipping, &sent)?;
    scene.confirmed(outcomes).await
}

pub(super) async fn members_of_a_group_share_its_messages(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (one, other) = (scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    let mut first = scene.consumer(&one, "billing", &topic).await?;
    let mut second = scene.consumer(&other, "billing", &topic).await?;
    let sent = messages(&topic, 100);
    let outcomes = scene.send(&one, &sent).await?;
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let next = async {
            tokio::select! {
                some = first.receive(5) => some.map(|some| (some, true)),
                some = second.receive(5) => some.map(|some| (some, false)),
            }
        };
        let what = format!("a delivery ({} of {} came)", received.len(), sent.len());
        let (some, is_first) = scene.within(&what, next).await??;
        let owner = if is_first { &mut *first } else { &mut *second };
        scene.ack(owner, &some).await?;
        received.extend(some);
    }
    ensure_each_once("the group", &received, &sent)?;
    scene.confirmed(outcomes).await
}

pub(super) async fn subscribing_again_changes_nothing(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut first = scene.subscribe(&transport, scene.subscription("billing", &[topic.as_str()], 1)?).await?;
    let sent = messages(&topic, 3);
    let outcomes = scene.send(&transport, &sent).await?;
    let mut received = scene.receive(&mut *first, 1).await?;
    // As a second node would, and as a restarted one does: the same once more, while there are messages.
    let another = scene.open().await?;
    let second = scene.consumer(&another, "billing", &topic).await?;
    drop(second);
    let third = scene.subscribe(&transport, scene.subscription("billing", &[topic.as_str()], 1)?).await?;
    drop(third);
    scene.ack(&mut *first, &received).await?;
    for _ in 1..sent.len() {
        received.extend(scene.take(&mut *first, 1).await?);
    }
    ensure_each_once("the group", &received, &sent)?;
    scene.confirmed(outcomes).await
}

pub(super) async fn patterns_match_as_the_table_says(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let mut rows = Vec::new();
    for (place, &(pattern, topic, matches)) in MATCH_TABLE.iter().enumerate() {
        let name = format!("row{place}");
        let wants = scene.subscription(&name, &[&scene.below(&name, pattern)], ROOMY)?;
        let tried = message(&Topic::try_from(scene.below(&name, topic).as_str())?);
        if !fixture.allows_topic(tried.topic.as_str()) {
            let answer = scene.within("an answer to `subscribe`", transport.subscribe(wants)).await?;
            ensure_refused("subscribing to what the broker does not allow", answer, ErrorKind::Invalid)?;
            let outcomes = scene.send(&transport, &[tried]).await?;
            let outcome = scene.outcomes(outcomes).await?.remove(0);
            ensure_refused("a message to a topic that the broker does not allow", outcome, ErrorKind::Invalid)?;
            continue;
        }
        let consumer = scene.subscribe(&transport, wants).await?;
        // Matched by the pattern whatever it is: each wildcard stands for one word.
        let witness_topic = scene.below(&name, &pattern.replace(['*', '#'], "witness"));
        let witness = message(&Topic::try_from(witness_topic.as_str())?);
        rows.push((consumer, tried, witness, format!("{pattern} against {topic}"), matches));
    }
    for (consumer, tried, witness, row, matches) in &mut rows {
        let outcomes = scene.send(&transport, &[tried.clone(), witness.clone()]).await?;
        if *matches {
            // Perhaps on another topic than the witness: which of them comes first is not promised.
            let received = scene.take(&mut **consumer, 2).await?;
            ensure_each_once(&format!("{row}: the group"), &received, [&*tried, &*witness])?;
        } else {
            let before = scene.until(&mut **consumer, witness).await?;
            ensure_eq!(before.len(), 0, "{row}: deliveries before the witness");
        }
        let outcome = scene.outcomes(outcomes).await?.remove(0);
        ensure_eq!(outcome.is_ok(), *matches, "{row}: whether it was confirmed");
    }
    Ok(())
}

pub(super) async fn a_pattern_is_refused(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    for words in ["*", "#"] {
        let wants = scene.subscription("billing", &[&scene.below("orders", words)], ROOMY)?;
        let answer = scene.within("a subscription", transport.subscribe(wants)).await?;
        ensure_refused("subscribing to a pattern", answer, ErrorKind::Unsupported)?;
    }
    Ok(())
}

pub(super) async fn an_exact_topic_gets_no_other(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let [placed, paid] = ["order.placed", "order.paid"].map(|words| scene.below("shop", words));
    let wants = scene.subscription("billing", &[&placed, &paid], ROOMY)?;
    let mut consumer = scene.subscribe(&transport, wants).await?;
    let others = ["order", "order.placed.eu", "order.place", "order.placedx", "order.Placed", "orderxplaced"];
    let mut sent = Vec::new();
    for words in others {
        sent.push(message(&Topic::try_from(scene.below("shop", words).as_str())?));
    }
    let wanted = message(&Topic::try_from(placed.as_str())?);
    let witness = message(&Topic::try_from(paid.as_str())?);
    sent.extend([wanted.clone(), witness.clone()]);
    let outcomes = scene.send(&transport, &sent).await?;
    // Two topics: which of them comes first is not promised.
    let received = scene.take(&mut *consumer, 2).await?;
    ensure_each_once("the group", &received, [&wanted, &witness])?;
    for outcome in scene.outcomes(outcomes).await?.into_iter().take(others.len()) {
        ensure_refused("a message on a topic that nobody wants", outcome, ErrorKind::Unroutable)?;
    }
    let last = message(&wanted.topic);
    let outcomes = scene.send(&transport, std::slice::from_ref(&last)).await?;
    let before = scene.until(&mut *consumer, &last).await?;
    ensure_eq!(before.len(), 0, "more messages than were for the group");
    scene.confirmed(outcomes).await
}

pub(super) async fn what_is_sent_right_after_subscribing_arrives(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (sender, receiver) = (scene.open().await?, scene.open().await?);
    for round in 0..10 {
        let topic = scene.topic(&format!("orders{round}"))?;
        let mut consumer = scene.consumer(&receiver, &format!("billing{round}"), &topic).await?;
        let sent = message(&topic);
        let outcomes = scene.send(&sender, std::slice::from_ref(&sent)).await?;
        let received = scene.take(&mut *consumer, 1).await?;
        ensure_each_once("a new group", &received, [&sent])?;
        scene.confirmed(outcomes).await?;
    }
    Ok(())
}

pub(super) async fn a_backlog_is_kept_or_refused_as_declared(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    drop(scene.consumer(&transport, "billing", &topic).await?);
    let sent = messages(&topic, 3);
    let early = scene.send(&transport, &sent).await?;
    let outcomes = scene.outcomes(early).await?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let witness = message(&topic);
    let witnessed = scene.send(&transport, std::slice::from_ref(&witness)).await?;
    if fixture.capabilities().keeps_backlog {
        ensure!(outcomes.iter().all(Result::is_ok), "a message for a group that is away was refused: {outcomes:?}");
        let received = scene.take(&mut *consumer, sent.len() + 1).await?;
        ensure_each_once("the group, when it came back,", &received, sent.iter().chain([&witness]))?;
        return scene.confirmed(witnessed).await;
    }
    let before = scene.until(&mut *consumer, &witness).await?;
    scene.confirmed(witnessed).await?;
    ensure_eq!(before.len(), 0, "messages kept for a group that was away");
    for outcome in outcomes {
        ensure_refused("a message for a group that is away", outcome, ErrorKind::Unavailable)?;
    }
    Ok(())
}

pub(super) async fn the_backlog_counts_what_waits_and_what_is_out(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let group = scene.group("billing")?;
    let mut consumer = scene.subscribe(&transport, scene.subscription("billing", &[topic.as_str()], 1)?).await?;
    let outcomes = scene.send(&transport, &messages(&topic, 3)).await?;
    for left in (1..=3).rev() {
        let out = scene.receive(&mut *consumer, 1).await?;
        backlog_is(&scene, &transport, &group, left).await?;
        scene.ack(&mut *consumer, &out).await?;
    }
    backlog_is(&scene, &transport, &group, 0).await?;
    scene.confirmed(outcomes).await
}

/// Brokers may count a moment late, so the number has time to become right.
async fn backlog_is(scene: &Scene<'_>, transport: &Arc<dyn Transport>, group: &Group, expected: u64) -> CheckResult {
    let last = AtomicU64::new(0);
    let counting = async {
        loop {
            let found = transport.backlog(group.clone()).await?;
            if found == expected {
                return Ok(());
            }
            last.store(found, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    };
    scene.within("the right backlog", counting).await.unwrap_or_else(|_| {
        let found = last.load(Ordering::Relaxed);
        Err(Failure::new(format!("backlog: found {found}, expected {expected}")))
    })
}

pub(super) async fn the_backlog_is_refused(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let answer = scene.within("the backlog", transport.backlog(scene.group("billing")?)).await?;
    ensure_refused("asking for the backlog", answer, ErrorKind::Unsupported)
}
