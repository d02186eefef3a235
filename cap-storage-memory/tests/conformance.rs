//! The memory storage keeps every promise that applies to it.

cap_testkit::storage_conformance!(cap_testkit::storage::MemoryFixture::new());
