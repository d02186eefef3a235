//! Handlers: plain async functions with extractors, transactional ones, and the service that both are underneath.
//!
//! ```
//! use cap_engine::{Context, HandlerError, Json};
//!
//! #[derive(serde::Deserialize)]
//! struct Order { id: String, amount: f64 }
//!
//! async fn send_invoice(Json(order): Json<Order>, context: Context) -> Result<(), HandlerError> {
//!     if order.amount < 0.0 {
//!         return Err(HandlerError::permanent(format!("order {} has a negative amount", order.id)));
//!     }
//!     println!("attempt {} for order {}", context.attempt(), order.id);
//!     Ok(())
//! }
//! ```
//!
//! # Handlers that block
//! A handler that works or sleeps for long without awaiting keeps its thread of the runtime from everything else; with as many
//! of them as there are threads nothing runs any more. The node keeps its lease even then (its heartbeats come from a thread of
//! their own), so nobody else takes the messages, and after two seconds the log and [`Health`](crate::Health) (`runtime`) name the handlers. Give such work to
//! `tokio::task::spawn_blocking`.

mod call;
mod extract;
mod function;
mod handled;
mod transactional;
mod tx;

pub use call::{Call, Context, Outbox};
pub use cap_core::HandlerError;
pub use extract::{FromCall, Json, Requirement, State};
pub use function::{Handler, HandlerService};
pub use handled::{Handled, IntoHandled};
pub use transactional::TransactionalHandler;
pub use tx::Tx;

pub(crate) use call::{Services, Shared, States};
pub(crate) use extract::RequirementKind;
pub(crate) use tx::AnyStorage;

use std::future::Future;

use cap_core::{Error, ErrorKind, Result};
use tracing::Instrument as _;

/// Drives a storage's future to its end, also when the handler that waits for it is cut off meanwhile.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work.in_current_span()).await {
        Ok(done) => done,
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        Err(_) => Err(Error::new(ErrorKind::Unavailable, "end", "a handler's transaction", "the runtime shuts down")),
    }
}
