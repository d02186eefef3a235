//! Time zones, pages, notifications, and what is given up.

use std::time::Duration;

use cap_core::storage::{Lane, Storage, Table, Wake};
use cap_core::{Due, ErrorKind, RetryPolicy, Timestamp, lifecycle};
use cap_storage_postgres::sqlx::postgres::PgPoolOptions;
use cap_storage_postgres::sqlx::{self, Connection, Row};
use cap_storage_postgres::{PostgresOptions, PostgresStorage};
use tokio::sync::mpsc;

use crate::support::{Database, run};
use cap_testkit::storage::scene::{LEASE, listed, message, node, request};

#[tokio::test]
async fn a_session_in_another_time_zone_writes_the_same_times() {
    let database = Database::create().await;
    database.storage().prepare().await.unwrap();
    let pool = PgPoolOptions::new().max_connections(1).after_connect(|connection, _| {
        Box::pin(async move {
            sqlx::raw_sql("SET TIME ZONE 'Asia/Tokyo'; SET DateStyle = 'German'; SET IntervalStyle = 'iso_8601'")
                .execute(connection)
                .await?;
            Ok(())
        })
    });
    let far = PostgresStorage::new(pool.connect_lazy_with(database.options()));
    let near = database.storage();
    let moment = Timestamp::from_micros(4_102_444_800_123_456);
    let at = |id, due| cap_core::storage::NewRecord { state: lifecycle::scheduled(due), ..message(id) };
    far.insert(Table::Outbox, vec![message("now"), at("at", Due::At(moment))], None).await.unwrap();
    near.insert(Table::Outbox, vec![message("near")], None).await.unwrap();

    let records = listed(&near, Table::Outbox).await;
    assert_eq!(records, listed(&far, Table::Outbox).await);
    assert_eq!(records[1].due, Some(moment));
    let apart = records[0].added.as_micros().abs_diff(records[2].added.as_micros());
    assert!(apart < 60_000_000, "`Added` is {apart} µs apart");
    let claimed = far.claim(request(node(&far).await, Lane::Outbox, 10)).await.unwrap();
    assert_eq!(claimed.records.len(), 2, "both that are due now");
    database.drop().await;
}

#[tokio::test]
async fn a_reason_with_a_nul_is_stored_all_the_same() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let keep = Duration::from_secs(60);
    let rules = lifecycle::Rules { retry: RetryPolicy::default(), keep_succeeded: keep, keep_dead: keep };
    let failed = lifecycle::Outcome::Failed("a\0b".to_owned());
    let state = lifecycle::settle(&lifecycle::Begun::first(), failed, &rules, 0.0);
    let record = cap_core::storage::NewRecord { state, ..message("a") };
    storage.insert(Table::Outbox, vec![record], None).await.unwrap();
    let reason = listed(&storage, Table::Outbox).await[0].reason.clone().unwrap();
    assert!(reason.contains("a\u{FFFD}b"), "{reason:?}");
    database.drop().await;
}

#[tokio::test]
async fn heartbeats_leave_no_trace_in_indexes() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    for _ in 0..50 {
        storage.heartbeat(node, LEASE).await.unwrap();
    }
    // Statistics of a session are sent when it ends.
    drop(storage);
    let mut connection = database.connection().await;
    let (all, hot) = loop {
        let row = sqlx::query("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'nodes'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        let found: (i64, i64) = (row.get(0), row.get(1));
        if found.0 >= 50 {
            break found;
        }
        run(&mut connection, "SELECT pg_sleep(0.05)").await;
    };
    assert_eq!((all, hot), (50, 50), "updates, and those within their page");
    database.drop().await;
}

#[tokio::test]
async fn a_watch_tells_when_its_connection_is_lost() {
    let database = Database::create().await;
    let (watcher, writer) = (database.storage(), database.storage());
    writer.prepare().await.unwrap();
    let (sender, mut woken) = mpsc::unbounded_channel();
    let watch = tokio::spawn(async move {
        let wake = Wake::new(move |table| {
            let _ = sender.send(table);
        });
        watcher.watch(wake).await
    });
    // Both tables are woken once it listens.
    assert_eq!(woken.recv().await, Some(Table::Outbox));
    assert_eq!(woken.recv().await, Some(Table::Inbox));
    writer.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    assert_eq!(woken.recv().await, Some(Table::Outbox));

    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    run(&mut database.connection().await, kill).await;
    let error = watch.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    database.drop().await;
}

