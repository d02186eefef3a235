//! Handlers and messages that fail, and what is left of them.

use std::time::Duration;

use cap::{Context, HandlerError, Json, Publish, RetryPolicy, Status, Subscribe, Table};

use crate::support::{Seen, Shop, idle, record};

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
    let (seen, dead) = (Seen::<u32>::new(), Seen::new());
    let notified = dead.clone();
    let cap = shop
        .builder()
        .subscribe("wanted", "g", record(&seen))
        .on_dead(move |letter| notified.push((letter.table, letter.attempts, letter.topic.to_string())))
        .start()
        .await
        .unwrap();
    cap.publish("unwanted", &1).await.unwrap();
    cap.publish("wanted", &2).await.unwrap();
    assert_eq!(seen.next().await, 2);
    assert_eq!(dead.next().await, (Table::Outbox, 3, "unwanted".to_owned()));
    let record =
        shop.records(Table::Outbox).await.into_iter().find(|record| record.topic.as_str() == "unwanted").unwrap();
    assert!(record.reason.unwrap().contains("unwanted"));
    cap.stop().await;
}
