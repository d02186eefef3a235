//! A model of the whole protocol: environment, database, broker and nodes, in which every state of a record is computed
//! by `cap_core::lifecycle`.
//!
//! `state` says what there is, `setup` within which bounds. `enabled` lists what may happen next and `step` makes it
//! happen, with the `database` as the contract of a storage describes it. `invariants` are the promises; `faults` are
//! mistakes that an implementation could make. The `checker` explores all there is: `tidy` makes one world of those
//! that differ in names only, `reduce` leaves out orders that make no difference, `trace` tells what went wrong.
//! `histories` go further, at random.
//!
//! Suspects are worked on as the engine does it: beside each other, until one is to be tried alone; that is written first,
//! and no other suspect of the node begins before the trial is over. What is no suspect yet goes on beside it.
//!
//! Not in the model: batches, because one that is answered is as many single calls in a row; and sends that reach the
//! broker late, because such a copy is like one that lies in the queue for long.

pub(crate) mod checker;
pub(crate) mod database;
pub(crate) mod enabled;
pub(crate) mod faults;
mod histories;
pub(crate) mod invariants;
pub(crate) mod reduce;
pub(crate) mod setup;
pub(crate) mod state;
pub(crate) mod step;
mod tidy;
pub(crate) mod trace;
