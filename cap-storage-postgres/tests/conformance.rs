//! The storage suite of `cap-testkit` on a real server.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/fixture.rs"]
mod fixture;
mod support;

cap_testkit::storage_conformance!(fixture::PostgresFixture::new(&[]).await);
