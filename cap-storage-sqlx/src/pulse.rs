//! The connection of the heartbeats.

use std::sync::{Mutex, PoisonError};

use sqlx::{Database, Pool};
use tokio::runtime::{Handle, Id};

/// How many runtimes are remembered: one for each engine that uses the storage.
const MOST: usize = 8;

/// Pools of one connection each, one for each runtime that asks: a connection works only while the runtime that made it
/// does, and heartbeats come from a runtime of their own, which a blocked one does not hold up.
#[derive(Debug)]
pub(crate) struct Pulse<Db: Database>(Mutex<Vec<(Id, Pool<Db>)>>);

impl<Db: Database> Default for Pulse<Db> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Db: Database> Pulse<Db> {
    /// That of the runtime that this is called in.
    pub(crate) fn here(&self, make: impl FnOnce() -> Pool<Db>) -> Pool<Db> {
        let here = Handle::current().id();
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pool)) = pools.iter().find(|(runtime, _)| *runtime == here) {
            return pool.clone();
        }
        if pools.len() == MOST {
            // The oldest, whose engine is probably stopped.
            pools.remove(0);
        }
        let pool = make();
        pools.push((here, pool.clone()));
        pool
    }

    /// Those of all runtimes.
    pub(crate) fn all(&self) -> Vec<Pool<Db>> {
        let pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().map(|(_, pool)| pool.clone()).collect()
    }
}
