//! Records whose attempts ended with their process. The process dies here by an engine that is let go with its runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cap::lifecycle::{self, Begun, MAX_REASON, Outcome, Rules};
use cap::storage::{Claim, ClaimRequest, Lane, NewRecord, Query, Record, Storage};
use cap::{
    BoxFuture, Due, Group, Json, MessageId, NodeId, Publish, RetryPolicy, Status, Subscribe, Table, Topic, Version,
};

use crate::support::{Seen, Shop, dies, idle, record};

fn delivery(n: u32) -> NewRecord {
    NewRecord {
        message_id: MessageId::try_from(format!("m{n}").as_str()).unwrap(),
        version: Version::default(),
        topic: Topic::from_stored("t"),
        group: Some(Group::from_stored("g.v1")),
        content: format!(r#"{{"Id":"m{n}","Content":{n},"CallbackName":null,"Headers":{{"cap-msg-id":"m{n}"}}}}"#)
            .into(),
        state: lifecycle::scheduled(Due::Now),
    }
}

/// One that waits after so many crashes.
fn suspect(n: u32, crashes: u32) -> NewRecord {
    let (retry, keep) = (RetryPolicy::default(), Duration::from_secs(60));
    let rules = Rules { retry, keep_succeeded: keep, keep_dead: keep };
    let begun = Begun { attempts: crashes + 1, crashes, reason: None };
    let state = lifecycle::settle(&begun, Outcome::GivenBack(Duration::ZERO), &rules, 0.0);
    NewRecord { state, ..delivery(n) }
}

/// A handler that tells, for each message from number `first` on, how many of these are in flight.
fn counts_from(
    first: u32,
    shop: &Shop,
    seen: &Seen<usize>,
) -> impl Fn(Json<u32>) -> BoxFuture<'static, ()> + Clone + Send + Sync + use<> {
    let (storage, seen) = (shop.storage.clone(), seen.clone());
    move |Json(n)| {
        let (storage, seen) = (storage.clone(), seen.clone());
        Box::pin(async move {
            if n < first {
                return;
            }
            let query = Query { status: Some(Status::Queued), limit: 10_000, ..Query::default() };
            let in_flight = storage.list(Table::Inbox, query).await.unwrap();
            let number = |record: &Record| record.message_id.as_str()[1..].parse::<u32>().unwrap();
            seen.push(in_flight.iter().filter(|record| number(record) >= first).count());
        })
    }
}

/// Puts messages into the inbox that a node held when it died, so many times.
async fn suspects(shop: &Shop, number: u32, crashes: u32) {
    let group = Group::from_stored("g.v1");
    let records = (0..number).map(delivery);
    shop.storage.insert(Table::Inbox, records.collect(), None).await.unwrap();
    for crash in 0..crashes {
        let node = NodeId::generate();
        shop.storage.join(node, Duration::from_secs(60)).await.unwrap();
        let lane = if crash == 0 { Lane::Inbox(group.clone()) } else { Lane::Suspects(group.clone()) };
        let request = ClaimRequest::new(lane, Version::default(), Claim::by(node), usize::MAX);
        assert_eq!(shop.storage.claim(request).await.unwrap().records.len(), number as usize);
        dies(&shop.storage, node).await;
    }
}

#[tokio::test]
async fn many_innocents_are_worked_off_in_few_rounds_and_are_suspects_no_more() {
    let shop = Shop::new();
    suspects(&shop, 3000, 3).await;
    let seen = Seen::<u32>::new();
    let most = Arc::new(AtomicUsize::new(0));
    let (now, highest, handled) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&most), seen.clone());
    let handler = move |Json(n): Json<u32>| {
        let (now, highest, handled) = (Arc::clone(&now), Arc::clone(&highest), handled.clone());
        async move {
            highest.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
            handled.push(n);
        }
    };
    let subscription = Subscribe::to("t", handler).group("g").concurrency(16);
    let cap = shop.builder().subscription(subscription).start().await.unwrap();
    // One of the first is alone.
    let mut numbers = vec![seen.next().await];
    cap.publish("t", &9999).await.unwrap();
    while numbers.len() < 3001 {
        numbers.push(seen.next().await);
    }
    idle(&cap).await;
    let fresh = numbers.iter().position(|n| *n == 9999).unwrap();
    assert!(fresh < 2000, "a healthy message waited behind {fresh} suspects");
    assert!(most.load(Ordering::SeqCst) > 4, "suspects were worked on one by one");
    let records = shop.records(Table::Inbox).await;
    assert!(records.iter().all(|record| record.status == Status::Succeeded && record.crashes == 0));
    cap.stop().await;
}

/// Whoever was in flight at the last crash, too, has one crash more than the others. Were as many of these tried at once as
/// of the others, all of them would be suspects of the next crash again.
#[tokio::test]
async fn closer_suspects_begin_with_one_though_others_are_worked_on_many_at_once() {
    let shop = Shop::new();
    let records = (0..200).map(|n| suspect(n, 3)).chain((200..240).map(|n| suspect(n, 4)));
    shop.storage.insert(Table::Inbox, records.collect(), None).await.unwrap();
    let in_flight = Seen::new();
    let subscription = Subscribe::to("t", counts_from(200, &shop, &in_flight)).group("g").concurrency(16);
    let cap = shop.builder().subscription(subscription).start().await.unwrap();
    assert_eq!(in_flight.next().await, 1);
    idle(&cap).await;
    assert!(in_flight.rest().await.into_iter().max() > Some(2), "closer suspects were worked on one by one");
    let records = shop.records(Table::Inbox).await;
    assert!(records.iter().all(|record| record.status == Status::Succeeded && record.attempts <= 5));
    cap.stop().await;
}

