//! One connection of the storage's own: how it is opened, and its prepared statements.

use std::collections::HashMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cap_core::backend::Attempt;
use cap_core::{Error, ErrorKind, Result};
use rusqlite::{Connection, OpenFlags, Statement};

use crate::config::SqliteOptions;
use crate::error::{failed, is_busy};
use crate::identity::Identity;
use crate::job::Bench;
use crate::promises::Leases;
use crate::sql::{self, Sql};

/// How long a connection waits before it asks again for what SQLite's own busy handler does not wait for.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// May create the file, turns the write-ahead log on, and writes.
    Writer,
    /// The same, but the file must be there: it was.
    WriterAgain,
    /// Only reads.
    Reader,
}

/// Kind and place, for people.
pub(crate) fn place(path: &Path) -> String {
    format!("sqlite {}", path.display())
}

/// Opens a connection. Blocks, at most for the busy timeout, while others keep the file to themselves.
pub(crate) fn open(options: &SqliteOptions, role: Role) -> Result<Connection> {
    let attempt = Attempt::on_database("open");
    let place = place(&options.path);
    let failed = |error| failed(attempt, &place, error);

    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if role == Role::Writer {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    if let Some(error) = missing_directory(&options.path, attempt, &place) {
        return Err(error);
    }
    let connection = Connection::open_with_flags(&options.path, flags).map_err(failed)?;
    connection.busy_timeout(options.busy_timeout).map_err(failed)?;
    match role {
        Role::Writer | Role::WriterAgain => {
            let mode = write_ahead(&connection, options.busy_timeout).map_err(failed)?;
            if mode != "wal" {
                let reason = format!(
                    "it cannot have a write-ahead log (its journal mode stays {mode:?}): it is on a file system \
                     without shared memory, such as a network share"
                );
                return Err(attempt.failed(ErrorKind::Environment, &place, reason));
            }
            // The journals of savepoints, which the group commit uses, stay in memory.
            let settings = format!("PRAGMA synchronous = {}; PRAGMA temp_store = MEMORY", options.synchronous);
            connection.execute_batch(&settings).map_err(failed)?;
        }
        Role::Reader => connection.execute_batch("PRAGMA query_only = ON").map_err(failed)?,
    }
    Ok(connection)
}

fn missing_directory(path: &Path, attempt: Attempt, place: &str) -> Option<Error> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty())?;
    if directory.is_dir() {
        return None;
    }
    let reason = format!("the directory {} does not exist", directory.display());
    Some(attempt.failed(ErrorKind::Environment, place, reason))
}

/// Turns the write-ahead log on; answers the mode that the file has now. Two connections that do so at the same time
/// are told `busy` without their busy timeout being waited for.
fn write_ahead(connection: &Connection, timeout: Duration) -> rusqlite::Result<String> {
    let deadline = Instant::now() + timeout;
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)) {
            Err(error) if is_busy(&error) && Instant::now() < deadline => thread::sleep(BUSY_PAUSE),
            answer => return answer,
        }
    }
}

/// A connection at work, on a thread of its own. Prepares each statement once.
pub(crate) struct Session<'c> {
    pub(crate) connection: &'c Connection,
    pub(crate) sql: &'c Sql,
    pub(crate) leases: &'c Leases,
    pub(crate) waiting: Waiting,
    file: Identity,
    statements: HashMap<&'c str, Statement<'c>>,
}

/// How long the writer waits for others, and has waited since it last had its turn.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) timeout: Duration,
    pub(crate) since: Option<Instant>,
    pub(crate) is_told: bool,
}

impl<'c> Session<'c> {
    pub(crate) fn new(connection: &'c Connection, bench: &'c Bench) -> Self {
        let Bench { options, sql, leases, .. } = bench;
        let waiting = Waiting { timeout: options.busy_timeout, since: None, is_told: false };
        let file = Identity::of(&options.path);
        Self { connection, sql, leases, waiting, file, statements: HashMap::new() }
    }

    /// Whether the file that it has open is no longer the one at the path: nothing that is written is of any use.
    pub(crate) fn has_moved(&self) -> bool {
        self.file.has_moved()
    }

    /// The statement, prepared.
    pub(crate) fn statement(&mut self, text: &'c str) -> rusqlite::Result<&mut Statement<'c>> {
        use std::collections::hash_map::Entry;
        Ok(match self.statements.entry(text) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.connection.prepare(text)?),
        })
    }

    /// Runs a statement without parameters or rows.
    pub(crate) fn execute(&mut self, text: &'c str) -> rusqlite::Result<usize> {
        self.statement(text)?.execute([])
    }

    /// Whether a COMMIT may yet be refused because of what was written: some table's foreign keys are deferred, and
    /// enforced.
    pub(crate) fn commit_may_be_refused(&mut self) -> rusqlite::Result<bool> {
        let ask = |statement: &mut Statement<'c>| statement.query_row([], |row| row.get::<_, bool>(0));
        if !ask(self.statement("PRAGMA foreign_keys")?)? {
            return Ok(false);
        }
        Ok(ask(self.statement("PRAGMA defer_foreign_keys")?)? || ask(self.statement(sql::DEFERS_FOREIGN_KEYS)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_opened_is_named_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |path: &Path| open(&SqliteOptions::new(path), Role::Writer).unwrap_err();

        let error = refused(&directory.path().join("nowhere/a.db"));
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().contains("nowhere does not exist"), "{error}");

        let error = refused(directory.path());
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().contains(&place(directory.path())), "{error}");

        let text = directory.path().join("a.txt");
        std::fs::write(&text, "Dear diary, ".repeat(200)).unwrap();
        let error = refused(&text);
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().contains("a.txt: file is not a database"), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_no_fault_of_what_was_to_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();

        let read_only = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let error = read_only.execute_batch("INSERT INTO t VALUES (1)").unwrap_err();
        let error = failed(Attempt::on_database("open"), "here", error);
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.reason().contains("read-only for this process"), "{error}");

        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&path, permissions).unwrap();
        if std::fs::File::options().write(true).open(&path).is_ok() {
            return; // permissions do not bind this user
        }
        let error = open(&SqliteOptions::new(&path), Role::Writer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    }

    #[test]
    fn a_connection_has_a_write_ahead_log_and_the_configured_durability() {
        use crate::config::Synchronous;
        let directory = tempfile::tempdir().unwrap();
        for (synchronous, number) in [(Synchronous::Full, 2), (Synchronous::Normal, 1)] {
            let options = SqliteOptions::new(directory.path().join("a.db")).synchronous(synchronous);
            let connection = open(&options, Role::Writer).unwrap();
            let ask = |what: &str| connection.query_row(what, [], |row| row.get::<_, i64>(0)).unwrap();
            assert_eq!(ask("PRAGMA synchronous"), number);
            let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
            assert_eq!(mode, "wal");
        }
    }

    #[test]
    fn a_reader_cannot_write() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("a.db"));
        open(&options, Role::Writer).unwrap();
        assert!(open(&options, Role::Reader).unwrap().execute_batch("CREATE TABLE t (a)").is_err());
    }
}
