//! What people and loops do beside the flow: collect, count, list, requeue, delete, watch.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cap_core::error::ErrorKind;
use cap_core::lifecycle::{requeued, scheduled};
use cap_core::storage::{Counts, Lane, NewRecord, Query, Record, Storage, Table, Wake};
use cap_core::{Due, RecordId, Status};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

pub(super) async fn only_expired_terminal_records_are_collected(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    for (table, own_lane) in [(Table::Outbox, Lane::Outbox), (Table::Inbox, lane("billing"))] {
        let new = || if table == Table::Outbox { message() } else { delivery("billing") };
        insert(&storage, table, vec![new()]).await?;
        worker.claim(own_lane, 1).await?.one()?;
        let states =
            [scheduled(Due::Now), scheduled(Due::In(LONG)), retry_in(1, LONG, "no"), succeeded(1), dead(1, "no")];
        insert(&storage, table, states.map(|state| NewRecord { state, ..new() }).to_vec()).await?;
        let expired = NewRecord { state: succeeded_briefly(), ..new() };
        let addresses = insert(&storage, table, vec![expired.clone()]).await?;
        fixture.pass(MARGIN).await;
        ensure_eq!(storage.collect(table, 100).await?, 1, "collected records");
        let left = all(&storage, table).await?;
        ensure_eq!(left.len(), 6, "records that are not to be collected: waiting, in flight, and not expired");
        ensure!(left.iter().all(|record| record.id != addresses[0]), "the expired record is still there");
        ensure_eq!(storage.collect(table, 100).await?, 0, "records collected the second time");
    }
    Ok(())
}

pub(super) async fn a_collection_is_bounded_and_spans_versions(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    for name in ["v1", "v2", "old"] {
        let expired = NewRecord { state: succeeded_briefly(), ..message_of_version(name) };
        let another = NewRecord { message_id: message().message_id, ..expired.clone() };
        insert(&storage, Table::Outbox, vec![expired, another]).await?;
    }
    fixture.pass(MARGIN).await;
    for (limit, expected) in [(0, 0), (4, 4), (4, 2), (4, 0)] {
        ensure_eq!(storage.collect(Table::Outbox, limit).await?, expected, "records collected with limit {limit}");
    }
    ensure_eq!(all(&storage, Table::Outbox).await?.len(), 0, "records left");
    Ok(())
}

pub(super) async fn collectors_at_once_collect_each_record_once(fixture: &dyn StorageFixture) -> CheckResult {
    const MANY: usize = 200;
    let handles = opened_many(fixture, 4).await?;
    let expired = (0..MANY).map(|_| NewRecord { state: succeeded_briefly(), ..message() });
    insert(&handles[0], Table::Outbox, expired.collect()).await?;
    fixture.pass(MARGIN).await;
    let mut calls = JoinSet::new();
    for storage in handles.clone() {
        calls.spawn(async move { storage.collect(Table::Outbox, MANY).await });
    }
    let mut collected = 0;
    while let Some(number) = calls.join_next().await {
        collected += number.map_err(|error| Failure::new(error.to_string()))??;
    }
    collected += handles[0].collect(Table::Outbox, MANY).await?;
    ensure_eq!(collected, MANY as u64, "records that all collectors together collected");
    Ok(())
}

/// Some records of each kind, in version `v1` and, fewer, in another.
async fn of_every_kind(storage: &Arc<dyn Storage>, table: Table) -> CheckResult {
    let new = || if table == Table::Outbox { message() } else { delivery("billing") };
    let own_lane = if table == Table::Outbox { Lane::Outbox } else { lane("billing") };
    insert(storage, table, vec![new()]).await?;
    Worker::join(storage).await?.claim(own_lane, 1).await?.one()?;
    let states = [scheduled(Due::Now), scheduled(Due::In(LONG)), succeeded(1), retry_in(1, LONG, "no"), dead(1, "no")];
    for (number, state) in states.into_iter().enumerate() {
        let records = (0..number + 2).map(|_| NewRecord { state: state.clone(), ..new() });
        insert(storage, table, records.collect()).await?;
        let other = NewRecord { state, version: version("other"), ..new() };
        insert(storage, table, vec![other]).await?;
    }
    Ok(())
}

pub(super) async fn counts_agree_with_the_list(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    for table in [Table::Outbox, Table::Inbox] {
        of_every_kind(&storage, table).await?;
        let expected = Counts { queued: 1, scheduled: 2, delayed: 3, succeeded: 4, retrying: 5, dead: 6 };
        ensure_eq!(storage.counts(table, v1()).await?, expected, "counts of the {table}");
        for name in ["v1", "other", "none"] {
            let mut listed = Counts::default();
            for record in all(&storage, table).await?.iter().filter(|record| record.version.as_str() == name) {
                listed.add(record.status, record.due.is_none(), 1);
            }
            let counted = storage.counts(table, version(name)).await?;
            ensure_eq!(counted, listed, "counts of version {name} against its list");
        }
    }
    Ok(())
}

