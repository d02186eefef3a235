//! Messages that no group wants at present: they wait, unless the options say otherwise of their topic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cap::{Options, Status, Step, Table, Unroutable};

use crate::support::{Seen, Shop, eventually, options, record};

#[tokio::test]
async fn what_had_no_queue_is_sent_within_a_second_of_its_appearing() {
    const WAITING: u32 = 200;
    let shop = Shop::new();
    let (seen, tries) = (Seen::<u32>::new(), Seen::new());
    let told = tries.clone();
    let tell = move |step, id: &cap::MessageId| {
        if step == Step::Sent {
            told.push(id.clone())
        }
    };
    let cap = shop.builder().on_step(tell).start().await.unwrap();
    for number in 0..WAITING {
        cap.publish("late", &number).await.unwrap();
    }
    // The pause has grown as long as it gets, and has just begun.
    let mut tried_for = Instant::now();
    let mut pauses = 0;
    while pauses < 7 {
        tries.next().await;
        if tried_for.elapsed() > Duration::from_millis(50) {
            pauses += 1;
        }
        tried_for = Instant::now();
    }
    assert!(!cap.health().waiting.is_empty());

    let other = Shop { transport: shop.transport.clone(), ..Shop::new() };
    let appeared = Instant::now();
    let receiver = other.builder().subscribe("late", "g", record(&seen)).start().await.unwrap();
    seen.next().await;
    assert!(appeared.elapsed() < Duration::from_secs(1), "the first came after {:?}", appeared.elapsed());
    for _ in 1..WAITING {
        seen.next().await;
    }
    let waited = appeared.elapsed();
    assert!(waited < Duration::from_secs(2), "the last came after {waited:?}");
    eventually(async || cap.health().waiting.is_empty().then_some(())).await;
    let attempts = shop.records(Table::Outbox).await.iter().map(|record| record.attempts).max();
    assert_eq!(attempts, Some(1));
    cap.stop().await;
    receiver.stop().await;
}

#[tokio::test]
async fn a_topic_to_which_nobody_need_listen_is_dropped_or_dead_and_only_that() {
    let shop = Shop::new();
    let unroutable_topics =
        BTreeMap::from([("metrics.#".to_owned(), Unroutable::Drop), ("audit".to_owned(), Unroutable::Dead)]);
    let dead = Seen::new();
    let notified = dead.clone();
    let cap = shop
        .builder()
        .options(Options { unroutable_topics, ..options() })
        .on_dead(move |letter| notified.push((letter.topic.to_string(), letter.attempts)))
        .start()
        .await
        .unwrap();
    for topic in ["metrics.cpu", "audit", "order"] {
        cap.publish(topic, &1).await.unwrap();
    }
    assert_eq!(dead.next().await, ("audit".to_owned(), 1));
    let waiting = eventually(async || cap.health().waiting.pop()).await;
    assert_eq!(waiting.topic.as_str(), "order");
    eventually(async || {
        let records = shop.records(Table::Outbox).await;
        let status =
            |topic: &str| records.iter().find(|record| record.topic.as_str() == topic).map(|found| found.status);
        (status("metrics.cpu") == Some(Status::Succeeded) && status("audit") == Some(Status::Failed)).then_some(())
    })
    .await;
    assert_eq!(dead.rest().await, []);
    cap.stop().await;
}
