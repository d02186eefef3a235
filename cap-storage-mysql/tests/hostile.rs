//! The storage suite of `cap-testkit` on a server whose settings are not the default, over sessions that have them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/fixture.rs"]
mod fixture;
mod support;

cap_testkit::storage_conformance!(fixture::MySqlFixture::new(support::Database::create_hostile().await).await);
