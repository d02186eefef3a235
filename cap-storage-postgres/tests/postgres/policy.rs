//! Row level security.

use std::time::Duration;

use cap_core::storage::{Enlist, Lane, Storage, Table};
use cap_core::{ErrorKind, Version};
use cap_storage_postgres::PostgresStorage;
use cap_storage_postgres::sqlx::AssertSqlSafe;
use cap_storage_postgres::sqlx::{self};

use crate::support::{Database, run};
use cap_testkit::storage::scene::{ids, message};

/// Policies bind the owner, too.
const FORCE: &str = r#"
    ALTER TABLE "cap"."published" ENABLE ROW LEVEL SECURITY; ALTER TABLE "cap"."published" FORCE ROW LEVEL SECURITY
"#;

async fn set(database: &Database, policies: &str) {
    run(&mut database.connection().await, policies).await;
}

#[tokio::test]
async fn policies_that_hide_everything_from_changes_are_refused_at_the_start() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    // What it publishes is answered well, and is never sent.
    set(&database, FORCE).await;
    set(&database, r#"CREATE POLICY seen ON "cap"."published" FOR SELECT USING (true)"#).await;
    set(&database, r#"CREATE POLICY written ON "cap"."published" FOR INSERT WITH CHECK (true)"#).await;
    storage.enlist(&mut database.connection().await, vec![message("a")]).await.unwrap();

    let error = database.storage().prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("row level security") && error.to_string().contains("published"), "{error}");

    set(&database, r#"CREATE POLICY changed ON "cap"."published" FOR UPDATE USING (true)"#).await;
    let error = database.storage().prepare().await.unwrap_err();
    assert!(error.to_string().contains("deletions"), "{error}");

    set(&database, r#"CREATE POLICY removed ON "cap"."published" FOR DELETE USING (true)"#).await;
    database.storage().prepare().await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["a"], "nothing is left of what was tried");
    database.drop().await;
}

#[tokio::test]
async fn policies_that_are_made_while_a_node_works_are_told_when_it_looks_for_what_is_due() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let look = async |storage: &PostgresStorage| storage.next_due(Version::default(), vec![Lane::Outbox]).await;
    look(&storage).await.unwrap();
    set(&database, FORCE).await;
    let began = std::time::Instant::now();
    let error = loop {
        match look(&storage).await {
            Ok(_) => sqlx::raw_sql(AssertSqlSafe("SELECT pg_sleep(0.1)".to_owned()))
                .execute(&mut database.connection().await)
                .await
                .map(drop)
                .unwrap(),
            Err(error) => break error,
        }
        assert!(began.elapsed() < Duration::from_secs(30), "it never says so");
    };
    assert!(error.to_string().contains("row-level security"), "{error}");
    set(&database, r#"ALTER TABLE "cap"."published" NO FORCE ROW LEVEL SECURITY"#).await;
    look(&storage).await.unwrap();
    database.drop().await;
}
