//! The engine on the embedded backends, story by story. What a backend must do is the conformance kit's to test.
#![allow(clippy::unwrap_used, reason = "tests")]

mod blocked;
mod builder;
mod collecting;
mod delivery;
mod deployments;
mod doubles;
mod failure;
mod health;
mod neighbours;
mod outage;
mod publishing;
mod routes;
mod stopping;
mod support;
mod suspects;
mod times;
mod unroutable;
mod waking;
