//! The user's own transactions, and those of handlers.

use cap_core::storage::{Enlist, Inserted, Lane, Lease, Settled, Storage, Table, TransactAsync};
use cap_core::{ErrorKind, Status};
use cap_storage_postgres::PostgresStorage;
use cap_storage_postgres::sqlx::{self, Connection, PgConnection, PgPool};

use crate::support::{Database, run};
use cap_testkit::storage::scene::{LEASE, ids, in_flight, inbox_status, message, node, request, waiting};

async fn prepared(database: &Database) -> PostgresStorage {
    let storage = database.storage();
    storage.prepare().await.unwrap();
    run(&mut database.connection().await, "CREATE TABLE orders (item TEXT PRIMARY KEY)").await;
    storage
}

async fn orders(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(pool).await.unwrap()
}

async fn order(connection: &mut PgConnection, item: &str) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO orders VALUES ($1)").bind(item).execute(connection).await.map(|_| ())
}

#[tokio::test]
async fn a_message_joins_any_connection_of_the_driver() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let pool = database.pool(1);

    let mut tx = pool.begin().await.unwrap();
    order(&mut tx, "book").await.unwrap();
    storage.enlist(&mut tx, vec![message("transaction")]).await.unwrap();
    let mut inner = Connection::begin(&mut *tx).await.unwrap();
    storage.enlist(&mut inner, vec![message("taken back")]).await.unwrap();
    inner.rollback().await.unwrap();
    tx.commit().await.unwrap();

    let mut pooled = pool.acquire().await.unwrap();
    storage.enlist(&mut pooled, vec![message("pooled")]).await.unwrap();
    let connection: &mut PgConnection = &mut pooled;
    let mut tx = connection.begin().await.unwrap();
    storage.enlist(&mut *tx, vec![message("connection")]).await.unwrap();
    drop(tx);
    storage.enlist(connection, vec![message("connection")]).await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["transaction", "pooled", "connection"]);
    database.drop().await;
}

#[tokio::test]
async fn a_wrong_connection_and_a_failed_transaction_are_named() {
    let (database, elsewhere) = (Database::create().await, Database::create().await);
    let storage = prepared(&database).await;
    let mut wrong = elsewhere.connection().await;
    let error = storage.enlist(&mut wrong, vec![message("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("another database"), "{error}");

    let mut connection = database.connection().await;
    let mut tx = connection.begin().await.unwrap();
    order(&mut tx, "book").await.unwrap();
    order(&mut tx, "book").await.unwrap_err();
    let error = storage.enlist(&mut tx, vec![message("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("rolled back"), "{error}");
    tx.rollback().await.unwrap();
    elsewhere.drop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_handler_that_ignored_a_failed_statement_is_not_taken_for_committed() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    for records in [vec![], vec![message("reply")]] {
        let mut tx = storage.begin(settlement.clone()).await.unwrap().unwrap();
        order(&mut tx, "book").await.unwrap();
        order(&mut tx, "book").await.unwrap_err();
        let error = storage.commit(tx, records).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.to_string().contains("statement before it failed"), "{error}");
    }
    assert_eq!(orders(storage.pool()).await, 0);
    assert_eq!(inbox_status(&storage).await, [Status::Queued]);
    assert_eq!(storage.settle(Table::Inbox, vec![settlement]).await.unwrap(), [Settled::Written]);
    database.drop().await;
}

#[tokio::test]
async fn a_handler_that_ended_the_transaction_itself_is_told() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    let mut tx = storage.begin(settlement).await.unwrap().unwrap();
    run(&mut tx, "ROLLBACK").await;
    let error = storage.commit(tx, vec![message("reply")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("must not"), "{error}");
    assert!(ids(&storage, Table::Outbox).await.is_empty());
    database.drop().await;
}

#[tokio::test]
async fn a_commit_that_a_deferred_constraint_refuses_leaves_nothing() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let deferred = "CREATE TABLE lines (item TEXT REFERENCES orders DEFERRABLE INITIALLY DEFERRED)";
    run(&mut database.connection().await, deferred).await;
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    let mut tx = storage.begin(settlement).await.unwrap().unwrap();
    run(&mut tx, "INSERT INTO lines VALUES ('nothing')").await;
    let error = storage.commit(tx, vec![message("reply")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert!(ids(&storage, Table::Outbox).await.is_empty());
    assert_eq!(inbox_status(&storage).await, [Status::Queued]);
    database.drop().await;
}

#[tokio::test]
async fn a_takeover_does_not_wait_for_the_handler_of_a_dead_node() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let dead = node(&storage).await;
    let busy = in_flight(&storage, dead, "busy").await;
    in_flight(&storage, dead, "idle").await;
    let tx = storage.begin(busy).await.unwrap().unwrap();
    let taken = cap_testkit::take_over_from(&storage, &[dead]).await.unwrap();
    assert_eq!(storage.heartbeat(dead, LEASE).await.unwrap(), Lease::Lost);
    assert_eq!((taken.nodes, taken.inbox), (vec![dead], 1));
    // Its transaction ends without a commit: then the record is free for the next takeover.
    storage.rollback(tx).await.unwrap();
    assert_eq!(storage.take_over(Vec::new()).await.unwrap().inbox, 1);
    assert_eq!(inbox_status(&storage).await, [Status::Scheduled; 2]);
    database.drop().await;
}

#[tokio::test]
async fn a_takeover_waits_for_a_claim_under_way_and_takes_it_too() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let dying = node(&storage).await;
    storage.insert(Table::Inbox, vec![waiting("a")], None).await.unwrap();

    // A claim that was answered in time, but is committed late.
    let mut claim = database.connection().await;
    let mut claim = claim.begin().await.unwrap();
    let lock = format!(r#"SELECT FROM "cap"."nodes" WHERE "Node" = '{dying}' FOR KEY SHARE"#);
    run(&mut claim, lock).await;
    let hold = format!(
        r#"UPDATE "cap"."received" SET "StatusName" = 'Queued', "Owner" = '{dying}', "DueAt" = NULL,
           "Claim" = gen_random_uuid(), "Retries" = 1"#
    );
    run(&mut claim, hold).await;
    let takeover = tokio::spawn({
        let storage = storage.clone();
        async move { cap_testkit::take_over_from(&storage, &[dying]).await }
    });
    let mut observer = database.connection().await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut observer).await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    claim.commit().await.unwrap();
    assert_eq!(takeover.await.unwrap().unwrap().inbox, 1);
    database.drop().await;
}

#[tokio::test]
async fn the_victim_of_a_deadlock_is_done_again() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let mut user = database.connection().await;
    let mut tx = user.begin().await.unwrap();
    storage.enlist(&mut tx, vec![message("b")]).await.unwrap();
    let insert = tokio::spawn({
        let storage = storage.clone();
        async move { storage.insert(Table::Outbox, vec![message("a"), message("b")], None).await }
    });
    let mut observer = database.connection().await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut observer).await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    // The insert has waited longer: it is the victim, as a rule.
    let user_is_victim = storage.enlist(&mut tx, vec![message("a")]).await.is_err();
    if user_is_victim {
        tx.rollback().await.unwrap();
    } else {
        tx.commit().await.unwrap();
    }
    let inserted = insert.await.unwrap().unwrap();
    assert_eq!(inserted.iter().filter(|inserted| **inserted == Inserted::Duplicate).count() == 2, !user_is_victim);
    assert_eq!(ids(&storage, Table::Outbox).await.len(), 2);
    let claimed = storage.claim(request(node(&storage).await, Lane::Outbox, 10)).await.unwrap();
    assert_eq!(claimed.records.len(), 2);
    database.drop().await;
}
