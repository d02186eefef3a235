//! One message for which the broker breaks off, and the others that are on their way with it.

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use cap_core::{ErrorKind, Message, Topic, Transport, headers};
use cap_transport_rabbitmq::{QueueType, RabbitMq, RabbitMqOptions};
use support::scene::{Scene, message, receive, refused, send};
use support::{CLOSES_CHANNEL, CLOSES_CONNECTION, Proxy, SERVER};

/// What nobody else's message may take because of a bad one.
const PROMPT: Duration = Duration::from_secs(5);

/// A user of this test alone, who may write those topics only that begin with `ok`.
async fn restricted(scene: &Scene, user: &str) -> RabbitMqOptions {
    let _ = SERVER.client(&["add_user", user, "pass-7f3a"]).await;
    SERVER.client(&["set_permissions", user, ".*", ".*", ".*"]).await.expect("permissions");
    permit(scene, user, "^ok").await;
    let url = format!("amqp://{user}:pass-7f3a@{}/%2f", support::server());
    scene.names.options(&url).queue_type(QueueType::Classic)
}

async fn permit(scene: &Scene, user: &str, write: &str) {
    let exchange = scene.names.exchange();
    SERVER.client(&["set_topic_permissions", user, &exchange, write, ".*"]).await.expect("topic permissions");
}

async fn each_arrives(transport: &RabbitMq, scene: &Scene, topics: &[&Topic], sent: &[Message]) {
    let mut consumer = transport.subscribe(scene.wants(topics)).await.expect("a consumer");
    let mut missing: HashSet<String> = sent.iter().map(|message| message.id.as_str().to_owned()).collect();
    while !missing.is_empty() {
        // What was sent again may come twice.
        let delivery = receive(&mut *consumer, 1).await.remove(0);
        missing.remove(delivery.headers.get(headers::MESSAGE_ID).expect("an id"));
    }
}

#[tokio::test]
async fn a_topic_that_may_not_be_written_hinders_no_other_and_costs_one_channel() {
    if !SERVER.is_ours() {
        return eprintln!("skipped: the broker is not ours, so no user can be made");
    }
    let scene = Scene::new();
    let options = restricted(&scene, "cap-poison-topic").await;
    let admin = scene.open(scene.options()).await;
    let (good, bad) = (scene.topic("ok"), scene.topic("forbidden"));
    drop(admin.subscribe(scene.wants(&[&good, &bad])).await.unwrap());
    let transport = scene.open(options).await;
    let begun = Instant::now();
    let mut sent = Vec::new();
    for _ in 0..20 {
        let batch: Vec<_> = (0..30).map(|place| message(if place % 3 == 1 { &bad } else { &good }, &[])).collect();
        for (message, outcome) in batch.iter().zip(send(&transport, batch.clone()).await) {
            if message.topic == bad {
                refused(outcome, ErrorKind::Environment, &["right", bad.as_str()]);
            } else {
                outcome.unwrap_or_else(|error| panic!("{error}"));
                sent.push(message.clone());
            }
        }
    }
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    each_arrives(&admin, &scene, &[&good, &bad], &sent).await;

    // Once the right is given, the topic works, without a restart.
    permit(&scene, "cap-poison-topic", ".*").await;
    let deadline = Instant::now() + PROMPT;
    while let Err(error) = send(&transport, vec![message(&bad, &[])]).await.remove(0) {
        assert!(Instant::now() < deadline, "{error}");
        tokio::task::yield_now().await;
    }
    let _ = SERVER.client(&["delete_user", "cap-poison-topic"]).await;
    scene.names.clean_up().await;
}

/// Larger than this broker takes, and the transport was told otherwise.
const TOO_LARGE: usize = 17_000_000;

