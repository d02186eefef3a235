//! Behind PgBouncer 1.18, which keeps no prepared statements.

use std::str::FromStr;

use cap_core::Status;
use cap_core::storage::{Claim, Enlist, Inserted, Lane, Settled, Storage, Table, TransactAsync};
use cap_storage_postgres::PostgresStorage;
use cap_storage_postgres::sqlx::postgres::PgConnectOptions;
use cap_storage_postgres::sqlx::{self, Connection, PgConnection};
use cap_testkit::server::Server;

use crate::support::{Database, run};
use cap_testkit::storage::scene::{LEASE, delivery, in_flight, inbox_status, message, node, request};

const TASKS: usize = 8;
const EACH: usize = 9;

pub(crate) const SERVER: Server = Server {
    variable: "CAP_TEST_PGBOUNCER_URL",
    name: "pgbouncer",
    hint: "set it to a PgBouncer in transaction mode that keeps no prepared statements, before the server of \
           CAP_TEST_POSTGRES_URL, and CAP_TEST_PGBOUNCER_SESSION_URL to one in session mode; both let everybody in to \
           every database",
};

const SESSION_MODE: &str = "CAP_TEST_PGBOUNCER_SESSION_URL";

fn url(pooler: &str, database: &Database) -> String {
    let pooler = PgConnectOptions::from_str(pooler).unwrap();
    format!("postgres://anybody:anything@{}:{}/{}", pooler.get_host(), pooler.get_port(), database.name)
}

/// All that an engine does, side by side, with users' transactions among it.
async fn works(pooler: &str) {
    let database = Database::create().await;
    let storage = PostgresStorage::connect(&url(pooler, &database)).await.unwrap();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let publishers = (0..TASKS).map(|task| {
        let storage = storage.clone();
        tokio::spawn(async move {
            for number in 0..EACH {
                let id = format!("{task} {number}");
                match number % 3 {
                    0 => drop(storage.insert(Table::Outbox, vec![message(&id)], None).await.unwrap()),
                    1 => {
                        let mut tx = storage.pool().begin().await.unwrap();
                        storage.enlist(&mut tx, vec![message(&id)]).await.unwrap();
                        tx.commit().await.unwrap();
                    }
                    _ => {
                        let mut connection = storage.pool().acquire().await.unwrap();
                        storage.enlist(&mut connection, vec![message(&id)]).await.unwrap();
                    }
                }
            }
        })
    });
    let handlers = (0..TASKS).map(|task| {
        let storage = storage.clone();
        tokio::spawn(async move {
            for number in 0..EACH {
                let id = format!("delivery {task} {number}");
                let tx = storage.begin(in_flight(&storage, node, &id).await).await.unwrap().expect("the lease is live");
                storage.commit(tx, vec![message(&format!("by the handler of {id}"))]).await.unwrap();
                storage.heartbeat(node, LEASE).await.unwrap();
            }
        })
    });
    for task in publishers.chain(handlers).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let claimed = storage.claim(request(node, Lane::Outbox, 1000)).await.unwrap();
    assert_eq!(claimed.records.len(), 2 * TASKS * EACH);
    assert_eq!(inbox_status(&storage).await, vec![Status::Succeeded; TASKS * EACH]);
    storage.take_over(Vec::new()).await.unwrap();
    storage.leave(node).await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn behind_a_pooler_that_keeps_no_prepared_statements_no_statement_meets_anothers_parameters() {
    works(&SERVER.url()).await;
}

#[tokio::test]
async fn a_pooler_in_session_mode_is_as_good_as_the_server() {
    works(&SERVER.value(SESSION_MODE)).await;
}

#[tokio::test]
async fn what_is_locked_behind_a_pooler_holds_up_nothing_beside_it() {
    let database = Database::create().await;
    let storage = PostgresStorage::connect(&url(&SERVER.url(), &database)).await.unwrap();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    let (held, other) = (in_flight(&storage, node, "held").await, in_flight(&storage, node, "other").await);
    let handler = storage.begin(held.clone()).await.unwrap().expect("the lease is live");
    let settled = storage.settle(Table::Inbox, vec![held, other]).await.unwrap();
    assert_eq!(settled, [Settled::Locked, Settled::Written]);
    let again =
        storage.insert(Table::Inbox, vec![delivery("held"), delivery("new")], Some(Claim::by(node))).await.unwrap();
    assert!(matches!(again[..], [Inserted::Duplicate, Inserted::Stored(_)]), "{again:?}");
    storage.rollback(handler).await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn many_that_start_at_once_behind_a_pooler_all_find_it_out() {
    let database = Database::create().await;
    let starting = (0..TASKS).map(|number| {
        let url = url(&SERVER.url(), &database);
        tokio::spawn(async move {
            let storage = PostgresStorage::connect(&url).await.unwrap();
            storage.prepare().await.unwrap();
            storage.insert(Table::Outbox, vec![message(&format!("m{number}"))], None).await.unwrap();
        })
    });
    for task in starting.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    database.drop().await;
}

/// The driver names its statements in their order, so that others have statements of the same names.
#[tokio::test]
async fn looking_for_a_pooler_carries_out_no_statement_of_somebody_elses() {
    let database = Database::create().await;
    let url = url(&SERVER.url(), &database);
    let mut clients = Vec::new();
    for _ in 0..TASKS {
        let mut client = PgConnection::connect(&url).await.unwrap();
        run(&mut client, "BEGIN").await;
        clients.push(client);
    }
    run(&mut clients[0], "CREATE TABLE public.found (number INTEGER); GRANT SELECT ON public.found TO PUBLIC").await;
    run(&mut clients[0], "COMMIT; BEGIN").await;
    // In every second session, so that what is prepared in one of the others meets it.
    for client in clients.iter_mut().step_by(2) {
        run(client, "PREPARE sqlx_s_1 (INTEGER) AS INSERT INTO public.found VALUES ($1)").await;
    }
    for client in &mut clients {
        run(client, "COMMIT").await;
    }
    let storage = PostgresStorage::connect(&url).await.unwrap();
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    let mut connection = database.connection().await;
    let found = sqlx::query_scalar("SELECT count(*) FROM public.found");
    let found: i64 = found.fetch_one(&mut connection).await.unwrap();
    assert_eq!(found, 0, "somebody else's statement has got our parameters");
    database.drop().await;
}
