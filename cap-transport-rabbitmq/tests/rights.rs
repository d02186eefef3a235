//! Users with narrow rights, on a broker whose operators make the topology; and clusters of several hosts.

mod support;

use std::time::{Duration, Instant};

use cap_core::{ErrorKind, Transport};
use cap_transport_rabbitmq::{RabbitMq, RabbitMqOptions, Topology};
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use support::scene::{PATIENCE, Scene, message, receive, refused, send};
use support::{Raw, SERVER, server, url, url_at};
use tokio::net::TcpListener;

const PASSWORD: &str = "narrow-1b7c";

/// A user with these rights: to configure, to write, to read.
async fn user(scene: &Scene, name: &str, rights: [&str; 3]) -> String {
    let user = scene.names.unique(name);
    SERVER.client(&["add_user", &user, PASSWORD]).await.expect("a user");
    let [configure, write, read] = rights;
    SERVER.client(&["set_permissions", &user, configure, write, read]).await.expect("rights");
    user
}

async fn remove(user: &str) {
    SERVER.client(&["delete_user", user]).await.expect("no user");
}

fn options(scene: &Scene, user: &str) -> RabbitMqOptions {
    scene.names.options(&format!("amqp://{user}:{PASSWORD}@{}/%2f", server()))
}

fn exactly(name: &str) -> String {
    format!("^{}$", name.replace('.', "\\."))
}

#[tokio::test]
async fn a_user_who_may_configure_nothing_sends_and_consumes_what_operators_have_made() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let operator = scene.open(scene.options()).await;
    drop(operator.subscribe(scene.wants(&[&topic])).await.unwrap());
    let rights = ["^$", &exactly(&scene.names.exchange()), &exactly(scene.group().as_str())];
    let user = user(&scene, "narrow", rights).await;

    let refusal = Transport::connect(&RabbitMq::with_options(options(&scene, &user)).unwrap()).await;
    refused(refusal, ErrorKind::Rejected, &["ACCESS_REFUSED", "`topology`"]);

    let transport = scene.open(options(&scene, &user).topology(Topology::Check)).await;
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
    let tags = receive(&mut *consumer, 1).await.iter().map(|delivery| delivery.tag).collect();
    consumer.ack(tags).await.unwrap();
    remove(&user).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_user_who_may_only_write_the_exchange_publishes() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let operator = scene.open(scene.options()).await;
    let mut consumer = operator.subscribe(scene.wants(&[&topic])).await.unwrap();
    let user = user(&scene, "writer", ["^$", &exactly(&scene.names.exchange()), "^$"]).await;
    let transport = scene.open(options(&scene, &user).topology(Topology::Check)).await;
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
    receive(&mut *consumer, 1).await;
    // Nobody is bound to this one, and nothing can be bound.
    let nobody = send(&transport, vec![message(&scene.topic("nobody"), &[])]).await.remove(0);
    refused(nobody, ErrorKind::Unroutable, &["NO_ROUTE"]);
    remove(&user).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn what_operators_have_not_made_is_told_and_not_made() {
    let scene = Scene::new();
    let checks = || RabbitMq::with_options(scene.options().topology(Topology::Check)).unwrap();
    let (exchange, group) = (scene.names.exchange(), scene.group());
    refused(Transport::connect(&checks()).await, ErrorKind::Rejected, &[&exchange, "not there", "operators"]);
    scene.open(scene.options()).await.close().await.unwrap();
    let transport = checks();
    Transport::connect(&transport).await.unwrap();
    let wanted = scene.wants(&[&scene.topic("order")]);
    refused(transport.subscribe(wanted).await, ErrorKind::Rejected, &[group.as_str(), "not there", "operators"]);
    let look = QueueDeclareOptions { passive: true, ..Default::default() };
    let found = Raw::open().await.channel.queue_declare(group.as_str().into(), look, FieldTable::default()).await;
    assert!(found.is_err(), "the queue was declared");
    scene.names.clean_up().await;
}

#[tokio::test]
async fn an_exchange_of_operators_that_is_deleted_is_waited_for_and_not_made() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let operator = scene.open(scene.options()).await;
    let transport = scene.open(scene.options().topology(Topology::Check)).await;
    let raw = Raw::open().await;
    raw.channel.exchange_delete(scene.names.exchange().into(), Default::default()).await.unwrap();
    let outcome = send(&transport, vec![message(&topic, &[])]).await.remove(0);
    refused(outcome, ErrorKind::Unavailable, &["not there"]);
    let look = ExchangeDeclareOptions { passive: true, ..Default::default() };
    let kind = lapin::ExchangeKind::Topic;
    let found = raw.channel.exchange_declare(scene.names.exchange().into(), kind, look, FieldTable::default()).await;
    assert!(found.is_err(), "the exchange was declared");
    let mut consumer = operator.subscribe(scene.wants(&[&topic])).await.unwrap();
    let began = Instant::now();
    while send(&transport, vec![message(&topic, &[])]).await.remove(0).is_err() {
        assert!(began.elapsed() < PATIENCE, "it does not find the exchange that is there again");
    }
    receive(&mut *consumer, 1).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_host_that_is_dead_or_frozen_is_passed_over_and_then_left_alone() {
    let scene = Scene::new();
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let frozen = frozen.local_addr().unwrap();
    let url = url_at(&format!("127.0.0.1:9,{frozen},{}", server()));
    let options = scene.names.options(&url).connect_timeout(Duration::from_secs(4));
    let transport = scene.open(options).await;
    // The connection for consuming is another one.
    let began = Instant::now();
    let _consumer = transport.subscribe(scene.wants(&[&scene.topic("order")])).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "it went to the frozen host first: {:?}", began.elapsed());
    scene.names.clean_up().await;
}

#[tokio::test]
async fn each_host_that_cannot_be_used_is_named_with_its_reason() {
    let secret = url().split_once("://").and_then(|(_, rest)| rest.split_once('@')).unwrap().0.to_owned();
    let options = RabbitMqOptions::new(url_at("127.0.0.1:9,nowhere.invalid:5673"));
    let transport = RabbitMq::with_options(options).unwrap();
    let words = ["none of the hosts", "127.0.0.1:9/", "nothing listens", "nowhere.invalid:5673/", "does not resolve"];
    let error = refused(Transport::connect(&transport).await, ErrorKind::Unavailable, &words);
    assert!(!error.to_string().contains(&secret), "{error}");
}
