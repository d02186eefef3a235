//! Inserting into the outbox: what is stored is there, once, and unchanged.

use std::sync::Arc;
use std::time::Duration;

use cap_core::error::ErrorKind;
use cap_core::lifecycle::{MAX_REASON, received, scheduled};
use cap_core::storage::{Claim, Inserted, Lane, NewRecord, Query, Record, Settled, Storage, Table};
use cap_core::{Due, NodeId};
use tokio::task::JoinSet;

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

pub(super) async fn what_is_stored_is_seen_by_every_handle(fixture: &dyn StorageFixture) -> CheckResult {
    let (writer, reader) = (opened(fixture).await?, opened(fixture).await?);
    let records = messages(3);
    insert(&writer, Table::Outbox, records.clone()).await?;
    ensure_eq!(ids(&all(&reader, Table::Outbox).await?), new_ids(&records), "messages that another handle lists");
    let taken = Worker::join(&reader).await?.claim(Lane::Outbox, 10).await?;
    ensure_eq!(taken.ids(), new_ids(&records), "messages that another handle claims");
    Ok(())
}

pub(super) async fn an_insert_answers_for_each_record_in_order(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let known = message();
    insert(&storage, Table::Outbox, vec![known.clone()]).await?;
    let batch = vec![message(), known, message(), message()];
    let inserted = storage.insert(Table::Outbox, batch.clone(), None).await?;
    ensure_eq!(inserted.len(), batch.len(), "answers");
    for (record, outcome) in batch.iter().zip(&inserted) {
        let found = the_record(&storage, Table::Outbox, &record.message_id).await?;
        match outcome {
            Inserted::Stored(id) => ensure_eq!(found.id, *id, "address of {}", record.message_id),
            Inserted::Duplicate => {
                ensure_eq!(record.message_id, batch[1].message_id, "message that was answered as Duplicate");
            }
        }
    }
    ensure_eq!(inserted[1], Inserted::Duplicate, "answer for the known message");
    Ok(())
}

pub(super) async fn an_id_that_is_there_is_a_duplicate_and_the_others_are_stored(
    fixture: &dyn StorageFixture,
) -> CheckResult {
    let storage = opened(fixture).await?;
    let first = message();
    insert(&storage, Table::Outbox, vec![first.clone()]).await?;
    let second = NewRecord { content: content(&first.message_id, "2"), ..first.clone() };
    let other = message();
    let inserted = storage.insert(Table::Outbox, vec![second, other.clone()], None).await?;
    ensure_eq!(inserted[0], Inserted::Duplicate, "answer for an id that is there");
    let kept = the_record(&storage, Table::Outbox, &first.message_id).await?;
    ensure_eq!(kept.content, first.content, "content of the first message");
    the_record(&storage, Table::Outbox, &other.message_id).await?;
    Ok(())
}

pub(super) async fn the_second_of_two_equal_ids_in_one_call_is_a_duplicate(
    fixture: &dyn StorageFixture,
) -> CheckResult {
    let storage = opened(fixture).await?;
    let twin = message();
    let inserted = storage.insert(Table::Outbox, vec![message(), twin.clone(), twin.clone(), message()], None).await?;
    ensure!(
        matches!(inserted[..], [Inserted::Stored(_), Inserted::Stored(_), Inserted::Duplicate, Inserted::Stored(_)]),
        "Stored, Stored, Duplicate, Stored was expected, it answered {inserted:?}"
    );
    the_record(&storage, Table::Outbox, &twin.message_id).await?;
    ensure_eq!(all(&storage, Table::Outbox).await?.len(), 3, "records");
    Ok(())
}

/// Inserts the same record over many handles at once; answers how many of them stored it.
pub(super) async fn insert_at_once(
    handles: Vec<Arc<dyn Storage>>,
    table: Table,
    record: &NewRecord,
) -> CheckResult<usize> {
    let mut calls = JoinSet::new();
    for storage in handles {
        let records = vec![record.clone()];
        calls.spawn(async move { storage.insert(table, records, None).await });
    }
    let mut stored = 0;
    while let Some(inserted) = calls.join_next().await {
        let inserted = inserted.map_err(|error| Failure::new(error.to_string()))??;
        stored += inserted.iter().filter(|outcome| matches!(outcome, Inserted::Stored(_))).count();
    }
    Ok(stored)
}

