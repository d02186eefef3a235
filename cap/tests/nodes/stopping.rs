//! A node that stops leaves what it held to the others.

use std::time::Duration;

use cap::postgres::{PostgresStorage, sqlx};
use cap::{Context, Json, Options, State, Subscribe, Tx};

use crate::support::{At, Effect, Gates, Scene, TOPIC, effect, options, until};

/// Never ends by itself.
async fn endless(
    at: State<At>,
    State(gates): State<Gates>,
    context: Context,
    number: Json<i32>,
    tx: Tx<PostgresStorage>,
) -> sqlx::Result<()> {
    gates.pass(at.0, context.clone()).await;
    effect(at, context, number, tx).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopping_node_held_goes_on_elsewhere_without_a_lease_having_to_end() {
    const BEFORE: i32 = 10;
    const ALL: i32 = 20;
    let scene = Scene::new().await;
    let group = scene.group("billing");
    // No lease ends while the test runs.
    let options = || Options { lease: Duration::from_secs(3600), heartbeat: Duration::from_secs(600), ..options() };
    let subscription = Subscribe::to(TOPIC, endless).group(&group);
    let a = scene.start("a", options(), |cap| cap.subscription(subscription)).await;
    for number in 0..BEFORE {
        a.publish(number).await;
    }
    let run = scene.gates.next().await;
    until("node a, holding more than it works on", async || (a.cap.in_flight() > 1).then_some(())).await;
    let subscription = Subscribe::to(TOPIC, effect).group(&group);
    let b = scene.start("b", options(), |cap| cap.subscription(subscription)).await;

    let stopping = tokio::spawn({
        let a = a.cap.clone();
        async move { a.stop().await }
    });
    for number in BEFORE..ALL {
        b.publish(number).await;
    }
    until("all effects", async || (scene.effects().await.len() >= ALL as usize).then_some(())).await;
    stopping.await.unwrap();
    let expected = (0..ALL).map(|number| Effect { group: format!("{group}.v1"), number, node: "b".into() });
    assert_eq!(scene.effects().await, expected.collect::<Vec<_>>());
    drop(run);
    scene.clean_up([a, b]).await;
}
