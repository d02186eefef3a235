//! What is particular to Kafka: the wire as .NET CAP knows it, topics that are missing or too small, offsets that others
//! committed, and what happens when somebody changes the broker behind the transport's back.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cap_core::transport::{Delivery, DeliveryTag};
use cap_core::{ErrorKind, Message, Topic, Transport, headers};
use cap_transport_kafka::{CreateTopics, Kafka, KafkaOptions};
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use support::scene::{PATIENCE, Scene, confirmed, ids, message, receive, refused, send, send_raw, take, with_body};
use support::{admin, create_topic, raw};

#[tokio::test]
async fn a_message_is_on_the_wire_as_dotnet_cap_sends_it() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    drop(transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap());
    let plain = message(&topic, &[(headers::CORRELATION_SEQUENCE, "0"), (headers::SENT_TIME, "11/23/2026 08:50:00")]);
    let keyed = message(&topic, &[(headers::KAFKA_KEY, "customer-1")]);
    confirmed(&transport, vec![plain.clone(), keyed.clone()]).await;

    let consumer: BaseConsumer = raw().set("group.id", "x").create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(topic.as_str(), 0, Offset::Beginning).unwrap();
    consumer.assign(&all).unwrap();
    for (sent, key) in [(&plain, plain.id.as_str()), (&keyed, "customer-1")] {
        let got = consumer.poll(PATIENCE).expect("a record").unwrap();
        assert_eq!(got.topic(), topic.as_str());
        assert_eq!(got.key(), Some(key.as_bytes()));
        assert_eq!(got.payload(), Some(&br#"{"total":12}"#[..]));
        let found: Vec<(String, Vec<u8>)> = got
            .headers()
            .unwrap()
            .iter()
            .map(|header| (header.key.to_owned(), header.value.unwrap().to_vec()))
            .collect();
        let expected: Vec<(String, Vec<u8>)> =
            sent.headers.iter().map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).collect();
        assert_eq!(found, expected);
    }
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_group_goes_on_where_dotnet_cap_has_left_it() {
    let scene = Scene::new();
    let transport = scene.open(scene.options().create_topics(CreateTopics::Always)).await;
    let topic = scene.topic("order");
    let sent: Vec<Message> = (0..5).map(|_| message(&topic, &[])).collect();
    confirmed(&transport, sent.clone()).await;
    let group = scene.group();
    let dotnet: BaseConsumer = raw().set("group.id", group.as_str()).create().unwrap();
    let mut done = TopicPartitionList::new();
    done.add_partition_offset(topic.as_str(), 0, Offset::Offset(3)).unwrap();
    dotnet.commit(&done, CommitMode::Sync).unwrap();
    drop(dotnet);
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    let received = receive(&mut *consumer, 2).await;
    assert_eq!(ids(&received), [sent[3].id.as_str(), sent[4].id.as_str()]);
    assert!(received.iter().all(|delivery| delivery.redelivered), "Kafka does not tell: it may have been delivered");
    scene.names.clean_up().await;
}

#[tokio::test]
async fn foreign_deliveries_come_as_they_are() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    send_raw(&topic, Some(b"\xff\0"), OwnedHeaders::new()).await;
    send_raw(&topic, None, OwnedHeaders::new()).await;
    let dressed = OwnedHeaders::new()
        .insert(Header { key: headers::CALLBACK_NAME, value: None::<&str> })
        .insert(Header { key: "x", value: Some("first") })
        .insert(Header { key: "x", value: Some("last") })
        .insert(Header { key: "bytes", value: Some(&b"a\xff"[..]) });
    send_raw(&topic, Some(b""), dressed).await;
    let received = receive(&mut *consumer, 3).await;
    assert_eq!(&received[0].body[..], b"\xff\0");
    assert!(received[0].headers.is_empty() && received[1].headers.is_empty());
    assert!(received[1].body.is_empty(), "a tombstone is a message without a body");
    assert_eq!(received[2].headers, [("x", "last"), ("bytes", "a\u{fffd}")].into_iter().collect());
    // The same record has the same origin, whoever gets it.
    let origins =
        |received: &[Delivery]| received.iter().map(|delivery| delivery.origin.clone().unwrap()).collect::<Vec<_>>();
    let first = origins(&received);
    assert!(first[0].starts_with(&format!("{topic}/0/0@")) && first[1] != first[2], "{first:?}");
    drop(consumer);
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    assert_eq!(origins(&receive(&mut *consumer, 3).await), first);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn the_topic_of_a_delivery_is_the_brokers_whatever_its_headers_say() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let (topic, other) = (scene.topic("open"), scene.topic("secret"));
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str(), other.as_str()])).await.unwrap();
    let claims = OwnedHeaders::new().insert(Header { key: headers::MESSAGE_NAME, value: Some(other.as_str()) });
    send_raw(&topic, Some(b"{}"), claims).await;
    let received = receive(&mut *consumer, 1).await;
    assert_eq!(received[0].topic, topic.as_str());
    assert_eq!(received[0].headers.get(headers::MESSAGE_NAME), Some(other.as_str()), "it is there to be judged");
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_message_over_the_topics_limit_is_invalid_and_hinders_nobody() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    create_topic(topic.as_str(), 1, &[("max.message.bytes", "20000")]).await;
    let transport = scene.open(scene.options()).await;
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    // Together they are over the limit; alone only one of them is.
    let mut sent: Vec<Message> = (0..40).map(|_| with_body(message(&topic, &[]), 2_000)).collect();
    sent[20] = with_body(message(&topic, &[]), 30_000);
    let mut outcomes = send(&transport, sent.clone()).await;
    refused(outcomes.remove(20), ErrorKind::Invalid, &["max.message.bytes"]);
    outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    let received = take(&mut *consumer, 39).await;
    let expected: std::collections::BTreeSet<_> =
        sent.iter().filter(|message| message.payload.len() < 20_000).map(|message| message.id.as_str()).collect();
    assert_eq!(ids(&received).into_iter().collect::<std::collections::BTreeSet<_>>(), expected);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_member_that_is_not_given_its_place_again_is_over_and_says_so() {
    // A coordinator that serves nobody, which a real broker has only by chance.
    let cluster = MockCluster::new(1).unwrap();
    let topic: Topic = "order".parse().unwrap();
    cluster.create_topic(topic.as_str(), 1, 1).unwrap();
    let options = KafkaOptions::new(cluster.bootstrap_servers()).create_topics(CreateTopics::Never);
    // The mock waits three seconds for further members.
    let options = options.connect_timeout(Duration::from_secs(4)).set("heartbeat.interval.ms", "100");
    let transport = Kafka::with_options(options).unwrap();
    let scene = Scene::new();
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    confirmed(&transport, vec![message(&topic, &[])]).await;
    take(&mut *consumer, 1).await;

    let no_place = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS; 10_000];
    cluster.request_errors(RDKafkaApiKey::JoinGroup, &no_place);
    cluster.request_errors(RDKafkaApiKey::Heartbeat, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    let begun = Instant::now();
    let over = tokio::time::timeout(PATIENCE, consumer.receive(1)).await.expect("it waits in silence");
    refused(over, ErrorKind::Unavailable, &["lost its partitions", "12s"]);
    assert!(begun.elapsed() >= Duration::from_secs(11), "a rebalance may take its time: {:?}", begun.elapsed());

    cluster.clear_request_errors(RDKafkaApiKey::JoinGroup);
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    confirmed(&transport, vec![message(&topic, &[])]).await;
    take(&mut *consumer, 1).await;
}

