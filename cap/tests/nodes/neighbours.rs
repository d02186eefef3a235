//! Work that hangs, and a database that refuses everything for a while: the others go on, and nothing is lost or given up.

use std::time::Duration;

use cap::postgres::{PostgresStorage, sqlx};
use cap::{Json, Options, RetryPolicy, Status, Step, Subscribe, Table, Tx};

use crate::support::{Effect, Scene, TOPIC, effect, options, until};

/// Waits for a row that somebody else has locked.
async fn waits_for_a_lock(_: Json<i32>, mut tx: Tx<PostgresStorage>) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE business SET number = 2").execute(&mut **tx).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_transaction_of_a_handler_over_its_timeout_holds_up_no_other_record() {
    let scene = Scene::new().await;
    scene.database.run("CREATE TABLE business (number INT); INSERT INTO business VALUES (1)").await;
    let mut lock = scene.database.pool.begin().await.unwrap();
    sqlx::query("UPDATE business SET number = 3").execute(&mut *lock).await.unwrap();

    let (hanging, good) = (scene.group("hanging"), scene.group("good"));
    let retry = RetryPolicy::fixed(2, Duration::from_millis(50));
    let hangs =
        Subscribe::to("hangs", waits_for_a_lock).group(&hanging).timeout(Duration::from_millis(300)).retry(retry);
    let works = Subscribe::to(TOPIC, effect).group(&good);
    let node = scene.start("a", options(), |cap| cap.subscription(hangs).subscription(works)).await;
    let stuck = node.cap.publish("hangs", &1).await.unwrap().id().clone();
    node.steps.until(Step::HandlerEnded, &stuck).await;
    // Its outcome cannot be written while its transaction waits; those of the others are.
    for number in 0..20 {
        let id = node.publish(number).await;
        node.steps.until(Step::InboxSettled, &id).await;
    }
    assert_eq!(node.received(&stuck).await.status, Status::Queued);
    assert!(node.cap.health().node.is_some() && node.cap.health().ready, "{:?}", node.cap.health());
    lock.rollback().await.unwrap();
    // From here on the second attempt succeeds.
    until("the end of what hung", async || (node.received(&stuck).await.status == Status::Succeeded).then_some(()))
        .await;
    scene.clean_up([node]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_while_the_inbox_is_missing_is_handled_once_it_is_there_again() {
    const NUMBER: i32 = 50;
    let scene = Scene::new().await;
    let group = scene.group("billing");
    let subscription = Subscribe::to(TOPIC, effect).group(&group);
    let node = scene.start("a", Options::default(), |cap| cap.subscription(subscription)).await;
    until("readiness", async || node.cap.health().ready.then_some(())).await;
    scene.database.run("ALTER TABLE cap.received RENAME TO elsewhere").await;
    for number in 0..NUMBER {
        node.publish(number).await;
    }
    let told = until("an illness of the consumer", async || {
        let health = node.cap.health();
        health.ill().find(|(name, _)| name.starts_with("consumer")).map(|(_, error)| error.to_string())
    });
    let told = told.await;
    assert!(told.contains("deliveries of group"), "{told}");
    // Until they are given back once, and come again.
    until("a second illness", async || {
        let health = node.cap.health();
        let failures =
            health.loops.iter().find(|(name, _)| name.starts_with("consumer")).map(|(_, health)| match health {
                cap::LoopHealth::Ill { failures, .. } => *failures,
                _ => 0,
            });
        failures.filter(|failures| *failures > 12)
    })
    .await;
    scene.database.run("ALTER TABLE cap.elsewhere RENAME TO received").await;
    until("all effects", async || (scene.effects().await.len() >= NUMBER as usize).then_some(())).await;
    let expected = (0..NUMBER).map(|number| Effect { group: format!("{group}.v1"), number, node: "a".into() });
    assert_eq!(scene.effects().await, expected.collect::<Vec<_>>());
    until("readiness", async || node.cap.health().ready.then_some(())).await;
    let counts = cap::Storage::counts(&**node.cap.storage(), Table::Inbox, cap::Version::default()).await.unwrap();
    assert_eq!((counts.dead, counts.succeeded), (0, NUMBER as u64));
    scene.clean_up([node]).await;
}
