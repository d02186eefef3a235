//! The log under a group's position is not the one that it was: the topic was deleted and made again, the broker was
//! restored from a copy. Nothing that is in the log now is passed over, and it is told.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cap_core::transport::{Consumer, Subscription};
use cap_core::{Error, ErrorKind, Message, Topic, Transport};
use cap_transport_kafka::Kafka;
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use support::scene::{PATIENCE, Scene, confirmed, ids, message, refused, send, take};
use support::{admin, create_topic, make_again, raw};

/// The group's position in the topic's only partition, as another client sees or sets it.
struct Position {
    client: BaseConsumer,
    topic: Topic,
}

impl Position {
    fn of(wants: &Subscription, topic: &Topic) -> Self {
        let client = raw().set("group.id", wants.group.as_str()).create().expect("a client");
        Self { client, topic: topic.clone() }
    }

    fn get(&self) -> (Offset, String) {
        let mut list = TopicPartitionList::new();
        list.add_partition(self.topic.as_str(), 0);
        let list = self.client.committed_offsets(list, PATIENCE).expect("an answer");
        (list.elements()[0].offset(), list.elements()[0].metadata().to_owned())
    }

    fn set(&self, offset: i64, metadata: &str) {
        let mut list = TopicPartitionList::new();
        let mut entry = list.add_partition(self.topic.as_str(), 0);
        entry.set_offset(Offset::Offset(offset)).expect("an offset");
        entry.set_metadata(metadata);
        // Not as long as the group has members.
        until(|| self.client.commit(&list, CommitMode::Sync).ok());
    }
}

fn batch(topic: &Topic, count: usize) -> Vec<Message> {
    (0..count).map(|_| message(topic, &[])).collect()
}

/// As the engine does: sends until each is confirmed.
async fn deliver(transport: &Kafka, mut messages: Vec<Message>) {
    let begun = Instant::now();
    while !messages.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{} are not confirmed", messages.len());
        let outcomes = send(transport, messages.clone()).await;
        let outcomes = messages.into_iter().zip(outcomes);
        messages = outcomes.filter_map(|(message, outcome)| outcome.err().map(|_| message)).collect();
    }
}

/// As the engine does: receives, acknowledges, and subscribes again when a consumer is over, until all have come. What
/// was told meanwhile.
async fn collect(
    transport: &Kafka,
    wants: &Subscription,
    mut consumer: Option<Box<dyn Consumer>>,
    sent: &[Message],
) -> Vec<Error> {
    let mut missing: BTreeSet<&str> = sent.iter().map(|message| message.id.as_str()).collect();
    let (mut told, begun) = (Vec::new(), Instant::now());
    while !missing.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{} of {} did not come; told: {told:?}", missing.len(), sent.len());
        let Some(current) = &mut consumer else {
            match transport.subscribe(wants.clone()).await {
                Ok(new) => consumer = Some(new),
                Err(error) => told.push(error),
            }
            continue;
        };
        let Ok(received) = tokio::time::timeout(Duration::from_secs(1), current.receive(50)).await else { continue };
        let acknowledged = match received {
            Ok(received) => {
                missing.retain(|id| !ids(&received).contains(id));
                current.ack(received.iter().map(|delivery| delivery.tag).collect()).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = acknowledged {
            told.push(error);
            consumer = None;
        }
    }
    told
}

fn says(told: &[Error], words: &[&str]) {
    let fits = |error: &Error| words.iter().all(|word| error.to_string().contains(word));
    assert!(told.iter().any(fits), "{words:?} is in none of: {told:?}");
    assert!(told.iter().all(|error| error.kind() == ErrorKind::Unavailable), "{told:?}");
}

#[tokio::test]
async fn a_position_beyond_the_logs_end_is_told_and_the_log_is_begun_again() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    create_topic(topic.as_str(), 1, &[]).await;
    let transport = scene.open(scene.options()).await;
    let sent = batch(&topic, 20);
    confirmed(&transport, sent.clone()).await;
    let wants = scene.wants(&[topic.as_str()]);
    Position::of(&wants, &topic).set(50, "");

    let words = ["partition 0", topic.as_str(), "got to 50", "ends at 20", "again at 0"];
    refused(transport.subscribe(wants.clone()).await, ErrorKind::Unavailable, &words);
    assert_eq!(Position::of(&wants, &topic).get().0, Offset::Offset(0));
    let mut consumer = transport.subscribe(wants).await.unwrap();
    let expected: Vec<&str> = sent.iter().map(|message| message.id.as_str()).collect();
    assert_eq!(ids(&take(&mut *consumer, 20).await), expected);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn of_a_log_that_lost_its_end_only_what_is_not_sure_comes_again() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    create_topic(topic.as_str(), 1, &[]).await;
    let transport = scene.open(scene.options()).await;
    let wants = scene.wants(&[topic.as_str()]);
    let mut consumer = transport.subscribe(wants.clone()).await.unwrap();
    confirmed(&transport, batch(&topic, 10)).await;
    take(&mut *consumer, 10).await;
    drop(consumer);
    // What a group had whose leader then lost ten records: the last one that both know is the ninth or an earlier one.
    let position = Position::of(&wants, &topic);
    let (_, metadata) = until(|| Some(position.get()).filter(|(offset, _)| *offset == Offset::Offset(10)));
    let anchors = metadata.rsplit_once(';').unwrap().1;
    let (distance, born) = anchors.split_once('@').unwrap();
    let known = distance.parse::<i64>().unwrap() - 10;
    position.set(20, &format!("cap2:;{known}@{born};-1@{born}"));

    let again = format!("again at {}", 20 + known + 1);
    refused(transport.subscribe(wants).await, ErrorKind::Unavailable, &["ends at 10", &again]);
    scene.names.clean_up().await;
}

