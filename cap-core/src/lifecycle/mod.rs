//! The life of a record, as pure code: no I/O and no clock.
//!
//! ```text
//!            publish           publish later
//!               │                    │
//!               ▼                    ▼
//!   ┌───── Scheduled            Delayed ─────┐
//!   │           ▲                            │ claim (counts an attempt)
//!   │ claim     │ give back, take over       │
//!   ▼           │                            ▼
//! Queued ───────┴──────────────────────── Queued
//!   │
//!   ├── succeeded ──────────────► Succeeded ──► collected
//!   ├── failed, will be tried ──► Failed, due at a time ──► claim …
//!   └── hopeless, or once too often ► Failed, dead: waits for a person ──► collected
//! ```
//!
//! A record whose attempt ended with its process is a *suspect* until an attempt comes to an end: it may be what kills.
//!
//! Each transition is computed by one function here, which answers the [`State`] to write. A storage writes it as it is.

mod reason;
mod retry;
mod state;
mod transition;
mod unroutable;

pub use reason::MAX_REASON;
pub use retry::{Backoff, Limit, RetryPolicy};
pub use state::{State, Status};
pub use transition::{Begin, Begun, Outcome, Rules, begin, parked, received, requeued, scheduled, settle};
pub use unroutable::Unroutable;
