//! Bytes that a consumer may have in this process, and messages of every size.

mod support;

use std::time::{Duration, Instant};

use cap_core::transport::{Consumer, Delivery};
use cap_core::{Message, Topic, Transport};
use cap_transport_rabbitmq::{QueueType, RabbitMq};
use support::scene::{PATIENCE, Scene, message, receive, send};

const MIB: usize = 1024 * 1024;

fn sized(topic: &Topic, bytes: usize) -> Message {
    Message { payload: vec![b'1'; bytes].into(), ..message(topic, &[]) }
}

async fn fill(transport: &RabbitMq, topic: &Topic, count: usize, bytes: usize) {
    for _ in 0..count.div_ceil(500) {
        let batch = (0..count.min(500)).map(|_| sized(topic, bytes)).collect();
        for outcome in send(transport, batch).await {
            outcome.expect("sent");
        }
    }
}

/// How much of the process is in memory, in bytes; none where that cannot be told.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<usize>().ok().map(|kib| kib * 1024)
}

async fn take_all(consumer: &mut dyn Consumer, count: usize) {
    let mut taken = 0;
    while taken < count {
        let some = tokio::time::timeout(PATIENCE, consumer.receive(100)).await.expect("in time").expect("deliveries");
        taken += some.len();
        consumer.ack(some.iter().map(|delivery| delivery.tag).collect()).await.expect("acknowledged");
    }
}

fn bytes(deliveries: &[Delivery]) -> usize {
    deliveries.iter().map(|delivery| delivery.body.len()).sum()
}

#[tokio::test]
async fn large_messages_do_not_fill_the_memory_of_who_does_not_take_them() {
    for (queue_type, budget) in [(QueueType::Classic, 24 * MIB), (QueueType::Quorum, 24 * MIB)] {
        let scene = Scene::new();
        let options = scene.options().queue_type(queue_type);
        let transport = scene.open(options.clone()).await;
        let topic = scene.topic("order");
        let wants = || {
            let mut wants = scene.wants(&[&topic]);
            wants.prefetch_bytes = budget;
            wants
        };
        let mut consumer = transport.subscribe(wants()).await.unwrap();
        // So many small ones that a thousand are asked for.
        fill(&transport, &topic, 3_000, 10).await;
        take_all(&mut *consumer, 3_000).await;
        // What is sent is left to another process's memory, as it were, before it is looked at.
        let sender = scene.open(options).await;
        let before = resident();
        let mut out = Vec::new();
        for _ in 0..20 {
            fill(&sender, &topic, 1, 8 * MIB).await;
        }
        while let Ok(more) = tokio::time::timeout(Duration::from_millis(500), consumer.receive(10)).await {
            out.extend(more.expect("deliveries"));
        }
        // More is not out, and not in memory either.
        assert!((8 * MIB..=budget).contains(&bytes(&out)), "{queue_type:?}: {} bytes are out", bytes(&out));
        if let (Some(before), Some(now)) = (before, resident()) {
            assert!(now < before + budget + 60 * MIB, "{queue_type:?}: {} MiB more", (now - before) / MIB);
        }
        consumer.ack(out.iter().map(|delivery| delivery.tag).collect()).await.unwrap();
        take_all(&mut *consumer, 20 - out.len()).await;
        scene.names.clean_up().await;
    }
}

#[tokio::test]
async fn a_message_larger_than_the_budget_arrives_and_small_ones_keep_their_pace() {
    let scene = Scene::new();
    let transport = scene.open(scene.options()).await;
    let topic = scene.topic("order");
    let mut wants = scene.wants(&[&topic]);
    wants.prefetch_bytes = 3 * MIB;
    let mut consumer = transport.subscribe(wants).await.unwrap();
    fill(&transport, &topic, 1, 5 * MIB).await;
    let large = receive(&mut *consumer, 1).await;
    consumer.ack(vec![large[0].tag]).await.unwrap();
    fill(&transport, &topic, 5_000, 100).await;
    let begun = Instant::now();
    take_all(&mut *consumer, 5_000).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // And as many as the prefetch are out at once in the end.
    fill(&transport, &topic, 1_000, 100).await;
    let out = receive(&mut *consumer, 900).await;
    assert_eq!(out.len(), 900);
    scene.names.clean_up().await;
}
