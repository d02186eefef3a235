//! Keeps the driver's own log out of the process's.
//!
//! The driver logs each message that the broker returns, whole, as a warning, and at TRACE the password. It does so on the
//! thread that it has for each connection, which has nothing of ours to tell.

use std::cell::RefCell;

use tracing::Dispatch;
use tracing::dispatcher::DefaultGuard;

thread_local! {
    /// Ends with the thread.
    static SILENCE: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

/// Nothing that is logged on this thread from now on goes anywhere.
pub(crate) fn silence_this_thread() {
    SILENCE.with_borrow_mut(|silence| {
        if silence.is_none() {
            *silence = Some(tracing::dispatcher::set_default(&Dispatch::none()));
        }
    });
}
