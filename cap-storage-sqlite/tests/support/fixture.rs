//! What the kit needs of a database.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cap_core::storage::{Enlist, Inserted, NewRecord, Settlement, Storage, StorageCapabilities, Transact, Transacted};
use cap_core::{BoxFuture, Error, ErrorKind, Result};
use cap_storage_sqlite::rusqlite::Connection;
use cap_storage_sqlite::{SqliteStorage, SqliteTx};
use cap_testkit::storage::{Script, StorageFixture, UserTransaction};

/// A file of its own for each check.
pub(crate) struct SqliteFixture {
    folder: tempfile::TempDir,
    settings: &'static str,
}

impl SqliteFixture {
    /// `file` makes the file what it stays, and the user's connections have `settings`.
    pub(crate) fn new(file: &'static str, settings: &'static str) -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap(), settings };
        fixture.connection().execute_batch(file).unwrap();
        // The business data lives in the same file.
        fixture.connection().execute_batch("CREATE TABLE effects (effect TEXT)").unwrap();
        fixture
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("shop.db")
    }

    fn storage(&self) -> Result<SqliteStorage> {
        SqliteStorage::open(self.path())
    }

    fn connection(&self) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.execute_batch(self.settings).unwrap();
        connection
    }
}

fn failed(error: cap_storage_sqlite::rusqlite::Error) -> Error {
    Error::with_source(ErrorKind::Unavailable, "work on", "the user's connection", error)
}

const INSERT: &str = "INSERT INTO effects VALUES (?1)";

impl StorageFixture for SqliteFixture {
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: true,
            shared: true,
            enlists: true,
            transactional_handlers: true,
            savepoints: true,
            watches: true,
            host_clock: true,
            max_content: None,
            ascii_only: false,
        }
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Storage>>> {
        Box::pin(async { Ok(Arc::new(self.storage()?) as Arc<dyn Storage>) })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn UserTransaction>>> {
        Box::pin(async {
            let connection = self.connection();
            connection.execute_batch("BEGIN").map_err(failed)?;
            let transaction = Transaction { storage: self.storage()?, connection: Mutex::new(connection) };
            Ok(Box::new(transaction) as Box<dyn UserTransaction>)
        })
    }

    fn transact(&self, settlement: Settlement, script: Script) -> BoxFuture<'_, Result<Transacted>> {
        Box::pin(async move {
            let work = move |tx: &mut SqliteTx<'_>| {
                script.play(|effect| {
                    tx.execute(INSERT, [effect])?;
                    Ok(())
                })
            };
            self.storage()?.transact(settlement, Box::new(work)).await
        })
    }

    fn effects(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async {
            let connection = self.connection();
            let mut select = connection.prepare("SELECT effect FROM effects ORDER BY effect").map_err(failed)?;
            let effects = select.query_map([], |row| row.get(0)).map_err(failed)?;
            effects.collect::<Result<_, _>>().map_err(failed)
        })
    }

    fn single_writer(&self) -> bool {
        true
    }

    fn can_refuse_writes(&self) -> bool {
        true
    }

    /// By taking the tables away.
    fn set_writable(&self, writable: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let connection = self.connection();
            for table in ["published", "received"] {
                let (ours, away) = (format!("\"cap.{table}\""), format!("\"away.{table}\""));
                let (from, to) = if writable { (away, ours) } else { (ours, away) };
                connection.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).map_err(failed)?;
            }
            Ok(())
        })
    }

    fn set_unknown_schema_version(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.connection().execute_batch(r#"INSERT INTO "cap.schema" VALUES (77, 0)"#).map_err(failed)
        })
    }

    fn unusable(&self) -> Option<(Arc<dyn Storage>, String)> {
        let path = self.folder.path().join("missing/shop.db");
        let storage = SqliteStorage::open(&path).unwrap();
        Some((Arc::new(storage), path.display().to_string()))
    }
}

/// The user's own connection. SQLite's is not `Sync`, and the suite's futures must be `Send`.
struct Transaction {
    storage: SqliteStorage,
    connection: Mutex<Connection>,
}

impl Transaction {
    fn run(&self, sql: &str) -> Result<()> {
        self.connection.lock().unwrap().execute_batch(sql).map_err(failed)
    }
}

impl UserTransaction for Transaction {
    fn write(&mut self, effect: String) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.connection.lock().unwrap().execute(INSERT, [effect]).map(|_| ()).map_err(failed) })
    }

    fn publish(&mut self, records: Vec<NewRecord>) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        Box::pin(async { self.storage.enlist(&*self.connection.lock().unwrap(), records) })
    }

    fn savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.run("SAVEPOINT kit") })
    }

    fn rollback_to_savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.run("ROLLBACK TO kit") })
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.run("COMMIT") })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.run("ROLLBACK") })
    }
}
