//! What waits is shared out: nodes work side by side, and none does what another does.

use std::collections::BTreeSet;

use cap::{MessageId, Options, Publish, Step, Storage as _, Subscribe, Table, Version};

use crate::support::{Effect, Node, Scene, TOPIC, effect, options, until};

const MESSAGES: i32 = 300;
const GROUPS: [&str; 2] = ["billing", "shipping"];

/// What is left when three nodes have worked off a backlog.
struct WorkedOff {
    published: BTreeSet<MessageId>,
    groups: [String; 2],
    effects: Vec<Effect>,
    /// The messages that each node has sent and settled.
    sent: Vec<BTreeSet<MessageId>>,
}

async fn work_off() -> WorkedOff {
    let scene = Scene::new().await;
    let groups = GROUPS.map(|name| scene.group(name));
    // Small bites, so that nobody swallows it whole.
    let options = Options { relay_batch: 5, relay_in_flight: 5, prefetch: 5, ..options() };
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let start = scene.start(name, options.clone(), |cap| {
            let subscription = |group: &String| Subscribe::to(TOPIC, effect).group(group).concurrency(2);
            groups.iter().map(subscription).fold(cap, |cap, subscription| cap.subscription(subscription))
        });
        nodes.push(start.await);
    }
    // All of it is there at once, and everybody knows.
    let mut tx = scene.database.pool.begin().await.unwrap();
    let backlog = (0..MESSAGES).map(|number| Publish::json(TOPIC, &number));
    let published = nodes[0].cap.publish_many_in(&mut tx, backlog).await.unwrap().ids().cloned().collect();
    tx.commit().await.unwrap();
    nodes.iter().for_each(|node| node.cap.wake());

    until("the end of the backlog", async || is_done(&nodes[0]).await.then_some(())).await;
    let worked_off = WorkedOff {
        published,
        groups,
        effects: scene.effects().await,
        sent: nodes.iter().map(|node| node.steps.messages(Step::OutboxSettled)).collect(),
    };
    scene.clean_up(nodes).await;
    worked_off
}

async fn is_done(node: &Node) -> bool {
    let all = MESSAGES as u64;
    let counts = async |table| node.cap.storage().counts(table, Version::default()).await.unwrap();
    counts(Table::Outbox).await.succeeded == all && counts(Table::Inbox).await.succeeded == all * GROUPS.len() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outbox_is_shared_out_and_each_message_is_sent_by_one_node() {
    let WorkedOff { published, sent, .. } = work_off().await;
    let shares: Vec<usize> = sent.iter().map(BTreeSet::len).collect();
    assert!(shares.iter().filter(|share| **share > 0).count() > 1, "shares: {shares:?}");
    assert_eq!(shares.iter().sum::<usize>(), published.len(), "shares: {shares:?}");
    assert_eq!(sent.into_iter().flatten().collect::<BTreeSet<_>>(), published);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inbox_of_each_group_is_shared_out() {
    let WorkedOff { groups, effects, .. } = work_off().await;
    for group in groups {
        let effects = effects.iter().filter(|effect| effect.group.starts_with(&group));
        let nodes: BTreeSet<&str> = effects.map(|effect| effect.node.as_str()).collect();
        assert!(nodes.len() > 1, "{group} was worked on by {nodes:?} alone");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_takes_effect_once_in_each_group() {
    let WorkedOff { groups, effects, .. } = work_off().await;
    let expected = groups.iter().flat_map(|group| (0..MESSAGES).map(move |number| (format!("{group}.v1"), number)));
    let found: Vec<_> = effects.into_iter().map(|effect| (effect.group, effect.number)).collect();
    assert_eq!(found, expected.collect::<Vec<_>>());
}
