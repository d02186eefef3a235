//! How often a quorum queue delivers a message again before it throws it away: never less than always.

mod support;

use cap_core::transport::Consumer;
use cap_core::{ErrorKind, Transport};
use cap_testkit::log::Log;
use cap_transport_rabbitmq::{QueueType, RabbitMqOptions};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use support::scene::{Scene, message, receive, refused, send};
use support::{Raw, server, url_at};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

/// More than the 20 that RabbitMQ from 4.0 on allows unless it is told otherwise.
const GIVEN_BACK: usize = 25;

async fn give_back(consumer: &mut dyn Consumer) {
    for _ in 0..GIVEN_BACK {
        let tags = receive(consumer, 1).await.iter().map(|delivery| delivery.tag).collect();
        consumer.release(tags).await.expect("it works");
    }
    assert!(receive(consumer, 1).await.remove(0).redelivered);
}

#[tokio::test]
async fn a_message_that_is_given_back_again_and_again_is_not_lost() {
    for change in [|options: RabbitMqOptions| options, |options: RabbitMqOptions| options.delivery_limit(-1)] {
        let scene = Scene::new();
        let transport = scene.open(change(scene.options().queue_type(QueueType::Quorum))).await;
        let topic = scene.topic("order");
        let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
        send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
        give_back(&mut *consumer).await;
        scene.names.clean_up().await;
    }
}

/// A place where the server says that it is of version 4.
async fn as_version_4() -> String {
    /// The server's name for its version, and the head of a long string; then its length and its first digit come.
    const NAME: &[u8] = b"\x07versionS";
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let place = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server()).await?;
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (mut greeting, mut words) = ([0; 8], vec![0; 64 * 1024]);
                client.read_exact(&mut greeting).await?;
                server.write_all(&greeting).await?;
                let length = server.read(&mut words).await?;
                let place = words.windows(NAME.len()).position(|bytes| bytes == NAME).expect("the version");
                words[place + NAME.len() + 4] = b'4';
                client.write_all(&words[..length]).await?;
                let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
                let (mut from_client, mut to_client) = (from_client, to_client);
                let (mut from_server, mut to_server) = (from_server, to_server);
                let both =
                    tokio::try_join!(copy(&mut from_client, &mut to_server), copy(&mut from_server, &mut to_client));
                both.map(drop)
            });
        }
    });
    place
}

/// Whether the scene's queue was declared with these arguments.
async fn is_declared_with(scene: &Scene, limit: Option<i32>) -> bool {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    if let Some(limit) = limit {
        table.insert("x-delivery-limit".into(), AMQPValue::LongInt(limit));
    }
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    Raw::open().await.channel.queue_declare(scene.group().as_str().into(), options, table).await.is_ok()
}

#[tokio::test]
async fn from_version_4_on_a_new_quorum_queue_is_declared_without_a_limit() {
    let scene = Scene::new();
    let url = url_at(&as_version_4().await);
    let transport = scene.open(scene.names.options(&url)).await;
    drop(transport.subscribe(scene.wants(&[&scene.topic("order")])).await.unwrap());
    assert!(is_declared_with(&scene, Some(-1)).await);
    // Again, and after the broker was asked for a limit that the queue has not.
    drop(transport.subscribe(scene.wants(&[&scene.topic("order")])).await.unwrap());
    let limited = scene.open(scene.names.options(&url).delivery_limit(7)).await;
    let words = ["x-delivery-limit", "`delivery_limit`"];
    refused(limited.subscribe(scene.wants(&[&scene.topic("order")])).await, ErrorKind::Rejected, &words);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_queue_that_is_there_without_it_is_used_and_told_of() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let before = scene.open(scene.options().queue_type(QueueType::Quorum)).await;
    drop(before.subscribe(scene.wants(&[&topic])).await.unwrap());
    assert!(is_declared_with(&scene, None).await);

    let log = Log::default();
    tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::WARN).with_writer(log.writer()).init();
    let transport = scene.open(scene.names.options(&url_at(&as_version_4().await))).await;
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
    receive(&mut *consumer, 1).await;
    let told = log.text();
    assert!(told.contains(scene.group().as_str()) && told.contains("delivery-limit: -1"), "{told}");
    scene.names.clean_up().await;
}
