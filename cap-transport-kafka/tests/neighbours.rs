//! One topic that takes nothing, one message that is refused: the others go on as if nothing were.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::time::{Duration, Instant};

use cap_core::{ErrorKind, Message, Result, Topic, Transport};
use cap_transport_kafka::{CreateTopics, Kafka, KafkaOptions};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use support::create_topic;
use support::scene::{PATIENCE, Scene, confirmed, ids, message, refused, send, take, with_body};

/// Far longer than anything here may take.
const LONG: Duration = Duration::from_secs(30);
/// What is answered at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(3);

/// A cluster that librdkafka plays, because one real broker always leads and has no rules who may write.
struct Played {
    cluster: MockCluster<'static, DefaultProducerContext>,
    sick: Topic,
    well: Topic,
}

impl Played {
    fn new(partitions: i32) -> Self {
        let cluster = MockCluster::new(1).unwrap();
        let (sick, well): (Topic, Topic) = ("sick".parse().unwrap(), "well".parse().unwrap());
        cluster.create_topic(sick.as_str(), partitions, 1).unwrap();
        cluster.create_topic(well.as_str(), 1, 1).unwrap();
        Self { cluster, sick, well }
    }

    /// Takes a partition its leader. The producer learns it from the metadata: the mock has no answer to one that asks it to
    /// store something there.
    async fn behead(&self, transport: &Kafka, partition: i32) {
        self.cluster.partition_leader(self.sick.as_str(), partition, None).unwrap();
        transport.unrouted(vec![self.sick.clone()]).await.unwrap();
    }

    fn options(&self) -> KafkaOptions {
        KafkaOptions::new(self.cluster.bootstrap_servers()).create_topics(CreateTopics::Never).confirm_timeout(LONG)
    }
}

fn batch(topic: &Topic, count: usize) -> Vec<Message> {
    (0..count).map(|_| message(topic, &[])).collect()
}

/// Sends until it is confirmed.
async fn recovered(transport: &Kafka, topic: &Topic) {
    let begun = Instant::now();
    while let Err(error) = send(transport, batch(topic, 1)).await.remove(0) {
        assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::task::yield_now().await;
    }
}

