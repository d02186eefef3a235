//! What an engine makes of a topic that is made again: it handles everything, and its health tells.

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cap_core::{Group, HandlerError};
use cap_engine::{Cap, Context, Json};
use cap_storage_memory::MemoryStorage;
use cap_transport_kafka::Kafka;
use support::make_again;
use support::scene::{PATIENCE, Scene};

/// Looks often enough to see what lasts for a moment.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let looking = async {
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            pace.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what}: it does not come to that"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_again_is_told_by_health_and_everything_is_handled() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let group: Group = scene.names.unique("billing").parse().unwrap();
    let handled = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&handled);
    let handler = move |Json(number): Json<i64>, _: Context| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().unwrap().insert(number);
            Ok::<(), HandlerError>(())
        }
    };
    let cap = Cap::builder()
        .storage(MemoryStorage::new())
        .transport(Kafka::with_options(scene.options()).unwrap())
        .subscribe(topic.as_str(), group.as_str(), handler)
        .start()
        .await
        .unwrap();
    let publish = async |numbers: std::ops::Range<i64>| {
        for number in numbers {
            cap.publish(topic.as_str(), &number).await.unwrap();
        }
    };
    publish(0..10).await;
    until("the first are handled", || handled.lock().unwrap().len() == 10).await;

    make_again(topic.as_str(), 1).await;
    publish(10..40).await;
    let is_told =
        || cap.health().ill().any(|(name, error)| name.contains(group.as_str()) && error.to_string().contains("log"));
    until("health tells", is_told).await;
    until("all are handled", || handled.lock().unwrap().len() == 40).await;
    until("health is well again", || cap.health().ready).await;
    cap.stop().await;
    scene.names.clean_up().await;
}
