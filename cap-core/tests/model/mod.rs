//! A model of the whole protocol: environment, database, broker and nodes, in which every state of a record is computed
//! by `cap_core::lifecycle`.
//!
//! `state` says what there is, `setup` within which bounds; `enabled` lists what may happen next and `step` makes it
//! happen, with the `database` as a storage's contract describes it. `invariants` are the promises. `faults` are the
//! mistakes that an implementation could make: the `checker` has to find each.

pub(crate) mod checker;
pub(crate) mod database;
pub(crate) mod enabled;
pub(crate) mod faults;
pub(crate) mod invariants;
pub(crate) mod reduce;
pub(crate) mod setup;
pub(crate) mod state;
pub(crate) mod step;
mod tidy;
pub(crate) mod trace;