#[tokio::test]
async fn a_body_that_only_the_broker_refuses_is_invalid_and_its_neighbours_are_taken() {
    if !SERVER.is_ours() {
        return eprintln!("skipped: the broker is not ours, so its limit cannot be set");
    }
    let scene = Scene::new();
    SERVER.client(&["eval", "application:set_env(rabbit, max_message_size, 16777216)."]).await.expect("a limit");
    let transport = scene.open(scene.options().max_body(20_000_000)).await;
    let topic = scene.topic("order");
    drop(transport.subscribe(scene.wants(&[&topic])).await.unwrap());
    let mut sent: Vec<_> = (0..40).map(|_| message(&topic, &[])).collect();
    sent[17].payload = vec![b'1'; TOO_LARGE].into();
    let outcomes = send(&transport, sent.clone()).await;
    for (place, outcome) in outcomes.into_iter().enumerate() {
        match place {
            17 => drop(refused(outcome, ErrorKind::Invalid, &["17000000"])),
            _ => outcome.unwrap_or_else(|error| panic!("message {place}: {error}")),
        }
    }
    sent.remove(17);
    each_arrives(&transport, &scene, &[&topic], &sent).await;
    scene.names.clean_up().await;
}

/// Sends a batch with some poisoned messages in it, and then healthy ones one by one.
async fn poison_among_healthy_ones(header: &str, limit: Duration) {
    let kind = ErrorKind::Rejected;
    let scene = Scene::new();
    let proxy = Proxy::start().await;
    let topic = scene.topic("order");
    let direct = scene.open(scene.options()).await;
    drop(direct.subscribe(scene.wants(&[&topic])).await.expect("a queue"));
    let options = scene.names.options(&support::url_at(&proxy.place)).queue_type(QueueType::Classic);
    let transport = scene.open(options).await;
    let is_bad = |place: usize| place % 97 == 50;
    let bad = || message(&topic, &[(header, "x")]);
    let mut sent: Vec<_> = (0..300).map(|place| if is_bad(place) { bad() } else { message(&topic, &[]) }).collect();
    let begun = Instant::now();
    let outcomes = {
        let poisoned = send(&transport, sent.clone());
        let healthy = async {
            for _ in 0..50 {
                let begun = Instant::now();
                send(&transport, vec![message(&topic, &[])]).await.remove(0).expect("sent later");
                assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
            }
        };
        tokio::join!(poisoned, healthy).0
    };
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    for (place, outcome) in outcomes.into_iter().enumerate() {
        match is_bad(place) {
            true => drop(refused(outcome, kind, &["alone"])),
            false => outcome.unwrap_or_else(|error| panic!("message {place}: {error}")),
        }
    }
    // The same one again goes alone at once, and nobody notices.
    let again = sent[50].clone();
    let beside = vec![message(&topic, &[]), again, message(&topic, &[])];
    for (place, outcome) in send(&transport, beside).await.into_iter().enumerate() {
        match place {
            1 => drop(refused(outcome, kind, &["alone"])),
            _ => outcome.expect("sent beside it"),
        }
    }
    sent.retain(|message| message.headers.get(header).is_none());
    each_arrives(&direct, &scene, &[&topic], &sent).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_message_for_which_the_broker_closes_the_channel_is_found_and_the_others_are_sent() {
    poison_among_healthy_ones(CLOSES_CHANNEL, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_message_for_which_the_broker_closes_the_connection_is_found_and_the_others_are_sent() {
    poison_among_healthy_ones(CLOSES_CONNECTION, PROMPT).await;
}

#[tokio::test]
async fn a_full_queue_is_its_topics_affair() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let (topic, full) = (scene.topic("order"), scene.topic("full"));
    drop(transport.subscribe(scene.wants(&[&topic])).await.unwrap());
    support::fill(&scene.names, full.as_str()).await;
    let batch = vec![message(&full, &[]), message(&topic, &[]), message(&full, &[])];
    let mut outcomes = send(&transport, batch).await;
    refused(outcomes.pop().unwrap(), ErrorKind::Environment, &["full"]);
    outcomes.pop().unwrap().unwrap();
    refused(outcomes.pop().unwrap(), ErrorKind::Environment, &["full"]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn headers_that_the_broker_reads_go_past_it_and_arrive() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    let more = [("BCC", "elsewhere"), ("CC", "elsewhere"), ("cc", "x"), ("x-death", "y"), ("cap-escaped-BCC", "z")];
    send(&transport, vec![message(&topic, &more)]).await.remove(0).unwrap();
    let delivery = receive(&mut *consumer, 1).await.remove(0);
    for (name, value) in more {
        assert_eq!(delivery.headers.get(name), Some(value), "{name}");
    }
    scene.names.clean_up().await;
}
