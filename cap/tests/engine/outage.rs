//! Backends that fail under way: nothing is lost, nothing is stuck, nothing is handled twice.

use cap::memory::MemoryStorage;
use cap::{Cap, Context, Publish, Status, Table};

use crate::doubles::{Call, Fault, Faulty, Trouble, Troubled, Writes, refusal};
use crate::support::{PATIENCE, Seen, Shop, becomes, idle, options, record};

const MESSAGES: u32 = 40;

/// Publishes, handles, and has all faults strike on the way.
async fn survives(faults: &[Fault]) {
    let storage = Faulty::new(MemoryStorage::new(), faults);
    let seen = Seen::<u32>::new();
    let cap = Cap::builder()
        .storage(storage.clone())
        .transport(cap::memory::MemoryTransport::new())
        .options(options())
        .subscribe("t", "g", record(&seen))
        .start()
        .await
        .unwrap();
    // More and more, until every fault has had its chance; numbers are published together, so that some have to wait
    // in the inbox for a claim.
    let mut published = 0;
    let all_struck = async {
        while storage.left() > 0 {
            let batch: Vec<_> =
                (published..published + MESSAGES).map(|n| Publish::json("t", &n).id(n.to_string())).collect();
            published += MESSAGES;
            // An answer that is lost is told; the same ids again are duplicates at the worst.
            if cap.publish_many(batch.clone()).await.is_err() {
                cap.publish_many(batch).await.unwrap();
            }
            cap.wait_idle().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE * 4, all_struck).await.expect("a fault never struck, or a record is stuck");
    let mut handled = seen.rest().await;
    handled.sort();
    let once: Vec<u32> = (0..published).collect();
    let lossy = faults.iter().any(|fault| matches!(fault, Fault::ClaimPanics(_)));
    if lossy {
        handled.dedup();
    }
    assert_eq!(handled, once);
    for table in [Table::Outbox, Table::Inbox] {
        let records = Shop { storage: storage.inner.clone(), transport: cap::memory::MemoryTransport::new() }
            .records(table)
            .await;
        assert_eq!(records.len(), published as usize);
        assert!(records.iter().all(|record| record.status == Status::Succeeded && record.owner.is_none()));
    }
    cap.stop().await;
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_undone() {
    survives(&[Fault::ClaimAnswerLost(Table::Outbox)]).await;
    survives(&[Fault::ClaimAnswerLost(Table::Inbox)]).await;
}

#[tokio::test]
async fn a_claim_that_is_carried_out_after_it_was_released_is_released_again() {
    survives(&[Fault::ClaimCarriedOutLate(Table::Outbox)]).await;
    survives(&[Fault::ClaimCarriedOutLate(Table::Inbox)]).await;
}

#[tokio::test]
async fn a_settlement_that_failed_or_whose_answer_is_lost_is_written_again() {
    survives(&[Fault::SettleRefused(Table::Outbox), Fault::SettleAnswerLost(Table::Outbox)]).await;
    survives(&[Fault::SettleRefused(Table::Inbox), Fault::SettleAnswerLost(Table::Inbox)]).await;
}

#[tokio::test]
async fn an_inbox_insert_whose_answer_is_lost_neither_loses_nor_doubles() {
    survives(&[Fault::InsertAnswerLost(Table::Inbox)]).await;
}

#[tokio::test]
async fn a_publish_whose_answer_is_lost_can_be_repeated_with_its_id() {
    survives(&[Fault::InsertAnswerLost(Table::Outbox)]).await;
}

#[tokio::test]
async fn a_loop_that_panics_is_restarted_and_what_it_held_is_taken_over() {
    survives(&[Fault::ClaimPanics(Table::Outbox)]).await;
    survives(&[Fault::ClaimPanics(Table::Inbox)]).await;
}

#[tokio::test]
async fn an_absent_broker_costs_no_attempts_and_health_tells_of_it() {
    // Three attempts are allowed: an outage of seven sends would kill the message.
    let transport = Troubled::new([Trouble::Away; 7]);
    let shop = Shop::new();
    let seen = Seen::new();
    let handler = seen.clone();
    let cap = shop
        .builder()
        .transport(transport.clone())
        .subscribe("t", "g", move |context: Context| {
            handler.push(context.attempt());
            std::future::ready(())
        })
        .start()
        .await
        .unwrap();
    becomes(&cap, true).await;
    cap.publish("t", &1).await.unwrap();
    becomes(&cap, false).await;
    assert!(cap.health().ill().any(|(name, error)| name == "broker" && error.is_retryable()));
    assert_eq!(tokio::time::timeout(PATIENCE * 4, seen.next()).await.unwrap(), 1);
    assert_eq!(transport.left(), 0);
    idle(&cap).await;
    assert!(cap.health().ready, "{:?}", cap.health());
    let outbox = shop.records(Table::Outbox).await;
    assert_eq!((outbox[0].status, outbox[0].attempts), (Status::Succeeded, 1));
    cap.stop().await;
}

#[tokio::test]
async fn a_message_that_is_delivered_again_is_handled_once() {
    for trouble in [Trouble::Twice, Trouble::ConfirmsLost] {
        let shop = Shop::new();
        let seen = Seen::<u32>::new();
        let transport = Troubled::new([trouble; 3]);
        let cap = shop.builder().transport(transport.clone()).subscribe("t", "g", record(&seen)).start().await.unwrap();
        let mut published = 0;
        while transport.left() > 0 {
            cap.publish_many((published..published + 10).map(|n| Publish::json("t", &n))).await.unwrap();
            published += 10;
            idle(&cap).await;
        }
        let mut handled = seen.rest().await;
        handled.sort();
        assert_eq!(handled, (0..published).collect::<Vec<_>>(), "{trouble:?}");
        cap.stop().await;
    }
}

/// A call of the keeper's hangs: for three leases the node gives signs of life all the same.
async fn keeps_its_lease(hanging: Call, faults: &[Fault]) {
    let storage = Faulty::new(MemoryStorage::new(), faults);
    let begun = Seen::<Context>::new();
    let handler = begun.clone();
    let cap = Cap::builder()
        .storage(storage.clone())
        .transport(cap::memory::MemoryTransport::new())
        .options(options())
        .subscribe("t", "g", move |context| {
            handler.push(context);
            std::future::pending::<()>()
        })
        .start()
        .await
        .unwrap();
    cap.publish("t", &1).await.unwrap();
    let context = begun.next().await;
    assert_eq!(storage.left(), 0);
    storage.hang(hanging);
    let mut heartbeats = storage.heartbeats.subscribe();
    let enough = *heartbeats.borrow() + 3 * (options().lease.as_millis() / options().heartbeat.as_millis()) as u32;
    let signs = heartbeats.wait_for(|heartbeats| *heartbeats >= enough);
    drop(tokio::time::timeout(PATIENCE, signs).await.expect("it gives no more signs of life").unwrap());
    assert!(!context.is_cancelled(), "the lease was lost");
}

#[tokio::test]
async fn a_takeover_that_hangs_costs_no_lease() {
    keeps_its_lease(Call::TakeOver, &[]).await;
}

#[tokio::test]
async fn a_release_of_a_claim_in_doubt_that_hangs_costs_no_lease() {
    keeps_its_lease(Call::Release, &[Fault::ClaimAnswerLost(Table::Outbox)]).await;
}

#[tokio::test]
async fn what_an_open_transaction_has_locked_is_settled_later_and_the_others_at_once() {
    survives(&[Fault::SettleFindsLocked(Table::Inbox), Fault::SettleFindsLocked(Table::Inbox)]).await;
    survives(&[Fault::SettleFindsLocked(Table::Outbox)]).await;
}

#[tokio::test]
async fn a_sign_off_that_hangs_does_not_hold_up_the_next_life_nor_a_stop() {
    let storage = Faulty::new(MemoryStorage::new(), &[Fault::ClaimPanics(Table::Outbox)]);
    let seen = Seen::<u32>::new();
    let builder = Cap::builder().storage(storage.clone()).transport(cap::memory::MemoryTransport::new());
    let cap = builder.options(options()).subscribe("t", "g", record(&seen)).start().await.unwrap();
    becomes(&cap, true).await;
    storage.hang(Call::Leave);
    cap.publish("t", &1).await.unwrap();
    // What the former life holds is taken over when its lease is over.
    assert_eq!(seen.next().await, 1);
    let began = tokio::time::Instant::now();
    cap.stop().await;
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_stop_ends_in_time_while_the_storage_refuses_every_outcome() {
    let storage = Faulty::new(MemoryStorage::new(), &[]);
    storage.refuse(|writes| match writes {
        Writes::Claim => None,
        Writes::Settle(..) => Some(refusal(cap::ErrorKind::Environment)),
        Writes::Insert(..) => None,
    });
    let seen = Seen::<u32>::new();
    let options = cap::Options { drain: std::time::Duration::from_millis(200), ..options() };
    let builder = Cap::builder().storage(storage.clone()).transport(cap::memory::MemoryTransport::new());
    let cap = builder.options(options).subscribe("t", "g", record(&seen)).start().await.unwrap();
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, 1);
    let began = tokio::time::Instant::now();
    cap.stop().await;
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
}
