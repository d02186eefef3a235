//! The user's own transactions, and those of handlers.

use std::time::Duration;

use cap_core::storage::{Claim, Enlist, Inserted, Lane, Lease, Settled, Storage, Table, TransactAsync};
use cap_core::{ErrorKind, Status};
use cap_storage_mysql::MySqlStorage;
use cap_storage_mysql::sqlx::{self, Connection, MySqlConnection, MySqlPool};

use crate::support::{Database, run, server};
use cap_testkit::storage::scene::{
    LEASE, delivery, group, ids, in_flight, inbox_status, message, node, request, waiting,
};

/// How many transactions of a database wait for a lock.
const WAITING: &str = "
    SELECT COUNT(*) FROM information_schema.INNODB_TRX JOIN information_schema.PROCESSLIST ON ID = trx_mysql_thread_id
    WHERE trx_state = 'LOCK WAIT' AND DB = ?
";

async fn prepared(database: &Database) -> MySqlStorage {
    let storage = database.storage();
    storage.prepare().await.unwrap();
    run(&mut database.connection().await, "CREATE TABLE orders (item VARCHAR(100) PRIMARY KEY)").await;
    storage
}

async fn orders(pool: &MySqlPool) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM orders").fetch_one(pool).await.unwrap()
}

async fn order(connection: &mut MySqlConnection, item: &str) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO orders VALUES (?)").bind(item).execute(connection).await.map(|_| ())
}

/// Waits until somebody waits for a lock in the database. The server looks at its transactions again only when nobody has
/// asked for a tenth of a second: so one test asks at a time, and seldom.
async fn somebody_waits(database: &Database) {
    static ASKS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let mut observer = MySqlConnection::connect_with(&server()).await.unwrap();
    loop {
        let asks = ASKS.lock().await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        let waiting: i64 = sqlx::query_scalar(WAITING).bind(&database.name).fetch_one(&mut observer).await.unwrap();
        drop(asks);
        if waiting > 0 {
            return;
        }
    }
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
    storage.enlist(&mut inner, vec![message("taken back"), message("as well")]).await.unwrap();
    inner.rollback().await.unwrap();
    tx.commit().await.unwrap();

    let mut pooled = pool.acquire().await.unwrap();
    storage.enlist(&mut pooled, vec![message("pooled")]).await.unwrap();
    let connection: &mut MySqlConnection = &mut pooled;
    let mut tx = connection.begin().await.unwrap();
    storage.enlist(&mut *tx, vec![message("connection")]).await.unwrap();
    drop(tx);
    storage.enlist(connection, vec![message("connection"), message("another")]).await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["transaction", "pooled", "connection", "another"]);
    database.drop().await;
}

#[tokio::test]
async fn a_wrong_connection_is_named_and_its_transaction_goes_on() {
    let (database, elsewhere) = (Database::create().await, Database::create().await);
    let storage = prepared(&database).await;
    let mut wrong = elsewhere.connection().await;
    run(&mut wrong, "CREATE TABLE orders (item VARCHAR(100) PRIMARY KEY)").await;
    for records in [vec![message("a")], vec![message("a"), message("b")]] {
        let mut tx = wrong.begin().await.unwrap();
        order(&mut tx, records.len().to_string().as_str()).await.unwrap();
        let error = storage.enlist(&mut tx, records).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.to_string().contains("another database"), "{error}");
        tx.commit().await.unwrap();
    }
    let there: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM orders").fetch_one(&mut wrong).await.unwrap();
    assert_eq!(there, 2);
    elsewhere.drop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_message_that_waits_too_long_for_its_twin_leaves_the_transaction_as_it_was() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let mut other = database.connection().await;
    run(&mut other, "BEGIN").await;
    storage.enlist(&mut other, vec![message("twin")]).await.unwrap();

    let many = |from: u32| (from..from + 300).map(|number| message(&format!("m{number}"))).collect::<Vec<_>>();
    let batches = [vec![message("twin")], [many(0), vec![message("twin")]].concat()];
    for (number, records) in batches.into_iter().enumerate() {
        let mut connection = database.connection().await;
        run(&mut connection, "SET innodb_lock_wait_timeout = 1").await;
        let mut tx = connection.begin().await.unwrap();
        order(&mut tx, &format!("book {number}")).await.unwrap();
        let error = storage.enlist(&mut tx, records.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("still open"), "{error}");
        storage.enlist(&mut tx, vec![message(&format!("after {number}"))]).await.unwrap();
        tx.commit().await.unwrap();
        // Neither is anything left where there is no transaction.
        storage.enlist(&mut connection, records).await.unwrap_err();
        storage.enlist(&mut connection, vec![message(&format!("outside {number}"))]).await.unwrap();
    }
    run(&mut other, "ROLLBACK").await;
    assert_eq!(orders(storage.pool()).await, 2);
    assert_eq!(ids(&storage, Table::Outbox).await, ["after 0", "outside 0", "after 1", "outside 1"]);
    database.drop().await;
}

