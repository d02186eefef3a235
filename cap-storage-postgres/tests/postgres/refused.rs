//! What the server refuses: whose fault it is, and that it is told apart.

use cap_core::storage::{Claim, ClaimRequest, Inserted, Lane, NewRecord, Settled, Settlement, Storage, Table};
use cap_core::{ErrorKind, RetryPolicy, Topic, Version, lifecycle};
use cap_storage_postgres::PostgresStorage;
use cap_storage_postgres::sqlx;
use std::time::Duration;

use crate::support::{Database, PASSWORD, on_server, run};
use cap_testkit::storage::scene::{group, in_flight, message, node, request, waiting};

fn failed(reason: &str) -> lifecycle::State {
    let keep = Duration::from_secs(60);
    let rules = lifecycle::Rules { retry: RetryPolicy::default(), keep_succeeded: keep, keep_dead: keep };
    lifecycle::settle(&lifecycle::Begun::first(), lifecycle::Outcome::Hopeless(reason.to_owned()), &rules, 0.0)
}

#[tokio::test]
async fn rights_that_were_taken_away_are_the_environments_and_all_works_when_they_are_back() {
    let database = Database::create().await;
    database.storage().prepare().await.unwrap();
    let role = format!("{}_app", database.name);
    on_server(format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")).await;
    let mut owner = database.connection().await;
    let grants = format!(
        r#"GRANT USAGE ON SCHEMA "cap" TO {role};
           GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "cap" TO {role};
           GRANT USAGE ON ALL SEQUENCES IN SCHEMA "cap" TO {role}"#
    );
    run(&mut owner, grants).await;
    let storage = PostgresStorage::new(sqlx::PgPool::connect_lazy_with(database.options().username(&role)));
    let node = node(&storage).await;
    let insert = || storage.insert(Table::Inbox, vec![waiting("a")], Some(Claim::by(node)));
    let settlement = in_flight(&storage, node, "b").await;

    run(&mut owner, format!(r#"REVOKE INSERT, UPDATE ON "cap"."received" FROM {role}"#)).await;
    let error = insert().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    assert!(error.to_string().contains("lacks the right"), "{error}");
    let error = storage.settle(Table::Inbox, vec![settlement.clone()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    run(&mut owner, format!(r#"GRANT INSERT, UPDATE ON "cap"."received" TO {role}"#)).await;
    assert!(matches!(insert().await.unwrap()[..], [Inserted::Stored(_)]));
    assert_eq!(storage.settle(Table::Inbox, vec![settlement]).await.unwrap(), [Settled::Written]);

    // As a server says it that was a primary. (That transactions are read-only by default is no reason: ours say that they write.)
    let refusal = r#"CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN RAISE 'a standby' USING ERRCODE = '25006'; END $$
                     LANGUAGE plpgsql;
                     CREATE TRIGGER refusal BEFORE INSERT ON "cap"."published" EXECUTE FUNCTION refuse()"#;
    run(&mut owner, refusal).await;
    let readers = PostgresStorage::new(database.pool(1));
    let session =
        async || sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(readers.pool()).await.unwrap();
    let before = session().await;
    let error = readers.insert(Table::Outbox, vec![message("c")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    run(&mut owner, r#"DROP TRIGGER refusal ON "cap"."published""#).await;
    assert_ne!(session().await, before);
    // The session that learnt it is not kept: a new one finds a server that writes.
    assert!(matches!(
        readers.insert(Table::Outbox, vec![message("c")], None).await.unwrap()[..],
        [Inserted::Stored(_)]
    ));
    drop(storage);
    database.drop().await;
    on_server(format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_database_that_is_not_unicode_says_so_and_takes_ascii() {
    let database = Database::create().await;
    let latin = format!("{}_latin", database.name);
    on_server(format!(
        "CREATE DATABASE {latin} OWNER {} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        database.name
    ))
    .await;
    let storage = PostgresStorage::new(sqlx::PgPool::connect_lazy_with(database.options().database(&latin)));
    storage.prepare().await.unwrap();
    assert!(storage.capabilities().ascii_only);
    let node = node(&storage).await;
    let in_japan = NewRecord { content: "\"日本\"".into(), ..waiting("a") };
    let error = storage.insert(Table::Inbox, vec![waiting("b"), in_japan], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    let escaped = NewRecord { content: r#""\u65e5\u672c""#.into(), ..waiting("a") };
    assert!(matches!(storage.insert(Table::Inbox, vec![escaped], None).await.unwrap()[..], [Inserted::Stored(_)]));

    let refused = Settlement { state: failed("日本"), ..in_flight(&storage, node, "c").await };
    let fine = in_flight(&storage, node, "d").await;
    let error = storage.settle(Table::Inbox, vec![fine.clone(), refused.clone()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    let plain = Settlement { state: refused.state.in_plain_words().unwrap(), ..refused };
    assert_eq!(storage.settle(Table::Inbox, vec![fine, plain]).await.unwrap(), [Settled::Written; 2]);
    drop(storage);
    on_server(format!("DROP DATABASE {latin} WITH (FORCE)")).await;

    let storage = database.storage();
    storage.prepare().await.unwrap();
    assert!(!storage.capabilities().ascii_only);
    database.drop().await;
}

#[tokio::test]
async fn a_claim_takes_so_many_bytes_and_leaves_topics_alone() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let sized = |id: &str, bytes: usize| NewRecord { content: "x".repeat(bytes).into(), ..waiting(id) };
    let other: Topic = "other".try_into().unwrap();
    let mut records = vec![sized("a", 3000), sized("b", 400), sized("c", 500), sized("d", 600), sized("e", 10)];
    records[1].topic = other.clone();
    storage.insert(Table::Inbox, records, None).await.unwrap();
    let lane = Lane::Inbox(group());
    let claim = |limit, bytes, except: Vec<Topic>| {
        let request = ClaimRequest { bytes, except, ..request(node, lane.clone(), limit) };
        let storage = &storage;
        async move {
            let claimed = storage.claim(request).await.unwrap();
            let ids: Vec<_> = claimed.records.iter().map(|record| record.message_id.to_string()).collect();
            (ids.concat(), claimed.next_due)
        }
    };
    let except = vec![other.clone(), "third".try_into().unwrap()];
    assert_eq!(claim(10, 1000, except.clone()).await, ("a".to_owned(), Some(Duration::ZERO)));
    assert_eq!(claim(10, 1000, except.clone()).await, ("c".to_owned(), Some(Duration::ZERO)));
    assert_eq!(claim(2, 1000, except.clone()).await, ("de".to_owned(), None));
    assert_eq!(claim(10, 0, except).await, (String::new(), None));
    assert_eq!(storage.next_due(Version::default(), vec![lane.clone()]).await.unwrap(), [Some(Duration::ZERO)]);
    assert_eq!(claim(10, 0, vec![]).await, ("b".to_owned(), None));
    database.drop().await;
}
