//! Which of many futures were woken, so that only those are looked at.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Notify;

/// Who was woken, in the order of waking. The driver settles confirms one after the other and wakes each at once, so
/// this is the order of settling.
#[derive(Default)]
pub(crate) struct Wakes {
    woken: Mutex<Vec<u64>>,
    notify: Notify,
}

struct Ticket {
    number: u64,
    wakes: Arc<Wakes>,
}

impl Wake for Ticket {
    fn wake(self: Arc<Self>) {
        self.wakes.lock().push(self.number);
        self.wakes.notify.notify_one();
    }
}

impl Wakes {
    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one is woken.
    pub(crate) async fn any(&self) {
        self.notify.notified().await;
    }

    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.lock())
    }

    /// Looks at a future, and notes its number when it is worth looking at again.
    pub(crate) fn poll<F: Future + Unpin>(self: &Arc<Self>, number: u64, future: &mut F) -> Poll<F::Output> {
        let waker = Waker::from(Arc::new(Ticket { number, wakes: Arc::clone(self) }));
        std::pin::Pin::new(future).poll(&mut Context::from_waker(&waker))
    }
}
