//! Keeps the driver's own log out of the process's.
//!
//! The driver logs each message that the broker returns, whole, as a warning, and at TRACE the password. It does so on the
//! thread that it has for each connection, which has nothing of ours to tell.

use std::cell::RefCell;
use std::sync::LazyLock;

use tracing::dispatcher::DefaultGuard;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Metadata, Subscriber};

/// One for all, registered as others are. With [`Dispatch::none`], what is first logged on a silent thread would be off in
/// the whole process, also in connections that others make with the same driver.
static SILENT: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Silent));

thread_local! {
    /// Ends with the thread.
    static SILENCE: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

/// Nothing that is logged on this thread from now on goes anywhere.
pub(crate) fn silence_this_thread() {
    SILENCE.with_borrow_mut(|silence| {
        if silence.is_none() {
            *silence = Some(tracing::dispatcher::set_default(&SILENT));
        }
    });
}

struct Silent;

impl Subscriber for Silent {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::never()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what it is told.
    struct Counter(Arc<AtomicUsize>);

    impl Subscriber for Counter {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn what_is_first_logged_on_a_silent_thread_is_logged_on_others_all_the_same() {
        let told = Arc::new(AtomicUsize::new(0));
        let counter = Dispatch::new(Counter(Arc::clone(&told)));
        let say = || tracing::error!("said");
        let _guard = tracing::dispatcher::set_default(&counter);
        let silent = std::thread::spawn(move || {
            silence_this_thread();
            say();
        });
        silent.join().unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 0);
        say();
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }
}