#[tokio::test]
async fn the_victim_of_a_deadlock_in_a_users_transaction_is_told_that_all_of_it_is_gone() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let (mut one, mut other) = (database.connection().await, database.connection().await);
    for (connection, id) in [(&mut one, "a"), (&mut other, "b")] {
        run(connection, "BEGIN").await;
        order(connection, id).await.unwrap();
        storage.enlist(connection, vec![message(id)]).await.unwrap();
    }
    let waiting = tokio::spawn({
        let storage = storage.clone();
        async move {
            let enlisted = storage.enlist(&mut one, vec![message("b"), message("c")]).await;
            run(&mut one, "COMMIT").await;
            enlisted
        }
    });
    somebody_waits(&database).await;
    let enlisted = storage.enlist(&mut other, vec![message("a"), message("d")]).await;
    run(&mut other, "COMMIT").await;
    let outcomes = [waiting.await.unwrap(), enlisted];
    let victims: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    let [victim] = victims[..] else { panic!("{outcomes:?}") };
    assert_eq!(victim.kind(), ErrorKind::Unavailable);
    assert!(victim.to_string().contains("rolled the whole transaction back"), "{victim}");
    assert_eq!(orders(storage.pool()).await, 1);
    assert_eq!(ids(&storage, Table::Outbox).await.len(), 3, "all of the other one");
    database.drop().await;
}

#[tokio::test]
async fn two_open_transactions_publish_batches_at_any_level_without_waiting_for_each_other() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let (mut one, mut other) = (database.connection().await, database.connection().await);
        for connection in [&mut one, &mut other] {
            run(connection, "SET SESSION innodb_lock_wait_timeout = 1").await;
            run(connection, format!("SET SESSION TRANSACTION ISOLATION LEVEL {level}")).await;
        }
        let (mut one, mut other) = (one.begin().await.unwrap(), other.begin().await.unwrap());
        for round in 0..3 {
            for (name, tx) in [("b", &mut one), ("a", &mut other)] {
                let batch = (0..5).map(|part| message(&format!("{level} {name} {round} {part}"))).collect();
                let inserted = storage.enlist(tx, batch).await.unwrap_or_else(|error| panic!("{level}: {error}"));
                assert!(inserted.iter().all(|inserted| matches!(inserted, Inserted::Stored(_))), "{level}");
            }
        }
        one.commit().await.unwrap();
        other.commit().await.unwrap();
    }
    assert_eq!(ids(&storage, Table::Outbox).await.len(), 3 * 3 * 2 * 5);
    database.drop().await;
}

#[tokio::test]
async fn a_handler_that_ended_the_transaction_itself_is_told() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    for (number, end) in ["ROLLBACK", "ROLLBACK; BEGIN", "CREATE TABLE invoices (item TEXT)"].into_iter().enumerate() {
        let settlement = in_flight(&storage, node(&storage).await, &format!("m{number}")).await;
        let mut tx = storage.begin(settlement).await.unwrap().unwrap();
        run(&mut tx, end).await;
        let error = storage.commit(tx, vec![message("reply")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.to_string().contains("must not"), "{error}");
        assert!(ids(&storage, Table::Outbox).await.is_empty());
    }
    database.drop().await;
}

#[tokio::test]
async fn a_handler_may_go_on_after_a_failed_statement_as_is_usual_in_mysql() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    let mut tx = storage.begin(settlement).await.unwrap().unwrap();
    order(&mut tx, "book").await.unwrap();
    order(&mut tx, "book").await.unwrap_err();
    storage.commit(tx, vec![message("reply"), message("another")]).await.unwrap();
    assert_eq!(orders(storage.pool()).await, 1);
    assert_eq!(inbox_status(&storage).await, [Status::Succeeded]);
    assert_eq!(ids(&storage, Table::Outbox).await, ["reply", "another"]);
    database.drop().await;
}

