//! What a node works on is its own while it lives, however long it takes.

use std::future::ready;

use cap::postgres::sqlx::Row;
use cap::{Status, Step, Subscribe};

use crate::support::{Gate, LEASE, Node, Scene, TOPIC, options, until};

/// When the first lease ends, by the database's clock, in milliseconds.
async fn first_lease_end(scene: &Scene) -> i64 {
    let ends = r#"SELECT (extract(epoch FROM min("LeaseUntil")) * 1000)::bigint FROM cap.nodes"#;
    scene.database.rows(ends, |row| row.get(0)).await[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_handler_takes_longer_than_the_lease_stays_with_its_node() {
    let scene = Scene::new().await;
    let group = scene.group("billing");
    let mut nodes: Vec<Node> = Vec::new();
    for name in ["a", "b"] {
        let gated = Subscribe::to(TOPIC, |_: Gate| ready(())).group(&group);
        nodes.push(scene.start(name, options(), |cap| cap.subscription(gated)).await);
    }
    let id = nodes[0].publish(1).await;
    let run = scene.gates.next().await;
    let before = nodes[0].received(&id).await;

    // Each node looks for the dead at least once in a lease.
    let begin = first_lease_end(&scene).await;
    let two_leases = 2 * i64::try_from(LEASE.as_millis()).unwrap();
    until("two leases", async || (first_lease_end(&scene).await >= begin + two_leases).then_some(())).await;

    assert!(scene.gates.is_empty().await, "the handler was begun a second time");
    assert!(!run.context.is_cancelled(), "the handler of a live node was cancelled");
    assert_eq!(nodes[0].received(&id).await, before);
    let worker = if run.node == "a" { &nodes[0] } else { &nodes[1] };
    drop(run);
    worker.steps.until(Step::InboxSettled, &id).await;
    let after = worker.received(&id).await;
    assert_eq!((after.status, after.attempts), (Status::Succeeded, 1));
    scene.clean_up(nodes).await;
}
