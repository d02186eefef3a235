//! Handlers.
mod error;
pub use error::HandlerError;
