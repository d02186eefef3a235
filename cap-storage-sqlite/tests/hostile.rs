//! The storage suite of `cap-testkit` on files that are not made as usual, beside connections that are not used as usual.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/fixture.rs"]
mod fixture;

/// What a file stays that was made so.
const FILE: &str = "
    PRAGMA page_size = 512; PRAGMA encoding = 'UTF-16be'; PRAGMA auto_vacuum = FULL; PRAGMA journal_mode = TRUNCATE;
    PRAGMA user_version = 77; PRAGMA application_id = 77; PRAGMA legacy_file_format = ON
";

/// What a user's own connections may be like.
const SETTINGS: &str = "
    PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = ON; PRAGMA reverse_unordered_selects = ON;
    PRAGMA case_sensitive_like = ON; PRAGMA full_column_names = ON; PRAGMA short_column_names = OFF;
    PRAGMA automatic_index = OFF; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF; PRAGMA temp_store = FILE;
    PRAGMA cache_size = 1; PRAGMA mmap_size = 0; PRAGMA secure_delete = ON; PRAGMA wal_autocheckpoint = 1; PRAGMA synchronous = OFF
";

cap_testkit::storage_conformance!(fixture::SqliteFixture::new(FILE, SETTINGS));
