//! What is special about PostgreSQL. What every storage must promise is in the conformance suite.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connecting;
mod few;
mod golden;
mod locks;
mod net_cap;
mod policy;
mod pooled;
mod pooler;
mod refused;
mod running;
mod schema;
mod sequence;
mod settings;
#[path = "../support/mod.rs"]
mod support;
mod switchover;
mod tls;
mod transactions;
