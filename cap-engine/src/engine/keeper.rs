//! The keeper of the node's lease: a thread with a runtime of its own, so that neither handlers that block every thread of
//! the user's runtime nor a long queue of tasks there cost the node its lease, or a stop more than its time.

use std::pin::pin;
use std::sync::Arc;

use cap_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use crate::engine::supervise::supervise;
use crate::engine::{Engine, pulse, stop};

/// Starts the thread. It ends when the engine stops or the user's runtime is gone: then nothing works on what the node
/// holds, and others take it over.
pub(crate) fn start(engine: &Arc<Engine>) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Unavailable, "start", "the thread that keeps the node's lease", error.to_string())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (tell_end, ended) = oneshot::channel::<()>();
    let (tell_gone, gone) = oneshot::channel::<()>();
    engine.stop.keeper_tasks.spawn_on(
        async move {
            // Dropped with the runtime, if that goes away first.
            let _tell_gone = tell_gone;
            let _ = ended.await;
        },
        &engine.runtime,
    );
    let kept = Arc::clone(engine);
    let ended = EndTold(Arc::clone(engine));
    let thread = std::thread::Builder::new().name("cap-keeper".into()).spawn(move || {
        let _ended = ended;
        runtime.block_on(async move {
            let mut limit = pin!(stop::limit(&kept));
            tokio::select! {
                () = keep(Arc::clone(&kept)) => drop(tell_end),
                () = &mut limit => return,
                _ = gone => return kept.node.fence(),
            }
            limit.await;
        });
        // A heartbeat that hangs is not waited for.
        runtime.shutdown_background();
    });
    thread.map(drop).map_err(failed)
}

/// However the thread ends, a panic included, health says so.
struct EndTold(Arc<Engine>);

impl Drop for EndTold {
    fn drop(&mut self) {
        self.0.pulse.keeper_ended();
        if std::thread::panicking() {
            self.0.node.fence();
        }
    }
}

async fn keep(engine: Arc<Engine>) {
    let living = supervise(Arc::clone(&engine), "node".into(), engine.stop.keeper.clone(), {
        let engine = Arc::clone(&engine);
        move || {
            let engine = Arc::clone(&engine);
            async move { engine.node.live(&engine).await }
        }
    });
    let looking = async {
        loop {
            engine.pulse.look(&engine);
            tokio::time::sleep(pulse::EVERY).await;
        }
    };
    tokio::select! {
        () = living => {}
        () = looking => {}
    }
}