#[tokio::test]
async fn what_was_acknowledged_out_of_order_does_not_come_again() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    let sent: Vec<Message> = (0..6).map(|_| message(&topic, &[])).collect();
    confirmed(&transport, sent.clone()).await;
    let received = receive(&mut *consumer, 6).await;
    assert!(received.iter().all(|delivery| !delivery.redelivered));
    consumer.ack([1, 2, 3, 5].map(|place: usize| received[place].tag).to_vec()).await.unwrap();
    drop(consumer);
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    let witness = message(&topic, &[]);
    confirmed(&transport, vec![witness.clone()]).await;
    let again = take(&mut *consumer, 3).await;
    assert_eq!(ids(&again), [sent[0].id.as_str(), sent[4].id.as_str(), witness.id.as_str()]);
    assert_eq!(again.iter().map(|delivery| delivery.redelivered).collect::<Vec<_>>()[..2], [true, true]);
    drop(consumer);
    // With nothing left open the offset is at the end again.
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    let last = message(&topic, &[]);
    confirmed(&transport, vec![last.clone()]).await;
    assert_eq!(ids(&receive(&mut *consumer, 1).await), [last.id.as_str()]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn what_is_acknowledged_is_committed_again_and_again_while_the_consumer_is_there() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    let another: BaseConsumer = raw().set("group.id", scene.group().as_str()).create().unwrap();
    for count in 1..=4 {
        confirmed(&transport, vec![message(&topic, &[])]).await;
        take(&mut *consumer, 1).await;
        let begun = Instant::now();
        let mut place = TopicPartitionList::new();
        place.add_partition(topic.as_str(), 0);
        while another.committed_offsets(place.clone(), PATIENCE).unwrap().elements()[0].offset()
            != Offset::Offset(count)
        {
            assert!(begun.elapsed() < Duration::from_secs(10), "message {count} is not committed");
        }
    }
    scene.names.clean_up().await;
}

