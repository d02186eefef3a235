//! Each loop is well again at its next success, and nothing is called well that is not.

use cap::memory::MemoryStorage;
use cap::storage::{Query, Storage as _};
use cap::{Cap, Error, ErrorKind, LoopHealth, Publish, Status, Table};

use crate::doubles::{Call, Fault, Faulty, Trouble, Troubled, Writes, refusal};
use crate::support::{Seen, Shop, becomes, eventually, idle, options, record};

/// The loops that are ill.
fn ill<S: ?Sized>(cap: &Cap<S>) -> Vec<String> {
    cap.health().ill().map(|(name, _)| name.to_owned()).collect()
}

async fn start(storage: &Faulty, transport: Troubled, seen: &Seen<u32>) -> Cap<Faulty> {
    let builder = Cap::builder().storage(storage.clone()).transport(transport).options(options());
    builder.subscribe("t", "g", record(seen)).start().await.unwrap()
}

#[tokio::test]
async fn after_any_fault_of_the_storage_every_loop_is_well_again() {
    let faults = [
        Fault::ClaimPanics(Table::Outbox),
        Fault::ClaimPanics(Table::Inbox),
        Fault::ClaimAnswerLost(Table::Inbox),
        Fault::SettleAnswerLost(Table::Outbox),
        Fault::InsertAnswerLost(Table::Inbox),
        Fault::LookFails,
        Fault::HeartbeatFails,
        Fault::HeartbeatPanics,
        Fault::JoinFails,
        Fault::CollectFails,
    ];
    for fault in faults {
        let storage = Faulty::new(MemoryStorage::new(), &[fault]);
        let seen = Seen::new();
        let cap = start(&storage, Troubled::new([]), &seen).await;
        let struck = async || {
            // More than the node takes at once, so that some are claimed.
            cap.publish_many((0..40).map(|n| Publish::json("t", &n))).await.ok();
            (storage.left() == 0).then_some(())
        };
        eventually(struck).await;
        becomes(&cap, true).await;
        assert_eq!(ill(&cap), [""; 0], "after {fault:?}");
        cap.stop().await;
    }
}

#[tokio::test]
async fn a_panic_names_the_loop_and_its_text_and_no_sentence_is_said_twice() {
    let storage = Faulty::new(MemoryStorage::new(), &[Fault::ClaimPanics(Table::Outbox)]);
    let cap = start(&storage, Troubled::new([]), &Seen::new()).await;
    cap.publish("t", &1).await.unwrap();
    let told = eventually(async || {
        let health = cap.health();
        health.ill().find(|(name, _)| *name == "node").map(|(_, error)| error.to_string())
    });
    let text = told.await;
    assert!(text.contains("`relay`") && text.contains("on purpose"), "{text}");
    assert_eq!(text.matches("(may work later)").count(), 1, "{text}");
    becomes(&cap, true).await;
    cap.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_away_stays_ill_until_something_came_through() {
    let transport = Troubled::new([Trouble::Away; 4]);
    let (shop, seen) = (Shop::new(), Seen::<u32>::new());
    let cap = shop.builder().transport(transport.clone()).subscribe("t", "g", record(&seen)).start().await.unwrap();
    becomes(&cap, true).await;
    cap.publish("t", &1).await.unwrap();
    becomes(&cap, false).await;
    while transport.left() > 0 {
        assert_eq!(ill(&cap), ["broker"]);
        tokio::task::yield_now().await;
    }
    assert_eq!(seen.next().await, 1);
    becomes(&cap, true).await;
    cap.stop().await;
}

#[tokio::test]
async fn what_the_broker_says_against_sending_is_told_at_once() {
    let transport = Troubled::new([]);
    let shop = Shop::new();
    let cap = shop.builder().transport(transport.clone()).start().await.unwrap();
    becomes(&cap, true).await;
    let alarm = Error::new(ErrorKind::Environment, "send to", "the double", "it is low on memory");
    *transport.obstacle.lock().unwrap() = Some(alarm);
    assert!(!cap.health().ready);
    let json = serde_json::to_value(cap.health()).unwrap();
    assert_eq!((&json["live"], &json["ready"]), (&true.into(), &false.into()));
    assert_eq!(json["loops"]["broker"]["error"]["reason"], "it is low on memory");
    *transport.obstacle.lock().unwrap() = None;
    assert!(cap.health().ready);
    cap.stop().await;
}

#[tokio::test]
async fn a_relay_that_brings_nothing_through_is_ill_and_one_that_brings_some_is_not() {
    let shop = Shop::new();
    let seen = Seen::<u32>::new();
    let cap = shop.builder().subscribe("t", "g", record(&seen)).start().await.unwrap();
    becomes(&cap, true).await;
    cap.publish("nobody.wants.it", &1).await.unwrap();
    becomes(&cap, false).await;
    assert_eq!(ill(&cap), ["broker"]);
    assert_eq!(cap.health().waiting.len(), 1);
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, 1);
    becomes(&cap, true).await;
    cap.stop().await;
}

