//! What the in-process broker promises beyond the trait: limits, and what becomes of messages when someone goes away.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cap_core::transport::{Confirm, Consumer, Delivery, DeliveryTag, Outgoing, Subscription};
use cap_core::{ErrorKind, Headers, Message, MessageId, Result, Transport};
use cap_transport_memory::{MemoryTransport, MemoryTransportOptions};
use tokio::sync::oneshot;

type Outcome = oneshot::Receiver<Result<()>>;

/// Polls once.
async fn is_pending<T>(mut future: Pin<&mut (dyn Future<Output = T> + Send)>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

fn message(topic: &str) -> Message {
    let payload = Bytes::from_static(b"{}");
    Message { id: MessageId::generate(), topic: topic.parse().unwrap(), headers: Headers::new(), payload }
}

fn with_body(topic: &str, bytes: usize) -> Message {
    Message { payload: vec![b'7'; bytes].into(), ..message(topic) }
}

fn outgoing(message: Message) -> (Outgoing, Outcome) {
    let (report, outcome) = oneshot::channel();
    (Outgoing { message, confirm: Confirm::new(move |result| drop(report.send(result))) }, outcome)
}

fn batch(topic: &str, count: usize) -> (Vec<Outgoing>, Vec<Outcome>) {
    (0..count).map(|_| outgoing(message(topic))).unzip()
}

async fn consumer(transport: &MemoryTransport, group: &str, topic: &str) -> Box<dyn Consumer> {
    let (group, topics) = (group.parse().unwrap(), vec![topic.try_into().unwrap()]);
    transport.subscribe(Subscription { group, topics, prefetch: 100_000, prefetch_bytes: usize::MAX }).await.unwrap()
}

fn tags(deliveries: &[Delivery]) -> Vec<DeliveryTag> {
    deliveries.iter().map(|delivery| delivery.tag).collect()
}

async fn kinds(outcomes: Vec<Outcome>) -> Vec<Option<ErrorKind>> {
    let mut kinds = Vec::new();
    for outcome in outcomes {
        kinds.push(outcome.await.unwrap().err().map(|error| error.kind()));
    }
    kinds
}

#[tokio::test]
async fn a_full_queue_makes_the_sender_wait_until_there_is_room() {
    let transport = MemoryTransport::with_options(MemoryTransportOptions::default().queue_capacity(5));
    let mut consumer = consumer(&transport, "billing", "orders").await;
    let (messages, outcomes) = batch("orders", 8);
    let mut sending = transport.send(messages);
    assert!(is_pending(sending.as_mut()).await);
    let first = consumer.receive(2).await.unwrap();
    assert!(is_pending(sending.as_mut()).await);
    let second = consumer.receive(1).await.unwrap();
    sending.await;
    let third = consumer.receive(100).await.unwrap();
    assert_eq!(third.len(), 5);
    consumer.ack(tags(&[first, second, third].concat())).await.unwrap();
    assert_eq!(kinds(outcomes).await, [None; 8]);
}

#[tokio::test]
async fn a_sender_waits_for_room_no_longer_than_for_confirms() {
    let timeout = Duration::from_millis(50);
    let options = MemoryTransportOptions::default().queue_capacity(2).confirm_timeout(timeout);
    let transport = MemoryTransport::with_options(options);
    let mut consumer = consumer(&transport, "billing", "orders").await;
    let (messages, outcomes) = batch("orders", 3);
    transport.send(messages).await;
    let [unavailable, full] = [ErrorKind::Unavailable, ErrorKind::Environment].map(Some);
    assert_eq!(kinds(outcomes).await, [unavailable, unavailable, full]);
    // The two that had room may still be delivered: an acknowledgement that comes too late does no harm.
    let late = consumer.receive(10).await.unwrap();
    assert_eq!(late.len(), 2);
    consumer.ack(tags(&late)).await.unwrap();
}

#[tokio::test]
async fn a_full_group_does_not_hold_up_what_others_want_in_the_same_batch() {
    let transport = MemoryTransport::with_options(MemoryTransportOptions::default().queue_capacity(1));
    let _slow = consumer(&transport, "slow", "slow.topic").await;
    let mut quick = consumer(&transport, "quick", "quick.topic").await;
    let (mut messages, _outcomes) = batch("slow.topic", 2);
    let (last, outcome) = outgoing(message("quick.topic"));
    messages.push(last);
    let mut sending = transport.send(messages);
    assert!(is_pending(sending.as_mut()).await);
    let received = quick.receive(10).await.unwrap();
    quick.ack(tags(&received)).await.unwrap();
    assert_eq!(outcome.await.unwrap().map_err(|error| error.kind()), Ok(()));
}

#[tokio::test]
async fn nobody_waits_for_a_queue_that_stayed_full_until_something_is_taken_from_it() {
    let long = Duration::from_secs(60);
    let options = MemoryTransportOptions::default().queue_capacity(1).room_timeout(Duration::from_millis(20));
    let transport = MemoryTransport::with_options(options.confirm_timeout(long));
    let mut stuck = consumer(&transport, "stuck", "stuck.topic").await;
    let (messages, mut outcomes) = batch("stuck.topic", 2);
    transport.send(messages).await;
    let full = Some(ErrorKind::Environment);
    assert_eq!(kinds(outcomes.split_off(1)).await, [full]);
    // Sending is done at its first poll, and tells at once.
    let (messages, refused) = batch("stuck.topic", 3);
    assert!(!is_pending(transport.send(messages).as_mut()).await);
    assert_eq!(kinds(refused).await, [full; 3]);
    let first = stuck.receive(9).await.unwrap();
    let (messages, more) = batch("stuck.topic", 1);
    transport.send(messages).await;
    let second = stuck.receive(9).await.unwrap();
    stuck.ack(tags(&[first, second].concat())).await.unwrap();
    assert_eq!(kinds(outcomes).await, [None]);
    assert_eq!(kinds(more).await, [None]);
}

#[tokio::test]
async fn a_queue_is_full_by_its_bytes_as_well() {
    let options = MemoryTransportOptions::default().queue_bytes(100).room_timeout(Duration::from_millis(20));
    let transport = MemoryTransport::with_options(options);
    let mut consumer = consumer(&transport, "billing", "orders").await;
    let (messages, outcomes): (Vec<_>, Vec<_>) = (0..3).map(|_| outgoing(with_body("orders", 60))).unzip();
    transport.send(messages).await;
    let received = consumer.receive(9).await.unwrap();
    assert_eq!(received.len(), 2, "the second begins below the limit");
    consumer.ack(tags(&received)).await.unwrap();
    assert_eq!(kinds(outcomes).await, [None, None, Some(ErrorKind::Environment)]);
}

#[tokio::test]
async fn no_more_bytes_than_the_budget_are_out_but_for_one_larger_message() {
    let transport = MemoryTransport::new();
    let (group, topics) = ("billing".parse().unwrap(), vec!["orders".try_into().unwrap()]);
    let wants = Subscription { group, topics, prefetch: 100, prefetch_bytes: 100 };
    let mut consumer = transport.subscribe(wants).await.unwrap();
    let (messages, _outcomes): (Vec<_>, Vec<_>) =
        [40, 60, 1, 500, 0].into_iter().map(|bytes| outgoing(with_body("orders", bytes))).unzip();
    transport.send(messages).await;
    let sizes = |received: &[Delivery]| received.iter().map(|delivery| delivery.body.len()).collect::<Vec<_>>();
    let first = consumer.receive(9).await.unwrap();
    assert_eq!(sizes(&first), [40, 60]);
    assert!(is_pending(consumer.receive(9).as_mut()).await, "the budget is used up");
    consumer.ack(tags(&first[1..])).await.unwrap();
    let second = consumer.receive(9).await.unwrap();
    assert_eq!(sizes(&second), [1]);
    assert!(is_pending(consumer.receive(9).as_mut()).await, "the large one waits for all others");
    consumer.release(tags(&first[..1])).await.unwrap();
    consumer.ack(tags(&second)).await.unwrap();
    let third = consumer.receive(9).await.unwrap();
    assert_eq!(sizes(&third), [40]);
    consumer.ack(tags(&third)).await.unwrap();
    let large = consumer.receive(9).await.unwrap();
    assert_eq!(sizes(&large), [500], "and is out alone");
    consumer.ack(tags(&large)).await.unwrap();
    assert_eq!(sizes(&consumer.receive(9).await.unwrap()), [0]);
}

#[tokio::test]
async fn a_sender_that_waits_for_room_is_told_when_the_last_consumer_goes_away() {
    let transport = MemoryTransport::with_options(MemoryTransportOptions::default().queue_capacity(1));
    let consumer = consumer(&transport, "billing", "orders").await;
    let (messages, outcomes) = batch("orders", 3);
    let mut sending = transport.send(messages);
    assert!(is_pending(sending.as_mut()).await);
    drop(consumer);
    sending.await;
    assert_eq!(kinds(outcomes).await, [Some(ErrorKind::Unavailable); 3]);
}

#[tokio::test]
async fn a_member_that_gives_up_waiting_does_not_keep_the_wake_up() {
    let transport = MemoryTransport::new();
    let mut one = consumer(&transport, "billing", "orders").await;
    let mut other = consumer(&transport, "billing", "orders").await;
    let mut waits = other.receive(1);
    {
        let mut gives_up = one.receive(1);
        assert!(is_pending(gives_up.as_mut()).await);
        assert!(is_pending(waits.as_mut()).await);
        let (messages, _outcomes) = batch("orders", 1);
        transport.send(messages).await;
    }
    assert_eq!(waits.await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_given_back_stands_first_and_in_its_order() {
    let transport = MemoryTransport::new();
    let mut consumer = consumer(&transport, "billing", "orders").await;
    let (messages, _outcomes) = batch("orders", 6);
    let ids: Vec<String> = messages.iter().map(|outgoing| outgoing.message.id.to_string()).collect();
    transport.send(messages).await;
    let out = consumer.receive(4).await.unwrap();
    consumer.release(vec![out[3].tag, out[1].tag]).await.unwrap();
    let next = consumer.receive(10).await.unwrap();
    let origins: Vec<&str> = next.iter().filter_map(|delivery| delivery.origin.as_deref()).collect();
    assert_eq!(origins, [&ids[1], &ids[3], &ids[4], &ids[5]]);
    assert_eq!(next.iter().map(|delivery| delivery.redelivered).collect::<Vec<_>>(), [true, true, false, false]);
}

#[tokio::test]
async fn a_tag_that_is_not_out_is_invalid_and_the_others_are_acknowledged() {
    let transport = MemoryTransport::new();
    let mut consumer = consumer(&transport, "billing", "orders").await;
    let (messages, outcomes) = batch("orders", 1);
    transport.send(messages).await;
    let out = consumer.receive(1).await.unwrap();
    let error = consumer.ack(vec![DeliveryTag(99), out[0].tag]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(kinds(outcomes).await, [None]);
}

#[tokio::test]
async fn the_broker_ends_with_its_last_connection_and_leaves_nothing_behind() {
    let transport = MemoryTransport::new();
    let mut consumer = consumer(&transport.clone(), "billing", "orders").await;
    let held = Arc::new([0_u8; 16]);
    let gone = Arc::downgrade(&held);
    let mut messages = Vec::new();
    let mut outcomes = Vec::new();
    for _ in 0..3 {
        let payload = Bytes::from_owner(Payload(Arc::clone(&held)));
        let (outgoing, outcome) = outgoing(Message { payload, ..message("orders") });
        messages.push(outgoing);
        outcomes.push(outcome);
    }
    drop(held);
    transport.send(messages).await;
    drop(consumer.receive(1).await.unwrap());
    drop(transport);
    assert_eq!(kinds(outcomes).await, [Some(ErrorKind::Unavailable); 3]);
    assert_eq!(consumer.receive(1).await.unwrap_err().kind(), ErrorKind::Stopped);
    assert_eq!(gone.strong_count(), 0, "messages are still held");
}

/// A body whose owner can be watched.
struct Payload(Arc<[u8; 16]>);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &*self.0
    }
}

#[tokio::test]
async fn a_connection_that_is_dropped_unclosed_leaves_its_consumers_running() {
    let transport = MemoryTransport::new();
    let mut consumer = consumer(&transport.clone(), "billing", "orders").await;
    let (messages, outcomes) = batch("orders", 1);
    transport.send(messages).await;
    let out = consumer.receive(1).await.unwrap();
    consumer.ack(tags(&out)).await.unwrap();
    assert_eq!(kinds(outcomes).await, [None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_messages_pass_quickly() {
    const MESSAGES: usize = 20_000;
    let patient = MemoryTransportOptions::default().room_timeout(Duration::from_secs(5));
    let transport = MemoryTransport::with_options(patient);
    let mut consumer = consumer(&transport.clone(), "billing", "orders.*").await;
    let (messages, outcomes) = batch("orders.placed", MESSAGES);
    let begun = Instant::now();
    let sender = transport.clone();
    let sending = tokio::spawn(async move { sender.send(messages).await });
    let mut count = 0;
    while count < MESSAGES {
        let some = consumer.receive(500).await.unwrap();
        count += some.len();
        consumer.ack(tags(&some)).await.unwrap();
    }
    sending.await.unwrap();
    assert!(kinds(outcomes).await.iter().all(Option::is_none));
    let took = begun.elapsed();
    println!("{MESSAGES} messages took {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}
