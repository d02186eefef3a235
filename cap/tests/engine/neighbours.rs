//! One bad message never stops its neighbours (promise 11).

use std::sync::Arc;
use std::time::Duration;

use cap::lifecycle::MAX_REASON;
use cap::memory::MemoryStorage;
use cap::storage::{NewRecord, Settlement};
use cap::{Cap, ErrorKind, HandlerError, Json, Options, Publish, Status, Table};
use tokio::sync::Semaphore;

use crate::doubles::{Faulty, Troubled, Writes, refusal};
use crate::support::{Seen, Shop, becomes, eventually, idle, never_polling, options, record};

#[tokio::test]
async fn a_reason_of_megabytes_is_cut_and_told_as_cut() {
    let shop = Shop::new();
    let dead = Seen::new();
    let notified = dead.clone();
    let fails = |_: Json<u32>| async { Err::<(), _>(HandlerError::permanent("ä".repeat(4_500_000))) };
    let builder = shop.builder().subscribe("t", "g", fails);
    let cap = builder.on_dead(move |letter| notified.push(letter.reason)).start().await.unwrap();
    cap.publish("t", &1).await.unwrap();
    let reason = dead.next().await;
    assert!(reason.len() <= MAX_REASON && reason.ends_with("(cut: it had 9000000 bytes)"), "{} bytes", reason.len());
    cap.stop().await;
}

/// Refuses settlements whose reason is not ASCII, as a database with another encoding does.
fn refuses_umlauts(settlements: &[Settlement]) -> Option<cap::Error> {
    let is_refused = |settlement: &Settlement| settlement.state.reason().is_some_and(|reason| !reason.is_ascii());
    settlements.iter().any(is_refused).then(|| refusal(ErrorKind::Rejected))
}

#[tokio::test]
async fn an_outcome_that_the_database_refuses_is_written_in_plain_words_and_the_others_as_they_are() {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    storage.refuse(|writes| match writes {
        Writes::Claim => None,
        Writes::Settle(settlements) => refuses_umlauts(settlements),
        Writes::Insert(..) => None,
    });
    let fails_at_seven = |Json(n): Json<u32>| async move {
        if n == 7 { Err(HandlerError::permanent("größer als erlaubt")) } else { Ok(()) }
    };
    let builder = Cap::builder().storage(storage.clone()).transport(cap::memory::MemoryTransport::new());
    let cap = builder.options(options()).subscribe("t", "g", fails_at_seven).start().await.unwrap();
    cap.publish_many((0..50).map(|n| Publish::json("t", &n))).await.unwrap();
    idle(&cap).await;
    let shop = Shop { storage: storage.inner.clone(), ..Shop::new() };
    let records = shop.records(Table::Inbox).await;
    let dead: Vec<_> = records.iter().filter(|record| record.status == Status::Failed).collect();
    assert_eq!((records.len(), dead.len(), dead[0].attempts), (50, 1, 1));
    assert_eq!(dead[0].reason.as_deref(), Some("gr??er als erlaubt"));
    becomes(&cap, true).await;
    cap.stop().await;
}

/// An engine on a storage that refuses some records of the inbox.
async fn refusing(
    seen: &Seen<u32>,
    refuses: impl Fn(&[NewRecord]) -> Option<cap::Error> + Send + 'static,
) -> (Shop, Cap<Faulty>) {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    storage.refuse(move |writes| match writes {
        Writes::Insert(Table::Inbox, records) => refuses(records),
        _ => None,
    });
    let builder = Cap::builder().storage(storage.clone()).transport(cap::memory::MemoryTransport::new());
    let cap = builder.options(options()).subscribe("t", "g", record(seen)).start().await.unwrap();
    (Shop { storage: storage.inner.clone(), ..Shop::new() }, cap)
}

#[tokio::test]
async fn a_delivery_that_the_inbox_refuses_for_its_size_is_parked_without_its_payload_and_acknowledged() {
    let seen = Seen::new();
    let too_large = |records: &[NewRecord]| {
        records.iter().any(|record| record.content.len() > 10_000).then(|| refusal(ErrorKind::Rejected))
    };
    let (shop, cap) = refusing(&seen, too_large).await;
    let messages = (0..7).map(|n| match n {
        3 => Publish::json("t", &"x".repeat(20_000)),
        n => Publish::json("t", &n),
    });
    cap.publish_many(messages).await.unwrap();
    idle(&cap).await;
    let mut handled = seen.rest().await;
    handled.sort();
    assert_eq!(handled, [0, 1, 2, 4, 5, 6]);
    let records = shop.records(Table::Inbox).await;
    let parked = records.iter().find(|record| record.status == Status::Failed).unwrap();
    let reason = parked.reason.as_deref().unwrap();
    assert!(reason.contains("20002 bytes (SHA-256 ") && reason.contains("on purpose"), "{reason}");
    assert!(parked.content.is_ascii() && parked.content.len() < 2000);
    becomes(&cap, true).await;
    cap.stop().await;
}