#[tokio::test]
async fn suspects_of_another_crash_begin_with_one_again() {
    let shop = Shop::new();
    shop.storage.insert(Table::Inbox, (0..200).map(|n| suspect(n, 3)).collect(), None).await.unwrap();
    let in_flight = Seen::new();
    let subscription = Subscribe::to("t", counts_from(200, &shop, &in_flight)).group("g").concurrency(16);
    let cap = shop.builder().subscription(subscription).start().await.unwrap();
    idle(&cap).await;
    shop.storage.insert(Table::Inbox, (200..240).map(|n| suspect(n, 3)).collect(), None).await.unwrap();
    assert_eq!(in_flight.next().await, 1);
    idle(&cap).await;
    cap.stop().await;
}

#[tokio::test]
async fn after_too_many_crashes_a_message_is_tried_alone_and_an_innocent_lives() {
    let shop = Shop::new();
    let crashes = RetryPolicy::default().crashes;
    suspects(&shop, 20, crashes + 5).await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, highest) = (Arc::clone(&now), Arc::clone(&most));
    let handler = move |_: Json<u32>| {
        let (now, highest) = (Arc::clone(&running), Arc::clone(&highest));
        async move {
            highest.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
        }
    };
    let subscription = Subscribe::to("t", handler).group("g").concurrency(16);
    let cap = shop.builder().subscription(subscription).start().await.unwrap();
    idle(&cap).await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    let records = shop.records(Table::Inbox).await;
    assert!(records.iter().all(|record| record.status == Status::Succeeded));
    cap.stop().await;
}

/// Were it sent beside the one that is tried alone and did it kill the process, the other would be struck for it.
#[tokio::test]
async fn what_was_being_sent_when_the_process_died_is_not_sent_beside_a_message_that_is_tried_alone() {
    let shop = Shop::new();
    suspects(&shop, 1, RetryPolicy::default().crashes + 5).await;
    let (began, sent) = (Seen::new(), Seen::<u32>::new());
    let goes_on = Arc::new(tokio::sync::Notify::new());
    let (begins, waits) = (began.clone(), Arc::clone(&goes_on));
    let slow = move |_: Json<u32>| {
        let (begins, waits) = (begins.clone(), Arc::clone(&waits));
        async move {
            begins.push(());
            waits.notified().await;
        }
    };
    let subscription = Subscribe::to("u", record(&sent)).group("h");
    let cap = shop.builder().subscribe("t", "g", slow).subscription(subscription).start().await.unwrap();
    began.next().await;
    let outgoing =
        |n: u32, crashes: u32| NewRecord { topic: Topic::from_stored("u"), group: None, ..suspect(n, crashes) };
    shop.storage.insert(Table::Outbox, vec![outgoing(7, 1), outgoing(8, 0)], None).await.unwrap();
    cap.publish("u", &9).await.unwrap();
    let mut others = [sent.next().await, sent.next().await];
    others.sort_unstable();
    assert_eq!(others, [8, 9]);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(sent.rest().await.is_empty(), "a suspect was sent beside one that was tried alone");
    goes_on.notify_one();
    assert_eq!(sent.next().await, 7);
    idle(&cap).await;
    cap.stop().await;
}

/// The process is gone before the handler ends.
fn tried_by_a_process_that_dies(shop: &Shop) {
    let (storage, transport) = (shop.storage.clone(), shop.transport.clone());
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let begun = Seen::new();
            let handler = begun.clone();
            let hangs = move |_: Json<u32>| {
                handler.push(());
                std::future::pending::<()>()
            };
            let builder = cap::Cap::builder().storage(storage).transport(transport);
            let cap = builder.options(crate::support::options()).subscribe("t", "g", hangs).start().await.unwrap();
            begun.next().await;
            std::mem::forget(cap);
        });
        drop(runtime);
    });
    process.join().unwrap();
}

#[tokio::test]
async fn a_message_with_which_the_process_died_alone_twice_is_given_up() {
    let shop = Shop::new();
    let dead = Seen::<(u32, String)>::new();
    let notified = dead.clone();
    suspects(&shop, 1, RetryPolicy::default().crashes - 1).await;
    // Another may have killed the first time that it was alone.
    for _ in 0..2 {
        assert!(dead.rest().await.is_empty());
        tried_by_a_process_that_dies(&shop);
        shop.storage.advance(Duration::from_secs(61));
    }
    let seen = Seen::<u32>::new();
    let builder = shop.builder().subscribe("t", "g", record(&seen));
    let cap = builder.on_dead(move |letter| notified.push((letter.attempts, letter.reason))).start().await.unwrap();
    let (_, reason) = dead.next().await;
    assert!(reason.contains("11 attempts in a row ended with their process, the last two alone"), "{reason}");
    assert!(reason.len() < MAX_REASON && seen.rest().await.is_empty());
    cap.publish_one(Publish::json("t", &5)).await.unwrap();
    assert_eq!(seen.next().await, 5);
    cap.stop().await;
}
