//! The suite, made from the table of checks.

use super::faults::StorageFault;
use super::fixture::{StorageAbilities, StorageFixture};
use super::{
    bounds, chore, claim, inbox, lease, lock, publish, refusal, runtime, schema, settle, suspect, time, transaction,
    upkeep,
};
use crate::check::{Check, Need};

/// A check of the storage suite.
pub type StorageCheck = Check<dyn StorageFixture, StorageAbilities>;

/// Every numbered promise of the storage traits. Each is quoted by at least one check.
pub const PROMISES: &[&str] = &[
    "describe",
    "capabilities",
    "prepare/1",
    "prepare/2",
    "prepare/3",
    "prepare/4",
    "insert/1",
    "insert/2",
    "insert/3",
    "insert/4",
    "insert/5",
    "insert/6",
    "insert/7",
    "insert/8",
    "insert/9",
    "insert/10",
    "claim/1",
    "claim/2",
    "claim/3",
    "claim/4",
    "claim/5",
    "claim/6",
    "claim/7",
    "claim/8",
    "claim/9",
    "settle/1",
    "settle/2",
    "settle/3",
    "settle/4",
    "settle/5",
    "settle/6",
    "release/1",
    "release/2",
    "next_due/1",
    "next_due/2",
    "join/1",
    "heartbeat/1",
    "heartbeat/2",
    "heartbeat/3",
    "take_over/1",
    "take_over/2",
    "take_over/3",
    "take_over/4",
    "take_over/5",
    "leave/1",
    "take_chore/1",
    "take_chore/2",
    "take_chore/3",
    "take_chore/4",
    "take_chore/5",
    "take_chore/6",
    "collect/1",
    "collect/2",
    "counts/1",
    "list/1",
    "requeue/1",
    "delete/1",
    "watch/1",
    "watch/2",
    "watch/3",
    "watch/4",
    "Enlist/1",
    "Enlist/2",
    "Enlist/3",
    "Transact/1",
    "Transact/2",
    "Transact/3",
    "Transact/4",
    "TransactAsync/1",
    "TransactAsync/2",
    "TransactAsync/3",
    "TransactAsync/4",
];

mod needs {
    use super::{Need, StorageAbilities};

    macro_rules! capability {
        ($name:ident, $text:literal, $declared:expr) => {
            pub(super) const $name: Need<StorageAbilities> = Need { name: $text, declared: $declared };
        };
    }

    capability!(ENLISTS, "enlists", |can| can.capabilities.enlists);
    capability!(TRANSACTIONAL_HANDLERS, "transactional_handlers", |can| can.capabilities.transactional_handlers);
    capability!(SAVEPOINTS, "savepoints", |can| can.capabilities.savepoints);
    capability!(WATCHES, "watches", |can| can.capabilities.watches);
    capability!(PERSISTENT, "persistent", |can| can.capabilities.persistent);
    capability!(MAX_CONTENT, "max_content", |can| has_small_limit(can));
    capability!(REFUSING_HANDLERS, "transactional_handlers and max_content", |can| {
        can.capabilities.transactional_handlers && has_small_limit(can)
    });
    capability!(LOCKING_HANDLERS, "transactional_handlers that lock records beside other writers", |can| {
        can.capabilities.transactional_handlers && can.locks_records
    });
    capability!(UNICODE, "Unicode (not ascii_only)", |can| !can.capabilities.ascii_only);
    capability!(REFUSED_WRITES, "can_refuse_writes", |can| can.refuses_writes);
    capability!(ADDRESSES_SET_BACK, "can_set_addresses_back", |can| can.sets_addresses_back);
    capability!(REFUSED_RECORDS, "refused_record or max_content", |can| can.refuses_records || has_small_limit(can));
    capability!(UNUSABLE, "unusable", |can| can.unusable);
    capability!(READS_IN_ORDER, "reads_in_order", |can| can.reads_in_order);

    /// A content of more than 32 MiB would test the machine instead.
    fn has_small_limit(can: &StorageAbilities) -> bool {
        can.capabilities.max_content.is_some_and(|limit| limit <= 32 << 20)
    }
}

macro_rules! table {
    ({} $($id:literal $module:ident::$name:ident {
        promises: $promises:tt $(, needs: $need:ident)? $(, undeclared: $undeclared:ident)?,
        catches: $catches:literal,
        faults: [$($fault:ident),+]
    })*) => {
        /// The checks of the storage suite, in the order of their numbers.
        pub static CHECKS: &[StorageCheck] = &[$(Check {
            id: $id,
            name: stringify!($name),
            promises: &$promises,
            needs: table!(@option $(needs::$need)?),
            catches: $catches,
            run: |fixture| Box::pin($module::$name(fixture)),
            undeclared: table!(@option $(|fixture| Box::pin($module::$undeclared(fixture)))?),
        }),*];

        /// The number of each check, and the faults that it must fail on.
        pub static STORAGE_FAULTS: &[(&str, &[StorageFault])] = &[$(($id, &[$(StorageFault::$fault),+])),*];
    };
    (@option) => { None };
    (@option $value:expr) => { Some($value) };
}

crate::for_each_storage_check! { table, {} }

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_promise_is_quoted_by_a_check() {
        let quoted: HashSet<&str> = CHECKS.iter().flat_map(|check| check.promises).copied().collect();
        let forgotten: Vec<&&str> = PROMISES.iter().filter(|promise| !quoted.contains(**promise)).collect();
        assert!(forgotten.is_empty(), "no check quotes {forgotten:?}");
    }

    #[test]
    fn every_quotation_is_a_promise() {
        for check in CHECKS {
            for quoted in check.promises {
                assert!(PROMISES.contains(quoted), "{} quotes {quoted}", check.id);
            }
        }
    }

    #[test]
    fn numbers_are_consecutive_and_names_distinct() {
        for (place, check) in CHECKS.iter().enumerate() {
            assert_eq!(check.id, format!("S-{:03}", place + 1), "{}", check.name);
        }
        let names: HashSet<&str> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}
