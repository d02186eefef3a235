//! What is special about MongoDB. What every storage must promise is in the conformance suite.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connecting;
mod environment;
mod fencing;
mod lanes;
mod locks;
mod net_cap;
mod running;
mod schema;
#[path = "../support/mod.rs"]
mod support;
mod transactions;