#[tokio::test]
async fn offsets_that_the_broker_refuses_are_committed_once_more() {
    let cluster = MockCluster::new(1).unwrap();
    let topic: Topic = "order".parse().unwrap();
    cluster.create_topic(topic.as_str(), 1, 1).unwrap();
    let options = KafkaOptions::new(cluster.bootstrap_servers()).create_topics(CreateTopics::Never);
    let transport = Kafka::with_options(options.connect_timeout(Duration::from_secs(4))).unwrap();
    let scene = Scene::new();
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    confirmed(&transport, vec![message(&topic, &[])]).await;
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 2];
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &refused);
    take(&mut *consumer, 1).await;
    let another: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", scene.group().as_str())
        .create()
        .unwrap();
    let mut place = TopicPartitionList::new();
    place.add_partition(topic.as_str(), 0);
    let begun = Instant::now();
    while another.committed_offsets(place.clone(), PATIENCE).unwrap().elements()[0].offset() != Offset::Offset(1) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not committed");
    }
}

#[tokio::test]
async fn a_group_begins_when_it_first_subscribes_wherever_it_is_asked_to_begin() {
    let scene = Scene::new();
    let transport = scene.open(scene.options().create_topics(CreateTopics::Always)).await;
    let topic = scene.topic("order");
    let early = message(&topic, &[]);
    confirmed(&transport, vec![early.clone()]).await;
    let latest = scene.open(scene.options().set("auto.offset.reset", "latest")).await;
    drop(latest.subscribe(scene.wants(&[topic.as_str()])).await.unwrap());
    let while_away = message(&topic, &[]);
    confirmed(&transport, vec![while_away.clone()]).await;
    let mut consumer = latest.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    assert_eq!(ids(&receive(&mut *consumer, 1).await), [while_away.id.as_str()]);
    let mut wants = scene.wants(&[topic.as_str()]);
    wants.group = scene.names.unique("shipping").parse().unwrap();
    let mut other = transport.subscribe(wants).await.unwrap();
    assert_eq!(ids(&receive(&mut *other, 2).await), [early.id.as_str(), while_away.id.as_str()], "the default");
    scene.names.clean_up().await;
}

