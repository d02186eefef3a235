//! A node that cannot store must not take: others of its group can.

use std::time::Duration;

use cap::memory::{MemoryStorage, MemoryTransport, MemoryTransportOptions};
use cap::{Cap, ErrorKind, Publish};
use tokio::sync::watch;

use crate::doubles::{Call, Faulty, Troubled, Writes, refusal};
use crate::support::{PATIENCE, Seen, becomes, eventually, options, record};

const MESSAGES: u32 = 100;
/// Twice the time after which a node gives back what it cannot store, and more.
const SOON: Duration = Duration::from_secs(12);

/// A node of the group `g`.
async fn node(storage: &Faulty, transport: &MemoryTransport, seen: &Seen<u32>) -> Cap<Faulty> {
    let builder = Cap::builder().storage(storage.clone()).transport(transport.clone()).options(options());
    let cap = builder.subscribe("t", "g", record(seen)).start().await.unwrap();
    becomes(&cap, true).await;
    cap
}

/// A node that cannot store any more has taken everything: it gives it back, and another node of the group handles it.
async fn others_get_everything(ails: impl Fn(&Faulty), heals: impl Fn(&Faulty)) {
    let (transport, database, seen) = (MemoryTransport::new(), MemoryStorage::new(), Seen::<u32>::new());
    let [well, ill] = [(); 2].map(|()| Faulty::new(database.clone(), &[]));
    let builder = Cap::builder().storage(MemoryStorage::new()).transport(transport.clone());
    let publisher = builder.options(options()).start().await.unwrap();
    let sick = node(&ill, &transport, &seen).await;
    ails(&ill);
    publisher.publish_many((0..MESSAGES).map(|n| Publish::json("t", &n))).await.unwrap();
    becomes(&sick, false).await;

    let healthy = node(&well, &transport, &seen).await;
    let handled = async {
        let mut handled = Vec::new();
        for _ in 0..MESSAGES {
            handled.push(seen.next().await);
        }
        handled
    };
    let mut handled = tokio::time::timeout(SOON, handled).await.expect("the sick node keeps what it cannot store");
    handled.sort_unstable();
    assert_eq!(handled, (0..MESSAGES).collect::<Vec<_>>());

    heals(&ill);
    becomes(&sick, true).await;
    healthy.stop().await;
    publisher.publish("t", &MESSAGES).await.unwrap();
    assert_eq!(seen.next().await, MESSAGES);
    publisher.stop().await;
    sick.stop().await;
}

#[tokio::test]
async fn a_node_whose_inbox_takes_nothing_gives_back_what_it_got_and_goes_on_once_it_does() {
    let ails = |storage: &Faulty| {
        storage.refuse(|writes| matches!(writes, Writes::Insert(..)).then(|| refusal(ErrorKind::Environment)))
    };
    others_get_everything(ails, |storage| storage.refuse(|_| None)).await;
}

#[tokio::test]
async fn a_node_whose_database_is_away_gives_back_what_it_got() {
    let ails = |storage: &Faulty| storage.refuse(|_| Some(refusal(ErrorKind::Unavailable)));
    others_get_everything(ails, |storage| storage.refuse(|_| None)).await;
}

#[tokio::test]
async fn a_node_whose_database_is_frozen_gives_back_what_it_got() {
    others_get_everything(|storage| storage.hang(Call::Any), |storage| storage.thaw()).await;
}

#[tokio::test]
async fn a_node_that_is_alone_keeps_its_messages_with_the_broker_and_handles_them_once_it_can() {
    let (transport, seen) = (MemoryTransport::new(), Seen::<u32>::new());
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    let cap = node(&storage, &transport, &seen).await;
    storage.refuse(|writes| match writes {
        Writes::Insert(cap::Table::Inbox, _) => Some(refusal(ErrorKind::Environment)),
        _ => None,
    });
    cap.publish_many((0..MESSAGES).map(|n| Publish::json("t", &n))).await.unwrap();
    becomes(&cap, false).await;
    storage.refuse(|_| None);
    becomes(&cap, true).await;
    let mut handled = Vec::new();
    while handled.len() < MESSAGES as usize {
        handled.push(seen.next().await);
    }
    handled.sort_unstable();
    assert_eq!(handled, (0..MESSAGES).collect::<Vec<_>>());
    eventually(async || (cap.in_flight() == 0).then_some(())).await;
    assert!(seen.rest().await.is_empty());
    cap.stop().await;
}

async fn at_least(count: &watch::Sender<u32>, least: u32) {
    let mut count = count.subscribe();
    tokio::time::timeout(PATIENCE, count.wait_for(|count| *count >= least))
        .await
        .expect("it never came to be")
        .unwrap();
}

/// The end of its only insert is what a consumer sees first: that nothing can be stored is said in the same moment, by the
/// insert itself. It gives back all the same; otherwise the delivery stays with a consumer that does nothing with it.
#[tokio::test]
async fn a_consumer_whose_last_insert_has_failed_gives_back_though_nothing_else_comes() {
    // Nothing is sent again because its confirm has not come.
    let patient = MemoryTransportOptions::default().confirm_timeout(Duration::from_secs(3600));
    let transport = Troubled::over(MemoryTransport::with_options(patient), []);
    let (storage, seen) = (Faulty::new(MemoryStorage::new(), &[]), Seen::<u32>::new());
    let refused = watch::Sender::new(0_u32);
    let counting = refused.clone();
    storage.refuse(move |writes| {
        let is_inbox = matches!(writes, Writes::Insert(cap::Table::Inbox, _));
        is_inbox.then(|| {
            counting.send_modify(|refused| *refused += 1);
            refusal(ErrorKind::Environment)
        })
    });
    let builder = Cap::builder().storage(storage.clone()).transport(transport.clone()).options(options());
    let cap = builder.subscribe("t", "g", record(&seen)).start().await.unwrap();
    cap.publish("t", &7).await.unwrap();
    // The second one only tries whether the storage takes anything again: its first failure ends it.
    at_least(&transport.subscribed, 2).await;
    let before = *refused.borrow();
    at_least(&refused, before + 1).await;
    storage.refuse(|_| None);
    assert_eq!(seen.next().await, 7);
    assert!(*transport.subscribed.borrow() >= 3, "the delivery came without having been given back");
    cap.stop().await;
}

/// Claims whose answer was lost end a node's life when there are too many. What was refused clearly has taken nothing.
#[tokio::test]
async fn claims_that_are_refused_do_not_end_the_life_of_a_node() {
    // More than a life bears of those in doubt.
    const REFUSED: u32 = 40;
    let (storage, seen) = (Faulty::new(MemoryStorage::new(), &[]), Seen::<u32>::new());
    let refused = watch::Sender::new(0_u32);
    let counting = refused.clone();
    storage.refuse(move |writes| {
        matches!(writes, Writes::Claim).then(|| {
            counting.send_modify(|refused| *refused += 1);
            refusal(ErrorKind::Environment)
        })
    });
    let mut builder = Cap::builder().storage(storage.clone()).transport(MemoryTransport::new()).options(options());
    for group in 0..20 {
        builder = builder.subscribe("t", format!("g{group}"), record(&seen));
    }
    let cap = builder.start().await.unwrap();
    at_least(&refused, REFUSED).await;
    storage.refuse(|_| None);
    becomes(&cap, true).await;
    cap.publish("t", &7).await.unwrap();
    for _ in 0..20 {
        assert_eq!(seen.next().await, 7);
    }
    assert_eq!(*storage.joined.borrow(), 1, "the node was fenced");
    cap.stop().await;
}
