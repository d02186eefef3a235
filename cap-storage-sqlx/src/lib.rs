//! What CAP's storages over sqlx share: how connections are kept, used and given up, and what the driver's errors mean.
//!
//! It contains no SQL and brings no driver: a storage says through [`Server`] what its server does differently, and keeps its
//! statements, its errors' numbers and the transactions of handlers for itself. See [`cap_core::backend`] for what storages
//! of every kind share.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod buffers;
mod fault;
mod held;
mod losses;
mod pools;
mod pulse;
mod room;
mod server;
mod supply;
mod takeover;
mod way;

pub use address::{check_url, has_parameter, host_and_port, without_brackets};
pub use buffers::shrink;
pub use fault::{Fallible, Fault};
pub use pools::{Limits, Pools, Via, Work};
pub use server::{Connection, Errors, Options, Server};
/// The driver that is used.
pub use sqlx;
pub use takeover::{LeftBehind, tell_of_takeover};
