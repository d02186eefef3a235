//! The storage suite of `cap-testkit` on real files.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/fixture.rs"]
mod fixture;

cap_testkit::storage_conformance!(fixture::SqliteFixture::new("PRAGMA journal_mode = WAL", ""));
