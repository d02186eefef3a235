//! From a commit to the handlers.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cap::memory::{MemoryStorage, MemoryTransaction};
use cap::{Context, Headers, Json, Message, Outbox, Publish, Status, Subscribe, Table, Tx};

use crate::support::{Seen, Shop, idle, record};

#[tokio::test]
async fn a_message_reaches_each_group_once() {
    let shop = Shop::new();
    let (billing, audit) = (Seen::<String>::new(), Seen::<String>::new());
    let to_audit = audit.clone();
    let cap = shop
        .builder()
        .subscribe("order.placed", "billing", record(&billing))
        .subscribe("order.*", "audit", move |context: Context| {
            to_audit.push(context.topic().to_string());
            ready(())
        })
        .start()
        .await
        .unwrap();
    cap.publish("order.placed", "A-1").await.unwrap();
    idle(&cap).await;
    assert_eq!(billing.rest().await, ["A-1"]);
    assert_eq!(audit.rest().await, ["order.placed"]);
    for table in [Table::Outbox, Table::Inbox] {
        assert!(shop.records(table).await.iter().all(|record| record.status == Status::Succeeded));
    }
    cap.stop().await;
}

#[tokio::test]
async fn what_is_rolled_back_is_never_sent_and_what_is_committed_is() {
    let shop = Shop::new();
    let seen = Seen::<u32>::new();
    let cap = shop.builder().subscribe("order.placed", "billing", record(&seen)).start().await.unwrap();
    let publish = |tx: &mut MemoryTransaction, id: u32| cap.publish_in(tx, "order.placed", &id).unwrap();
    let mut rolled_back = shop.storage.begin();
    publish(&mut rolled_back, 1);
    let mut open = shop.storage.begin();
    publish(&mut open, 2);
    let mut committed = shop.storage.begin();
    publish(&mut committed, 3);
    committed.commit();
    rolled_back.rollback();
    // The witness came through, so the others would have, too.
    assert_eq!(seen.next().await, 3);
    idle(&cap).await;
    assert!(seen.rest().await.is_empty());
    open.commit();
    assert_eq!(seen.next().await, 2);
    cap.stop().await;
}

#[tokio::test]
async fn one_at_a_time_keeps_the_order_and_more_run_at_once_up_to_the_limit() {
    let shop = Shop::new();
    let seen = Seen::<u32>::new();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let all_four = Arc::new(tokio::sync::Barrier::new(4));
    let cap = shop
        .builder()
        .subscribe("n", "in-order", record(&seen))
        .subscription(
            Subscribe::to("n", move || {
                let (now, peak, barrier) = (Arc::clone(&now), Arc::clone(&peak), Arc::clone(&all_four));
                async move {
                    peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    barrier.wait().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                }
            })
            .group("four")
            .concurrency(4),
        )
        .start()
        .await
        .unwrap();
    cap.publish_many((0..200).map(|n| Publish::json("n", &n))).await.unwrap();
    idle(&cap).await;
    assert_eq!(seen.rest().await, (0..200).collect::<Vec<_>>());
    assert_eq!(most.load(Ordering::SeqCst), 4);
    cap.stop().await;
}

#[tokio::test]
async fn handlers_get_the_message_as_it_was_published() {
    let shop = Shop::new();
    let seen = Seen::new();
    let handler = seen.clone();
    let cap = shop
        .builder()
        .subscribe("raw", "g", move |message: Message, headers: Headers| {
            handler.push((message, headers));
            ready(())
        })
        .start()
        .await
        .unwrap();
    let publish =
        Publish::bytes("raw", &b"\xff\x00payload"[..], "application/octet-stream").header("traceparent", "00-a");
    let published = cap.publish_one(publish).await.unwrap();
    let (message, headers) = seen.next().await;
    assert_eq!((&message.id, &message.payload[..]), (published.id(), &b"\xff\x00payload"[..]));
    assert_eq!(message.content_type(), "application/octet-stream");
    assert_eq!((headers.get("traceparent"), headers.get("cap-msg-group")), (Some("00-a"), Some("g.v1")));
    cap.stop().await;
}

#[tokio::test]
async fn a_reply_goes_to_the_callback_topic_and_names_what_it_answers() {
    let shop = Shop::new();
    let seen = Seen::new();
    let handler = seen.clone();
    let cap = shop
        .builder()
        .subscribe("sum", "adder", async |Json((a, b)): Json<(u32, u32)>| Json(a + b))
        .subscribe("sum.done", "asker", move |message: Message| {
            handler.push(message);
            ready(())
        })
        .start()
        .await
        .unwrap();
    let asked = cap.publish_one(Publish::json("sum", &(2, 3)).callback("sum.done")).await.unwrap();
    let reply = seen.next().await;
    assert_eq!(reply.json::<u32>().unwrap(), 5);
    assert_eq!(reply.headers.get("cap-corr-id"), Some(asked.id().as_str()));
    assert_eq!(reply.headers.get("cap-corr-seq"), Some("1"));
    cap.stop().await;
}

