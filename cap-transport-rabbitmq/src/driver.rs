//! The thread that drives connections: a runtime of the transport's own, which outlives those of its callers.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;

/// Keeps the thread running. Whoever holds one may rely on what was spawned before.
#[derive(Clone)]
pub(crate) struct Alive(#[expect(dead_code, reason = "its being there is all")] mpsc::Sender<()>);

/// Starts the thread when it is first needed. It ends when nobody holds an [`Alive`] any more: a handle that is dropped
/// lets what is on its way come to its end.
pub(crate) struct Driver(Mutex<Option<(Handle, Alive)>>);

impl Driver {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Where to spawn, and what keeps it there.
    pub(crate) fn start(&self) -> io::Result<(Handle, Alive)> {
        let mut started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*started {
            return Ok(running.clone());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (alive, mut all_gone) = mpsc::channel(1);
        let running = (runtime.handle().clone(), Alive(alive));
        let run = move || {
            runtime.block_on(async { all_gone.recv().await });
        };
        thread::Builder::new().name("cap-rabbitmq".into()).spawn(run)?;
        *started = Some(running.clone());
        Ok(running)
    }

    /// Where to spawn, if it was ever started.
    pub(crate) fn started(&self) -> Option<Handle> {
        let started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        started.as_ref().map(|(handle, _)| handle.clone())
    }
}