pub(super) async fn of_concurrent_inserts_of_one_id_one_is_stored(fixture: &dyn StorageFixture) -> CheckResult {
    let handles = opened_many(fixture, 8).await?;
    for _ in 0..5 {
        let record = message();
        let stored = insert_at_once(handles.clone(), Table::Outbox, &record).await?;
        ensure_eq!(stored, 1, "inserts that were answered as Stored");
        the_record(&handles[0], Table::Outbox, &record.message_id).await?;
    }
    Ok(())
}

fn same_as_inserted(found: &Record, record: &NewRecord) -> CheckResult {
    ensure_eq!(found.content, record.content, "content");
    ensure_eq!(found.topic, record.topic, "topic");
    ensure_eq!(found.group, record.group, "group");
    ensure_eq!(found.version, record.version, "version");
    ensure_eq!(found.message_id, record.message_id, "message id");
    Ok(())
}

async fn round_trip(storage: &Arc<dyn Storage>, table: Table, record: NewRecord) -> CheckResult {
    insert(storage, table, vec![record.clone()]).await?;
    same_as_inserted(&the_record(storage, table, &record.message_id).await?, &record)?;
    let lane = record.group.clone().map_or(Lane::Outbox, Lane::Inbox);
    let taken = Worker::join(storage).await?.claim_version(lane, record.version.clone(), 1).await?;
    same_as_inserted(taken.one()?, &record)
}

pub(super) async fn content_comes_back_to_the_byte(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let payloads = [
        "null",
        r#"{ "b" : 1.0e2,  "a":[ ] , "b":2 }"#,
        r#""line\n\ttab \\ back\\slash \u0000 ' \" ` $1 ?1 :a %s _ %25 -- ; /* */""#,
        "\"ä Ω 漢字 🦀 👩\u{200d}👩\u{200d}👧 e\u{301} \u{202e}rtl \u{2028} \u{feff} \u{7f}\"",
        "9007199254740993.00000000000000001",
    ];
    for payload in payloads {
        let plain = message();
        let record = NewRecord { content: content(&plain.message_id, payload), ..plain };
        round_trip(&storage, Table::Outbox, record).await?;
    }
    Ok(())
}

pub(super) async fn a_content_of_one_mebibyte_comes_back(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let plain = message();
    let payload = format!("\"{}\"", "0123456789abcdeü".repeat((1 << 20) / 17));
    let record = NewRecord { content: content(&plain.message_id, &payload), ..plain };
    round_trip(&storage, Table::Outbox, record).await
}

pub(super) async fn long_and_odd_names_come_back(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let odd = "o'brien \"x\" `y` \\ % _ ; -- $1 ü漢🦀";
    for name in [odd.to_owned(), "n".repeat(200), "ü".repeat(100)] {
        let plain = message();
        let record = NewRecord {
            topic: topic(&name),
            group: Some(group(&name)),
            version: version("v'\"%_ü漢🦀"),
            message_id: message_id(&format!("{name:.64}")),
            ..plain
        };
        round_trip(&storage, Table::Inbox, record).await?;
    }
    let longest =
        NewRecord { message_id: message_id(&"i".repeat(128)), version: version(&"v".repeat(20)), ..message() };
    round_trip(&storage, Table::Outbox, longest).await
}

pub(super) async fn names_that_differ_a_little_are_different(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let alike = ["order-1", "ORDER-1", "Order-1", "örder-1", "o\u{308}rder-1", "order-1 ", " order-1", "order_1"];
    insert(&storage, Table::Outbox, alike.map(message_with_id).to_vec()).await?;
    for id in alike {
        the_record(&storage, Table::Outbox, &message_id(id)).await?;
    }
    let groups = ["billing", "Billing", "bílling"];
    let same = message();
    let deliveries = groups.map(|name| NewRecord { group: Some(group(name)), ..same.clone() });
    insert(&storage, Table::Inbox, deliveries.to_vec()).await?;
    let worker = Worker::join(&storage).await?;
    for name in groups {
        let taken = worker.claim(lane(name), 10).await?;
        ensure_eq!(taken.one()?.group, Some(group(name)), "group of the claimed record");
    }
    insert(&storage, Table::Outbox, vec![message_of_version("beta"), message_of_version("BETA")]).await?;
    let taken = worker.claim_version(Lane::Outbox, version("BETA"), 10).await?;
    ensure_eq!(taken.one()?.version, version("BETA"), "version of the claimed record");
    Ok(())
}