fn all_refused(outcomes: Vec<Result<()>>, words: &[&str]) {
    for outcome in outcomes {
        refused(outcome, ErrorKind::Environment, words);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_without_a_leader_is_told_soon_and_delays_no_other() {
    let played = Played::new(1);
    let transport = Kafka::with_options(played.options().window(100)).unwrap();
    let (sick, well) = (&played.sick, &played.well);
    confirmed(&transport, [batch(sick, 1), batch(well, 1)].concat()).await;
    played.behead(&transport, 0).await;

    // Five times as many as the window holds, and behind them one to another topic.
    let begun = Instant::now();
    let other = transport.clone();
    let flood = batch(sick, 500);
    let flooding = tokio::spawn(async move { (send(&other, flood).await, begun.elapsed()) });
    for _ in 0..20 {
        let sent = Instant::now();
        confirmed(&transport, batch(well, 1)).await;
        assert!(sent.elapsed() < SOON, "a neighbour took {:?}", sent.elapsed());
    }
    let (outcomes, took) = flooding.await.unwrap();
    all_refused(outcomes, &["sick", "leader"]);
    assert!(took < LONG / 3, "{took:?}");

    // From now on they are answered at once, but for one that tries.
    let begun = Instant::now();
    let mixed = [batch(sick, 100), batch(well, 1)].concat();
    let mut outcomes = send(&transport, mixed).await;
    outcomes.pop().unwrap().unwrap();
    all_refused(outcomes, &["sick", "leader"]);
    assert!(begun.elapsed() < LONG / 3, "{:?}", begun.elapsed());

    played.cluster.partition_leader(sick.as_str(), 0, Some(1)).unwrap();
    recovered(&transport, sick).await;
    confirmed(&transport, batch(sick, 50)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_a_leader_holds_up_no_other_of_its_topic_for_long() {
    let played = Played::new(2);
    let transport = Kafka::with_options(played.options().window(100)).unwrap();
    let sick = &played.sick;
    confirmed(&transport, batch(sick, 20)).await;
    played.behead(&transport, 1).await;
    let begun = Instant::now();
    let outcomes = send(&transport, batch(sick, 40)).await;
    let (sent, not): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert!(!sent.is_empty(), "one partition works");
    assert!(!not.is_empty(), "the other does not");
    all_refused(not, &["1 of its 2 partitions"]);
    assert!(begun.elapsed() < LONG / 3, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_may_not_be_written_is_left_alone_for_a_while() {
    let played = Played::new(1);
    let transport = Kafka::with_options(played.options()).unwrap();
    let (sick, well) = (&played.sick, &played.well);
    confirmed(&transport, [batch(sick, 1), batch(well, 1)].concat()).await;
    played
        .cluster
        .request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    all_refused(send(&transport, batch(sick, 1)).await, &["sick", "the right"]);
    let begun = Instant::now();
    let mut outcomes = send(&transport, [batch(sick, 200), batch(well, 1)].concat()).await;
    outcomes.pop().unwrap().unwrap();
    all_refused(outcomes, &["sick", "the right"]);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_with_too_few_replicas_is_told_in_seconds_and_then_left_alone() {
    // A real broker that is alone does not ask for more replicas than there are.
    let played = Played::new(1);
    let transport = Kafka::with_options(played.options()).unwrap();
    let (sick, well) = (&played.sick, &played.well);
    confirmed(&transport, [batch(sick, 1), batch(well, 1)].concat()).await;
    let too_few = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 100];
    played.cluster.request_errors(RDKafkaApiKey::Produce, &too_few);
    let begun = Instant::now();
    all_refused(send(&transport, batch(sick, 100)).await, &["sick", "min.insync.replicas"]);
    assert!(begun.elapsed() < LONG / 3, "{:?}", begun.elapsed());
    played.cluster.clear_request_errors(RDKafkaApiKey::Produce);
    let begun = Instant::now();
    let mut outcomes = send(&transport, [batch(sick, 100), batch(well, 1)].concat()).await;
    outcomes.pop().unwrap().unwrap();
    all_refused(outcomes, &["sick", "min.insync.replicas"]);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    recovered(&transport, sick).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_topic_is_told_at_once_and_delays_no_other() {
    let scene = Scene::new();
    let (missing, well) = (scene.topic("missing"), scene.topic("well"));
    create_topic(well.as_str(), 1, &[]).await;
    let transport = scene.open(scene.options().create_topics(CreateTopics::Never)).await;
    let begun = Instant::now();
    let mut outcomes = send(&transport, [batch(&missing, 50), batch(&well, 1)].concat()).await;
    outcomes.pop().unwrap().unwrap();
    for outcome in outcomes {
        refused(outcome, ErrorKind::Unroutable, &[missing.as_str()]);
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    scene.names.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_cannot_be_made_waits_and_delays_no_other() {
    let scene = Scene::new();
    let (unmakable, well) = (scene.topic("unmakable"), scene.topic("well"));
    create_topic(well.as_str(), 1, &[]).await;
    // There is one broker.
    let transport = scene.open(scene.options().create_topics(CreateTopics::Always).replicas(3)).await;
    for _ in 0..3 {
        let begun = Instant::now();
        let mut outcomes = send(&transport, [batch(&unmakable, 50), batch(&well, 1)].concat()).await;
        outcomes.pop().unwrap().unwrap();
        all_refused(outcomes, &[unmakable.as_str(), "replicas"]);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    scene.names.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_with_a_culprit_is_sent_again_alone() {
    let played = Played::new(1);
    let transport = Kafka::with_options(played.options().set("linger.ms", "100")).unwrap();
    let topic = &played.sick;
    confirmed(&transport, batch(topic, 1)).await;
    // The batch is refused; of those that are sent alone, the first.
    let invalid = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD;
    played.cluster.request_errors(RDKafkaApiKey::Produce, &[invalid, invalid]);
    let outcomes = send(&transport, batch(topic, 20)).await;
    let refusals: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(refusals.iter().map(cap_core::Error::kind).collect::<Vec<_>>(), [ErrorKind::Invalid], "{refusals:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_without_a_reason_is_the_messages_own_if_its_topic_takes_others() {
    let played = Played::new(1);
    let transport = Kafka::with_options(played.options().set("linger.ms", "100")).unwrap();
    let topic = &played.sick;
    confirmed(&transport, batch(topic, 1)).await;
    // The batch, then the third of those that are sent alone.
    let (unknown, taken) = (RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    played.cluster.request_errors(RDKafkaApiKey::Produce, &[unknown, taken, taken, unknown]);
    let outcomes = send(&transport, batch(topic, 20)).await;
    let refusals: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(refusals.iter().map(cap_core::Error::kind).collect::<Vec<_>>(), [ErrorKind::Rejected], "{refusals:?}");
    // Nobody can tell whose fault it is if nothing else was sent; it is held against nobody.
    played.cluster.request_errors(RDKafkaApiKey::Produce, &[unknown, unknown]);
    all_refused(send(&transport, batch(topic, 1)).await, &[topic.as_str()]);
    confirmed(&transport, batch(topic, 5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_too_large_after_compression_is_found_among_its_neighbours() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    create_topic(topic.as_str(), 1, &[("max.message.bytes", "3000")]).await;
    let transport = scene.open(scene.options().set("compression.type", "lz4").set("linger.ms", "50")).await;
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    // What compresses well passes whatever its size; the culprits do not compress.
    let mut sent: Vec<Message> = (0..30).map(|_| with_body(message(&topic, &[]), 20_000)).collect();
    let mut noise = 1_u64;
    let body = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.to_be_bytes()[0]
    });
    let body: Vec<u8> = body.take(5_000).collect();
    for place in [3, 17] {
        sent[place].payload = body.clone().into();
    }
    let outcomes = send(&transport, sent.clone()).await;
    let refusals: Vec<usize> = (0..30).filter(|place| outcomes[*place].is_err()).collect();
    assert_eq!(refusals, [3, 17], "{outcomes:?}");
    refused(outcomes.into_iter().nth(3).unwrap(), ErrorKind::Invalid, &["max.message.bytes"]);
    let received = take(&mut *consumer, 28).await;
    assert!(
        sent.iter()
            .enumerate()
            .all(|(place, message)| { ids(&received).contains(&message.id.as_str()) != refusals.contains(&place) })
    );
    scene.names.clean_up().await;
}
