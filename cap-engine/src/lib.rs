//! The engine of CAP for Rust: publishing, the relay, consumers, handlers, supervision and health. It drives any storage
//! and any transport that keep the promises of [`cap_core`], and names none.
//!
//! Applications use the facade crate `cap`, which re-exports all of this beside [`cap_core`] and the backends that its
//! features pick. Backends need nothing of this crate.

mod engine;
pub mod handler;
mod options;
mod publish;
mod unroutable;

pub use cap_core::{HandlerError, Published};
pub use engine::{Cap, CapBuilder, DeadLetter, Health, LoopHealth, NoStorage, PublishedIn, Step, Subscribe, Waiting};
pub use handler::{Context, Json, Outbox, State, Tx};
pub use options::Options;
pub use publish::Publish;
