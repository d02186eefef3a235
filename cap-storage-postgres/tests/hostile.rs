//! The storage suite of `cap-testkit` on a database whose settings are not the default, over sessions that have them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/fixture.rs"]
mod fixture;
mod support;

/// What a database's owner may set for all that connect to it.
const SETTINGS: &[(&str, &str)] = &[
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("lock_timeout", "10ms"),
    ("statement_timeout", "2s"),
    ("synchronous_commit", "off"),
    ("TimeZone", "Australia/Lord_Howe"),
    ("DateStyle", "SQL, DMY"),
    ("IntervalStyle", "sql_standard"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("bytea_output", "escape"),
    ("search_path", "nowhere"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("row_security", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("extra_float_digits", "-15"),
];

cap_testkit::storage_conformance!(fixture::PostgresFixture::new(SETTINGS).await);
