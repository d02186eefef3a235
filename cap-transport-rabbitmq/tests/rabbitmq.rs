//! What is particular to RabbitMQ: the wire as .NET CAP knows it, the broker's refusals, and what happens when somebody
//! changes the broker behind the transport's back.

mod support;

use std::time::{Duration, Instant};

use cap_core::transport::DeliveryTag;
use cap_core::{ErrorKind, Message, Topic, Transport, headers};
use cap_transport_rabbitmq::{QueueType, RabbitMq, RabbitMqOptions};
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use support::scene::{PATIENCE, Scene, message, receive, refused, send};
use support::{Proxy, Raw};
use tokio::net::TcpListener;

#[tokio::test]
async fn a_message_is_on_the_wire_as_dotnet_cap_sends_it() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    drop(transport.subscribe(scene.wants(&[&topic])).await.unwrap());
    let sent = message(&topic, &[(headers::CORRELATION_SEQUENCE, "0"), (headers::SENT_TIME, "11/23/2026 08:50:00")]);
    send(&transport, vec![sent.clone()]).await.pop().unwrap().unwrap();

    let raw = Raw::open().await;
    let got = raw.channel.basic_get(scene.group().as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap();
    let got = got.expect("a message in the queue that is named like the group").delivery;
    assert_eq!(got.exchange.as_str(), scene.names.exchange());
    assert_eq!(got.routing_key.as_str(), topic.as_str());
    assert_eq!(got.data, br#"{"total":12}"#);
    assert_eq!(*got.properties.delivery_mode(), Some(2));
    assert_eq!(got.properties.message_id().as_ref().unwrap().as_str(), sent.id.as_str());
    assert_eq!(got.properties.content_type().as_ref().unwrap().as_str(), "application/json");
    let mut expected = FieldTable::default();
    for (name, value) in sent.headers.iter() {
        expected.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    assert_eq!(got.properties.headers().as_ref().unwrap(), &expected);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_queue_of_dotnet_cap_is_shared_when_asked_and_refused_otherwise() {
    let scene = Scene::new();
    let raw = Raw::open().await;
    scene.declare_as_dotnet(&raw).await;
    let topic = scene.topic("order");
    let group = scene.group();

    let quorum = scene.open(scene.options().queue_type(QueueType::Quorum)).await;
    let advice = [group.as_str(), "x-message-ttl", "cap_compatible"];
    refused(quorum.subscribe(scene.wants(&[&topic])).await, ErrorKind::Rejected, &advice);

    let compatible = scene.open(scene.options().cap_compatible()).await;
    let mut consumer = compatible.subscribe(scene.wants(&[&topic])).await.unwrap();
    // A .NET service sends what CAP's simple overload does: a callback header that is null.
    let mut table = FieldTable::default();
    table.insert(headers::MESSAGE_ID.into(), AMQPValue::LongString("7231500000000000001".into()));
    table.insert(headers::CALLBACK_NAME.into(), AMQPValue::Void);
    let properties = BasicProperties::default()
        .with_headers(table)
        .with_message_id("7231500000000000001".into())
        .with_delivery_mode(2);
    let (exchange, key) = (scene.names.exchange().into(), topic.as_str().into());
    raw.channel.basic_publish(exchange, key, BasicPublishOptions::default(), b"null", properties).await.unwrap();
    let delivery = receive(&mut *consumer, 1).await.remove(0);
    assert_eq!(delivery.headers.get(headers::MESSAGE_ID), Some("7231500000000000001"));
    assert_eq!(delivery.headers.get(headers::CALLBACK_NAME), None);
    assert_eq!(delivery.origin.as_deref(), Some("7231500000000000001"));
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_foreign_delivery_comes_as_it_is() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    let raw = Raw::open().await;
    let (exchange, key) = (scene.names.exchange().into(), topic.as_str().into());
    let properties = BasicProperties::default();
    raw.channel.basic_publish(exchange, key, BasicPublishOptions::default(), b"\xff\0", properties).await.unwrap();
    let delivery = receive(&mut *consumer, 1).await.remove(0);
    assert!(delivery.headers.is_empty(), "{:?}", delivery.headers);
    assert_eq!(delivery.origin, None);
    assert_eq!(&delivery.body[..], b"\xff\0");
    scene.names.clean_up().await;
}

#[tokio::test]
async fn an_exchange_of_another_type_is_refused_by_name() {
    let scene = Scene::new();
    let raw = Raw::open().await;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let name = scene.names.exchange();
    raw.channel
        .exchange_declare(name.clone().into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await
        .unwrap();
    let transport = RabbitMq::with_options(scene.options()).unwrap();
    refused(Transport::connect(&transport).await, ErrorKind::Rejected, &[&name, "fanout", "`exchange`"]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn refusals_are_told_apart_and_show_no_secret() {
    let place = support::server();
    let url = support::url();
    let credentials = url.split_once("://").unwrap().1.split_once('@').unwrap().0;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_place = silent.local_addr().unwrap().to_string();
    for (url, kind, word) in [
        (format!("amqp://nobody:s3cret-x@{place}/%2f"), ErrorKind::Rejected, "nobody"),
        (format!("amqp://{credentials}@{place}/no-such-vhost"), ErrorKind::Rejected, "no-such-vhost"),
        (format!("amqp://u:s3cret-x@no-such-host.invalid:{}/%2f", 5672), ErrorKind::Unavailable, "resolve"),
        ("amqp://u:s3cret-x@127.0.0.1:9/%2f".into(), ErrorKind::Unavailable, "reachable"),
        (format!("amqps://u:s3cret-x@{place}/%2f"), ErrorKind::Unavailable, "TLS"),
        (format!("amqp://u:s3cret-x@{silent_place}/%2f"), ErrorKind::Unavailable, "within"),
    ] {
        let begun = Instant::now();
        let transport = RabbitMq::with_options(RabbitMqOptions::new(url).connect_timeout(Duration::from_secs(3)));
        let transport = transport.unwrap();
        let error = refused(Transport::connect(&transport).await, kind, &[word, &transport.describe()]);
        assert!(begun.elapsed() < Duration::from_secs(6), "{error} took {:?}", begun.elapsed());
        assert!(!format!("{error} {error:?} {transport:?}").contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn a_consumer_whose_queue_is_deleted_ends_and_subscribing_again_makes_it_anew() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    let raw = Raw::open().await;
    raw.channel.queue_delete(scene.group().as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, consumer.receive(1)).await.expect("the consumer ends");
    refused(ended, ErrorKind::Unavailable, &["queue", "deleted"]);
    refused(consumer.receive(1).await, ErrorKind::Unavailable, &["deleted"]);

    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    let sent = message(&topic, &[]);
    send(&transport, vec![sent.clone()]).await.pop().unwrap().unwrap();
    let delivery = receive(&mut *consumer, 1).await.remove(0);
    assert_eq!(delivery.headers.get(headers::MESSAGE_ID), Some(sent.id.as_str()));
    scene.names.clean_up().await;
}

#[tokio::test]
async fn an_exchange_that_is_deleted_is_declared_anew() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let raw = Raw::open().await;
    raw.channel.exchange_delete(scene.names.exchange().into(), ExchangeDeleteOptions::default()).await.unwrap();
    // The first message that finds it gone has it declared, and waits for it; its bindings are gone.
    let outcome = send(&transport, vec![message(&topic, &[])]).await.remove(0);
    refused(outcome, ErrorKind::Unroutable, &["NO_ROUTE"]);
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
    receive(&mut *consumer, 1).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn returned_messages_are_told_from_their_neighbours() {
    for queue_type in [QueueType::Classic, QueueType::Quorum] {
        let scene = Scene::new();
        let transport = scene.open(scene.options().queue_type(queue_type)).await;
        let (topic, nobody) = (scene.topic("order"), scene.topic("nobody"));
        let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
        for round in 1..=20 {
            let is_wanted = |place: usize| !(place * place + round).is_multiple_of(round % 5 + 2);
            let topic_of = |place: usize| if is_wanted(place) { &topic } else { &nobody };
            let sent: Vec<Message> = (0..100).map(|place| message(topic_of(place), &[])).collect();
            for (place, outcome) in send(&transport, sent).await.into_iter().enumerate() {
                if is_wanted(place) {
                    outcome.unwrap_or_else(|error| panic!("{queue_type:?}, round {round}, message {place}: {error}"));
                } else {
                    refused(outcome, ErrorKind::Unroutable, &[nobody.as_str(), "NO_ROUTE"]);
                }
            }
            let wanted = (0..100).filter(|place| is_wanted(*place)).count();
            let received = receive(&mut *consumer, wanted).await;
            consumer.ack(received.iter().map(|delivery| delivery.tag).collect()).await.unwrap();
        }
        scene.names.clean_up().await;
    }
}

#[tokio::test]
async fn several_channels_keep_the_order_of_each_topic() {
    let scene = Scene::new();
    let transport = scene.open(scene.options().publish_channels(4).window(50)).await;
    let topics: Vec<Topic> = (0..6).map(|place| scene.topic(&format!("order{place}"))).collect();
    let mut consumer = transport.subscribe(scene.wants(&topics.iter().collect::<Vec<_>>())).await.unwrap();
    let sent: Vec<Message> = (0..600).map(|place| message(&topics[place % 6], &[])).collect();
    for outcome in send(&transport, sent.clone()).await {
        outcome.unwrap();
    }
    let received = receive(&mut *consumer, sent.len()).await;
    for topic in &topics {
        let ids = |found: &mut dyn Iterator<Item = String>| found.collect::<Vec<_>>();
        let came = received.iter().filter(|delivery| delivery.topic == topic.as_str());
        let came = ids(&mut came.map(|delivery| delivery.headers.get(headers::MESSAGE_ID).unwrap().to_owned()));
        let expected = ids(&mut sent.iter().filter(|m| m.topic == *topic).map(|m| m.id.as_str().to_owned()));
        assert_eq!(came, expected, "{topic}");
    }
    scene.names.clean_up().await;
}

#[tokio::test]
async fn headers_that_no_frame_can_hold_are_invalid_and_hinder_nobody() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    // RabbitMQ's frames have 128 KiB.
    let (fits, exceeds) = ("v".repeat(130_000), "v".repeat(140_000));
    let sent = vec![message(&topic, &[]), message(&topic, &[("a", &exceeds)]), message(&topic, &[("a", &fits)])];
    let mut outcomes = send(&transport, sent).await;
    outcomes.pop().unwrap().unwrap();
    refused(outcomes.pop().unwrap(), ErrorKind::Invalid, &["headers", "131072"]);
    outcomes.pop().unwrap().unwrap();
    receive(&mut *consumer, 2).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_given_up_in_time_and_replaced() {
    let scene = Scene::new();
    let proxy = Proxy::start().await;
    let limit = Duration::from_secs(1);
    let options = scene.names.options(&support::url_at(&proxy.place)).queue_type(QueueType::Classic);
    let transport = scene.open(options.confirm_timeout(limit)).await;
    let topic = scene.topic("order");
    let direct = scene.open(scene.options()).await;
    let mut consumer = direct.subscribe(scene.wants(&[&topic])).await.unwrap();
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();

    proxy.stall();
    let begun = Instant::now();
    let outcomes = send(&transport, (0..10).map(|_| message(&topic, &[])).collect()).await;
    assert!(begun.elapsed() < limit * 3, "{:?}", begun.elapsed());
    for outcome in outcomes {
        refused(outcome, ErrorKind::Unavailable, &["1s"]);
    }
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
    receive(&mut *consumer, 2).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn bindings_are_removed_on_request_and_ready_messages_counted() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let (kept, old) = (scene.topic("order"), scene.topic("old"));
    let group = scene.group();
    assert_eq!(transport.ready_messages(&group).await.unwrap(), None);
    drop(transport.subscribe(scene.wants(&[&kept, &old])).await.unwrap());
    let both = vec![message(&kept, &[]), message(&old, &[])];
    for outcome in send(&transport, both.clone()).await {
        outcome.unwrap();
    }
    assert_eq!(transport.ready_messages(&group).await.unwrap(), Some(2));
    let stale = [old.as_str().try_into().unwrap()];
    transport.unbind(&group, &stale).await.unwrap();
    transport.unbind(&group, &stale).await.unwrap();
    let mut outcomes = send(&transport, both).await;
    refused(outcomes.pop().unwrap(), ErrorKind::Unroutable, &[old.as_str()]);
    outcomes.pop().unwrap().unwrap();
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_tag_that_is_not_out_is_refused_and_the_consumer_goes_on() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    refused(consumer.ack(vec![DeliveryTag(7)]).await, ErrorKind::Invalid, &["delivery 7"]);
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
    let tags: Vec<_> = receive(&mut *consumer, 1).await.iter().map(|delivery| delivery.tag).collect();
    consumer.ack(tags.clone()).await.unwrap();
    refused(consumer.ack(tags).await, ErrorKind::Invalid, &["not out"]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_binding_that_somebody_took_away_is_there_again_soon() {
    let scene = Scene::new();
    let transport = scene.open(scene.options().bind_every(Duration::from_millis(100))).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    transport.unbind(&scene.group(), &[topic.as_str().try_into().unwrap()]).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while send(&transport, vec![message(&topic, &[])]).await.remove(0).is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the binding is missing for good");
    }
    receive(&mut *consumer, 1).await;
    scene.names.clean_up().await;
}
