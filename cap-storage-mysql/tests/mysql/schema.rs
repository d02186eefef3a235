//! The tables: how they come to be, and whose they are.

use std::time::Duration;

use cap_core::storage::{Chore, Inserted, Lane, Settled, Settlement, Storage, Table};
use cap_core::{ErrorKind, Version};
use cap_storage_mysql::sqlx::{self, Row};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};

use crate::support::{Database, PASSWORD, on_server, run};
use cap_testkit::storage::scene::{ids, listed, message, node, request, succeeded};

/// Publishes, claims and settles a message.
async fn works(storage: &MySqlStorage, id: &str) {
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
    let options = MySqlOptions::default().migrate(false).prefix("bus");
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
async fn a_user_without_the_right_to_make_tables_works_on_those_that_are_there() {
    let database = Database::create().await;
    database.storage().prepare().await.unwrap();
    let user = format!("{}_a", database.name);
    // The right to connect to the database, by a table of the business data.
    run(&mut database.connection().await, "CREATE TABLE orders (item VARCHAR(100))").await;
    on_server(format!(
        "CREATE USER {user} IDENTIFIED BY '{PASSWORD}'; GRANT SELECT ON {0}.orders TO {user}",
        database.name
    ))
    .await;
    let app = || MySqlStorage::new(sqlx::MySqlPool::connect_lazy_with(database.options().username(&user)));

    // Not even reading.
    let error = app().prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("lacks the right"), "{error}");

    // What the README says.
    for table in ["published", "received", "nodes", "chores"] {
        on_server(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON `{}`.`cap.{table}` TO {user}", database.name)).await;
    }
    on_server(format!("GRANT SELECT ON `{}`.`cap.schema` TO {user}", database.name)).await;
    let pool = sqlx::MySqlPool::connect_lazy_with(database.options().username(&user));
    let storage = MySqlStorage::with_pool(pool, MySqlOptions::default().migrate(false)).unwrap();
    storage.prepare().await.unwrap();
    works(&storage, "a").await;
    let node = node(&storage).await;
    assert!(storage.take_chore(Chore::Collect, node, Duration::from_secs(60)).await.unwrap());
    assert_eq!(storage.collect(Table::Outbox, 10).await.unwrap(), 0);
    storage.leave(node).await.unwrap();
    // With leave to migrate, and nothing to do, too.
    app().prepare().await.unwrap();

    database.drop().await;
    on_server(format!("DROP USER {user}")).await;
}

#[tokio::test]
async fn tables_of_the_first_version_are_upgraded_and_keep_their_rows() {
    let script = MySqlOptions::default().print_schema().unwrap();
    let (first, rest) = script.split_once("-- Version 2").unwrap();
    for by_hand in [false, true] {
        let database = Database::create().await;
        let mut connection = database.connection().await;
        run(&mut connection, first).await;
        // As .NET CAP and older nodes insert: they know nothing of our columns.
        let older =
            "INSERT INTO `cap.received` (`Version`, `Name`, `Group`, `Retries`, `Added`, `StatusName`, `MessageId`)
                     VALUES ('v1', 'x', 'g', 1, NOW(), 'Succeeded', ";
        run(&mut connection, format!("{older} 'older')")).await;
        let checking = database.storage_with(MySqlOptions::default().migrate(false));
        let error = checking.prepare().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.to_string().contains("after version 1"), "{error}");

        if by_hand {
            // Cut off, and once more.
            run(&mut connection, format!("-- {}", rest.split_once("DEALLOCATE").unwrap().0)).await;
            run(&mut connection, format!("-- {rest}")).await;
        } else {
            // Two nodes at once.
            let (one, other) = (database.storage(), database.storage());
            let (one, other) = tokio::join!(one.prepare(), other.prepare());
            one.and(other).unwrap();
        }
        checking.prepare().await.unwrap();
        run(&mut connection, format!("{older} 'as older')")).await;
        works(&checking, "a").await;
        let crashes: Vec<u32> = listed(&checking, Table::Inbox).await.iter().map(|record| record.crashes).collect();
        assert_eq!(crashes, [0, 0]);
        database.drop().await;
    }
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
    run(&mut database.connection().await, "CREATE TABLE `cap.published` (title TEXT)").await;
    let error = database.storage().prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("another prefix"), "{error}");
    assert_eq!(tables(&database).await, ["cap.published"]);
    database.drop().await;
}

async fn tables(database: &Database) -> Vec<String> {
    let rows = sqlx::raw_sql("SHOW TABLES").fetch_all(&mut database.connection().await).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_prefix_may_be_anything_and_is_never_sql() {
    let database = Database::create().await;
    run(&mut database.connection().await, "CREATE TABLE orders (item TEXT)").await;
    for prefix in ["x; DROP TABLE orders; --", "My Bus", "ünï.cødé", "select", "?", &"ü".repeat(54)] {
        let storage = database.storage_with(MySqlOptions::default().prefix(prefix));
        storage.prepare().await.unwrap();
        works(&storage, "a").await;
    }
    for prefix in ["a`; DROP TABLE orders; --", "a'", "{nodes}", "a\\"] {
        let options = MySqlOptions::default().prefix(prefix);
        let error = MySqlStorage::with_pool(database.pool(1), options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{prefix}");
    }
    assert!(tables(&database).await.contains(&"orders".to_owned()));
    database.drop().await;
}

#[tokio::test]
async fn two_prefixes_share_a_database_and_no_record() {
    let database = Database::create().await;
    let [one, other] = ["one", "other"].map(|name| database.storage_with(MySqlOptions::default().prefix(name)));
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
    let foreign = "SET sql_mode = '';
                   INSERT INTO `cap.published` (`Id`, `Version`, `Name`, `Added`, `StatusName`)
                   VALUES (7777777, 'v1', 'x', '0000-00-00 00:00:00', 'Succeeded')";
    run(&mut database.connection().await, foreign).await;
    works(&storage, "a").await;
    let mut found = ids(&storage, Table::Outbox).await;
    found.sort_unstable();
    assert_eq!(found, ["a", "row-7777777"]);
    database.drop().await;
}

#[tokio::test]
async fn the_printed_schema_may_be_applied_twice_and_over_tables_in_use() {
    let database = Database::create().await;
    let storage = database.storage();
    storage.prepare().await.unwrap();
    works(&storage, "a").await;
    let before = listed(&storage, Table::Outbox).await;
    let script = MySqlOptions::default().print_schema().unwrap();
    run(&mut database.connection().await, script).await;
    assert_eq!(listed(&storage, Table::Outbox).await, before);
    database.drop().await;
}
