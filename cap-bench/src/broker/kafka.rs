//! Kafka: a topic and groups of their own for each round, on the broker that `CAP_TEST_KAFKA_URL` names.

use std::time::Duration;

use cap_core::transport::Transport as _;
use cap_transport_kafka::{Kafka, KafkaOptions};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use serde::{Deserialize, Serialize};

use crate::backend::{Broker, Fallible, Names};
use crate::crash::roles::GROUPS;
use crate::crash::trouble::{TOPICS, topics_of};
use crate::twin::kafka::KafkaWire;

/// Names the broker.
const URL: &str = "CAP_TEST_KAFKA_URL";
/// Names the listener for clients that come through a proxy, which is to stand on the port above it. It wants a user.
const PROXIED_URL: &str = "CAP_TEST_KAFKA_PROXIED_URL";
const USER: [(&str, &str); 4] = [
    ("security.protocol", "sasl_plaintext"),
    ("sasl.mechanism", "PLAIN"),
    ("sasl.username", "cap"),
    ("sasl.password", "not-to-be-shown-7f3a"),
];
/// How often it is looked whether a topic that was made again is empty.
const LOOK: Duration = Duration::from_millis(20);
/// How long the broker may take to delete a topic, and to make one.
const REMAKE: Duration = Duration::from_secs(20);
/// So that several consumers share a group.
const PARTITIONS: i32 = 4;

/// One broker, with names of its own.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct KafkaBroker {
    /// As a URL, so that a proxy can take its place.
    url: String,
    has_user: bool,
    names: Names,
}

impl KafkaBroker {
    fn address(&self) -> &str {
        self.url.trim_start_matches("kafka://")
    }

    pub(crate) fn settings(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address());
        if self.has_user {
            config.extend(USER.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        config
    }

    fn options(&self) -> KafkaOptions {
        let options = KafkaOptions::new(self.address()).partitions(PARTITIONS);
        let user: &[(&str, &str)] = if self.has_user { &USER } else { &[] };
        user.iter().fold(options, |options, (name, value)| options.set(*name, *value))
    }

    /// Subscribes as an engine does, which makes the topic and begins the group, and goes away again.
    async fn declare(&self, group: &str, topics: &[&str]) -> Fallible {
        let transport = self.transport().await?;
        transport.connect().await?;
        drop(transport.subscribe(self.names.subscription(group, topics)?).await?);
        Ok(transport.close().await?)
    }
}

impl KafkaBroker {
    /// Waits until the broker has let go of the log that was deleted. The controller answers before that, and what is
    /// confirmed in between is in the old log, and goes with it: nobody who sends can see that.
    async fn until_new(&self, topic: &str) -> Fallible {
        let (settings, topic) = (self.settings(), topic.to_owned());
        let looking = tokio::task::spawn_blocking(move || -> Fallible {
            let end = std::time::Instant::now() + REMAKE;
            let client: BaseConsumer = settings.create()?;
            let is_new =
                |partition| client.fetch_watermarks(&topic, partition, REMAKE).is_ok_and(|(_, high)| high == 0);
            while !(0..PARTITIONS).all(is_new) {
                if std::time::Instant::now() > end {
                    return Err(
                        format!("topic {topic} still has its old records {REMAKE:?} after it was made again").into()
                    );
                }
                std::thread::sleep(LOOK);
            }
            Ok(())
        });
        looking.await?
    }
}

impl Broker for KafkaBroker {
    type Transport = Kafka;
    type Wire = KafkaWire;
    const IS_PARTITIONED: bool = true;

    async fn fresh() -> Fallible<Self> {
        let address = std::env::var(URL).map_err(|_| format!("{URL} is not set: eval \"$(scripts/backends env)\""))?;
        Ok(Self { url: format!("kafka://{address}"), has_user: false, names: Names::fresh() })
    }

    fn at(place: &str) -> Fallible<Self> {
        Ok(serde_json::from_str(place)?)
    }

    fn place(&self) -> Option<String> {
        let proxied = std::env::var(PROXIED_URL).ok();
        let place = match proxied {
            Some(address) => Self { url: format!("kafka://{address}"), has_user: true, names: self.names.clone() },
            None => self.clone(),
        };
        serde_json::to_string(&place).ok()
    }

    fn proxy_port(&self) -> Option<u16> {
        let listener = std::env::var(PROXIED_URL).ok()?;
        let (_, port) = listener.rsplit_once(':')?;
        port.parse::<u16>().ok()?.checked_add(1)
    }

    fn names(&self) -> &Names {
        &self.names
    }

    async fn transport(&self) -> Fallible<Kafka> {
        Ok(Kafka::with_options(self.options())?)
    }

    /// A member that comes back under its name has its partitions again at once; as any other it would wait until the
    /// broker has noticed that it was killed.
    async fn transport_of(&self, process: &str) -> Fallible<Kafka> {
        Ok(Kafka::with_options(self.options().set("group.instance.id", process))?)
    }

    async fn wire(&self) -> Fallible<KafkaWire> {
        KafkaWire::open(self.settings(), self.names.clone())
    }

    async fn prepare(&self) -> Fallible {
        self.sink().await
    }

    async fn declare_groups(&self) -> Fallible {
        for group in GROUPS {
            self.declare(&self.names.queue_of(group), topics_of(group)).await?;
        }
        Ok(())
    }

    async fn sink(&self) -> Fallible {
        self.declare(&self.names.queue(), &[""]).await
    }

    const HAS_LOGS: bool = true;

    async fn remake_topic(&self, topic: &str) -> Fallible {
        let admin: AdminClient<DefaultClientContext> = self.settings().create()?;
        let options = AdminOptions::new().operation_timeout(Some(REMAKE));
        for deleted in admin.delete_topics(&[topic], &options).await? {
            deleted.map_err(|(topic, code)| format!("topic {topic} is not deleted: {code}"))?;
        }
        let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1));
        for made in admin.create_topics([&new], &options).await? {
            // A sender or a group may have been faster.
            let is_made = |code| code == RDKafkaErrorCode::TopicAlreadyExists;
            made.map(drop).or_else(|(topic, code)| match is_made(code) {
                true => Ok(()),
                false => Err(format!("topic {topic} is not made again: {code}")),
            })?;
        }
        self.until_new(topic).await
    }

    async fn discard(self) -> Fallible {
        let admin: AdminClient<DefaultClientContext> = self.settings().create()?;
        let options = AdminOptions::new();
        // Of a benchmark only the first is there; that of the others says so by itself.
        let topics = TOPICS.map(|suffix| self.names.topic_of(suffix));
        admin.delete_topics(&topics.each_ref().map(String::as_str), &options).await?;
        // A group that was never used, or whose members have just left, stays: it is empty, and its name is nobody else's.
        let groups: Vec<String> =
            GROUPS.iter().map(|group| self.names.queue_of(group)).chain([self.names.queue()]).collect();
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let _ = admin.delete_groups(&groups, &options).await?;
        Ok(())
    }
}
