//! Something that may be lost and is then made again, such as a connection.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};

/// Something that may be lost and is then made again, by one caller for all.
#[derive(Debug)]
pub struct Slot<T> {
    state: tokio::sync::Mutex<State<T>>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct State<T> {
    current: Option<Arc<T>>,
    failed: Option<(Instant, Error)>,
}

impl<T> Slot<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self { state: tokio::sync::Mutex::new(State { current: None, failed: None }) }
    }

    /// What is there, or a new one. Who waited while another's attempt failed gets its error, so that a broker that is
    /// away costs everyone one time limit and not one each.
    pub async fn get(&self, is_alive: impl Fn(&T) -> bool, make: impl Future<Output = Result<T>>) -> Result<Arc<T>> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(current) = state.current.as_ref().filter(|current| is_alive(current)) {
            return Ok(Arc::clone(current));
        }
        if let Some((_, error)) = state.failed.as_ref().filter(|(at, _)| *at > asked) {
            return Err(error.clone());
        }
        state.current = None;
        match make.await {
            Ok(made) => {
                let made = Arc::new(made);
                state.current = Some(Arc::clone(&made));
                Ok(made)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Takes out what is there.
    pub async fn take(&self) -> Option<Arc<T>> {
        self.state.lock().await.current.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::error::ErrorKind;

    #[tokio::test(start_paused = true)]
    async fn who_waits_while_another_fails_gets_its_error_and_the_next_tries_again() {
        let (slot, tries) = (Slot::<()>::new(), AtomicUsize::new(0));
        let attempt = || {
            slot.get(|()| true, async {
                tries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(Error::new(ErrorKind::Unavailable, "connect to", "a broker", "it is away"))
            })
        };
        let (first, second) = tokio::join!(attempt(), attempt());
        assert!(first.is_err() && second.is_err());
        assert_eq!(tries.load(Ordering::Relaxed), 1, "the second waited for the first");
        assert!(attempt().await.is_err());
        assert_eq!(tries.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_is_alive_is_shared_and_what_is_dead_is_made_again() {
        let slot = Slot::new();
        let first = slot.get(|_| true, async { Ok(1) }).await.unwrap();
        let same = slot.get(|_| true, async { Ok(2) }).await.unwrap();
        let other = slot.get(|_| false, async { Ok(3) }).await.unwrap();
        assert_eq!((*first, *same, *other), (1, 1, 3));
        assert_eq!(slot.take().await.as_deref(), Some(&3));
        assert!(slot.take().await.is_none());
    }
}