#[tokio::test]
async fn health_says_how_many_deliveries_wait_for_what() {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    let seen = Seen::new();
    let cap = start(&storage, Troubled::new([]), &seen).await;
    storage.refuse(|writes| match writes {
        Writes::Insert(Table::Inbox, _) => Some(refusal(ErrorKind::Environment)),
        _ => None,
    });
    cap.publish_many((0..3).map(|n| Publish::json("t", &n))).await.unwrap();
    let told = eventually(async || {
        let health = cap.health();
        health.ill().find(|(name, _)| name.starts_with("consumer")).map(|(_, error)| error.to_string())
    });
    let text = told.await;
    assert!(text.contains("deliveries of group `g.v1`") && text.contains("on purpose"), "{text}");
    storage.refuse(|_| None);
    idle(&cap).await;
    becomes(&cap, true).await;
    cap.stop().await;
}

/// Rights to insert, and none to update: what comes from the broker is stored and handled, and stays in flight.
#[tokio::test]
async fn a_node_that_can_store_and_not_settle_is_ill_with_the_reason_until_it_can() {
    let (transport, seen) = (Troubled::new([]), Seen::<u32>::new());
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    let cap = start(&storage, transport.clone(), &seen).await;
    let elsewhere = Cap::builder().storage(MemoryStorage::new()).transport(transport).options(options());
    let publisher = elsewhere.start().await.unwrap();
    becomes(&cap, true).await;
    storage.refuse(|writes| (!matches!(writes, Writes::Insert(..))).then(|| refusal(ErrorKind::Environment)));
    publisher.publish_many((0..5).map(|n| Publish::json("t", &n))).await.unwrap();
    for _ in 0..5 {
        seen.next().await;
    }
    let told = eventually(async || match cap.health().loops.remove("settle inbox") {
        Some(LoopHealth::Ill { failures: 3.., error, .. }) => Some(error.to_string()),
        _ => None,
    });
    let text = told.await;
    assert!(text.contains("on purpose"), "{text}");
    assert!(!cap.health().ready);

    storage.refuse(|_| None);
    becomes(&cap, true).await;
    idle(&cap).await;
    let query = Query { limit: 10, ..Query::default() };
    let records = storage.inner.list(Table::Inbox, query).await.unwrap();
    let outcomes: Vec<_> = records.iter().map(|record| (record.status, record.attempts)).collect();
    assert_eq!(outcomes, [(Status::Succeeded, 1); 5]);
    assert!(seen.rest().await.is_empty(), "what was handled was handled again");
    publisher.stop().await;
    cap.stop().await;
}

#[tokio::test]
async fn a_takeover_that_hangs_is_no_illness() {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    storage.hang(Call::TakeOver);
    let cap = start(&storage, Troubled::new([]), &Seen::new()).await;
    becomes(&cap, true).await;
    cap.stop().await;
}
