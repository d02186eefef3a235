//! What is special about MySQL and MariaDB. What every storage must promise is in the conformance suite.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connecting;
mod few;
mod golden;
mod load;
mod locks;
mod net_cap;
mod outage;
mod refused;
mod running;
mod schema;
mod settings;
#[path = "../support/mod.rs"]
mod support;
mod switchover;
mod tls;
mod transactions;
