//! What a claim leaves: topics that the node excepts, and what would be too many bytes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{Claim, ClaimRequest, Lane, NewRecord, Storage, Table};
use cap_core::{Due, Status, Topic};

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::CheckResult;
use crate::{ensure, ensure_eq};

fn of_topic(record: NewRecord, name: &str) -> NewRecord {
    NewRecord { topic: topic(name), ..record }
}

/// A claim that leaves some topics alone.
async fn claim_except(worker: &Worker, lane: Lane, limit: usize, except: &[&str]) -> CheckResult<Taken> {
    let except: Vec<Topic> = except.iter().map(|name| topic(name)).collect();
    worker.claim_as(ClaimRequest { except, ..worker.request(lane, v1(), limit) }).await
}

pub(super) async fn excepted_topics_are_left_alone(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let suspect = NewRecord { state: given_back(1, Duration::ZERO, None), ..delivery("billing") };
    let cases = [
        (Table::Outbox, Lane::Outbox, message()),
        (Table::Inbox, lane("billing"), delivery("billing")),
        (Table::Inbox, suspects("billing"), suspect),
    ];
    for (table, lane, plain) in cases {
        let new = |name: &str| of_topic(NewRecord { message_id: message().message_id, ..plain.clone() }, name);
        // Names that differ a little, or that quoting by hand would spoil, are names of their own.
        let wanted = ["order.placed", "order.place", "Order.Paid", "order.paid.late", "order.paid."].map(new);
        let left = ["order.paid", "it's \"quoted\"", "größe.漢字", "order.paid"].map(new);
        for pair in left.iter().zip(&wanted) {
            insert(&storage, table, vec![pair.0.clone(), pair.1.clone()]).await?;
        }
        insert(&storage, table, vec![wanted[4].clone()]).await?;
        let except = ["order.paid", "it's \"quoted\"", "größe.漢字", "order_paid.late"];
        let taken = claim_except(&worker, lane.clone(), 100, &except).await?;
        ensure_eq!(taken.ids(), new_ids(&wanted), "claimed from {lane:?} except {except:?}");
        ensure_eq!(taken.next_due, None, "next due time of {lane:?}, in which only excepted topics wait");
        let again = claim_except(&worker, lane.clone(), 100, &except).await?;
        ensure_eq!((again.records.len(), again.next_due), (0, None), "claimed again, and the next due time");
        for record in &left {
            let found = the_record(&storage, table, &record.message_id).await?;
            ensure_eq!((found.status, found.owner), (Status::Scheduled, None), "status and owner of what was left");
            ensure_eq!(found.attempts, plain.state.attempts(), "attempts of what was left");
        }
        ensure_eq!(
            storage.next_due(v1(), vec![lane.clone()]).await?,
            vec![Some(Duration::ZERO)],
            "next due time of {lane:?} for a node that excepts nothing"
        );
        let rest = claim_except(&worker, lane.clone(), 100, &[]).await?;
        ensure_eq!(rest.ids(), new_ids(&left), "claimed from {lane:?} by a node that excepts nothing");
    }
    Ok(())
}

pub(super) async fn next_due_of_a_claim_is_not_that_of_excepted_topics(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let due = [("left", Due::Now), ("left", Due::In(SHORT)), ("wanted", Due::In(LONG)), ("other", Due::In(LONG * 10))];
    let records = due.map(|(name, due)| of_topic(message_due(due), name));
    insert(&storage, Table::Outbox, records.to_vec()).await?;
    let is_about = |next: Option<Duration>, due| next.is_some_and(|next| next <= due && next > due / 2);
    let taken = claim_except(&worker, Lane::Outbox, 10, &["left"]).await?;
    ensure_eq!(taken.records.len(), 0, "claimed records");
    ensure!(is_about(taken.next_due, LONG), "next due time but for one topic: found {:?}", taken.next_due);
    let taken = claim_except(&worker, Lane::Outbox, 10, &["left", "wanted"]).await?;
    ensure!(is_about(taken.next_due, LONG * 10), "next due time but for two topics: found {:?}", taken.next_due);
    let taken = claim_except(&worker, Lane::Outbox, 10, &["left", "wanted", "other"]).await?;
    ensure_eq!(taken.next_due, None, "next due time but for every topic");
    Ok(())
}