pub(super) async fn state_and_reason_come_back(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let reason = "geht nicht: ü漢🦀 'quoted'\nsecond line";
    let states = [
        scheduled(Due::Now),
        scheduled(Due::In(LONG)),
        dead(0, reason),
        dead(7, &"long ".repeat(2_000)),
        succeeded(3),
        retry_in(2, LONG, reason),
    ];
    for state in states {
        let record = NewRecord { state: state.clone(), ..delivery("billing") };
        insert(&storage, Table::Inbox, vec![record.clone()]).await?;
        let found = the_record(&storage, Table::Inbox, &record.message_id).await?;
        ensure_eq!(found.status, state.status(), "status");
        ensure_eq!(found.attempts, state.attempts(), "attempts");
        ensure_eq!(found.reason.as_deref(), state.reason(), "reason");
        ensure_eq!(found.due.is_some(), state.due().is_some(), "whether there is a due time for {state:?}");
        ensure_eq!(found.expires.is_some(), state.expires().is_some(), "whether there is an expiry for {state:?}");
        ensure_eq!(found.owner, None, "owner");
    }
    Ok(())
}

pub(super) async fn a_refused_insert_stores_nothing(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let result = storage.insert(Table::Outbox, vec![message(), too_long(fixture), message()], None).await;
    let Err(error) = result else {
        return Err("a content beyond the declared `max_content` was taken".into());
    };
    ensure!(error.kind() != ErrorKind::Unavailable, "a content that will never fit was answered as Unavailable");
    ensure_eq!(all(&storage, Table::Outbox).await?.len(), 0, "records after the refused insert");
    insert(&storage, Table::Outbox, vec![message()]).await?;
    Ok(())
}

pub(super) async fn a_record_that_nobody_could_work_on_is_refused(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let node = Worker::join(&storage).await?.node;
    let in_flight = |record| NewRecord { state: received(true), ..record };
    let cases = [
        (Table::Outbox, vec![message(), in_flight(message())], None),
        (Table::Inbox, vec![delivery("billing"), in_flight(delivery("billing"))], None),
        (Table::Inbox, vec![delivery("billing"), message()], None),
        (Table::Inbox, vec![in_flight(delivery("billing")), in_flight(message())], Some(Claim::by(node))),
    ];
    for (table, records, claim) in cases {
        let result = storage.insert(table, records.clone(), claim).await;
        let kind = result.err().map(|error| error.kind());
        ensure_eq!(kind, Some(ErrorKind::Invalid), "kind of the error for {records:?}");
        ensure_eq!(all(&storage, table).await?.len(), 0, "records after the refused insert");
    }
    Ok(())
}

pub(super) async fn calls_with_empty_lists_are_harmless(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let node = NodeId::generate();
    storage.join(node, LONG).await?;
    for table in [Table::Outbox, Table::Inbox] {
        ensure_eq!(storage.insert(table, vec![], None).await?, vec![], "answers to an empty insert");
        ensure_eq!(storage.insert(table, vec![], Some(Claim::by(node))).await?, vec![], "answers to an empty insert");
        ensure_eq!(storage.settle(table, vec![]).await?, vec![], "answers to an empty settle");
        ensure_eq!(storage.delete(table, vec![]).await?, 0, "records deleted by an empty call");
        ensure_eq!(storage.requeue(table, vec![], scheduled(Due::Now)).await?, 0, "records requeued by an empty call");
        ensure_eq!(storage.collect(table, 0).await?, 0, "records collected with limit 0");
        ensure_eq!(storage.release(table, Claim::by(node)).await?, 0, "records released of an unused claim");
        ensure_eq!(storage.list(table, Query::default()).await?, vec![], "records listed with limit 0");
    }
    ensure_eq!(storage.next_due(v1(), vec![]).await?, vec![], "answers for no lanes");
    Ok(())
}

pub(super) async fn a_batch_of_three_thousand_works(fixture: &dyn StorageFixture) -> CheckResult {
    const MANY: usize = 3_000;
    let storage = opened(fixture).await?;
    let records = messages(MANY);
    insert(&storage, Table::Outbox, records.clone()).await?;
    let again = storage.insert(Table::Outbox, records.clone(), None).await?;
    ensure_eq!(again, vec![Inserted::Duplicate; MANY], "answers to the same batch again");
    let worker = Worker::join(&storage).await?;
    let taken = worker.claim(Lane::Outbox, MANY).await?;
    ensure_eq!(taken.ids().len(), MANY, "claimed records");
    let settled = storage.settle(Table::Outbox, taken.settlements(succeeded)).await?;
    ensure_eq!(settled, vec![Settled::Written; MANY], "answers to the settlements");
    let addresses: Vec<_> = all(&storage, Table::Outbox).await?.iter().map(|record| record.id).collect();
    let requeued = storage.requeue(Table::Outbox, addresses.clone(), scheduled(Due::Now)).await?;
    ensure_eq!(requeued, MANY as u64, "requeued records");
    ensure_eq!(storage.delete(Table::Outbox, addresses).await?, MANY as u64, "deleted records");
    Ok(())
}

