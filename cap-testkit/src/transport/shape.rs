//! The shape of messages: what goes in comes out.

use bytes::Bytes;
use cap_core::transport::Delivery;
use cap_core::{ErrorKind, Message, headers};

use super::fixture::TransportFixture;
use super::tools::{Scene, ensure_each_once, ensure_refused, is, message, message_with, messages, tags};
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

/// Sends the messages to one group and gives each one's delivery, in the order of the messages.
async fn round_trip(scene: &Scene<'_>, sent: &[Message]) -> CheckResult<Vec<Delivery>> {
    let transport = scene.open().await?;
    let topics: Vec<&str> = sent.iter().map(|message| message.topic.as_str()).collect();
    let wants = scene.subscription("billing", &topics, sent.len())?;
    let mut consumer = scene.subscribe(&transport, wants).await?;
    let outcomes = scene.send(&transport, sent).await?;
    let received = scene.take(&mut *consumer, sent.len()).await?;
    scene.confirmed(outcomes).await?;
    ensure_each_once("the consumer", &received, sent)?;
    let delivery_of = |message: &Message| received.iter().find(|delivery| is(delivery, message)).cloned();
    sent.iter().map(|message| delivery_of(message).ok_or_else(|| Failure::new("a message did not come"))).collect()
}

pub(super) async fn id_topic_and_headers_arrive_unchanged(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let long = "v".repeat(4_000);
    let more = [
        (headers::CORRELATION_ID, "6721f0c2a1b2c3d4e5f60718"),
        (headers::CORRELATION_SEQUENCE, "0"),
        (headers::MESSAGE_TYPE, "Order"),
        (headers::CALLBACK_NAME, "order.answered"),
        (headers::SENT_TIME, "11/23/2026 08:50:00"),
        (headers::DELAY_TIME, "00:00:30"),
        (headers::KAFKA_KEY, "customer-1"),
        (headers::CONTENT_TYPE, "application/json"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("X-Mixed-Case", "Kept As It Is"),
        ("größe", "Zürich, 東京, 🚚"),
        ("quoted", "a \"b\" \\ c; d=e, f\tg"),
        ("number", "0012"),
        ("empty", ""),
        ("long", &long),
    ];
    let plain = message_with(&scene.topic("orders")?, [], Bytes::from_static(b"1"));
    let dressed = message_with(&scene.topic("order-lines_2")?, more, Bytes::from_static(b"{}"));
    let sent = [plain, dressed];
    for (delivery, message) in round_trip(&scene, &sent).await?.iter().zip(&sent) {
        ensure_eq!(delivery.topic, message.topic.as_str(), "topic");
        for (name, value) in message.headers.iter() {
            ensure_eq!(delivery.headers.get(name), Some(value), "header {name:?}");
        }
        let invented = delivery.headers.iter().find(|(name, _)| name.starts_with("cap-") && !has(message, name));
        ensure!(invented.is_none(), "a header that was not sent has come: {invented:?}");
    }
    Ok(())
}

pub(super) async fn headers_that_brokers_read_arrive_unchanged(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let topic = scene.topic("orders")?;
    // RabbitMQ's, its plugins', Kafka's and others': what they mean is not for a message of ours to say.
    let more = [
        ("CC", "elsewhere"),
        ("BCC", "elsewhere"),
        ("bcc", "elsewhere"),
        ("x-death", "unnatural"),
        ("x-delay", "86400000"),
        ("x-delivery-count", "7"),
        ("x-deduplication-header", "the same for all"),
        ("x-stream-filter-value", "no"),
        ("x-match", "all"),
        ("expiration", "1"),
        ("timestamp", "yesterday"),
        ("priority", "high"),
        ("delivery-mode", "1"),
        ("reply-to", "nobody"),
        ("user-id", "somebody else"),
        ("message-id", "42"),
        ("__TypeId__", "x"),
        ("kafka_messageKey", "k"),
        ("Nats-Msg-Id", "42"),
    ];
    let sent: Vec<Message> = (0..3).map(|_| message_with(&topic, more, Bytes::from_static(b"1"))).collect();
    for (delivery, message) in round_trip(&scene, &sent).await?.iter().zip(&sent) {
        for (name, value) in message.headers.iter() {
            ensure_eq!(delivery.headers.get(name), Some(value), "header {name:?}");
        }
    }
    Ok(())
}

fn has(message: &Message, name: &str) -> bool {
    message.headers.get(name).is_some()
}

pub(super) async fn any_bytes_arrive_unchanged(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let topic = scene.topic("orders")?;
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    let bodies: [&[u8]; 6] = [b"", b"\0", b"{\"a\":1}\n", &every_byte, b"\xff\xfe\0\0", "Zürich 東京".as_bytes()];
    let sent = bodies.map(|body| message_with(&topic, [], Bytes::copy_from_slice(body)));
    for (delivery, message) in round_trip(&scene, &sent).await?.iter().zip(&sent) {
        let (came, sent) = (&delivery.body, &message.payload);
        let place = came.iter().zip(sent).position(|(came, sent)| came != sent).unwrap_or(came.len());
        ensure!(
            came == sent,
            "a body of {} bytes came as {} bytes, changed from byte {place} on",
            sent.len(),
            came.len()
        );
    }
    Ok(())
}

pub(super) async fn a_body_of_256_kib_arrives_whole(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let size = fixture.capabilities().max_body.unwrap_or(usize::MAX).min(256 * 1024);
    let sent = [message_with(&scene.topic("orders")?, [], body_of(size))];
    for delivery in round_trip(&scene, &sent).await? {
        ensure_eq!(delivery.body.len(), size, "bytes of the body");
        ensure!(delivery.body == sent[0].payload, "a body of {size} bytes came changed");
    }
    Ok(())
}

pub(super) async fn a_body_over_the_limit_is_invalid(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let limit = fixture.capabilities().max_body.ok_or("the fixture declares no limit of the body")?;
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let too_large = message_with(&topic, [], body_of(limit + 1));
    let just_right = message_with(&topic, [], body_of(limit));
    let batch = [message(&topic), too_large, just_right.clone(), message(&topic)];
    let outcomes = scene.send(&transport, &batch).await?;
    let received = scene.take(&mut *consumer, 3).await?;
    let whole = received.iter().any(|delivery| is(delivery, &just_right) && delivery.body == just_right.payload);
    ensure!(whole, "a body of {limit} bytes, which is the limit, did not come whole");
    for (place, outcome) in scene.outcomes(outcomes).await?.into_iter().enumerate() {
        match place {
            1 => ensure_refused("a body over the limit", outcome, ErrorKind::Invalid)?,
            _ => outcome?,
        }
    }
    Ok(())
}

/// Bytes that do not repeat at any buffer's size.
fn body_of(size: usize) -> Bytes {
    (0..size).map(|place| u8::try_from(place % 251).unwrap_or(0)).collect()
}

pub(super) async fn origin_and_tag_tell_deliveries_apart(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 2);
    let outcomes = scene.send(&transport, &sent).await?;
    let first = scene.receive(&mut *consumer, 2).await?;
    ensure!(first[0].tag != first[1].tag, "two deliveries share the tag {:?}", first[0].tag);
    let same = first[0].origin.is_some() && first[0].origin == first[1].origin;
    ensure!(!same, "two messages share the origin {:?}", first[0].origin);
    scene.within("the end of `release`", consumer.release(tags(&first))).await??;
    let second = scene.take(&mut *consumer, 2).await?;
    scene.confirmed(outcomes).await?;
    for message in &sent {
        let origin = |deliveries: &[Delivery]| {
            deliveries.iter().find(|delivery| is(delivery, message)).map(|delivery| delivery.origin.clone())
        };
        ensure_eq!(origin(&second), origin(&first), "the origin of a redelivery");
    }
    Ok(())
}
