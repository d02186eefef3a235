//! What the tests share: the server, names that are theirs alone, and a proxy that can cut connections.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod proxy;
pub(crate) mod scene;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cap_core::MessageId;
use cap_testkit::server::Server;
use cap_transport_kafka::KafkaOptions;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

/// The user of the server's SASL listeners, whose password is no word that an error may hold by chance.
pub(crate) const USER: &str = "cap";
pub(crate) const PASSWORD: &str = "not-to-be-shown-7f3a";

pub(crate) const SERVER: Server = Server {
    variable: "CAP_TEST_KAFKA_URL",
    name: "kafka",
    hint: "set it to a broker of yours: localhost:9092. The tests of TLS and SASL need what the project starts itself",
};

/// The server's address.
pub(crate) fn url() -> String {
    SERVER.url()
}

/// With the user of the SASL listeners.
pub(crate) fn with_user(options: KafkaOptions) -> KafkaOptions {
    options
        .set("security.protocol", "sasl_plaintext")
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", USER)
        .set("sasl.password", PASSWORD)
}

/// Names that no other test uses, and what is to be removed from the broker because of them.
pub(crate) struct Names {
    run: MessageId,
    used: Mutex<BTreeSet<String>>,
}

impl Names {
    pub(crate) fn new() -> Self {
        Self { run: MessageId::generate(), used: Mutex::default() }
    }

    pub(crate) fn run(&self) -> &str {
        self.run.as_str()
    }

    pub(crate) fn unique(&self, name: &str) -> String {
        let unique = format!("{name}-{}", self.run);
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(unique.clone());
        unique
    }

    /// Options for the server at `brokers`, which notice each other soon.
    pub(crate) fn options(&self, brokers: &str) -> KafkaOptions {
        KafkaOptions::new(brokers)
            .topic_refresh(Duration::from_millis(500))
            .set("client.id", self.run())
            .set("heartbeat.interval.ms", "200")
            .set("session.timeout.ms", "6000")
    }

    /// Deletes the topics whose names hold this test's.
    pub(crate) async fn clean_up(&self) {
        let admin = admin();
        let listed = admin.inner().fetch_metadata(None, Duration::from_secs(10)).expect("a list of topics");
        let mine = listed.topics().iter().map(|topic| topic.name()).filter(|name| name.contains(self.run()));
        let mine: Vec<&str> = mine.collect();
        if !mine.is_empty() {
            let _ = admin.delete_topics(&mine, &AdminOptions::new()).await;
        }
    }
}

/// The driver itself, to see and to do what the transport does not offer.
pub(crate) fn raw() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url());
    config
}

pub(crate) fn admin() -> AdminClient<DefaultClientContext> {
    raw().create().expect("a client")
}

pub(crate) async fn create_topic(name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    topic.config.extend(settings.iter().copied());
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    let made = admin().create_topics([&topic], &options).await.expect("an answer");
    made.into_iter().for_each(|made| drop(made.expect("a topic")));
}

/// Deletes a topic and makes it again, as fast as the broker can.
pub(crate) async fn make_again(name: &str, partitions: i32) {
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let deleted = admin().delete_topics(&[name], &options).await.expect("an answer");
    deleted.into_iter().for_each(|deleted| drop(deleted.expect("it is deleted")));
    create_topic(name, partitions, &[]).await;
}
