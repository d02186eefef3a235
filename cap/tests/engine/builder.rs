//! What is wrong with an engine is told when it is built, and names the thing.

use cap::memory::MemoryStorage;
use cap::{Cap, ErrorKind, Json, Options, State, Subscribe};

use crate::support::Shop;

async fn nothing() {}

async fn refused<S: cap::Storage>(builder: cap::CapBuilder<std::sync::Arc<S>>) -> String {
    let error = builder.start().await.expect_err("it started");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_missing_transport_is_named() {
    let error = refused(Cap::builder().storage(MemoryStorage::new())).await;
    assert!(error.contains("transport"), "{error}");
}

#[tokio::test]
async fn two_subscriptions_with_the_same_topic_and_group_are_refused() {
    let shop = Shop::new();
    let error = refused(shop.builder().subscribe("a.b", "g", nothing).subscribe("a.b", "g", nothing)).await;
    assert!(error.contains("a.b") && error.contains('g'), "{error}");
    let cap = shop.builder().subscribe("a.b", "g", nothing).subscribe("a.b", "h", nothing).start().await.unwrap();
    cap.stop().await;
}

#[tokio::test]
async fn a_state_that_nobody_gave_is_named() {
    #[derive(Clone)]
    struct Mailer;
    let shop = Shop::new();
    let handler = |_: State<Mailer>, _: Json<u8>| std::future::ready(());
    let error = refused(shop.builder().subscribe("a.b", "g", handler)).await;
    assert!(error.contains("Mailer") && error.contains("a.b"), "{error}");
    shop.builder().state(Mailer).subscribe("a.b", "g", handler).start().await.unwrap().stop().await;
}

#[tokio::test]
async fn bad_names_and_numbers_are_named() {
    let shop = Shop::new();
    for (topic, group, part) in [
        ("", "g", "topic"),
        ("a*b", "g", "a*b"),
        ("a.b", "", "group"),
        ("a.b", "g\n", "group"),
        ("a.b", &"g".repeat(200), "group"),
    ] {
        let error = refused(shop.builder().subscribe(topic, group, nothing)).await;
        assert!(error.contains(part), "{part} in {error}");
    }
    let error = refused(shop.builder().subscription(Subscribe::to("a.b", nothing).concurrency(0))).await;
    assert!(error.contains("concurrency"), "{error}");
    let error = refused(shop.builder().options(Options { relay_batch: 0, ..Options::default() })).await;
    assert!(error.contains("relay_batch"), "{error}");
}

#[tokio::test]
async fn a_transaction_of_another_storage_is_named() {
    let shop = Shop::new();
    let storage = crate::doubles::Faulty::new(shop.storage.clone(), &[]);
    let handler = async |_: cap::Tx<MemoryStorage>| {};
    let builder = Cap::builder().storage(storage).transport(shop.transport.clone());
    let error = refused(builder.subscribe("a.b", "g", handler)).await;
    assert!(error.contains("Tx<") && error.contains("MemoryStorage") && error.contains("Faulty"), "{error}");
}
