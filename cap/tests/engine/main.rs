//! The engine on the embedded backends, story by story. What a backend must do is the conformance kit's to test.
#![allow(clippy::unwrap_used, reason = "tests")]

mod blocked;
mod builder;
mod collecting;
mod delivery;
mod deployments;
mod doubles;
mod failure;
mod fencing;
mod golden;
mod hanging;
mod health;
mod identity;
mod like_cap;
mod neighbours;
mod outage;
mod publishing;
mod routes;
mod stopping;
mod storing;
mod support;
mod suspects;
mod telling;
mod times;
mod trust;
mod unroutable;
mod waking;
