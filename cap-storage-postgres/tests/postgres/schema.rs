//! The tables: how they come to be, and whose they are.

use std::time::Duration;

use cap_core::storage::{Chore, Inserted, Lane, Settled, Settlement, Storage, Table};
use cap_core::{ErrorKind, Version};
use cap_storage_postgres::sqlx::{self, Row};
use cap_storage_postgres::{PostgresOptions, PostgresStorage};

use crate::support::{Database, PASSWORD, on_server, run};
use cap_testkit::storage::scene::{ids, listed, message, node, request, succeeded};

/// Publishes, claims and settles a message.
async fn works(storage: &PostgresStorage, id: &str) {
    let inserted = storage.insert(Table::Outbox, vec![message(id)], None).await.unwrap();
    assert!(matches!(inserted[..], [Inserted::Stored(_)]));
    let request = request(node(storage).await, Lane::Outbox, 10);
    let claimed = storage.claim(request.clone()).await.unwrap();
    assert_eq!(claimed.records.len(), 1);
    let settlement = Settlement { record: claimed.records[0].id, token: request.claim.token, state: succeeded() };
    assert_eq!(storage.settle(Table::Outbox, vec![settlement]).await.unwrap(), [Settled::Written]);
}

#[tokio::test]
async fn without_leave_to_migrate_missing_tables_are_a_schema_error_and_printed_ones_will_do() {
    let database = Database::create().await;
    let options = PostgresOptions::default().migrate(false).schema("bus");
    let storage = database.storage_with(options.clone());
    let error = storage.prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains(&database.name), "{error}");

    run(&mut database.connection().await, options.print_schema().unwrap()).await;
    storage.prepare().await.unwrap();
    works(&storage, "a").await;
    database.drop().await;
}

#[tokio::test]
async fn tables_of_earlier_versions_are_upgraded_and_keep_their_rows() {
    let script = PostgresOptions::default().print_schema().unwrap();
    for (version, by_hand) in [(1, false), (1, true), (2, false), (2, true)] {
        let (first, rest) = script.split_once(&format!("-- Version {}", version + 1)).unwrap();
        let database = Database::create().await;
        let mut connection = database.connection().await;
        run(&mut connection, format!("{first} COMMIT")).await;
        let older = r#"INSERT INTO "cap"."published" ("Version", "Name", "Retries", "Added", "StatusName", "MessageId")
                       VALUES ('v1', 'x', 1, now(), 'Succeeded', 'older')"#;
        run(&mut connection, older).await;
        let checking = database.storage_with(PostgresOptions::default().migrate(false));
        let error = checking.prepare().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.to_string().contains(&format!("after version {version}")), "{error}");

        if by_hand {
            run(&mut connection, format!("BEGIN; --{rest}")).await;
        } else {
            database.storage().prepare().await.unwrap();
        }
        checking.prepare().await.unwrap();
        works(&checking, "a").await;
        // As .NET CAP and older nodes insert: they know nothing of our columns.
        let older = r#"INSERT INTO "cap"."received" ("Id", "Version", "Name", "Group", "Retries", "Added", "StatusName")
                       VALUES (7, 'v1', 'x', 'g', 1, now(), 'Succeeded')"#;
        run(&mut connection, older).await;
        assert_eq!(listed(&checking, Table::Inbox).await[0].crashes, 0);
        assert_eq!(ids(&checking, Table::Outbox).await, ["older", "a"]);
        assert!(checking.take_chore(Chore::Collect, node(&checking).await, Duration::from_secs(60)).await.unwrap());
        database.drop().await;
    }
}

#[tokio::test]
async fn a_role_without_ddl_rights_works_on_tables_that_are_there() {
    let database = Database::create().await;
    database.storage().prepare().await.unwrap();
    let role = format!("{}_app", database.name);
    on_server(format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")).await;
    let app = || PostgresStorage::new(sqlx::PgPool::connect_lazy_with(database.options().username(&role)));

    // Not even reading.
    let error = app().prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("lacks the right"), "{error}");

    // What the README says.
    let grants = format!(
        r#"GRANT USAGE ON SCHEMA "cap" TO {role};
           GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "cap" TO {role};
           GRANT USAGE ON ALL SEQUENCES IN SCHEMA "cap" TO {role}"#
    );
    run(&mut database.connection().await, grants).await;
    let pool = sqlx::PgPool::connect_lazy_with(database.options().username(&role));
    let storage = PostgresStorage::with_pool(pool, PostgresOptions::default().migrate(false)).unwrap();
    storage.prepare().await.unwrap();
    works(&storage, "a").await;
    let node = node(&storage).await;
    assert!(storage.take_chore(Chore::Collect, node, Duration::from_secs(60)).await.unwrap());
    assert_eq!(storage.collect(Table::Outbox, 10).await.unwrap(), 0);
    storage.leave(node).await.unwrap();
    // With leave to migrate, and nothing to do, too.
    app().prepare().await.unwrap();

    database.drop().await;
    on_server(format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn before_the_tables_are_made_every_call_says_so() {
    let database = Database::create().await;
    let storage = database.storage();
    let error = storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    let error = storage.counts(Table::Inbox, Version::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.to_string().contains("prepare"), "{error}");
    database.drop().await;
}

#[tokio::test]
async fn tables_of_strangers_are_left_alone() {
    let database = Database::create().await;
    run(&mut database.connection().await, "CREATE SCHEMA cap; CREATE TABLE cap.published (title TEXT)").await;
    let error = database.storage().prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("another schema"), "{error}");
    let tables = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'cap'";
    let row = sqlx::query(tables).fetch_one(&mut database.connection().await).await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 1);
    database.drop().await;
}

#[tokio::test]
async fn a_schema_may_have_any_name_and_is_never_sql() {
    let database = Database::create().await;
    for schema in ["x; DROP SCHEMA public; --", "My Bus", "Cap", "ünï.cødé", "select", &"l".repeat(63)] {
        let storage = database.storage_with(PostgresOptions::default().schema(schema));
        storage.prepare().await.unwrap();
        works(&storage, "a").await;
    }
    for schema in ["a\"; DROP SCHEMA public; --", "a'", "{nodes}", "pg_catalog"] {
        let options = PostgresOptions::default().schema(schema);
        let error = PostgresStorage::with_pool(database.pool(1), options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{schema}");
    }
    let there = "SELECT count(*) FROM pg_namespace WHERE nspname = 'public'";
    let row = sqlx::query(there).fetch_one(&mut database.connection().await).await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 1);
    database.drop().await;
}

#[tokio::test]
async fn two_schemas_share_a_database_and_no_record() {
    let database = Database::create().await;
    let [one, other] = ["one", "other"].map(|name| database.storage_with(PostgresOptions::default().schema(name)));
    for storage in [&one, &other] {
        storage.prepare().await.unwrap();
    }
    one.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    assert_eq!(ids(&one, Table::Outbox).await, ["a"]);
    assert!(ids(&other, Table::Outbox).await.is_empty());
    database.drop().await;
}

#[tokio::test]
async fn a_foreign_row_without_our_columns_hides_nobody() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let foreign = r#"INSERT INTO "cap"."published" ("Id", "Version", "Name", "Retries", "Added", "StatusName")
                     VALUES (7777777, 'v1', 'x', 0, '-infinity', 'Succeeded')"#;
    run(&mut database.connection().await, foreign).await;
    works(&storage, "a").await;
    assert_eq!(ids(&storage, Table::Outbox).await, ["a", "row-7777777"]);
    database.drop().await;
}
