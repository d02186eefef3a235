//! Servers that change while sessions are open: what one session learns of it, and what becomes of the others.

use cap_core::storage::{Lease, Storage, Table, TransactAsync};
use cap_storage_mysql::sqlx::{self, Connection, MySqlConnection, MySqlPool};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};
use cap_testkit::server::Address;

use crate::outage::Server;
use crate::support::{Database, PASSWORD, run, server};
use cap_testkit::storage::scene::{LEASE, ids, in_flight, message, node};

const SESSIONS: u32 = 5;

/// Fills the pool with idle sessions, and says this in each of them.
async fn in_all_sessions(pool: &MySqlPool, sql: &str) {
    let mut all = Vec::new();
    for _ in 0..SESSIONS {
        all.push(pool.acquire().await.unwrap());
    }
    for connection in &mut all {
        run(connection, sql).await;
    }
    for mut connection in all {
        connection.return_to_pool().await;
    }
}

#[tokio::test]
async fn an_address_that_leads_to_another_primary_costs_no_call() {
    let old = Server::start("old-primary");
    let mut admin = MySqlConnection::connect(&old.url()).await.unwrap();
    let database = Database::create().await;
    let name = &database.name;
    let account = format!("CREATE USER {name} IDENTIFIED BY '{PASSWORD}'; CREATE DATABASE {name}");
    run(&mut admin, format!("{account}; GRANT ALL ON {name}.* TO {name}")).await;
    let new = database.storage();
    new.prepare().await.unwrap();

    let address = Address::of("127.0.0.1", old.port()).await.unwrap();
    let url = format!("mysql://{name}:{PASSWORD}@{}/{name}", address.place);
    let storage = MySqlStorage::connect_with(MySqlOptions::new(url).pool_size(SESSIONS)).await.unwrap();
    storage.prepare().await.unwrap();
    let node = node(&storage).await;
    storage.heartbeat(node, LEASE).await.unwrap();
    in_all_sessions(storage.pool(), "SELECT 1").await;

    run(&mut admin, "SET GLOBAL read_only = 1").await;
    let primary = server();
    address.lead_to(primary.get_host(), primary.get_port());

    for number in 0..2 * SESSIONS {
        storage.insert(Table::Outbox, vec![message(&format!("m{number}"))], None).await.unwrap();
    }
    assert_eq!(ids(&new, Table::Outbox).await.len(), 2 * SESSIONS as usize, "they went to the new one");
    // The new one was no replica of the old one here, and does not know the node.
    assert!(matches!(storage.heartbeat(node, LEASE).await, Ok(Lease::Lost)), "leases are asked for at the new one");
    storage.take_over(Vec::new()).await.unwrap();
    database.drop().await;
}

/// Each transaction of the storage's says that it writes. (What becomes of sessions whose server refuses that is seen above.)
#[tokio::test]
async fn sessions_that_are_read_only_by_default_cost_no_call() {
    let database = Database::create().await;
    let own = MySqlStorage::connect_with(MySqlOptions::new(database.url()).pool_size(SESSIONS)).await.unwrap();
    own.prepare().await.unwrap();
    let users = MySqlStorage::new(database.pool(SESSIONS));
    users.prepare().await.unwrap();
    for (round, storage) in [own, users].into_iter().enumerate() {
        let node = node(&storage).await;
        let settlement = in_flight(&storage, node, &format!("handled {round}")).await;

        in_all_sessions(storage.pool(), "SET SESSION TRANSACTION READ ONLY").await;
        let tx = storage.begin(settlement).await.unwrap().expect("the lease is live");
        storage.commit(tx, vec![message(&format!("by the handler {round}"))]).await.unwrap();

        in_all_sessions(storage.pool(), "SET SESSION TRANSACTION READ ONLY").await;
        for number in 0..2 * SESSIONS {
            storage.insert(Table::Outbox, vec![message(&format!("{round} {number}"))], None).await.unwrap();
        }
    }
    database.drop().await;
}

#[tokio::test]
async fn sessions_that_the_server_has_closed_as_idle_cost_no_call() {
    let database = Database::create().await;
    let storage = MySqlStorage::connect_with(MySqlOptions::new(database.url()).pool_size(SESSIONS)).await.unwrap();
    storage.prepare().await.unwrap();
    in_all_sessions(storage.pool(), "SET SESSION wait_timeout = 1").await;
    let mut other = MySqlConnection::connect_with(&server()).await.unwrap();
    let open = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB = ?";
    while sqlx::query_scalar::<_, i64>(open).bind(&database.name).fetch_one(&mut other).await.unwrap() > 0 {
        run(&mut other, "DO SLEEP(0.02)").await;
    }
    for number in 0..2 * SESSIONS {
        storage.insert(Table::Outbox, vec![message(&format!("m{number}"))], None).await.unwrap();
    }
    database.drop().await;
}