pub(super) async fn a_list_holds_what_matches_every_filter(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    of_every_kind(&storage, Table::Inbox).await?;
    let paid = NewRecord { topic: topic("order.paid"), ..delivery("shipping") };
    insert(&storage, Table::Inbox, vec![paid.clone(), delivery("shipping")]).await?;
    let everything = all(&storage, Table::Inbox).await?;
    let query = Query { limit: ALL, ..Query::default() };
    type Matches = fn(&Record) -> bool;
    let cases: [(Query, Matches); 6] = [
        (Query { version: Some(version("other")), ..query.clone() }, |record| record.version.as_str() == "other"),
        (Query { status: Some(Status::Failed), ..query.clone() }, |record| record.status == Status::Failed),
        (Query { topic: Some(paid.topic.clone()), ..query.clone() }, |record| record.topic.as_str() == "order.paid"),
        (Query { group: Some(group("shipping")), ..query.clone() }, |record| {
            record.group.as_ref().is_some_and(|group| group.as_str() == "shipping")
        }),
        (
            Query {
                status: Some(Status::Succeeded),
                version: Some(v1()),
                group: Some(group("billing")),
                ..query.clone()
            },
            |record| record.status == Status::Succeeded && record.version.as_str() == "v1",
        ),
        (Query { status: Some(Status::Queued), topic: Some(paid.topic), ..query.clone() }, |_| false),
    ];
    for (query, matches) in cases {
        let expected: Vec<_> = everything.iter().filter(|record| matches(record)).cloned().collect();
        let listed = storage.list(Table::Inbox, query.clone()).await?;
        ensure_eq!(listed, expected, "records listed by {query:?}");
    }
    ensure_eq!(of_message(&storage, Table::Inbox, &paid.message_id).await?.len(), 1, "records of one message id");
    ensure!(everything.is_sorted_by_key(|record| record.id), "a list must be in the order of addresses");
    Ok(())
}

pub(super) async fn pages_show_each_record_once_while_others_are_inserted(fixture: &dyn StorageFixture) -> CheckResult {
    let (storage, writer) = (opened(fixture).await?, opened(fixture).await?);
    let records = messages(25);
    insert(&storage, Table::Outbox, records.clone()).await?;
    let mut seen: Vec<Record> = Vec::new();
    loop {
        let query = Query { after: seen.last().map(|record| record.id), limit: 4, ..Query::default() };
        let page = storage.list(Table::Outbox, query).await?;
        ensure!(page.len() <= 4, "a page of 4 holds {}", page.len());
        if page.is_empty() || seen.len() > 1_000 {
            break;
        }
        seen.extend(page);
        if seen.len() < 40 {
            insert(&writer, Table::Outbox, vec![message()]).await?;
        }
    }
    let distinct: BTreeSet<RecordId> = seen.iter().map(|record| record.id).collect();
    ensure_eq!(distinct.len(), seen.len(), "different records among those shown");
    let missing = new_ids(&records).difference(&ids(&seen)).count();
    ensure_eq!(missing, 0, "records that were there throughout and were not shown");
    Ok(())
}

pub(super) async fn only_terminal_records_are_requeued(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    of_every_kind(&storage, Table::Outbox).await?;
    let before = all(&storage, Table::Outbox).await?;
    let is_terminal = |record: &Record| {
        record.status == Status::Succeeded || (record.status == Status::Failed && record.due.is_none())
    };
    let terminal = before.iter().filter(|record| is_terminal(record)).count();
    let mut addresses: Vec<_> = before.iter().map(|record| record.id).collect();
    addresses.push(RecordId(i64::MAX));
    let number = storage.requeue(Table::Outbox, addresses.clone(), requeued()).await?;
    ensure_eq!(number, terminal as u64, "requeued records");
    let after = all(&storage, Table::Outbox).await?;
    for (old, new) in before.iter().zip(&after) {
        if !is_terminal(old) {
            ensure_eq!(new, old, "a record that is not terminal");
            continue;
        }
        ensure_eq!((new.status, new.attempts), (Status::Scheduled, 0), "status and attempts of a requeued record");
        ensure_eq!((&new.reason, new.expires), (&None, None), "reason and expiry of a requeued record");
        ensure_eq!(new.content, old.content, "content of a requeued record");
    }
    let worker = Worker::join(&storage).await?;
    let claimed = worker.claim(Lane::Outbox, ALL).await?;
    ensure_eq!(claimed.records.len(), 4 + 6 + 2, "records of v1 that can be claimed: requeued and scheduled");
    let again = storage.requeue(Table::Outbox, addresses, requeued()).await?;
    ensure_eq!(again, 0, "records requeued again: all of them wait or are in flight");
    Ok(())
}

