//! The server is killed, restarted, frozen or cut off while messages flow: everything comes back, and nothing is lost.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cap_core::transport::{Consumer, Subscription};
use cap_core::{ErrorKind, Message, Topic, Transport};
use cap_testkit::server;
use cap_transport_kafka::Kafka;
use support::proxy::Proxy;
use support::scene::{PATIENCE, Scene, confirmed, ids, message, receive, refused, send, take};
use support::{SERVER, make_again, with_user};

/// As the engine does: subscribes until it works.
async fn subscribe(transport: &Kafka, wants: &Subscription) -> Box<dyn Consumer> {
    let begun = Instant::now();
    loop {
        match transport.subscribe(wants.clone()).await {
            Ok(consumer) => return consumer,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(begun.elapsed() < PATIENCE * 2, "{error}");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// As the engine does: sends until each is confirmed.
async fn deliver(transport: &Kafka, mut messages: Vec<Message>) {
    let begun = Instant::now();
    while !messages.is_empty() {
        let outcomes = send(transport, messages.clone()).await;
        let mut left = Vec::new();
        for (message, outcome) in messages.into_iter().zip(outcomes) {
            if let Err(error) = outcome {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                left.push(message);
            }
        }
        messages = left;
        assert!(begun.elapsed() < PATIENCE * 2, "{} are not confirmed", messages.len());
    }
}

/// As the engine does: receives, acknowledges, and subscribes again when a consumer is over, until all have come.
async fn collect(
    transport: &Kafka,
    wants: &Subscription,
    mut consumer: Box<dyn Consumer>,
    sent: &[Message],
) -> Box<dyn Consumer> {
    let mut missing: BTreeSet<&str> = sent.iter().map(|message| message.id.as_str()).collect();
    let begun = Instant::now();
    while !missing.is_empty() {
        assert!(begun.elapsed() < PATIENCE * 3, "{} did not come", missing.len());
        let received = tokio::time::timeout(PATIENCE, consumer.receive(50)).await.expect("a delivery or an error");
        match received {
            Ok(received) => {
                missing.retain(|id| !ids(&received).contains(id));
                let tags = received.iter().map(|delivery| delivery.tag).collect();
                if consumer.ack(tags).await.is_err() {
                    consumer = subscribe(transport, wants).await;
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                consumer = subscribe(transport, wants).await;
            }
        }
    }
    consumer
}

fn batch(topic: &Topic, count: usize) -> Vec<Message> {
    (0..count).map(|_| message(topic, &[])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_and_is_found_again() {
    let _alone = server::lock().write_owned().await;
    let scene = Scene::new();
    let transport = scene.open(scene.options().confirm_timeout(Duration::from_secs(5))).await;
    let topic = scene.topic("order");
    let wants = scene.wants(&[topic.as_str()]);
    let consumer = transport.subscribe(wants.clone()).await.unwrap();
    let mut sent = batch(&topic, 100);
    confirmed(&transport, sent.clone()).await;

    SERVER.run(&["kill"], None).await.unwrap();
    let begun = Instant::now();
    let outcome = send(&transport, batch(&topic, 1)).await.remove(0);
    refused(outcome, ErrorKind::Unavailable, &[topic.as_str()]);
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let away = transport.subscribe(wants.clone()).await;
    refused(away, ErrorKind::Unavailable, &["kafka"]);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

    let more = batch(&topic, 50);
    sent.extend(more.clone());
    let coming_back = async { SERVER.run(&["restart"], None).await.unwrap() };
    let delivering = deliver(&transport, more);
    let collecting = collect(&transport, &wants, consumer, &sent);
    tokio::join!(coming_back, delivering, collecting);
    scene.names.clean_up().await;
}

/// The leader's epoch of a topic that is made again begins anew, and librdkafka takes what a broker says under an earlier one
/// than it has seen for old news: it never fetches there again. In an empty partition nothing tells one log from the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_to_an_empty_topic_that_was_made_again_after_the_server_restarted_comes() {
    let _alone = server::lock().write_owned().await;
    let scene = Scene::new();
    let transport = scene.open(scene.options().topic_refresh(Duration::from_secs(3))).await;
    let (first, topic) = (scene.topic("first"), scene.topic("order"));
    let wants = scene.wants(&[first.as_str(), topic.as_str()]);
    let consumer = transport.subscribe(wants.clone()).await.unwrap();
    SERVER.run(&["restart"], None).await.unwrap();
    // It is there again, and knows the new epochs.
    let sent = batch(&first, 3);
    deliver(&transport, sent.clone()).await;
    let consumer = collect(&transport, &wants, consumer, &sent).await;
    make_again(topic.as_str(), 3).await;
    let sent = batch(&topic, 3);
    deliver(&transport, sent.clone()).await;
    collect(&transport, &wants, consumer, &sent).await;
    scene.names.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed_in_time_and_loses_nothing() {
    let _alone = server::lock().write_owned().await;
    let scene = Scene::new();
    let limit = Duration::from_secs(3);
    let transport = scene.open(scene.options().confirm_timeout(limit)).await;
    let topic = scene.topic("order");
    let wants = scene.wants(&[topic.as_str()]);
    let consumer = transport.subscribe(wants.clone()).await.unwrap();
    let mut sent = batch(&topic, 20);
    confirmed(&transport, sent.clone()).await;
    SERVER.run(&["freeze"], None).await.unwrap();
    let begun = Instant::now();
    for outcome in send(&transport, batch(&topic, 10)).await {
        refused(outcome, ErrorKind::Unavailable, &[topic.as_str()]);
    }
    let waited = begun.elapsed();
    SERVER.run(&["thaw"], None).await.unwrap();
    assert!(waited < limit * 3, "{waited:?}");
    let more = batch(&topic, 20);
    sent.extend(more.clone());
    tokio::join!(deliver(&transport, more), collect(&transport, &wants, consumer, &sent));
    scene.names.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_is_given_up_in_time_and_replaced() {
    let _together = server::lock().read_owned().await;
    let scene = Scene::new();
    let proxy = Proxy::start(scene.names.run());
    let limit = Duration::from_secs(2);
    let options = with_user(scene.names.options(&proxy.place)).confirm_timeout(limit);
    let transport = scene.open(options.set("socket.timeout.ms", "2000")).await;
    let direct = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = direct.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    confirmed(&transport, batch(&topic, 1)).await;
    receive(&mut *consumer, 1).await;

    proxy.stall(true);
    let begun = Instant::now();
    let outcomes = send(&transport, batch(&topic, 10)).await;
    assert!(begun.elapsed() < limit * 3, "{:?}", begun.elapsed());
    for outcome in outcomes {
        refused(outcome, ErrorKind::Unavailable, &["2s"]);
    }
    proxy.stall(false);
    let last = batch(&topic, 1);
    deliver(&transport, last.clone()).await;
    loop {
        // What was reported as failed may have come all the same.
        if ids(&receive(&mut *consumer, 1).await) == [last[0].id.as_str()] {
            break;
        }
    }
    scene.names.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_cut_off_and_come_and_go_lose_nothing() {
    let _together = server::lock().read_owned().await;
    let scene = Scene::new();
    let proxy = Proxy::start(scene.names.run());
    let options = || with_user(scene.names.options(&proxy.place)).partitions(6);
    let (one, other) = (scene.open(options()).await, scene.open(options()).await);
    let topic = scene.topic("order");
    let mut wants = scene.wants(&[topic.as_str()]);
    wants.prefetch = 20;
    let mut first = one.subscribe(wants.clone()).await.unwrap();
    let sent = batch(&topic, 200);
    deliver(&one, sent.clone()).await;
    let mut missing: BTreeSet<&str> = sent.iter().map(|message| message.id.as_str()).collect();
    let mut rounds = 0;
    let begun = Instant::now();
    while !missing.is_empty() {
        assert!(begun.elapsed() < PATIENCE * 3, "{} did not come", missing.len());
        rounds += 1;
        // Another member takes a part, and goes with what it holds.
        let mut second = subscribe(&other, &wants).await;
        if rounds % 3 == 0 {
            proxy.cut();
        }
        for consumer in [&mut first, &mut second] {
            let Ok(Ok(some)) = tokio::time::timeout(Duration::from_millis(500), consumer.receive(20)).await else {
                continue;
            };
            // Every other one is acknowledged.
            let done: Vec<_> = some.iter().step_by(2).cloned().collect();
            if consumer.ack(done.iter().map(|delivery| delivery.tag).collect()).await.is_ok() {
                missing.retain(|id| !ids(&done).contains(id));
            }
        }
        if rounds % 2 == 0 {
            first = subscribe(&one, &wants).await;
        }
    }
    scene.names.clean_up().await;
}

/// The files of a topic's only partition, where our server keeps them.
fn files_of(topic: &Topic) -> Vec<PathBuf> {
    let home = PathBuf::from(std::env::var_os("CAP_BACKENDS_DIR").expect("a server of ours"));
    let folder = home.join(format!("data/kafka/data/{topic}-0"));
    std::fs::read_dir(folder).expect("a log").map(|entry| entry.expect("a file").path()).collect()
}

fn is_a(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_restored_from_a_copy_is_told_and_loses_nothing_that_is_sent_then() {
    let _alone = server::lock().write_owned().await;
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let wants = scene.wants(&[topic.as_str()]);
    let mut consumer = transport.subscribe(wants.clone()).await.unwrap();
    confirmed(&transport, batch(&topic, 10)).await;
    take(&mut *consumer, 10).await;
    let log = files_of(&topic).into_iter().find(|path| is_a(path, "log")).expect("a segment");
    let copy = std::fs::read(&log).unwrap();
    confirmed(&transport, batch(&topic, 20)).await;
    take(&mut *consumer, 20).await;
    transport.close().await.unwrap();

    SERVER.run(&["kill"], None).await.unwrap();
    std::fs::write(&log, copy).unwrap();
    for derived in files_of(&topic).iter().filter(|path| is_a(path, "index") || is_a(path, "timeindex")) {
        std::fs::remove_file(derived).unwrap();
    }
    SERVER.run(&["restart"], None).await.unwrap();

    let transport = scene.open(scene.options()).await;
    let sent = batch(&topic, 5);
    let begun = Instant::now();
    loop {
        let error = transport.subscribe(wants.clone()).await.map(drop).expect_err("it is told");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        if ["partition 0", topic.as_str(), "got to 30", "ends at 10"]
            .iter()
            .all(|word| error.to_string().contains(word))
        {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
    let consumer = subscribe(&transport, &wants).await;
    deliver(&transport, sent.clone()).await;
    collect(&transport, &wants, consumer, &sent).await;
    scene.names.clean_up().await;
}