#[tokio::test]
async fn many_commits_are_few_notifications_and_the_last_is_told() {
    let database = Database::create().await;
    let (watcher, writer) = (database.storage(), database.storage());
    writer.prepare().await.unwrap();
    let (sender, mut woken) = mpsc::unbounded_channel();
    let watch = tokio::spawn(async move {
        let wake = Wake::new(move |table| {
            let _ = sender.send(table);
        });
        watcher.watch(wake).await
    });
    woken.recv().await.unwrap();
    woken.recv().await.unwrap();
    let started = std::time::Instant::now();
    for number in 0..100 {
        writer.insert(Table::Outbox, vec![message(&format!("m{number}"))], None).await.unwrap();
    }
    // The first is told at once, and one that covers the last.
    let mut told = 0;
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(600), woken.recv()).await {
        told += 1;
    }
    let most = started.elapsed().as_millis() / 200 + 1;
    assert!((2..=most).contains(&told), "told {told} times, at most {most} were expected");
    watch.abort();
    database.drop().await;
}

#[tokio::test]
async fn what_is_given_up_keeps_no_connection_of_the_pool() {
    let database = Database::create().await;
    // The sessions of a user's pool have no limit of ours: the server goes on waiting for the lock.
    let options = PostgresOptions::default().statement_timeout(Duration::from_secs(1));
    let storage = PostgresStorage::with_pool(database.pool(1), options).unwrap();
    storage.prepare().await.unwrap();
    let mut other = database.connection().await;
    run(&mut other, r#"BEGIN; LOCK TABLE "cap"."published""#).await;
    let error = storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("it may have been carried out or not"), "{error}");
    assert_eq!(listed(&storage, Table::Inbox).await, [], "the pool's only connection is free");
    other.close().await.unwrap();
    database.drop().await;
}

/// Somebody's snapshot keeps the dead entries of the index. A machine that is fast enough never comes to use a floor, and
/// nothing may be missed either way.
#[tokio::test]
async fn what_commits_late_is_found_also_when_claims_of_nothing_are_slow() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let (mut holder, mut other) = (database.connection().await, database.connection().await);
    run(&mut holder, r#"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM "cap"."published""#).await;
    let handled = r#"INSERT INTO "cap"."published" ("Version", "Name", "Retries", "Added", "StatusName", "MessageId", "DueAt")
                     SELECT 'v1', 'a', 1, now(), 'Scheduled', 'm' || n, now() - interval '1 minute'
                     FROM generate_series(1, 150000) AS n;
                     UPDATE "cap"."published" SET "StatusName" = 'Succeeded', "DueAt" = NULL"#;
    run(&mut other, handled).await;
    let mut times = Vec::new();
    for _ in 0..12 {
        let begun = std::time::Instant::now();
        let claimed = storage.claim(request(node, Lane::Outbox, 10)).await.unwrap();
        assert_eq!(claimed.records, []);
        times.push(begun.elapsed());
    }
    let (before, after) = times.split_at(3);
    let (before, after) = (before.iter().min().unwrap(), after.iter().min().unwrap());
    let is_slow = *before > Duration::from_millis(60);
    assert!(!is_slow || *after < *before / 2, "claims of nothing took {times:?}");
    let long_ago = Due::At(Timestamp::from_micros(1_600_000_000_000_000));
    let late = cap_core::storage::NewRecord { state: lifecycle::scheduled(long_ago), ..message("late") };
    storage.insert(Table::Outbox, vec![late], None).await.unwrap();
    let inserted = std::time::Instant::now();
    loop {
        let claimed = storage.claim(request(node, Lane::Outbox, 10)).await.unwrap();
        if !claimed.records.is_empty() {
            break;
        }
        let wait = claimed.next_due.expect("a claim that does not read everything says when the next one does");
        assert!(inserted.elapsed() + wait < Duration::from_secs(20), "it is never found");
    }
    database.drop().await;
}