#[tokio::test]
async fn a_dropped_transaction_of_a_handler_leaves_the_record_held() {
    let database = Database::create().await;
    let storage = MySqlStorage::connect(&database.url()).await.unwrap();
    storage.prepare().await.unwrap();
    let settlement = in_flight(&storage, node(&storage).await, "a").await;
    let tx = storage.begin(settlement.clone()).await.unwrap().unwrap();
    drop(tx);
    assert_eq!(inbox_status(&storage).await, [Status::Queued]);
    // The server hears of it a moment later.
    let settled = loop {
        let settled = storage.settle(Table::Inbox, vec![settlement.clone()]).await.unwrap();
        if settled != [Settled::Locked] {
            break settled;
        }
    };
    assert_eq!(settled, [Settled::Written]);
    storage.pool().close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_handlers_statements_wait_as_long_as_is_usual_and_the_session_is_restored() {
    let database = Database::create().await;
    let storage = MySqlStorage::connect(&database.url()).await.unwrap();
    storage.prepare().await.unwrap();
    let wait = "SELECT CAST(@@innodb_lock_wait_timeout AS SIGNED) - CAST(@@GLOBAL.innodb_lock_wait_timeout AS SIGNED)";
    for commits in [true, false] {
        let settlement = in_flight(&storage, node(&storage).await, &format!("m{commits}")).await;
        let mut tx = storage.begin(settlement).await.unwrap().unwrap();
        assert_eq!(sqlx::query_scalar::<_, i64>(wait).fetch_one(&mut *tx).await.unwrap(), 0);
        if commits {
            storage.commit(tx, vec![]).await.unwrap()
        } else {
            storage.rollback(tx).await.unwrap()
        }
        for _ in 0..3 {
            assert_ne!(sqlx::query_scalar::<_, i64>(wait).fetch_one(storage.pool()).await.unwrap(), 0);
        }
    }
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
async fn a_settlement_of_what_was_lost_does_not_wait_for_the_handler_that_has_it_now() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let (former, other) = (node(&storage).await, node(&storage).await);
    let lost = in_flight(&storage, former, "lost").await;
    storage.leave(former).await.unwrap();
    let claim = request(other, Lane::Inbox(group()), 10);
    let claimed = storage.claim(claim.clone()).await.unwrap();
    let now = cap_core::storage::Settlement { record: claimed.records[0].id, token: claim.claim.token, ..lost.clone() };
    let tx = storage.begin(now).await.unwrap().unwrap();
    let own = in_flight(&storage, other, "own").await;
    let settled = storage.settle(Table::Inbox, vec![lost, own]).await.unwrap();
    assert_eq!(settled, [Settled::Lost, Settled::Written]);
    storage.commit(tx, vec![]).await.unwrap();
    assert_eq!(inbox_status(&storage).await, [Status::Succeeded; 2]);
    database.drop().await;
}

#[tokio::test]
async fn a_takeover_waits_for_a_claim_under_way_and_takes_it_too() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let dying = node(&storage).await;
    storage.insert(Table::Inbox, vec![waiting("a")], None).await.unwrap();
    storage.heartbeat(dying, Duration::ZERO).await.unwrap();

    // A claim that was answered in time, but is committed late.
    let mut claim = database.connection().await;
    let node = dying.0.simple();
    run(&mut claim, "BEGIN").await;
    run(&mut claim, format!("SELECT 1 FROM `cap.nodes` WHERE Node = x'{node}' LOCK IN SHARE MODE")).await;
    let hold = format!(
        "UPDATE `cap.received` SET StatusName = 'Queued', Owner = x'{node}', DueAt = NULL, Claim = x'{node}', Retries = 1"
    );
    run(&mut claim, hold).await;
    let takeover = tokio::spawn({
        let storage = storage.clone();
        async move { cap_testkit::take_over_from(&storage, &[dying]).await }
    });
    somebody_waits(&database).await;
    run(&mut claim, "COMMIT").await;
    assert_eq!(takeover.await.unwrap().unwrap().inbox, 1);
    database.drop().await;
}

#[tokio::test]
async fn a_claim_waits_for_a_takeover_under_way_and_is_refused() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let dying = node(&storage).await;
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    for inserts in [false, true] {
        storage.join(dying, LEASE).await.unwrap();
        let mut takeover = database.connection().await;
        run(&mut takeover, format!("BEGIN; DELETE FROM `cap.nodes` WHERE Node = x'{}'", dying.0.simple())).await;
        let mut claim = tokio::spawn({
            let storage = storage.clone();
            async move {
                if inserts {
                    let records = vec![delivery("b")];
                    return storage.insert(Table::Inbox, records, Some(Claim::by(dying))).await.map(|_| ());
                }
                storage.claim(request(dying, Lane::Outbox, 10)).await.map(|_| ())
            }
        });
        tokio::select! {
            () = somebody_waits(&database) => {}
            answer = &mut claim => panic!("it did not wait: {answer:?}"),
        }
        run(&mut takeover, "COMMIT").await;
        assert_eq!(claim.await.unwrap().unwrap_err().kind(), ErrorKind::LeaseLost);
    }
    assert!(ids(&storage, Table::Inbox).await.is_empty());
    database.drop().await;
}

#[tokio::test]
async fn the_victim_of_a_deadlock_is_done_again() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let mut user = database.connection().await;
    let mut tx = user.begin().await.unwrap();
    storage.enlist(&mut tx, vec![message("b")]).await.unwrap();
    // What has written less is the victim.
    for number in 0..20 {
        order(&mut tx, &format!("book {number}")).await.unwrap();
    }
    let insert = tokio::spawn({
        let storage = storage.clone();
        async move { storage.insert(Table::Outbox, vec![message("a"), message("b")], None).await }
    });
    somebody_waits(&database).await;
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
