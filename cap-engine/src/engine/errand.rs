//! Work that a loop has done beside it, because it cannot wait for it.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::engine::Engine;

/// One errand: nobody is sent again who is still out.
#[derive(Debug, Default)]
pub(crate) struct Errand(Option<JoinHandle<()>>);

impl Errand {
    /// Begins `work` on the user's runtime, unless the last is not done. It goes on to its end, whatever becomes of the
    /// loop.
    pub(crate) fn send<F>(&mut self, engine: &Arc<Engine>, work: impl FnOnce(Arc<Engine>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.0.as_ref().is_none_or(JoinHandle::is_finished) {
            self.0 = Some(engine.tasks.spawn_on(work(Arc::clone(engine)), &engine.runtime));
        }
    }
}
