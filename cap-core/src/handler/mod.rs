//! Handlers: plain async functions with extractors, transactional ones, and the service that both are underneath.
//!
//! ```
//! use cap_core::{Context, HandlerError, Json};
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

mod call;
mod error;
mod extract;
mod function;
mod handled;
mod transactional;
mod tx;

pub use call::{Call, Context, Outbox};
pub use error::HandlerError;
pub use extract::{FromCall, Json, Requirement, State};
pub use function::{Handler, HandlerService};
pub use handled::{Handled, IntoHandled};
pub use transactional::TransactionalHandler;
pub use tx::Tx;

pub(crate) use call::States;
pub(crate) use extract::RequirementKind;
pub(crate) use tx::AnyStorage;
