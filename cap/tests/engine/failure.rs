//! Handlers and messages that fail, and what is left of them.

use std::time::Duration;

use cap::lifecycle;
use cap::storage::{NewRecord, Storage};
use cap::{
    Context, Due, Group, HandlerError, Json, MessageId, Publish, RetryPolicy, Status, Subscribe, Table, Topic, Version,
};

use crate::support::{Seen, Shop, eventually, idle, record};

#[tokio::test]
async fn a_failed_handler_is_tried_again_and_a_permanent_failure_is_not() {
    let shop = Shop::new();
    let (attempts, dead) = (Seen::new(), Seen::new());
    let (handler, notified) = (attempts.clone(), dead.clone());
    let cap = shop
        .builder()
        .subscribe("t", "g", move |Json(kind): Json<String>, context: Context| {
            handler.push((kind.clone(), context.attempt()));
            async move {
                match kind.as_str() {
                    "flaky" if context.attempt() < 3 => Err(HandlerError::retry("not yet")),
                    "hopeless" => Err(HandlerError::permanent("never")),
                    "failing" => Err(HandlerError::retry("again")),
                    "panicking" => panic!("on purpose"),
                    _ => Ok(()),
                }
            }
        })
        .on_dead(move |letter| notified.push((letter.attempts, letter.reason)))
        .start()
        .await
        .unwrap();
    for kind in ["flaky", "hopeless", "failing", "panicking", "good"] {
        cap.publish("t", kind).await.unwrap();
    }
    idle(&cap).await;
    let mut seen = attempts.rest().await;
    seen.sort();
    let count = |kind: &str| seen.iter().filter(|(of, _)| of == kind).count();
    assert_eq!(["flaky", "hopeless", "failing", "panicking", "good"].map(count), [3, 1, 3, 3, 1]);
    let mut letters = dead.rest().await;
    letters.sort();
    assert_eq!(letters, [(1, "never".into()), (3, "again".into()), (3, "the handler panicked: on purpose".to_owned())]);
    let records = shop.records(Table::Inbox).await;
    assert_eq!(records.iter().filter(|record| record.status == Status::Failed).count(), 3);
    assert!(records.iter().all(|record| record.owner.is_none()));
    cap.stop().await;
}

#[tokio::test]
async fn a_handler_over_its_timeout_is_aborted_and_fails() {
    struct Told(Seen<&'static str>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.push("aborted");
        }
    }
    let shop = Shop::new();
    let seen = Seen::new();
    let (handler, dead) = (seen.clone(), Seen::new());
    let notified = dead.clone();
    let hanging = move || {
        let told = Told(handler.clone());
        async move {
            let _told = told;
            std::future::pending::<()>().await;
        }
    };
    let cap = shop
        .builder()
        .subscription(
            Subscribe::to("t", hanging).group("g").timeout(Duration::from_millis(20)).retry(RetryPolicy::never()),
        )
        .on_dead(move |letter| notified.push(letter.reason))
        .start()
        .await
        .unwrap();
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, "aborted");
    assert!(dead.next().await.contains("timeout of 20ms"));
    cap.stop().await;
}

#[tokio::test]
async fn wrong_messages_are_parked_with_their_reason_and_the_others_go_on() {
    let shop = Shop::new();
    let (seen, dead) = (Seen::<u32>::new(), Seen::new());
    let notified = dead.clone();
    let cap = shop
        .builder()
        .subscribe("t", "g", record(&seen))
        .on_dead(move |letter| notified.push(letter.reason))
        .start()
        .await
        .unwrap();
    cap.publish_many([
        Publish::json("t", "no number"),
        Publish::bytes("t", &b"\xff"[..], "image/png"),
        Publish::json("t", &7),
    ])
    .await
    .unwrap();
    assert_eq!(seen.next().await, 7);
    idle(&cap).await;
    let reasons = dead.rest().await;
    assert_eq!(reasons.len(), 2);
    for part in ["image/png", "invalid type"] {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part} in {reasons:?}");
    }
    cap.stop().await;
}

#[tokio::test]
async fn a_message_that_nobody_wants_is_kept_with_its_reason_and_blocks_nobody() {
    let shop = Shop::new();
    let seen = Seen::<u32>::new();
    let cap = shop.builder().subscribe("wanted", "g", record(&seen)).start().await.unwrap();
    cap.publish("unwanted", &1).await.unwrap();
    cap.publish("wanted", &2).await.unwrap();
    assert_eq!(seen.next().await, 2);
    // Not even after more than the three attempts that are allowed.
    let record = eventually(async || {
        let unwanted = |record: &cap::storage::Record| record.topic.as_str() == "unwanted" && record.reason.is_some();
        shop.records(Table::Outbox).await.into_iter().find(unwanted)
    })
    .await;
    assert!(record.reason.unwrap().contains("unwanted"));
    assert_eq!((record.status == Status::Failed, record.attempts <= 1), (false, true));
    let waiting = cap.health().waiting;
    assert_eq!((waiting.len(), waiting[0].topic.as_str(), &waiting[0].group), (1, "unwanted", &None));
    cap.stop().await;
}

#[tokio::test]
async fn a_record_whose_content_cannot_be_read_is_dead_with_the_reason_and_the_others_go_on() {
    let shop = Shop::new();
    let (seen, dead) = (Seen::<u32>::new(), Seen::new());
    let notified = dead.clone();
    let cap = shop
        .builder()
        .subscribe("t", "g", record(&seen))
        .on_dead(move |letter| notified.push((letter.table, letter.reason)))
        .start()
        .await
        .unwrap();
    for table in [Table::Outbox, Table::Inbox] {
        let unreadable = NewRecord {
            message_id: MessageId::generate(),
            version: Version::default(),
            topic: Topic::try_from("t").unwrap(),
            group: (table == Table::Inbox).then(|| Group::effective("g", &Version::default()).unwrap()),
            content: "no wrapper".into(),
            state: lifecycle::scheduled(Due::Now),
        };
        shop.storage.insert(table, vec![unreadable], None).await.unwrap();
    }
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, 1);
    let mut letters = [dead.next().await, dead.next().await];
    letters.sort();
    assert_eq!(letters.clone().map(|(table, _)| table), [Table::Outbox, Table::Inbox]);
    assert!(letters.iter().all(|(_, reason)| reason.contains("cannot read the stored content")), "{letters:?}");
    cap.stop().await;
}

#[tokio::test]
async fn what_is_in_memory_is_bounded_however_much_waits() {
    let shop = Shop::new();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let closed = std::sync::Arc::clone(&gate);
    let bounded = cap::Options { relay_batch: 20, relay_in_flight: 40, prefetch: 30, ..crate::support::options() };
    let cap = shop
        .builder()
        .options(bounded)
        .subscribe("t", "g", move || {
            let gate = std::sync::Arc::clone(&closed);
            async move { drop(gate.acquire().await) }
        })
        .start()
        .await
        .unwrap();
    cap.publish_many((0..2_000).map(|n| Publish::json("t", &n))).await.unwrap();
    // All are in the inbox, which is on disk for others, and few of them in memory.
    let mut most = 0;
    while shop.storage.counts(Table::Outbox, Version::default()).await.unwrap().succeeded < 2_000 {
        most = most.max(cap.in_flight());
        tokio::task::yield_now().await;
    }
    assert!((1..=40 + 16).contains(&most), "{most} were in memory");
    gate.add_permits(2_000);
    idle(&cap).await;
    assert_eq!(shop.storage.counts(Table::Inbox, Version::default()).await.unwrap().succeeded, 2_000);
    cap.stop().await;
}
