//! Bindings and exchanges that somebody takes away while the service runs.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cap_core::storage::{Query, Storage};
use cap_core::{ErrorKind, Table, Topic, Transport};
use cap_engine::{Cap, Json};
use cap_storage_memory::MemoryStorage;
use cap_transport_rabbitmq::{QueueType, RabbitMq};
use lapin::options::ExchangeDeleteOptions;
use support::scene::{PATIENCE, Scene, message, receive, refused, send};
use support::{Raw, unbind};
use tokio::sync::mpsc;

/// Well below the pause after which bindings are made again in any case.
const SOON: Duration = Duration::from_secs(5);

/// Sends until one is confirmed.
async fn send_until_confirmed(transport: &RabbitMq, topic: &Topic) {
    let began = Instant::now();
    while send(transport, vec![message(topic, &[])]).await.remove(0).is_err() {
        assert!(began.elapsed() < SOON, "the binding is still missing after {SOON:?}");
    }
}

#[tokio::test]
async fn a_returned_message_of_a_subscribed_topic_has_its_binding_made_again_at_once() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let (topic, nobody) = (scene.topic("order"), scene.topic("nobody"));
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    unbind(&scene.names, scene.group().as_str(), topic.as_str()).await;
    // What nobody has subscribed binds nothing.
    refused(send(&transport, vec![message(&nobody, &[])]).await.remove(0), ErrorKind::Unroutable, &["NO_ROUTE"]);
    refused(send(&transport, vec![message(&topic, &[])]).await.remove(0), ErrorKind::Unroutable, &["NO_ROUTE"]);
    send_until_confirmed(&transport, &topic).await;
    receive(&mut *consumer, 1).await;
    refused(send(&transport, vec![message(&nobody, &[])]).await.remove(0), ErrorKind::Unroutable, &["NO_ROUTE"]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn an_exchange_that_is_deleted_gets_its_bindings_back() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    let raw = Raw::open().await;
    raw.channel.exchange_delete(scene.names.exchange().into(), ExchangeDeleteOptions::default()).await.unwrap();
    send_until_confirmed(&transport, &topic).await;
    receive(&mut *consumer, 1).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_consumer_that_is_gone_binds_nothing() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let (topic, other) = (scene.topic("order"), scene.topic("other"));
    drop(transport.subscribe(scene.wants(&[&topic])).await.unwrap());
    let mut wants = scene.wants(&[&other]);
    wants.group = scene.names.unique("shipping").parse().unwrap();
    let _consumer = transport.subscribe(wants).await.unwrap();
    unbind(&scene.names, scene.group().as_str(), topic.as_str()).await;
    unbind(&scene.names, &scene.names.unique("shipping"), other.as_str()).await;
    // Both were told when the second is bound again.
    for topic in [&topic, &other] {
        refused(send(&transport, vec![message(topic, &[])]).await.remove(0), ErrorKind::Unroutable, &[]);
    }
    send_until_confirmed(&transport, &other).await;
    refused(send(&transport, vec![message(&topic, &[])]).await.remove(0), ErrorKind::Unroutable, &[]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_service_whose_exchange_is_deleted_goes_on_and_no_message_loses_an_attempt() {
    const MESSAGES: u32 = 30;
    let scene = Scene::new();
    let transport = RabbitMq::with_options(scene.options().queue_type(QueueType::Classic)).unwrap();
    let storage = MemoryStorage::new();
    let (topic, (sender, mut seen)) = (scene.topic("order"), mpsc::unbounded_channel::<u32>());
    let handler = move |Json(number): Json<u32>| {
        let _ = sender.send(number);
        std::future::ready(())
    };
    let group = scene.names.unique("billing");
    scene.names.unique("billing.v1");
    let builder = Cap::builder().storage(storage.clone()).transport(transport);
    let cap = Arc::new(builder.subscribe(topic.as_str(), &group, handler).start().await.unwrap());
    let raw = Raw::open().await;
    for number in 0..MESSAGES {
        if number % 10 == 5 {
            raw.channel.exchange_delete(scene.names.exchange().into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        cap.publish(topic.as_str(), &number).await.unwrap();
        let handled = tokio::time::timeout(PATIENCE.min(SOON), seen.recv()).await;
        assert_eq!(handled.expect("handled soon"), Some(number));
    }
    tokio::time::timeout(PATIENCE, cap.wait_idle()).await.expect("idle in time").unwrap();
    let sent = storage.list(Table::Outbox, Query { limit: 1_000, ..Query::default() }).await.unwrap();
    assert_eq!(sent.len(), MESSAGES as usize);
    assert!(sent.iter().all(|record| record.attempts == 1), "{sent:?}");
    cap.stop().await;
    let _ = raw.channel.queue_delete(format!("{group}.v1").as_str().into(), Default::default()).await;
    scene.names.clean_up().await;
}
