//! No payload, header value or password is in any log line above TRACE, whoever writes it.

mod support;

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use cap_core::{ErrorKind, Headers, Message, MessageId, Topic, Transport};
use cap_engine::{Cap, Json};
use cap_storage_memory::MemoryStorage;
use cap_testkit::log::Log;
use cap_transport_rabbitmq::{RabbitMq, RabbitMqOptions};
use support::scene::{PATIENCE, Scene, message, receive, refused, send};
use support::{CLOSES_CHANNEL, CLOSES_CONNECTION, Proxy, SERVER, server};
use tracing::Level;

const PASSWORD: &str = "planted-password-8c1f";
const PAYLOAD: &str = "planted-payload-3d7a";
const HEADER: &str = "planted-header-91be";

/// All that the process logs.
struct All(Log);

impl All {
    fn begin() -> Self {
        let log = Log::default();
        let writing = tracing_subscriber::fmt().with_ansi(false).with_max_level(Level::DEBUG);
        writing.with_writer(log.writer()).init();
        log::set_boxed_logger(Box::new(Self(log.clone()))).expect("the only one");
        log::set_max_level(log::LevelFilter::Debug);
        Self(log)
    }

    /// The lines with something that was planted, in the form of text or of a list of bytes.
    fn leaks(&self) -> Vec<String> {
        let planted = [PASSWORD, PAYLOAD, HEADER];
        let as_bytes = planted.map(|secret| format!("{:?}", secret.as_bytes()).trim_matches(['[', ']']).to_owned());
        let leaks = |line: &&str| {
            planted.iter().any(|secret| line.contains(secret)) || as_bytes.iter().any(|bytes| line.contains(bytes))
        };
        self.0.text().lines().filter(leaks).map(str::to_owned).collect()
    }
}