#[tokio::test]
async fn who_makes_topics_is_as_the_options_say() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let wants = || scene.wants(&[topic.as_str()]);
    let never = scene.open(scene.options().create_topics(CreateTopics::Never)).await;
    refused(never.subscribe(wants()).await, ErrorKind::Environment, &[topic.as_str(), "create_topics"]);
    let outcome = send(&never, vec![message(&topic, &[])]).await.remove(0);
    refused(outcome, ErrorKind::Unroutable, &[topic.as_str(), "create_topics"]);
    assert_eq!(never.unrouted(vec![topic.clone()]).await.unwrap(), std::slice::from_ref(&topic));

    let always = scene.open(scene.options().partitions(3).create_topics(CreateTopics::Always)).await;
    assert_eq!(always.unrouted(vec![topic.clone()]).await.unwrap(), []);
    confirmed(&always, vec![message(&topic, &[])]).await;
    let listed = admin().inner().fetch_metadata(Some(topic.as_str()), PATIENCE).unwrap();
    assert_eq!(listed.topics()[0].partitions().len(), 3);
    let mut consumer = never.subscribe(wants()).await.unwrap();
    receive(&mut *consumer, 1).await;

    let too_many = scene.open(scene.options().replicas(3)).await;
    let other = scene.topic("other");
    let answer = too_many.subscribe(scene.wants(&[other.as_str()])).await;
    refused(answer, ErrorKind::Environment, &[other.as_str(), "replicas"]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn names_that_kafka_does_not_allow_are_refused_at_once() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    for bad in ["größe", "order placed", "a/b"] {
        let answer = transport.subscribe(scene.wants(&[bad])).await;
        refused(answer, ErrorKind::Invalid, &[bad, "Kafka allows"]);
        let good = scene.topic("order");
        let batch = vec![message(&bad.parse().unwrap(), &[]), message(&good, &[])];
        let mut outcomes = send(&transport, batch).await;
        refused(outcomes.pop().unwrap(), ErrorKind::Unroutable, &[good.as_str()]);
        refused(outcomes.pop().unwrap(), ErrorKind::Invalid, &[bad, "Kafka allows"]);
    }
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_pattern_is_known_to_other_processes_and_new_topics_are_picked_up() {
    let scene = Scene::new();
    let (receiver, sender) = (scene.open(scene.options()).await, scene.open(scene.options()).await);
    let below = |words: &str| format!("{}.{words}", scene.names.unique("shop"));
    let mut consumer = receiver.subscribe(scene.wants(&[&below("*.placed"), &below("bill.#")])).await.unwrap();
    let topic = |words: &str| -> Topic { below(words).parse().unwrap() };
    for words in ["order.placed", "bill", "bill.sent.eu", "return.placed"] {
        let sent = message(&topic(words), &[]);
        confirmed(&sender, vec![sent.clone()]).await;
        assert_eq!(ids(&take(&mut *consumer, 1).await), [sent.id.as_str()], "{words}");
    }
    let unwanted = message(&topic("order.placed.eu"), &[]);
    refused(send(&sender, vec![unwanted]).await.remove(0), ErrorKind::Unroutable, &["no group"]);
    // The group is away; what it wants is kept for it all the same.
    drop(consumer);
    let late = message(&topic("gift.placed"), &[]);
    confirmed(&sender, vec![late.clone()]).await;
    let mut consumer = receiver.subscribe(scene.wants(&[&below("*.placed")])).await.unwrap();
    assert_eq!(ids(&take(&mut *consumer, 1).await), [late.id.as_str()]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_consumer_whose_topic_is_deleted_ends_and_subscribing_again_makes_it_anew() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    admin().delete_topics(&[topic.as_str()], &options).await.unwrap().remove(0).unwrap();
    let ended = tokio::time::timeout(PATIENCE, consumer.receive(1)).await.expect("the consumer ends");
    refused(ended, ErrorKind::Unavailable, &[topic.as_str(), "deleted"]);
    refused(consumer.receive(1).await, ErrorKind::Unavailable, &["deleted"]);
    let outcome = send(&transport, vec![message(&topic, &[])]).await.remove(0);
    let error = outcome.expect_err("there is no such topic");
    assert!(matches!(error.kind(), ErrorKind::Unroutable | ErrorKind::Unavailable), "{error}");

    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    let sent = message(&topic, &[]);
    confirmed(&transport, vec![sent.clone()]).await;
    assert_eq!(ids(&receive(&mut *consumer, 1).await), [sent.id.as_str()]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_group_that_is_in_use_with_another_protocol_is_refused_by_name() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let (topic, group) = (scene.topic("order"), scene.group());
    create_topic(topic.as_str(), 1, &[]).await;
    // As .NET CAP does unless it is told otherwise.
    let eager: BaseConsumer = raw()
        .set("group.id", group.as_str())
        .set("partition.assignment.strategy", "range,roundrobin")
        .create()
        .unwrap();
    eager.subscribe(&[topic.as_str()]).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let polling = std::thread::spawn(move || {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let _ = eager.poll(Duration::from_millis(50));
        }
    });
    // Until it is a member.
    let is_member = || {
        let groups = admin().inner().fetch_group_list(Some(group.as_str()), PATIENCE).unwrap();
        groups.groups().iter().any(|group| group.state() == "Stable")
    };
    let begun = Instant::now();
    while !is_member() {
        assert!(begun.elapsed() < PATIENCE, "it does not become a member");
    }
    let answer = transport.subscribe(scene.wants(&[topic.as_str()])).await;
    refused(answer, ErrorKind::Rejected, &[group.as_str(), "partition.assignment.strategy"]);
    drop(stop);
    polling.join().unwrap();
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_slow_engine_stays_a_member_and_gets_the_rest_afterwards() {
    let scene = Scene::new();
    let options = scene.options().set("session.timeout.ms", "1500").set("max.poll.interval.ms", "1500");
    let transport = scene.open(options).await;
    let topic = scene.topic("order");
    let mut wants = scene.wants(&[topic.as_str()]);
    wants.prefetch = 10;
    let mut slow = transport.subscribe(wants).await.unwrap();
    let sent: Vec<Message> = (0..50).map(|_| message(&topic, &[])).collect();
    confirmed(&transport, sent.clone()).await;
    let held = receive(&mut *slow, 10).await;
    // Another group is busy meanwhile, for twice as long as a member may be silent.
    let mut wants = scene.wants(&[topic.as_str()]);
    wants.group = scene.names.unique("witness").parse().unwrap();
    let mut busy = transport.subscribe(wants).await.unwrap();
    take(&mut *busy, 50).await;
    let begun = Instant::now();
    let mut more = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        confirmed(&transport, vec![message(&topic, &[])]).await;
        take(&mut *busy, 1).await;
        more += 1;
    }
    slow.ack(held.iter().map(|delivery| delivery.tag).collect()).await.unwrap();
    let mut rest = Vec::new();
    while rest.len() < 40 + more {
        rest.extend(take(&mut *slow, 1).await);
    }
    assert_eq!(ids(&rest)[..40], sent[10..].iter().map(|message| message.id.as_str()).collect::<Vec<_>>());
    assert!(rest.iter().all(|delivery| !delivery.redelivered), "it was never taken for dead");
    scene.names.clean_up().await;
}

#[tokio::test]
async fn no_more_bytes_than_the_budget_are_out_and_everything_comes_as_they_are_acknowledged() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut wants = scene.wants(&[topic.as_str()]);
    wants.prefetch_bytes = 1_000_000;
    let mut bounded = transport.subscribe(wants.clone()).await.unwrap();
    let mut sent: Vec<Message> = (0..20).map(|_| with_body(message(&topic, &[]), 240_000)).collect();
    // Near the limit of a message, and so of the budget.
    sent[10] = with_body(message(&topic, &[]), 990_000);
    confirmed(&transport, sent.clone()).await;
    let held = receive(&mut *bounded, 3).await;
    // Another group has all of them meanwhile, so that they would have come.
    wants.group = scene.names.unique("witness").parse().unwrap();
    wants.prefetch_bytes = 64 * 1024 * 1024;
    take(&mut *transport.subscribe(wants).await.unwrap(), 20).await;
    let bytes = |held: &[Delivery]| held.iter().map(|delivery| delivery.body.len()).sum::<usize>();
    let mut held = std::collections::VecDeque::from(held);
    let mut came = ids(held.make_contiguous()).into_iter().map(str::to_owned).collect::<Vec<_>>();
    while came.len() < 20 {
        let more = tokio::time::timeout(Duration::from_millis(100), bounded.receive(100)).await;
        for delivery in more.map(Result::unwrap).unwrap_or_default() {
            came.extend(ids(std::slice::from_ref(&delivery)).into_iter().map(str::to_owned));
            held.push_back(delivery);
        }
        assert!(bytes(held.make_contiguous()) <= 1_000_000, "{} bytes are out", bytes(held.make_contiguous()));
        if let Some(first) = held.pop_front() {
            bounded.ack(vec![first.tag]).await.unwrap();
        }
    }
    assert_eq!(came, sent.iter().map(|message| message.id.as_str().to_owned()).collect::<Vec<_>>());
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_message_that_is_larger_than_the_budget_is_out_alone() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut wants = scene.wants(&[topic.as_str()]);
    wants.prefetch_bytes = 10_000;
    let mut bounded = transport.subscribe(wants).await.unwrap();
    let sizes = [900_000, 100, 900_000, 100];
    let sent: Vec<Message> = sizes.iter().map(|bytes| with_body(message(&topic, &[]), *bytes)).collect();
    confirmed(&transport, sent.clone()).await;
    for message in &sent {
        let received = tokio::time::timeout(PATIENCE, bounded.receive(100)).await.expect("in time").unwrap();
        assert_eq!(ids(&received), [message.id.as_str()]);
        bounded.ack(vec![received[0].tag]).await.unwrap();
    }
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_tag_that_is_not_out_is_refused_and_the_consumer_goes_on() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[topic.as_str()])).await.unwrap();
    refused(consumer.ack(vec![DeliveryTag(7)]).await, ErrorKind::Invalid, &["delivery 7"]);
    confirmed(&transport, vec![message(&topic, &[])]).await;
    let tags: Vec<_> = receive(&mut *consumer, 1).await.iter().map(|delivery| delivery.tag).collect();
    consumer.ack(tags.clone()).await.unwrap();
    refused(consumer.ack(tags).await, ErrorKind::Invalid, &["not out"]);
    scene.names.clean_up().await;
}

