//! Connecting with each kind of bad input: each is told apart, within the time limit, and without secrets.

mod support;

use std::time::{Duration, Instant};

use cap_core::{ErrorKind, Transport};
use cap_transport_kafka::{Kafka, KafkaOptions};
use support::scene::{Scene, confirmed, message, receive, refused};
use support::{PASSWORD, SERVER, USER, url, with_user};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(3);

/// Connects, and is refused in time.
async fn refused_in_time(options: KafkaOptions, kind: ErrorKind, word: &str) {
    let begun = Instant::now();
    let transport = Kafka::with_options(options.connect_timeout(LIMIT)).expect("options");
    let error = refused(Transport::connect(&transport).await, kind, &[word, &transport.describe()]);
    assert!(begun.elapsed() < LIMIT * 2, "{error} took {:?}", begun.elapsed());
    for secret in ["s3cret", PASSWORD] {
        assert!(!format!("{error} {error:?} {transport:?}").contains(secret), "{error}");
    }
}

#[tokio::test]
async fn nothing_listens_there() {
    refused_in_time(KafkaOptions::new("127.0.0.1:9"), ErrorKind::Unavailable, "listens").await;
}

#[tokio::test]
async fn the_host_does_not_exist() {
    refused_in_time(KafkaOptions::new("no-such-host.invalid:9092"), ErrorKind::Unavailable, "resolve").await;
}

#[tokio::test]
async fn one_broker_of_several_is_enough() {
    let options = KafkaOptions::new(format!("127.0.0.1:9,{}", url()));
    let transport = Kafka::with_options(options).unwrap();
    Transport::connect(&transport).await.unwrap();
}

#[tokio::test]
async fn it_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = silent.local_addr().unwrap().to_string();
    refused_in_time(KafkaOptions::new(place), ErrorKind::Unavailable, "Kafka").await;
}

#[tokio::test]
async fn it_is_not_kafka() {
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = web.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = web.accept().await {
            let _ = client.read(&mut [0; 64]).await;
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    refused_in_time(KafkaOptions::new(place), ErrorKind::Unavailable, "is it Kafka").await;
}

#[tokio::test]
async fn the_password_is_wrong() {
    let sasl = SERVER.value("CAP_TEST_KAFKA_SASL_URL");
    let wrong = with_user(KafkaOptions::new(&sasl)).set("sasl.password", "s3cret-x");
    refused_in_time(wrong, ErrorKind::Rejected, "user and password").await;
    let unknown = with_user(KafkaOptions::new(&sasl)).set("sasl.username", "nobody").set("sasl.password", "s3cret-x");
    refused_in_time(unknown, ErrorKind::Rejected, "user and password").await;
    let right = Kafka::with_options(with_user(KafkaOptions::new(&sasl))).unwrap();
    Transport::connect(&right).await.unwrap();
}

#[tokio::test]
async fn the_mechanism_is_not_offered() {
    let options = with_user(KafkaOptions::new(SERVER.value("CAP_TEST_KAFKA_SASL_URL")));
    refused_in_time(options.set("sasl.mechanism", "SCRAM-SHA-512"), ErrorKind::Rejected, "mechanism").await;
}

#[tokio::test]
async fn the_broker_wants_a_user_and_there_is_none() {
    refused_in_time(
        KafkaOptions::new(SERVER.value("CAP_TEST_KAFKA_SASL_URL")),
        ErrorKind::Unavailable,
        "security.protocol",
    )
    .await;
}

#[tokio::test]
async fn the_certificate_is_not_trusted_until_it_is() {
    let place = SERVER.value("CAP_TEST_KAFKA_TLS_URL");
    let options = || KafkaOptions::new(&place).set("security.protocol", "ssl");
    refused_in_time(options(), ErrorKind::Rejected, "ssl.ca.location").await;

    let scene = Scene::new();
    let trusting = scene.names.options(&place).set("security.protocol", "ssl");
    let transport = scene.open(trusting.set("ssl.ca.location", SERVER.value("CAP_TEST_KAFKA_CA_FILE"))).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    confirmed(&transport, vec![message(&topic, &[])]).await;
    receive(&mut *consumer, 1).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_broker_that_asks_for_a_certificate_gets_it() {
    let (place, ca) = (SERVER.value("CAP_TEST_KAFKA_MUTUAL_TLS_URL"), SERVER.value("CAP_TEST_KAFKA_CA_FILE"));
    let without = KafkaOptions::new(&place).ca_file(&ca);
    refused_in_time(without, ErrorKind::Rejected, "certificate_file").await;
    let file = |name: &str| SERVER.value(name);

    let scene = Scene::new();
    let options = scene.names.options(&place).ca_file(&ca).certificate_file(file("CAP_TEST_KAFKA_CERTIFICATE_FILE"));
    let transport = scene.open(options.key_file(file("CAP_TEST_KAFKA_KEY_FILE"))).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    confirmed(&transport, vec![message(&topic, &[])]).await;
    receive(&mut *consumer, 1).await;
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_invalid_and_named() {
    let options = KafkaOptions::new(url()).certificate_file("/no/such/client.pem").key_file("/no/such/key.pem");
    refused_in_time(options, ErrorKind::Invalid, "ssl.certificate.location").await;
}

#[tokio::test]
async fn tls_is_on_at_one_side_only() {
    let tls = SERVER.value("CAP_TEST_KAFKA_TLS_URL");
    refused_in_time(KafkaOptions::new(tls), ErrorKind::Unavailable, "security.protocol").await;
    let plain = KafkaOptions::new(url()).set("security.protocol", "ssl");
    refused_in_time(plain, ErrorKind::Unavailable, "TLS").await;
}

#[tokio::test]
async fn settings_that_do_not_go_together_are_invalid_when_connecting() {
    let options = KafkaOptions::new(url()).set("security.protocol", "sasl_plaintext").set("sasl.mechanism", "PLAIN");
    refused_in_time(options.set("sasl.username", USER), ErrorKind::Invalid, "sasl.password").await;
    let scene = Scene::new();
    let transport = scene.open(scene.options().set("max.poll.interval.ms", "2000")).await;
    let answer = transport.subscribe(scene.wants(&["orders"])).await;
    refused(answer, ErrorKind::Invalid, &["max.poll.interval.ms"]);
    scene.names.clean_up().await;
}

#[test]
fn settings_are_checked_before_anything_is_done() {
    for (name, value, word) in [
        ("no.such.setting", "x", "no.such.setting"),
        ("linger.ms", "soon", "linger.ms"),
        ("acks", "1", "replicas"),
        ("enable.auto.commit", "true", "acknowledged"),
        ("sasl.mechanisms", "PLAIN\0", "sasl.mechanisms"),
    ] {
        let answer = Kafka::with_options(KafkaOptions::new("b:1").set(name, value));
        refused(answer, ErrorKind::Invalid, &[name, word]);
    }
    for (brokers, word) in [("b:1?tls=true", "`tls`"), ("kafka://b:1", "`kafka`"), ("u:s3cret@b:1", "sasl.username")] {
        let error = refused(Kafka::new(brokers), ErrorKind::Invalid, &["brokers", word]);
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
    }
}
