//! What the tests share: a scene with nodes on it, and ways to wait.

mod broker;
mod database;
mod gate;
mod node;
mod proxy;

pub(crate) use database::Database;
pub(crate) use gate::{Deaf, Gate, Gates, Run};
pub(crate) use node::{At, Effect, LEASE, Node, Scene, TOPIC, effect, options};

use std::time::Duration;

/// Long enough for anything that should happen at all, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a signal.
///
/// # Panics
/// When it does not come.
pub(crate) async fn soon<T>(what: &str, signal: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, signal).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

/// Asks until there is an answer: for what the database knows and tells nobody.
///
/// # Panics
/// When it does not come.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    soon(what, asking).await
}