/// The engine drives every future to its end unless the runtime goes away; when it does, nothing may be left half done.
pub(super) async fn a_runtime_that_dies_in_a_call_leaves_all_or_nothing(fixture: &dyn StorageFixture) -> CheckResult {
    const BATCH: usize = 50;
    let storage = opened(fixture).await?;
    for polls in 0..8 {
        let doomed = opened(fixture).await?;
        let records: Vec<_> = (0..BATCH).map(|_| message_of_version(&format!("round {polls}"))).collect();
        let version = records[0].version.clone();
        die_in(polls, async move { doomed.insert(Table::Outbox, records, None).await.map(drop) }).await?;
        let count = storage.counts(Table::Outbox, version).await?.total();
        ensure!([0, BATCH as u64].contains(&count), "{count} of {BATCH} records of an interrupted insert are there");
    }
    let worker = Worker::join(&storage).await?;
    for polls in 0..8 {
        let version = version(&format!("settle {polls}"));
        let records = (0..BATCH).map(|_| NewRecord { version: version.clone(), ..message() }).collect();
        insert(&storage, Table::Outbox, records).await?;
        let settlements = worker.claim_version(Lane::Outbox, version.clone(), BATCH).await?.settlements(succeeded);
        let doomed = opened(fixture).await?;
        die_in(polls, async move { doomed.settle(Table::Outbox, settlements).await.map(drop) }).await?;
        let counts = storage.counts(Table::Outbox, version).await?;
        let written = counts.succeeded;
        ensure!([0, BATCH as u64].contains(&written), "{written} of {BATCH} interrupted settlements are written");
    }
    insert(&storage, Table::Outbox, vec![message()]).await?;
    worker.claim_message().await?;
    Ok(())
}

/// Polls a call about so many times on a runtime of its own, which then goes away.
async fn die_in(polls: usize, call: impl Future<Output = cap_core::Result<()>> + Send + 'static) -> CheckResult {
    let life = move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.spawn(call);
        runtime.block_on(async {
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        });
        runtime.shutdown_timeout(Duration::ZERO);
        Ok(())
    };
    let lived = tokio::task::spawn_blocking(life).await.map_err(|error| Failure::new(error.to_string()))?;
    lived.map_err(|error| Failure::new(error.to_string()))
}

/// Reasons are bounded in bytes, and columns often in characters of fewer.
pub(super) async fn the_longest_reason_comes_back(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let reasons = ["漢", "é", "🦀", "\u{10ffff}", "a\\'\"%;"].map(|text| {
        let whole = text.repeat(MAX_REASON / text.len());
        let rest = "x".repeat(MAX_REASON - whole.len());
        whole + &rest
    });
    for table in [Table::Outbox, Table::Inbox] {
        for reason in &reasons {
            let (plain, own_lane) =
                if table == Table::Outbox { (message(), Lane::Outbox) } else { (delivery("billing"), lane("billing")) };
            let record = NewRecord { state: retry_in(1, Duration::ZERO, reason), ..plain };
            let addresses = insert(&storage, table, vec![record.clone()]).await?;
            let taken = worker.claim(own_lane.clone(), 1).await?;
            ensure!(taken.one()?.reason.as_ref() == Some(reason), "a claim cut or changed {:.3}…", reason);
            worker.settle(table, &taken, |attempts| retry_in(attempts, LONG, "no")).await?;
            ensure_eq!(the_record(&storage, table, &record.message_id).await?.reason, Some("no".into()), "a reason");
            storage.delete(table, addresses).await?;
            let record =
                NewRecord { message_id: message().message_id, state: retry_in(1, Duration::ZERO, "no"), ..record };
            let addresses = insert(&storage, table, vec![record.clone()]).await?;
            let taken = worker.claim(own_lane, 1).await?;
            taken.one()?;
            worker.settle(table, &taken, |attempts| dead(attempts, reason)).await?;
            let found = the_record(&storage, table, &record.message_id).await?.reason;
            ensure!(found.as_ref() == Some(reason), "a settlement cut or changed {:.3}…", reason);
            storage.delete(table, addresses).await?;
        }
    }
    Ok(())
}
