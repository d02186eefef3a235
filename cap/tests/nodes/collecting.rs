//! One node deletes expired records for all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cap::Options;
use cap::postgres::sqlx::Row;

use crate::support::{Node, Scene, options, until};

/// Every statement that deletes, also one that finds nothing, leaves the node that sent it, and the id of the node that
/// had the chore at that time.
const NOTE_COLLECTIONS: &str = r#"
CREATE TABLE collections (node TEXT, holder TEXT);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO collections SELECT current_setting('application_name'), (SELECT "Node"::text FROM cap.chores);
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER DELETE ON cap.published FOR EACH STATEMENT EXECUTE FUNCTION note();
"#;

/// A node that does nothing but collect.
async fn start(scene: &Scene, name: &'static str, collect_every: Duration) -> Node {
    scene.start(name, Options { collect_every, ..options() }, |cap| cap).await
}

async fn collections(scene: &Scene) -> Vec<(String, Option<String>)> {
    scene.database.rows("SELECT node, holder FROM collections", |row| (row.get(0), row.get(1))).await
}

/// The tables, with the notes.
async fn scene_with_notes() -> Scene {
    let scene = Scene::new().await;
    let first = start(&scene, "first", Duration::from_secs(3600)).await;
    scene.database.run(NOTE_COLLECTIONS).await;
    first.cap.stop().await;
    scene.database.run("TRUNCATE collections").await;
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_node_that_has_the_chore_collects() {
    let scene = scene_with_notes().await;
    let mut nodes = BTreeMap::new();
    for name in ["a", "b", "c"] {
        nodes.insert(name.to_owned(), start(&scene, name, Duration::from_secs(1)).await);
    }
    let collections = until("some rounds", async || {
        let collections = collections(&scene).await;
        (collections.len() >= 4).then_some(collections)
    })
    .await;
    for (node, holder) in collections {
        let collector = nodes[&node].cap.health().node.map(|id| id.to_string());
        assert_eq!(holder, collector, "node {node} collected, another had the chore");
    }
    scene.clean_up(nodes.into_values()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_node_that_collects_is_gone_another_does() {
    let scene = scene_with_notes().await;
    // Its term is longer than the test: what frees the chore is that it is dead.
    let a = start(&scene, "a", Duration::from_secs(3600)).await;
    let collectors = async || collections(&scene).await.into_iter().map(|(node, _)| node).collect::<BTreeSet<_>>();
    until("a collection by a", async || collectors().await.contains("a").then_some(())).await;
    let b = start(&scene, "b", Duration::from_millis(200)).await;
    a.database.cut();
    until("a collection by b", async || collectors().await.contains("b").then_some(())).await;
    a.database.mend();
    scene.clean_up([a, b]).await;
}
