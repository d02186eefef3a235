//! A connection that is at work.

use std::ops::{Deref, DerefMut};

use sqlx::Database;
use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;

/// A connection that goes back to its pool only if the work on it came to its end. Of one that was given up nobody knows
/// what it will still answer: it is cut off, as a farewell might wait for that, too.
pub(crate) struct Held<Db: Database> {
    connection: Option<PoolConnection<Db>>,
    /// Where it goes back from, if not from here: the pool asks the server first, and nobody else gets it until then.
    home: Option<Handle>,
    is_clean: bool,
}

const GONE: &str = "the connection is there until it is dropped";

impl<Db: Database> Held<Db> {
    pub(crate) fn new(connection: PoolConnection<Db>, home: Option<Handle>) -> Self {
        Self { connection: Some(connection), home, is_clean: false }
    }

    /// The work came to its end.
    pub(crate) fn give_back(mut self) {
        self.is_clean = true;
    }

    /// Closes it with a farewell.
    pub(crate) async fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            // The server notices in any case.
            drop(connection.close().await);
        }
    }
}

impl<Db: Database> Deref for Held<Db> {
    type Target = Db::Connection;

    fn deref(&self) -> &Db::Connection {
        self.connection.as_ref().expect(GONE)
    }
}

impl<Db: Database> DerefMut for Held<Db> {
    fn deref_mut(&mut self) -> &mut Db::Connection {
        self.connection.as_mut().expect(GONE)
    }
}

impl<Db: Database> Drop for Held<Db> {
    fn drop(&mut self) {
        let connection = self.connection.take();
        if self.is_clean {
            let _home = self.home.as_ref().map(Handle::enter);
            drop(connection);
        } else {
            drop(connection.map(PoolConnection::detach));
        }
    }
}
