//! Many nodes of one service, on one PostgreSQL and one RabbitMQ. Each has pools and connections of its own, as it would
//! in a process of its own.
//!
//! The servers are those of `CAP_TEST_POSTGRES_URL` and `CAP_TEST_RABBITMQ_URL`; without them the tests fail.
#![allow(clippy::unwrap_used, reason = "tests")]

mod collecting;
mod fencing;
mod neighbours;
mod owning;
mod serializable;
mod sharing;
mod stopping;
mod support;