/// Asks until there is an answer.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn a_position_does_not_count_for_a_topic_that_was_made_again() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let transport = scene.open(scene.options()).await;
    let wants = scene.wants(&[topic.as_str()]);
    let mut consumer = transport.subscribe(wants.clone()).await.unwrap();
    confirmed(&transport, batch(&topic, 10)).await;
    take(&mut *consumer, 10).await;
    drop(consumer);
    let position = Position::of(&wants, &topic);
    let (_, metadata) = until(|| Some(position.get()).filter(|(offset, _)| *offset == Offset::Offset(10)));
    make_again(topic.as_str(), 1).await;
    // As a member does that does not know of it, or a broker that was restored.
    position.set(10, &metadata);
    let sent = batch(&topic, 20);
    deliver(&transport, sent.clone()).await;

    let told = collect(&transport, &wants, None, &sent).await;
    says(&told, &[topic.as_str(), "another log", "again at 0"]);
    scene.names.clean_up().await;
}

/// So many records come and are done; then the topic is made again, and so many others are sent.
async fn made_again_while_running(before: usize, after: usize, begins: &str) {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let transport = scene.open(scene.options().set("auto.offset.reset", begins)).await;
    let wants = scene.wants(&[topic.as_str()]);
    let mut consumer = transport.subscribe(wants.clone()).await.expect("a consumer");
    confirmed(&transport, batch(&topic, before)).await;
    take(&mut *consumer, before).await;
    make_again(topic.as_str(), 1).await;
    let sent = batch(&topic, after);
    let (told, ()) =
        tokio::join!(collect(&transport, &wants, Some(consumer), &sent), deliver(&transport, sent.clone()));
    says(&told, &[]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_topic_that_is_made_again_while_it_is_consumed_loses_nothing_that_is_sent_then() {
    made_again_while_running(10, 3, "earliest").await;
}

#[tokio::test]
async fn a_topic_that_is_made_again_and_grows_beyond_the_position_loses_nothing() {
    made_again_while_running(10, 25, "earliest").await;
}

#[tokio::test]
async fn a_topic_that_is_made_again_and_grows_up_to_the_position_loses_nothing() {
    made_again_while_running(10, 10, "earliest").await;
}

#[tokio::test]
async fn a_group_that_begins_at_the_end_does_so_once() {
    made_again_while_running(10, 3, "latest").await;
}

#[tokio::test]
async fn records_that_were_deleted_before_they_came_are_passed_over_and_the_rest_comes() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    create_topic(topic.as_str(), 1, &[]).await;
    let transport = scene.open(scene.options()).await;
    let wants = scene.wants(&[topic.as_str()]);
    drop(transport.subscribe(wants.clone()).await.unwrap());
    let sent = batch(&topic, 10);
    confirmed(&transport, sent.clone()).await;
    let mut below = TopicPartitionList::new();
    below.add_partition_offset(topic.as_str(), 0, Offset::Offset(6)).unwrap();
    admin().delete_records(&below, &AdminOptions::new()).await.unwrap();
    let told = collect(&transport, &wants, None, &sent[6..]).await;
    assert!(told.is_empty(), "retention is no reason to be over: {told:?}");
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_topic_whose_old_records_are_deleted_is_still_the_same() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    create_topic(topic.as_str(), 1, &[]).await;
    let transport = scene.open(scene.options()).await;
    let wants = scene.wants(&[topic.as_str()]);
    let mut consumer = transport.subscribe(wants.clone()).await.unwrap();
    confirmed(&transport, batch(&topic, 10)).await;
    take(&mut *consumer, 10).await;
    let position = Position::of(&wants, &topic);
    // It has looked once more, and knows the last record for sure.
    until(|| {
        let (offset, metadata) = position.get();
        (offset == Offset::Offset(10) && metadata.starts_with("cap2:;-1@") && !metadata[6..].contains(';'))
            .then_some(())
    });
    let mut below = TopicPartitionList::new();
    below.add_partition_offset(topic.as_str(), 0, Offset::Offset(10)).unwrap();
    admin().delete_records(&below, &AdminOptions::new()).await.unwrap();
    let sent = batch(&topic, 5);
    confirmed(&transport, sent.clone()).await;
    take(&mut *consumer, 5).await;
    // It has looked again.
    until(|| {
        Some(position.get()).filter(|(_, metadata)| metadata.starts_with("cap2:;-1@") && !metadata[6..].contains(';'))
    });
    let more = batch(&topic, 1);
    confirmed(&transport, more.clone()).await;
    assert_eq!(ids(&take(&mut *consumer, 1).await), [more[0].id.as_str()], "it was not given up");
    scene.names.clean_up().await;
}
