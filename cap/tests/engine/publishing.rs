//! Publishing on its own.

use cap::{ErrorKind, Publish, Table};

use crate::support::{Shop, idle};

#[tokio::test]
async fn the_same_id_again_is_a_duplicate_and_no_second_message() {
    let shop = Shop::new();
    let cap = shop.builder().subscribe("t", "g", async || {}).start().await.unwrap();
    let publish = || Publish::json("t", &1).id("order-1");
    assert!(!cap.publish_one(publish()).await.unwrap().is_duplicate());
    let again = cap.publish_one(publish()).await.unwrap();
    assert!(again.is_duplicate());
    assert_eq!(again.id().as_str(), "order-1");
    idle(&cap).await;
    assert_eq!(shop.records(Table::Outbox).await.len(), 1);
    assert_eq!(shop.records(Table::Inbox).await.len(), 1);
    cap.stop().await;
}

#[tokio::test]
async fn concurrent_publishes_are_all_stored() {
    let shop = Shop::new();
    let cap = shop.builder().subscribe("t", "g", async || {}).start().await.unwrap();
    let tasks: Vec<_> = (0..300)
        .map(|n| {
            let cap = cap.clone();
            tokio::spawn(async move { cap.publish("t", &n).await.unwrap().id().clone() })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for task in tasks {
        ids.insert(task.await.unwrap());
    }
    assert_eq!(ids.len(), 300);
    idle(&cap).await;
    assert_eq!(shop.records(Table::Inbox).await.len(), 300);
    cap.stop().await;
}

#[tokio::test]
async fn many_messages_are_published_together_or_not_at_all() {
    let shop = Shop::new();
    let cap = shop.builder().subscribe("t", "g", async || {}).start().await.unwrap();
    let error = cap.publish_many([Publish::json("t", &1), Publish::json("", &2)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(shop.records(Table::Outbox).await.is_empty());
    let published = cap.publish_many([Publish::json("t", &1), Publish::json("t", &2)]).await.unwrap();
    assert_eq!(published.ids().count(), 2);
    assert_eq!(cap.publish_many([]).await.unwrap().ids().count(), 0);
    cap.stop().await;
}

#[tokio::test]
async fn a_payload_over_the_limit_is_told_before_anything_is_written() {
    let shop = Shop::new();
    let cap = shop.builder().subscribe("t", "g", async || {}).start().await.unwrap();
    let error = cap.publish("t", &"x".repeat(5 * 1024 * 1024)).await.unwrap_err().to_string();
    assert!(error.contains("5242882 bytes, the limit is 4194304"), "{error}");
    assert!(shop.records(Table::Outbox).await.is_empty());
    cap.stop().await;
}

#[tokio::test]
async fn publishing_after_a_stop_says_so() {
    let shop = Shop::new();
    let cap = shop.builder().start().await.unwrap();
    cap.stop().await;
    assert_eq!(cap.publish("t", &1).await.unwrap_err().kind(), ErrorKind::Stopped);
}