/// What drivers write that know only `log`.
impl log::Log for All {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Debug
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let _ = writeln!(self.0.clone(), "{} {}: {}", record.level(), record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// A message that holds what must not be seen.
fn planted(topic: &Topic, more: &[(&str, &str)]) -> Message {
    let own = [("x-secret", HEADER)];
    let Message { id, topic, headers, .. } = message(topic, &[&own, more].concat());
    Message { id, topic, headers, payload: Bytes::from(format!(r#"{{"secret":"{PAYLOAD}"}}"#)) }
}

/// Sends what the broker takes, returns, refuses and breaks off for; receives it, gives it back, and loses the connection.
async fn everything_on(scene: &Scene, proxy: &Proxy, options: RabbitMqOptions) {
    let transport = scene.open(options.max_body(1024)).await;
    let (topic, nobody) = (scene.topic("order"), scene.topic("nobody"));
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.expect("it works");
    let large = Message { payload: Bytes::from(PAYLOAD.repeat(100)), ..planted(&topic, &[]) };
    for poison in [CLOSES_CHANNEL, CLOSES_CONNECTION] {
        let batch =
            vec![planted(&topic, &[]), planted(&nobody, &[]), planted(&topic, &[(poison, HEADER)]), large.clone()];
        let outcomes = send(&transport, batch).await;
        assert!(outcomes[1..].iter().all(Result::is_err), "{outcomes:?}");
    }
    // Some may have been sent twice.
    let first = receive(&mut *consumer, 2).await;
    consumer.release(first.iter().map(|delivery| delivery.tag).collect()).await.expect("it works");
    let again = receive(&mut *consumer, 2).await;
    assert!(!format!("{again:?}").contains(PAYLOAD));
    consumer.ack(again.iter().map(|delivery| delivery.tag).collect()).await.expect("it works");
    proxy.cut();
    let ended = tokio::time::timeout(PATIENCE, async { while consumer.receive(10).await.is_ok() {} }).await;
    ended.expect("the consumer ends");
    transport.close().await.expect("it works");
}

/// An engine whose handler fails, until the message is dead; and a foreign message that cannot be read.
async fn an_engine_on(scene: &Scene, options: RabbitMqOptions) {
    let (topic, group) = (scene.topic("paid"), scene.names.unique("shipping"));
    scene.names.unique("shipping.v1");
    let transport = RabbitMq::with_options(options).expect("it works");
    let (dead, mut died) = tokio::sync::mpsc::unbounded_channel();
    let retry = cap_core::RetryPolicy::fixed(2, Duration::from_millis(1));
    let cap = Cap::builder()
        .storage(MemoryStorage::new())
        .transport(transport.clone())
        .options(cap_engine::Options { retry, ..Default::default() })
        .subscribe(topic.as_str(), &group, async |Json(_): Json<u32>| {})
        .on_dead(move |letter| drop(dead.send(letter.message_id)))
        .start()
        .await
        .expect("it works");
    cap.publish(topic.as_str(), &PAYLOAD).await.expect("it works");
    let (id, payload) = (MessageId::generate(), Bytes::from(PAYLOAD));
    let headers: Headers = [("x-secret", HEADER)].into_iter().collect();
    send(&transport, vec![Message { id, topic: topic.clone(), headers, payload }]).await.remove(0).expect("it works");
    for _ in 0..2 {
        tokio::time::timeout(PATIENCE, died.recv()).await.expect("dead in time").expect("it works");
    }
    cap.publish(&format!("{topic}-nobody"), &PAYLOAD).await.expect("it works");
    let told = async {
        while cap.health().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("told");
    cap.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confidential_is_logged_above_trace() {
    let log = All::begin();
    let scene = Scene::new();
    let user = scene.names.unique("confidential");
    SERVER.client(&["add_user", &user, PASSWORD]).await.expect("a user");
    SERVER.client(&["set_permissions", &user, ".*", ".*", ".*"]).await.expect("rights");
    let proxy = Proxy::start().await;
    let options = |place: &str, password: &str| {
        scene.names.options(&format!("amqp://{user}:{password}@{place}/%2f")).confirm_timeout(Duration::from_secs(5))
    };

    let wrong = RabbitMq::with_options(options(&server(), &format!("{PASSWORD}-wrong"))).unwrap();
    refused(Transport::connect(&wrong).await, ErrorKind::Rejected, &["password"]);
    everything_on(&scene, &proxy, options(&proxy.place, PASSWORD)).await;
    an_engine_on(&scene, options(&proxy.place, PASSWORD)).await;
    #[cfg(feature = "management")]
    {
        SERVER.client(&["set_user_tags", &user, "management"]).await.expect("a tag");
        let management = support::management_url_of_nobody();
        let asking = scene.open(options(&server(), PASSWORD).management_url(management)).await;
        asking.unrouted(vec![scene.topic("nobody")]).await.unwrap();
        let wrong = support::management_url_of_nobody().replacen("://", &format!("://{user}:{PASSWORD}-wrong@"), 1);
        let asking = scene.open(options(&server(), PASSWORD).management_url(wrong)).await;
        refused(asking.unrouted(vec![scene.topic("nobody")]).await, ErrorKind::Rejected, &["401"]);
        assert!(log.0.text().contains(" ureq"), "the driver of the management API logs nothing");
    }
    assert_eq!(log.leaks(), [""; 0]);
    let text = log.0.text();
    assert!(text.contains("DEBUG") && text.contains("cap_engine") && text.contains("cap_transport_rabbitmq"), "{text}");

    // The driver does write it where it may: the log above is one that would show it.
    let transport = scene.open(options(&server(), PASSWORD).driver_logs(true)).await;
    let outcome = send(&transport, vec![planted(&scene.topic("nobody"), &[])]).await.remove(0);
    refused(outcome, ErrorKind::Unroutable, &[]);
    assert!(log.leaks().iter().any(|line| line.contains("returned")), "the driver logs nothing");
    SERVER.client(&["delete_user", &user]).await.expect("no user");
    scene.names.clean_up().await;
}
