//! Databases, by name.

pub(crate) mod memory;
pub(crate) mod mongo;
pub(crate) mod mysql;
pub(crate) mod postgres;
pub(crate) mod sqlite;

pub(crate) use memory::Memory;
pub(crate) use mongo::Mongo;
pub(crate) use mysql::MySql;
pub(crate) use postgres::Postgres;
pub(crate) use sqlite::Sqlite;

/// The business tables, in the SQL that all of them understand.
pub(crate) const BUSINESS: [&str; 4] = [
    "CREATE TABLE orders (number BIGINT PRIMARY KEY, note VARCHAR(100) NOT NULL)",
    "CREATE TABLE invoices (number BIGINT NOT NULL, made_at BIGINT NOT NULL)",
    "CREATE TABLE locks (id BIGINT PRIMARY KEY, holder BIGINT NOT NULL)",
    "INSERT INTO locks (id, holder) VALUES (1, 0)",
];

/// What an order says.
pub(crate) const NOTE: &str = "two books and a lamp, to be sent by post";

/// Microseconds since 1970.
pub(crate) fn now_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