pub(super) async fn what_waits_behind_excepted_topics_is_claimed(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let left: Vec<_> = (0..120).map(|number| of_topic(message(), ["left", "left.too"][number % 2])).collect();
    insert(&storage, Table::Outbox, left.clone()).await?;
    let wanted: Vec<_> = (0..3).map(|_| of_topic(message(), "wanted")).collect();
    insert(&storage, Table::Outbox, wanted.clone()).await?;
    let mut taken = BTreeSet::new();
    for limit in [2, 1, 1] {
        let claimed = claim_except(&worker, Lane::Outbox, limit, &["left", "left.too"]).await?;
        taken.extend(claimed.ids());
    }
    ensure_eq!(taken, new_ids(&wanted), "claimed by three claims behind {} excepted", left.len());
    // As many as a node that serves a few topics of a large service would name.
    let many: Vec<String> = (0..200).map(|number| format!("topic.{number}")).chain(["left".into()]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let claimed = claim_except(&worker, Lane::Outbox, 200, &many).await?;
    ensure_eq!(claimed.ids(), new_ids(&left.into_iter().skip(1).step_by(2).collect::<Vec<_>>()), "but for 201 topics");
    Ok(())
}

/// A record whose content has exactly so many bytes, in characters of several bytes.
fn of_bytes(bytes: usize) -> NewRecord {
    let plain = message();
    let wrapped = content(&plain.message_id, "\"\"").len();
    let wide = (bytes - wrapped) / 3;
    let payload = format!("\"{}{}\"", "漢".repeat(wide), "x".repeat(bytes - wrapped - wide * 3));
    NewRecord { content: content(&plain.message_id, &payload), ..plain }
}

async fn claim_bytes(worker: &Worker, limit: usize, bytes: usize) -> CheckResult<Taken> {
    worker.claim_as(ClaimRequest { bytes, ..worker.request(Lane::Outbox, v1(), limit) }).await
}

/// Inserts one after the other, so that they are due in this order.
async fn in_order(storage: &Arc<dyn Storage>, records: &[NewRecord]) -> CheckResult {
    let first = database_now(storage).await?.as_micros() - 60_000_000;
    for (number, record) in (0..).zip(records) {
        let due = Due::At(cap_core::Timestamp::from_micros(first + number * 1_000));
        let state = cap_core::lifecycle::scheduled(due);
        insert(storage, Table::Outbox, vec![NewRecord { state, ..record.clone() }]).await?;
    }
    Ok(())
}

pub(super) async fn a_claim_is_bounded_in_bytes(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let sizes = [1_000, 2_000, 3_001, 9_000, 500, 400, 8_000, 300];
    let records = sizes.map(of_bytes);
    for (record, bytes) in records.iter().zip(sizes) {
        ensure_eq!(record.content.len(), bytes, "bytes of the kit's own record");
    }
    in_order(&storage, &records).await?;
    // Exactly full; not a byte more; one alone, whatever its size; cut by the limit; the rest.
    let steps: [(usize, usize, &[usize], bool); 6] = [
        (10, 3_000, &[0, 1], true),
        (10, 3_001, &[2], true),
        (10, 600, &[3], true),
        (2, 5_000, &[4, 5], false),
        (10, 0, &[6], true),
        (10, 5_000, &[7], false),
    ];
    for (limit, bytes, expected, is_cut) in steps {
        let taken = claim_bytes(&worker, limit, bytes).await?;
        let found: Vec<_> = taken.records.iter().map(|record| &record.message_id).collect();
        let expected: Vec<_> = expected.iter().map(|number| &records[*number].message_id).collect();
        ensure_eq!(found, expected, "claimed within {bytes} bytes and {limit} records");
        let next = is_cut.then_some(Duration::ZERO);
        ensure_eq!(taken.next_due, next, "next due time of a claim of {bytes} bytes and {limit} records");
    }
    Ok(())
}

/// However they are cut, the claims together take everything once, in its order.
pub(super) async fn claims_bounded_in_bytes_take_everything_in_order(fixture: &dyn StorageFixture) -> CheckResult {
    const BYTES: usize = 4_000;
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let records: Vec<_> = (0..40).map(|number| of_bytes(200 + (number * 977) % 5_000)).collect();
    in_order(&storage, &records).await?;
    let mut taken = Vec::new();
    for _ in 0..=records.len() {
        let claimed = claim_bytes(&worker, 7, BYTES).await?;
        let bytes: usize = claimed.records.iter().map(|record| record.content.len()).sum();
        ensure!(bytes <= BYTES || claimed.records.len() == 1, "{} records have {bytes} bytes", claimed.records.len());
        if claimed.records.is_empty() {
            break;
        }
        taken.extend(claimed.records.into_iter().map(|record| record.message_id));
    }
    let expected: Vec<_> = records.into_iter().map(|record| record.message_id).collect();
    ensure_eq!(taken, expected, "messages of all claims of at most {BYTES} bytes");
    let counts = storage.counts(Table::Outbox, v1()).await?;
    ensure_eq!((counts.queued, counts.scheduled), (40, 0), "records in flight and waiting in the end");
    Ok(())
}

/// The excepted ones count for nothing, and the bytes of the others are theirs alone.
pub(super) async fn bytes_and_exceptions_go_together(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let left = || of_topic(of_bytes(6_000), "left");
    let records = [left(), of_bytes(1_000), left(), of_bytes(1_000), left(), of_bytes(1_500), left()];
    in_order(&storage, &records).await?;
    let request = || ClaimRequest {
        bytes: 2_500,
        except: vec![topic("left")],
        ..ClaimRequest::new(Lane::Outbox, v1(), Claim::by(worker.node), 10)
    };
    let first = worker.claim_as(request()).await?;
    ensure_eq!(first.ids(), new_ids(&[records[1].clone(), records[3].clone()]), "claimed first");
    ensure_eq!(first.next_due, Some(Duration::ZERO), "next due time of a claim that its bytes cut");
    let second = worker.claim_as(request()).await?;
    ensure_eq!(second.ids(), new_ids(&[records[5].clone()]), "claimed next");
    ensure_eq!(second.next_due, None, "next due time when only an excepted topic waits");
    Ok(())
}