pub(super) async fn what_is_in_flight_is_not_deleted(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let [held, delayed, finished] =
        [message(), message_due(Due::In(SHORT)), NewRecord { state: dead(1, "no"), ..message() }];
    let mut addresses = insert(&storage, Table::Outbox, vec![held.clone(), delayed.clone(), finished]).await?;
    let taken = worker.claim_message().await?;
    addresses.push(RecordId(i64::MAX));
    ensure_eq!(storage.delete(Table::Outbox, addresses.clone()).await?, 2, "deleted records");
    fixture.pass(SHORT + MARGIN).await;
    ensure_eq!(worker.claim(Lane::Outbox, 10).await?.records.len(), 0, "records claimed after they were cancelled");
    the_record(&storage, Table::Outbox, &held.message_id).await?;
    worker.settle(Table::Outbox, &taken, succeeded).await?;
    ensure_eq!(storage.delete(Table::Outbox, addresses).await?, 1, "records deleted once they are settled");
    insert(&storage, Table::Outbox, vec![delayed]).await?;
    Ok(())
}

/// Runs a watch in a task of its own; answers the tables that it wakes.
fn watching(storage: Arc<dyn Storage>) -> (mpsc::UnboundedReceiver<Table>, tokio::task::JoinHandle<()>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let watch = async move {
        let wake = Wake::new(move |table| {
            let _ = sender.send(table);
        });
        let _ = storage.watch(wake).await;
    };
    (receiver, tokio::spawn(watch))
}

/// A watch may take a while until it listens: commits are made until one is noticed.
async fn wakes(woken: &mut mpsc::UnboundedReceiver<Table>, writer: &Arc<dyn Storage>, table: Table) -> CheckResult {
    for _ in 0..100 {
        let record = if table == Table::Outbox { message() } else { delivery("billing") };
        insert(writer, table, vec![record]).await?;
        while let Ok(told) = tokio::time::timeout(Duration::from_millis(100), woken.recv()).await {
            match told {
                Some(told) if told == table => return Ok(()),
                Some(_) => {}
                None => return Err("the watch ended".into()),
            }
        }
    }
    Err(format!("a hundred commits to the {table} woke nobody").into())
}

pub(super) async fn a_commit_of_another_handle_wakes_its_table(fixture: &dyn StorageFixture) -> CheckResult {
    let (watcher, writer) = (opened(fixture).await?, opened(fixture).await?);
    let (mut woken, watch) = watching(watcher);
    for table in [Table::Outbox, Table::Inbox, Table::Outbox] {
        wakes(&mut woken, &writer, table).await?;
    }
    watch.abort();
    Ok(())
}

pub(super) async fn without_watching_the_answer_is_unsupported(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let watch = storage.watch(Wake::new(|_| {}));
    let Ok(result) = tokio::time::timeout(Duration::from_secs(5), watch).await else {
        return Err("a watch that is not declared must answer at once, it went on".into());
    };
    let kind = result.err().map(|error| error.kind());
    ensure_eq!(kind, Some(ErrorKind::Unsupported), "kind of the error of a watch that is not declared");
    Ok(())
}

pub(super) async fn a_watch_may_be_dropped_at_any_time(fixture: &dyn StorageFixture) -> CheckResult {
    let (watcher, writer) = (opened(fixture).await?, opened(fixture).await?);
    for yields in 0..10 {
        let (_woken, watch) = watching(Arc::clone(&watcher));
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        insert(&writer, Table::Outbox, vec![message()]).await?;
        watch.abort();
        let _ = watch.await;
        insert(&watcher, Table::Outbox, vec![message()]).await?;
        ensure!(!all(&watcher, Table::Outbox).await?.is_empty(), "nothing is listed after a watch was dropped");
    }
    let (mut woken, watch) = watching(watcher);
    wakes(&mut woken, &writer, Table::Outbox).await?;
    watch.abort();
    Ok(())
}

/// What a watch did, in the order in which it did it.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Listens,
    Wakes(Table),
}

/// One commit has to suffice: polls are as rare as a working watch allows.
pub(super) async fn a_watch_says_that_it_listens(fixture: &dyn StorageFixture) -> CheckResult {
    let (watcher, writer) = (opened(fixture).await?, opened(fixture).await?);
    for table in [Table::Outbox, Table::Inbox] {
        let (sender, mut told) = mpsc::unbounded_channel();
        let (wakes, storage) = (sender.clone(), Arc::clone(&watcher));
        let wake = Wake::new(move |table| drop(wakes.send(Told::Wakes(table))));
        let wake = wake.on_listening(move || drop(sender.send(Told::Listens)));
        let watch = tokio::spawn(async move { storage.watch(wake).await });
        let mut next = async |what: &str| match tokio::time::timeout(PATIENCE, told.recv()).await {
            Ok(Some(told)) => CheckResult::Ok(told),
            Ok(None) => Err("the watch ended".into()),
            Err(_) => Err(format!("within {PATIENCE:?} {what}").into()),
        };
        let first = next("the watch did not say that it listens").await?;
        ensure_eq!(first, Told::Listens, "what a watch tells first");
        let record = if table == Table::Outbox { message() } else { delivery("billing") };
        insert(&writer, table, vec![record]).await?;
        while next("a commit to a table was not told of, though the watch listens").await? != Told::Wakes(table) {}
        watch.abort();
        let _ = watch.await;
    }
    Ok(())
}