#[tokio::test]
async fn a_delivery_that_the_inbox_refuses_for_its_letters_is_stored_in_others_and_handled() {
    let seen = Seen::<String>::new();
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    storage.refuse(|writes| match writes {
        Writes::Insert(Table::Inbox, records) if records.iter().any(|record| !record.content.is_ascii()) => {
            Some(refusal(ErrorKind::Rejected))
        }
        _ => None,
    });
    let builder = Cap::builder().storage(storage.clone()).transport(cap::memory::MemoryTransport::new());
    let cap = builder.options(options()).subscribe("t", "g", record(&seen)).start().await.unwrap();
    cap.publish_many(["a", "日本 𝄞", "b"].map(|text| Publish::json("t", text))).await.unwrap();
    let mut handled = [seen.next().await, seen.next().await, seen.next().await];
    handled.sort();
    assert_eq!(handled, ["a", "b", "日本 𝄞"]);
    cap.stop().await;
}

/// The inbox takes nothing for a while, which so many deliveries outlive.
async fn outlived(number: u32) {
    let seen = Seen::<u32>::new();
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    let builder = Cap::builder().storage(storage.clone()).transport(cap::memory::MemoryTransport::new());
    let cap = builder.options(options()).subscribe("t", "g", record(&seen)).start().await.unwrap();
    storage.refuse(|writes| match writes {
        Writes::Insert(Table::Inbox, _) => Some(refusal(ErrorKind::Environment)),
        _ => None,
    });
    becomes(&cap, true).await;
    cap.publish_many((0..number).map(|n| Publish::json("t", &n))).await.unwrap();
    becomes(&cap, false).await;
    // Longer than deliveries are kept here while everything is refused: they go back, and come again.
    let given_back = eventually(async || {
        let health = cap.health();
        health
            .ill()
            .any(|(name, error)| name.starts_with("consumer") && error.kind() == ErrorKind::Environment)
            .then_some(())
    });
    given_back.await;
    // And longer: what only tries whether the storage takes anything again gives back, too.
    tokio::time::timeout(Duration::from_secs(12), std::future::pending::<()>()).await.unwrap_err();
    storage.refuse(|_| None);
    idle(&cap).await;
    let mut handled = seen.rest().await;
    handled.sort();
    assert_eq!(handled, (0..number).collect::<Vec<u32>>(), "each once, and none parked");
    becomes(&cap, true).await;
    cap.stop().await;
}

#[tokio::test]
async fn rights_and_full_disks_are_no_fault_of_a_delivery() {
    tokio::join!(outlived(1), outlived(100));
}

#[tokio::test]
async fn what_the_storage_blames_on_the_environment_for_ever_is_found_all_the_same() {
    let seen = Seen::new();
    // It is wrong: one message is at fault.
    let blames = |records: &[NewRecord]| {
        records.iter().any(|record| record.content.contains("poison")).then(|| refusal(ErrorKind::Environment))
    };
    let (_, cap) = refusing(&seen, blames).await;
    let messages = (0..20).map(|n| if n == 5 { Publish::json("t", "poison") } else { Publish::json("t", &n) });
    cap.publish_many(messages).await.unwrap();
    let mut handled = Vec::new();
    while handled.len() < 19 {
        handled.push(seen.next().await);
    }
    cap.stop().await;
}

#[tokio::test]
async fn publishes_that_share_a_commit_do_not_share_a_refusal() {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    storage.refuse(|writes| match writes {
        Writes::Insert(Table::Outbox, records) => {
            records.iter().any(|record| record.content.contains("poison")).then(|| refusal(ErrorKind::Rejected))
        }
        _ => None,
    });
    let builder = Cap::builder().storage(storage).transport(cap::memory::MemoryTransport::new()).options(options());
    let cap = builder.start().await.unwrap();
    let publishing: Vec<_> = (0..40)
        .map(|n| {
            let cap = cap.clone();
            tokio::spawn(async move { cap.publish("t", if n == 17 { "poison" } else { "good" }).await })
        })
        .collect();
    let mut refused = 0;
    for publish in publishing {
        refused += u32::from(publish.await.unwrap().is_err());
    }
    assert_eq!(refused, 1);
    cap.stop().await;
}

