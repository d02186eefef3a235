//! What the tests share: the server, names that are theirs alone, and a proxy that can cut connections.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod proxy;
pub(crate) mod scene;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cap_core::{Error, ErrorKind, MessageId, Result};
use cap_transport_kafka::KafkaOptions;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tokio::sync::OwnedRwLockWriteGuard;

/// The user of the server's SASL listeners, whose password is no word that an error may hold by chance.
pub(crate) const USER: &str = "cap";
pub(crate) const PASSWORD: &str = "not-to-be-shown-7f3a";

/// The server's address.
pub(crate) fn url() -> String {
    std::env::var("CAP_TEST_KAFKA_URL").unwrap_or_else(|_| {
        panic!(
            "these tests need a Kafka server and CAP_TEST_KAFKA_URL is not set. Start one and say where it is:\n    \
             scripts/backends up kafka\n    eval \"$(scripts/backends env)\""
        )
    })
}

/// Something more about the server, which `scripts/backends env` tells of its own.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "this test needs {name}, a listener or a file of the server that the project starts itself:\n    \
             scripts/backends up kafka\n    eval \"$(scripts/backends env)\""
        )
    })
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

/// Runs the script that owns the servers, once for each command. All are run, whoever stops waiting for them: a server that
/// was killed is started again even for a test that has failed meanwhile.
/// With a guard, nobody else uses the server before.
pub(crate) async fn backends(
    commands: &'static [&'static str],
    alone: Option<OwnedRwLockWriteGuard<()>>,
) -> Result<()> {
    let failed = |reason: String| Error::new(ErrorKind::Internal, commands.join(", "), "the server", reason);
    let script = std::env::var("CAP_TEST_BACKENDS").map_err(|missing| failed(missing.to_string()))?;
    let running = tokio::task::spawn_blocking(move || {
        let _alone = alone;
        for command in commands {
            let output = std::process::Command::new(&script).args([command, "kafka"]).stdin(Stdio::null()).output();
            let output = output.map_err(|error| error.to_string())?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned());
            }
        }
        Ok(())
    });
    running.await.map_err(|panic| failed(panic.to_string()))?.map_err(failed)
}

/// The lock that a restart of the server takes for itself, and everything else shares.
pub(crate) fn server_lock() -> &'static std::sync::Arc<tokio::sync::RwLock<()>> {
    static LOCK: OnceLock<std::sync::Arc<tokio::sync::RwLock<()>>> = OnceLock::new();
    LOCK.get_or_init(Default::default)
}