#[tokio::test]
async fn what_a_failed_handler_published_is_not_sent_and_a_second_run_publishes_once() {
    let shop = Shop::new();
    let seen = Seen::<u32>::new();
    let cap = shop
        .builder()
        .subscribe("a", "g", async |outbox: Outbox, context: Context| {
            outbox.publish("b", &1)?;
            match context.attempt() {
                1 => Err(cap::HandlerError::retry("not yet")),
                _ => Ok(()),
            }
        })
        .subscribe("b", "g", record(&seen))
        .start()
        .await
        .unwrap();
    cap.publish("a", &()).await.unwrap();
    idle(&cap).await;
    assert_eq!(seen.rest().await, [1]);
    cap.stop().await;
}

#[tokio::test]
async fn a_transactional_handlers_writes_and_messages_are_one_commit_with_its_success() {
    let shop = Shop::new();
    let seen = Seen::<String>::new();
    let bill = |tx: &mut MemoryTransaction, Json(id): Json<String>, outbox: Outbox, context: Context| {
        tx.put(format!("invoice of {id}, attempt {}", context.attempt()), "");
        outbox.publish("order.billed", &id)?;
        match context.attempt() {
            1 => Err(cap::HandlerError::retry("not yet")),
            _ => Ok(()),
        }
    };
    let cap = shop
        .builder()
        .subscribe_in_tx("order.placed", "billing", bill)
        .subscribe("order.billed", "shipping", record(&seen))
        .start()
        .await
        .unwrap();
    cap.publish("order.placed", "A-1").await.unwrap();
    idle(&cap).await;
    assert_eq!(seen.rest().await, ["A-1"]);
    assert_eq!(shop.storage.entries(), [("invoice of A-1, attempt 2".to_owned(), String::new())]);
    cap.stop().await;
}

#[tokio::test]
async fn a_handler_that_is_lent_a_transaction_commits_with_its_success_or_not_at_all() {
    let shop = Shop::new();
    let seen = Seen::<String>::new();
    let bill = async |mut tx: Tx<MemoryStorage>, Json(id): Json<String>, outbox: Outbox, context: Context| {
        tx.put(format!("invoice of {id}, attempt {}", context.attempt()), "");
        outbox.publish("order.billed", &id)?;
        match context.attempt() {
            1 => Err(cap::HandlerError::retry("not yet")),
            2 => panic!("not yet, either"),
            _ => Ok(()),
        }
    };
    let cap = shop
        .builder()
        .subscribe("order.placed", "billing", bill)
        .subscribe("order.billed", "shipping", record(&seen))
        .start()
        .await
        .unwrap();
    cap.publish("order.placed", "A-1").await.unwrap();
    idle(&cap).await;
    assert_eq!(seen.rest().await, ["A-1"]);
    assert_eq!(shop.storage.entries(), [("invoice of A-1, attempt 3".to_owned(), String::new())]);
    cap.stop().await;
}

#[tokio::test]
async fn a_transaction_that_a_handler_gave_away_is_not_committed() {
    let shop = Shop::new();
    let dead = Seen::new();
    let (notified, kept) = (dead.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let keeping = Arc::clone(&kept);
    let cap = shop
        .builder()
        .subscribe("t", "g", move |mut tx: Tx<MemoryStorage>| {
            tx.put("effect", "");
            keeping.lock().unwrap().push(tx);
            ready(())
        })
        .on_dead(move |letter| notified.push(letter.reason))
        .start()
        .await
        .unwrap();
    cap.publish("t", &1).await.unwrap();
    assert!(dead.next().await.contains("still in use elsewhere"));
    kept.lock().unwrap().clear();
    assert!(shop.storage.entries().is_empty());
    cap.stop().await;
}

#[tokio::test]
async fn a_delayed_message_comes_at_its_time_and_not_before() {
    let shop = Shop::new();
    let seen = Seen::new();
    let handler = seen.clone();
    let cap = shop
        .builder()
        .subscribe("t", "g", move |Json(n): Json<u32>| {
            handler.push((n, std::time::Instant::now()));
            ready(())
        })
        .start()
        .await
        .unwrap();
    let delay = Duration::from_millis(300);
    let published = std::time::Instant::now();
    let later = Publish::json("t", &2).at(std::time::SystemTime::now() + 2 * delay);
    cap.publish_many([later, Publish::json("t", &1).delay(delay)]).await.unwrap();
    cap.publish("t", &0).await.unwrap();
    for (expected, least) in [(0, Duration::ZERO), (1, delay), (2, 2 * delay)] {
        let (number, at) = seen.next().await;
        assert_eq!(number, expected);
        assert!(at - published >= least.saturating_sub(Duration::from_millis(5)), "{number} came early");
    }
    cap.stop().await;
}
