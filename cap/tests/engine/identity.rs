//! What an id means: two messages with one id are both handled, and nothing is dropped in silence.

use std::future::ready;

use cap::memory::{MemoryStorage, MemoryTransport};
use cap::{Cap, Json, Options, Outbox, Publish, Status, Table};

use crate::doubles::{Fault, Faulty, Trouble, Troubled};
use crate::support::{Seen, Shop, eventually, idle, options};

/// A service with an outbox of its own.
async fn publisher(service: &str, transport: &Troubled) -> Cap<MemoryStorage> {
    let options = Options { service: service.into(), ..options() };
    Cap::builder().storage(MemoryStorage::new()).transport(transport.clone()).options(options).start().await.unwrap()
}

async fn publish(cap: &Cap<MemoryStorage>, topic: &str, payload: u32) {
    cap.publish_one(Publish::json(topic, &payload).id("42")).await.unwrap();
    idle(cap).await;
}

/// A group that leaves what it handled of `a` and `b`.
async fn group(storage: &Faulty, transport: &Troubled, seen: &Seen<u32>, dead: &Seen<String>) -> Cap<Faulty> {
    let (a, b, told) = (seen.clone(), seen.clone(), dead.clone());
    let handler = |seen: Seen<u32>| {
        move |Json(n): Json<u32>, outbox: Outbox| {
            seen.push(n);
            ready(outbox.publish("c", &()).map(drop))
        }
    };
    let builder = Cap::builder().storage(storage.clone()).transport(transport.clone()).options(options());
    builder
        .subscribe("a", "g", handler(a))
        .subscribe("b", "g", handler(b))
        .subscribe("c", "h", || ready(()))
        .on_dead(move |letter| told.push(letter.reason))
        .start()
        .await
        .unwrap()
}

fn inbox(storage: &Faulty) -> Shop {
    Shop { storage: storage.inner.clone(), transport: MemoryTransport::new() }
}

/// Everything that is sent arrives twice.
fn twice() -> Troubled {
    Troubled::new([Trouble::Twice; 50])
}

#[tokio::test]
async fn two_services_that_say_the_same_id_are_both_heard() {
    let (transport, seen, dead) = (twice(), Seen::new(), Seen::new());
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    let cap = group(&storage, &transport, &seen, &dead).await;
    let (orders, stock) = (publisher("orders", &transport).await, publisher("stock", &transport).await);
    // To another topic, and to the same.
    publish(&orders, "a", 1).await;
    publish(&stock, "b", 2).await;
    publish(&stock_again(&transport).await, "a", 3).await;
    idle(&cap).await;
    let mut handled = seen.rest().await;
    handled.sort_unstable();
    assert_eq!(handled, [1, 2, 3]);
    assert!(dead.rest().await.is_empty());
    let records = inbox(&storage).records(Table::Inbox).await;
    let of_group = records.iter().filter(|record| record.group.as_ref().is_some_and(|group| group.as_str() == "g.v1"));
    assert!(of_group.clone().all(|record| record.status == Status::Succeeded));
    assert_eq!(of_group.count(), 3);
    // What their handlers publish is told apart, too.
    assert_eq!(inbox(&storage).records(Table::Outbox).await.len(), 3);
    for cap in [orders, stock] {
        cap.stop().await;
    }
    cap.stop().await;
}

/// The same service with another database.
async fn stock_again(transport: &Troubled) -> Cap<MemoryStorage> {
    publisher("stock", transport).await
}

#[tokio::test]
async fn a_duplicate_with_another_content_is_kept_dead_and_says_so() {
    let (transport, seen, dead) = (twice(), Seen::new(), Seen::new());
    let storage = Faulty::new(MemoryStorage::new(), &[Fault::ListFails]);
    let cap = group(&storage, &transport, &seen, &dead).await;
    let (first, second) = (publisher("orders", &transport).await, publisher("orders", &transport).await);
    publish(&first, "a", 1).await;
    publish(&second, "a", 2).await;
    idle(&cap).await;
    assert_eq!(storage.left(), 0);
    assert_eq!(seen.rest().await, [1]);
    let reasons = dead.rest().await;
    assert!(reasons.len() == 1 && reasons[0].contains("`42`") && reasons[0].contains("another content"), "{reasons:?}");
    let kept = eventually(async || {
        let records = inbox(&storage).records(Table::Inbox).await;
        records.into_iter().find(|record| record.status == Status::Failed)
    })
    .await;
    assert!(kept.content.contains(r#""Content":2"#), "{}", kept.content);
    cap.stop().await;
}