/// As in a deployment: of two nodes one is replaced by an older version, which does not subscribe a topic. What is sent to
/// it comes to the one that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_one_member_of_a_group_wants_comes_to_that_one() {
    let scene = Scene::new();
    // With such a name the broker gives a member that comes back what it had, whatever it subscribes by now.
    let named = |name: &str| scene.options().set("group.instance.id", name);
    let [newer, replaced] = [scene.open(named("node-1")).await, scene.open(named("node-2")).await];
    let (order, renewed) = (scene.topic("order"), scene.topic("renewed"));
    for topic in [&order, &renewed] {
        create_topic(topic.as_str(), 4, &[]).await;
    }
    let wants = scene.wants(&[renewed.as_str()]);
    let mut stays = newer.subscribe(wants.clone()).await.unwrap();
    let mut goes = replaced.subscribe(wants).await.unwrap();
    let first: Vec<Message> = (0..40).map(|_| message(&renewed, &[])).collect();
    confirmed(&newer, first.clone()).await;
    // It has partitions of the topic.
    receive(&mut *goes, 1).await;
    drop(goes);
    let older = replaced.subscribe(scene.wants(&[order.as_str()])).await.unwrap();
    let second: Vec<Message> = (0..40).map(|_| message(&renewed, &[])).collect();
    confirmed(&newer, second.clone()).await;
    let mut missing: BTreeSet<&str> = first.iter().chain(&second).map(|message| message.id.as_str()).collect();
    let begun = Instant::now();
    while !missing.is_empty() {
        let came = tokio::time::timeout(PATIENCE.saturating_sub(begun.elapsed()), stays.receive(100)).await;
        let came = came.unwrap_or_else(|_| panic!("{} of 80 did not come", missing.len())).unwrap();
        missing.retain(|id| !ids(&came).contains(id));
        stays.ack(came.iter().map(|delivery| delivery.tag).collect()).await.unwrap();
    }
    drop((stays, older));
    scene.names.clean_up().await;
}
