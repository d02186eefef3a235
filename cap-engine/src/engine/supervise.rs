//! No loop dies silently: an error backs off and is reported, a panic restarts it, and health says which is ill since
//! when.

use std::future::Future;
use std::sync::Arc;

use cap_core::{Error, ErrorKind, Result};
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::engine::backoff::Pause;

/// Runs `body` again and again until it answers `Ok` or `stop` is cancelled. The body sees to its own prompt end when
/// it must not be dropped; `stop` only ends the pauses.
pub(crate) async fn supervise<F, Fut>(engine: Arc<Engine>, name: String, stop: CancellationToken, mut body: F)
where
    F: FnMut() -> Fut + Send,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let mut pause = Pause::patient();
    loop {
        engine.health.begins(&name);
        let started = tokio::time::Instant::now();
        let error = match tokio::spawn(body()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(join) if join.is_panic() => {
                // What the loop held is known to nobody now: under a new id it is taken over.
                let reason = format!("it panicked: {}", panic_text(join.into_panic().as_ref()));
                engine.node.renew(&format!("the loop `{name}` had to be started again: {reason}"));
                Error::new(ErrorKind::Internal, "run", format!("the loop `{name}`"), reason)
            }
            Err(_) => return,
        };
        if stop.is_cancelled() {
            return;
        }
        engine.health.ill(&name, error);
        if started.elapsed() > std::time::Duration::from_secs(30) {
            pause.reset();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = pause.wait() => {}
        }
    }
}

/// The text of a panic, if it has one.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
