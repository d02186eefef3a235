//! A database whose sessions are serializable unless they say otherwise: nobody is a victim of anybody.

use cap::storage::{Query, Record};
use cap::{Publish, Storage as _, Subscribe, Table, Version};

use crate::support::{Node, Scene, TOPIC, effect, options, until};

const MESSAGES: i32 = 2_000;
/// So many are published in one transaction.
const AT_ONCE: i32 = 200;

async fn records(node: &Node, table: Table) -> Vec<Record> {
    let query = Query { limit: 2 * MESSAGES as usize, ..Query::default() };
    node.cap.storage().list(table, query).await.unwrap()
}

async fn handled(node: &Node) -> u64 {
    node.cap.storage().counts(Table::Inbox, Version::default()).await.unwrap().succeeded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_at_once_handle_a_backlog_without_a_failed_attempt() {
    let scene = Scene::new().await;
    scene.database.set("default_transaction_isolation", "serializable").await;
    let group = scene.group("billing");
    let start = |name| {
        let subscription = Subscribe::to(TOPIC, effect).group(&group).concurrency(4);
        scene.start(name, options(), |cap| cap.subscription(subscription))
    };
    let nodes: [Node; 3] = tokio::join!(start("a"), start("b"), start("c")).into();
    for first in (0..MESSAGES).step_by(AT_ONCE as usize) {
        let mut tx = scene.database.pool.begin().await.unwrap();
        let publishes = (first..first + AT_ONCE).map(|number| Publish::json(TOPIC, &number));
        let by = &nodes[(first / AT_ONCE) as usize % nodes.len()];
        by.cap.publish_many_in(&mut tx, publishes).await.unwrap();
        tx.commit().await.unwrap();
    }
    let all = MESSAGES as u64;
    until("the end of the backlog", async || (handled(&nodes[0]).await == all).then_some(())).await;

    let mut numbers: Vec<i32> = scene.effects().await.into_iter().map(|effect| effect.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>());
    for table in [Table::Outbox, Table::Inbox] {
        let again: Vec<_> = records(&nodes[0], table).await.into_iter().filter(|record| record.attempts > 1).collect();
        assert!(again.is_empty(), "{} of {table} were tried again, such as {:?}", again.len(), again[0]);
    }
    scene.clean_up(nodes).await;
}
