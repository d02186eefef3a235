//! Sequences that stand behind their tables, as after logical replication or a restore of data only.

use cap_core::storage::{Enlist, Inserted, Storage, Table, TransactAsync};
use cap_storage_postgres::PostgresStorage;
use cap_storage_postgres::sqlx::{self, Connection};

use crate::support::{Database, run};
use cap_testkit::storage::scene::{delivery, ids, in_flight, message, node, waiting};

/// Both tables have rows, which the sequences know nothing of.
async fn restored(database: &Database, sequence: &str) -> PostgresStorage {
    let storage = database.storage();
    storage.prepare().await.unwrap();
    let outbox = (0..50).map(|number| message(&format!("restored {number}"))).collect();
    let inbox = (0..20).map(|number| waiting(&format!("restored {number}"))).collect();
    storage.insert(Table::Outbox, outbox, None).await.unwrap();
    storage.insert(Table::Inbox, inbox, None).await.unwrap();
    set_back(database, sequence).await;
    storage
}

async fn set_back(database: &Database, sequence: &str) {
    for table in ["published", "received"] {
        let set_back = format!(r#"SELECT {}"#, sequence.replace("{}", &format!(r#"'"cap"."{table}_Id"'"#)));
        run(&mut database.connection().await, set_back).await;
    }
}

const TO_THE_BEGINNING: &str = "setval({}, 1, false)";

#[tokio::test]
async fn a_business_transaction_is_not_failed_by_an_address_that_is_taken() {
    let database = Database::create().await;
    let storage = restored(&database, TO_THE_BEGINNING).await;
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        set_back(&database, TO_THE_BEGINNING).await;
        let mut user = database.connection().await;
        let mut tx = user.begin_with(sqlx::AssertSqlSafe(format!("BEGIN ISOLATION LEVEL {isolation}"))).await.unwrap();
        let one = storage.enlist(&mut tx, vec![message(&format!("one {isolation}"))]).await.unwrap();
        assert!(matches!(one[..], [Inserted::Stored(_)]), "{one:?}");
        // The sequence is set by now; the next ones are taken all the same.
        set_back(&database, TO_THE_BEGINNING).await;
        let (several, known) = (format!("several {isolation}"), "restored 7");
        let several = ["a", "b", known, "c", "a"]
            .map(|id| if id == known { message(id) } else { message(&format!("{several} {id}")) });
        let answers = storage.enlist(&mut tx, several.to_vec()).await.unwrap();
        let is_stored: Vec<bool> = answers.iter().map(|answer| *answer != Inserted::Duplicate).collect();
        assert_eq!(is_stored, [true, true, false, true, false], "{isolation}");
        tx.commit().await.unwrap();
    }
    assert_eq!(ids(&storage, Table::Outbox).await.len(), 50 + 3 * 4);
    database.drop().await;
}

#[tokio::test]
async fn neither_are_publishing_deliveries_and_handlers() {
    let database = Database::create().await;
    let storage = restored(&database, TO_THE_BEGINNING).await;
    let node = node(&storage).await;
    let stored = storage.insert(Table::Outbox, vec![message("a"), message("b")], None).await.unwrap();
    assert!(stored.iter().all(|answer| matches!(answer, Inserted::Stored(_))), "{stored:?}");
    let claim = cap_core::storage::Claim { node, token: cap_core::ClaimToken::generate() };
    let stored = storage.insert(Table::Inbox, vec![delivery("a"), delivery("b")], Some(claim)).await.unwrap();
    assert!(stored.iter().all(|answer| matches!(answer, Inserted::Stored(_))), "{stored:?}");

    let settlement = in_flight(&storage, node, "handled").await;
    set_back(&database, TO_THE_BEGINNING).await;
    let tx = storage.begin(settlement).await.unwrap().unwrap();
    storage.commit(tx, vec![message("reply")]).await.unwrap();
    assert!(ids(&storage, Table::Outbox).await.contains(&"reply".to_owned()));
    database.drop().await;
}

#[tokio::test]
async fn a_start_mends_it_and_leaves_a_sequence_that_is_ahead_alone() {
    let database = Database::create().await;
    let storage = restored(&database, TO_THE_BEGINNING).await;
    storage.prepare().await.unwrap();
    let mut user = database.connection().await;
    let next = r#"SELECT nextval('"cap"."published_Id"'), nextval('"cap"."received_Id"')"#;
    let ahead: (i64, i64) = sqlx::query_as(next).fetch_one(&mut user).await.unwrap();
    assert_eq!(ahead, (51, 21));
    storage.prepare().await.unwrap();
    let ahead: (i64, i64) = sqlx::query_as(next).fetch_one(&mut user).await.unwrap();
    assert_eq!(ahead, (52, 22));

    // Far behind, and the row has an address that .NET CAP would not give.
    run(&mut user, r#"UPDATE "cap"."published" SET "Id" = "Id" + 5000000000 WHERE "Id" = 50"#).await;
    run(&mut user, r#"UPDATE "cap"."published" SET "Id" = "Id" + 1125899906842624 WHERE "Id" = 49"#).await;
    storage.prepare().await.unwrap();
    let ahead: (i64, i64) = sqlx::query_as(next).fetch_one(&mut user).await.unwrap();
    assert_eq!(ahead, (5_000_000_051, 23));
    database.drop().await;
}

#[tokio::test]
async fn a_role_that_may_only_use_the_sequences_comes_past_what_is_taken() {
    let (database, worker) = (Database::create().await, Database::create().await);
    restored(&database, TO_THE_BEGINNING).await;
    let mut owner = database.connection().await;
    let grants = format!(
        r#"GRANT USAGE ON SCHEMA "cap" TO {0}; GRANT USAGE ON ALL SEQUENCES IN SCHEMA "cap" TO {0};
           GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "cap" TO {0}"#,
        worker.name
    );
    run(&mut owner, grants).await;
    let url = worker.url().replace(&format!("/{}", worker.name), &format!("/{}", database.name));
    let url = url.replace(&format!("//{}", database.name), &format!("//{}", worker.name));
    let storage = PostgresStorage::connect(&url).await.unwrap();
    storage.enlist(&mut *storage.pool().acquire().await.unwrap(), vec![message("few")]).await.unwrap();

    // So far behind that it would have to be set.
    run(&mut owner, r#"UPDATE "cap"."published" SET "Id" = 150000 + "Id""#).await;
    set_back(&database, "setval({}, 150000)").await;
    run(&mut owner, r#"UPDATE "cap"."published" SET "Id" = 5000000000 WHERE "Id" = 150050"#).await;
    storage.enlist(&mut *storage.pool().acquire().await.unwrap(), vec![message("many")]).await.unwrap();
    storage.prepare().await.unwrap();
    database.drop().await;
    worker.drop().await;
}
