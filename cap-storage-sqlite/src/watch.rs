//! Noticing the commits of others.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use cap_core::backend::Attempt;
use cap_core::storage::{Table, Wake};
use cap_core::{Error, ErrorKind, Result};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::config::SqliteOptions;
use crate::error::{failed, is_busy};
use crate::identity::Identity;
use crate::session::{self, Role};

/// How often the file is looked at. `PRAGMA data_version` reads the log's header in shared memory: a few microseconds,
/// and no lock that a writer would wait for.
const INTERVAL: Duration = Duration::from_millis(20);

const WATCH: Attempt = Attempt::on_database("watch for commits in");

/// A thread that looks at the file's data version and wakes both tables whenever it changes: the version says that
/// something was committed, not what. Dropping it ends the thread.
pub(crate) struct Watcher {
    /// Nothing is ever sent: the thread ends when this is dropped.
    _stop: mpsc::Sender<()>,
    failed: oneshot::Receiver<Error>,
    place: String,
}

impl Watcher {
    pub(crate) fn start(options: SqliteOptions, wake: Wake) -> Result<Self> {
        let place = session::place(&options.path);
        let (stop, stopped) = mpsc::channel();
        let (failure, failed) = oneshot::channel();
        thread::Builder::new()
            .name("cap-sqlite-watch".to_owned())
            .spawn(move || {
                if let Err(error) = watch(&options, &wake, &stopped) {
                    drop(failure.send(error));
                }
            })
            .map_err(|error| Error::with_source(ErrorKind::Unavailable, "start a thread for", &place, error))?;
        Ok(Self { _stop: stop, failed, place })
    }

    /// Waits until the thread cannot go on.
    pub(crate) async fn failed(self) -> Result<()> {
        let Self { _stop, failed, place } = self;
        let panicked = |_| WATCH.failed(ErrorKind::Internal, &place, "the thread that watches has ended");
        Err(failed.await.unwrap_or_else(panicked))
    }
}

fn watch(options: &SqliteOptions, wake: &Wake, stopped: &mpsc::Receiver<()>) -> Result<()> {
    let connection = session::open(options, Role::Reader)?;
    let file = Identity::of(&options.path);
    let mut seen = None;
    loop {
        if file.has_moved() {
            let reason = "the file was deleted or replaced while it was open";
            return Err(WATCH.failed(ErrorKind::Environment, &session::place(&options.path), reason));
        }
        match data_version(&connection) {
            // The first version wakes too: whatever was committed just before it was read.
            Ok(version) if seen != Some(version) => {
                if seen.replace(version).is_none() {
                    wake.listens();
                }
                wake.wake(Table::Outbox);
                wake.wake(Table::Inbox);
            }
            Ok(_) => {}
            Err(error) if is_busy(&error) => {}
            Err(error) => return Err(failed(WATCH, &session::place(&options.path), error)),
        }
        if stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0))
}
