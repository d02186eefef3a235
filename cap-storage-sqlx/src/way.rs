//! What is known of the way to the server: whether a pooler stands on it, which may be put there at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::server::{Connection, Server};

/// For all pools together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Way {
    /// Whether sessions are lent for a transaction at a time. It does not end: what once stood there may stand there again.
    is_lent: Arc<AtomicBool>,
    /// Whether new connections ask for the [mark](Server::mark).
    is_marked: Arc<AtomicBool>,
}

impl Way {
    pub(crate) fn is_lent(&self) -> bool {
        self.is_lent.load(Ordering::Relaxed)
    }

    /// Statements ask this, too.
    pub(crate) fn lent(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_lent)
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.is_marked.load(Ordering::Relaxed)
    }

    pub(crate) fn mark(&self, marked: bool) {
        self.is_marked.store(marked, Ordering::Relaxed);
    }

    /// From now on sessions are taken to be lent.
    pub(crate) fn lend<S: Server>(&self, place: &str) {
        if !self.is_lent.swap(true, Ordering::Relaxed) {
            S::tell_of_pooler(place);
        }
    }

    /// Looks at a connection that is new, before anything else is done on it. One without the mark has a session that was
    /// there before: a pooler lends it.
    pub(crate) async fn look<S: Server>(&self, connection: &mut Connection<S>, place: &str) -> sqlx::Result<()> {
        if self.is_marked() && !self.is_lent() && !S::has_mark(connection).await? {
            self.lend::<S>(place);
        }
        Ok(())
    }
}
