//! A pooler that somebody puts between a storage that works and its server. The address stays.

use cap_core::NodeId;
use cap_core::storage::{Lease, Storage, Table, TransactAsync};
use cap_storage_postgres::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use cap_storage_postgres::sqlx::{self, Connection, PgConnection};
use cap_storage_postgres::{PostgresOptions, PostgresStorage};
use cap_testkit::server::Address;

use crate::pooler::SERVER as POOLER;
use crate::support::{Database, PASSWORD, run, server};
use cap_testkit::storage::scene::{LEASE, ids, in_flight, message, node};

const TASKS: usize = 8;
const EACH: usize = 5;

async fn address_of_the_server() -> Address {
    let server = server();
    Address::of(server.get_host(), server.get_port()).await.unwrap()
}

fn lead_to_the_pooler(address: &Address) {
    let pooler: PgConnectOptions = POOLER.url().parse().unwrap();
    address.lead_to(pooler.get_host(), pooler.get_port());
}

fn options(address: &Address, database: &Database) -> PgConnectOptions {
    database.options().host(&address.place.ip().to_string()).port(address.place.port())
}

fn url(address: &Address, database: &Database) -> String {
    format!("postgres://{}:{PASSWORD}@{}/{}", database.name, address.place, database.name)
}

/// Ends all sessions: whoever comes back comes through the pooler.
async fn end_sessions(database: &Database) {
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
               WHERE pid <> pg_backend_pid() AND datname = current_database()";
    run(&mut database.connection().await, end).await;
}

/// Work side by side, so that the pooler lends its sessions to one after the other.
async fn work(storage: &PostgresStorage, round: &str) {
    let node = node(storage).await;
    let tasks = (0..TASKS).map(|task| {
        let (storage, round) = (storage.clone(), round.to_owned());
        tokio::spawn(async move {
            for number in 0..EACH {
                let id = format!("{round} {task} {number}");
                storage.insert(Table::Outbox, vec![message(&id)], None).await.unwrap();
                let handled = in_flight(&storage, node, &format!("delivery {id}")).await;
                let tx = storage.begin(handled).await.unwrap().expect("the lease is live");
                storage.commit(tx, vec![message(&format!("by the handler of {id}"))]).await.unwrap();
                assert!(matches!(storage.heartbeat(node, LEASE).await.unwrap(), Lease::Held { .. }));
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// The statements with a name in the sessions that the pooler lends: whose they are nobody knows.
async fn named_statements(database: &Database) -> Vec<String> {
    let pooler: PgConnectOptions = POOLER.url().parse().unwrap();
    let options = pooler.database(&database.name).username(&database.name).password(PASSWORD);
    let (mut held, mut found) = (Vec::new(), Vec::new());
    for _ in 0..TASKS {
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        run(&mut connection, "BEGIN").await;
        let names = sqlx::raw_sql("SELECT name || ': ' || left(statement, 60) FROM pg_prepared_statements");
        for row in names.fetch_all(&mut connection).await.unwrap() {
            found.push(sqlx::Row::get(&row, 0));
        }
        held.push(connection);
    }
    found
}

/// As a storage that began with the server itself goes on behind a pooler.
async fn goes_on(storage: &PostgresStorage, database: &Database, address: &Address, ends_sessions: bool) {
    work(storage, "before").await;
    lead_to_the_pooler(address);
    if ends_sessions {
        end_sessions(database).await;
        // The first call may find that its connection is dead, which is told of; the others are tried then before they are used.
        while storage.join(NodeId::generate(), LEASE).await.is_err() {}
    }
    work(storage, "behind").await;
    let named = named_statements(database).await;
    assert!(named.is_empty(), "a pooler that keeps no statements has some of the storage's: {named:?}");
    assert_eq!(ids(storage, Table::Outbox).await.len(), 2 * 2 * TASKS * EACH);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_is_put_before_the_server_at_run_time_gets_no_named_statement() {
    let (database, address) = (Database::create().await, address_of_the_server().await);
    let storage = PostgresStorage::connect(&url(&address, &database)).await.unwrap();
    storage.prepare().await.unwrap();
    goes_on(&storage, &database, &address, true).await;
    database.drop().await;
}

/// The pool grows through the pooler, and what it had stays with the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_made_later_are_looked_at_each() {
    let (database, address) = (Database::create().await, address_of_the_server().await);
    let storage =
        PostgresStorage::connect_with(PostgresOptions::new(url(&address, &database)).pool_size(6)).await.unwrap();
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("alone")], None).await.unwrap();
    lead_to_the_pooler(&address);
    work(&storage, "behind").await;
    let named = named_statements(&database).await;
    assert!(named.is_empty(), "a pooler that keeps no statements has some of the storage's: {named:?}");
    database.drop().await;
}

/// A pool of the user's is theirs; but connections for leases are made beside it, and tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_pool_of_the_users_the_next_connection_for_leases_finds_it_out() {
    let (database, address) = (Database::create().await, address_of_the_server().await);
    let pool = PgPoolOptions::new().max_connections(5).connect_lazy_with(options(&address, &database));
    let storage = PostgresStorage::new(pool);
    storage.prepare().await.unwrap();
    goes_on(&storage, &database, &address, true).await;
    database.drop().await;
}