#[tokio::test]
async fn a_full_queue_is_its_topics_affair() {
    let transport = Troubled::new([]);
    transport.refuse(|message| (message.topic.as_str() == "full").then(|| refusal(ErrorKind::Environment)));
    let (shop, seen) = (Shop::new(), Seen::<u32>::new());
    let full = Seen::<u32>::new();
    let builder = shop.builder().transport(transport.clone()).subscribe("t", "g", record(&seen));
    let cap = builder.subscribe("full", "g", record(&full)).start().await.unwrap();
    cap.publish_many((0..3000).map(|n| Publish::json("full", &n))).await.unwrap();
    eventually(async || (!cap.health().waiting.is_empty()).then_some(())).await;
    let began = tokio::time::Instant::now();
    cap.publish_many((0..50).map(|n| Publish::json("t", &n))).await.unwrap();
    for _ in 0..50 {
        seen.next().await;
    }
    // Far below the breaker's pauses; a refused topic that held up the others would cost many of them.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(shop.records(Table::Outbox).await.iter().all(|record| record.status != Status::Failed));
    transport.refuse(|_| None);
    for _ in 0..3000 {
        full.next().await;
    }
    idle(&cap).await;
    assert!(cap.health().waiting.is_empty());
    cap.stop().await;
}

/// A handler that hangs until `gate` is opened, beside a healthy one of its group: 5,000 messages that wait for it, of as
/// many topics as `topic` tells.
async fn a_hanging_handler_takes_nothing_from(pattern: &str, topic: fn(usize) -> String) {
    const HANGING: usize = 5000;
    let (shop, seen, freed) = (Shop::new(), Seen::<u32>::new(), Seen::<u32>::new());
    let gate = Arc::new(Semaphore::new(0));
    let (opened, through) = (Arc::clone(&gate), freed.clone());
    let hangs = move |Json(n): Json<u32>| {
        let (opened, through) = (Arc::clone(&opened), through.clone());
        async move {
            // Until it is closed.
            let _ = opened.acquire().await;
            through.push(n);
        }
    };
    let builder = shop.builder().options(never_polling()).subscribe(pattern, "g", hangs);
    let cap = builder.subscribe("healthy", "g", record(&seen)).start().await.unwrap();
    cap.publish_many((0..HANGING).map(|n| Publish::json(topic(n), &n))).await.unwrap();
    for round in 0..20_u32 {
        cap.publish_many((0..50).map(|n| Publish::json("healthy", &(round * 50 + n)))).await.unwrap();
        for n in 0..50 {
            assert_eq!(seen.next().await, round * 50 + n);
        }
    }
    gate.close();
    let mut handled = Vec::new();
    while handled.len() < HANGING {
        handled.push(freed.next().await);
    }
    handled.sort();
    assert!(handled.into_iter().eq(0..HANGING as u32), "each once");
    cap.stop().await;
}

#[tokio::test]
async fn a_handler_that_hangs_takes_nothing_from_the_others_of_its_group() {
    a_hanging_handler_takes_nothing_from("hangs", |_| "hangs".into()).await;
}

#[tokio::test]
async fn a_handler_of_a_pattern_that_hangs_takes_nothing_from_the_others_of_its_group() {
    a_hanging_handler_takes_nothing_from("hangs.*", |n| format!("hangs.{}", n % 7)).await;
    a_hanging_handler_takes_nothing_from("hangs.*", |n| format!("hangs.{}", n % 700)).await;
}

#[tokio::test]
async fn a_handler_that_hangs_on_large_messages_leaves_bytes_to_the_others_of_its_group() {
    let (shop, seen) = (Shop::new(), Seen::<u32>::new());
    let limited = Options { in_flight_bytes: 80_000, ..never_polling() };
    let builder = shop.builder().options(Options { drain: Duration::from_millis(10), ..limited });
    let builder = builder.subscribe("hangs", "g", std::future::pending::<()>);
    let cap = builder.subscribe("healthy", "g", record(&seen)).start().await.unwrap();
    cap.publish_many((0..100).map(|_| Publish::json("hangs", &"x".repeat(9000)))).await.unwrap();
    for n in 0..200 {
        cap.publish("healthy", &n).await.unwrap();
        assert_eq!(seen.next().await, n);
    }
    cap.stop().await;
}
