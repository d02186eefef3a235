//! SQLite: a file in a temporary folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cap_core::HandlerError;
use cap_core::storage::Storage as _;
use cap_engine::{Cap, Json, Publish, Subscribe};
use cap_storage_sqlite::{SqliteStorage, SqliteTx};
use rusqlite::{Connection, TransactionBehavior};

use crate::backend::{Business, Client, Database, End, Fallible};
use crate::crash::recorder::Recorder;
use crate::crash::roles::mishap;
use crate::crash::trouble::called_in_billing;
use crate::database::{BUSINESS, NOTE, now_micros};
use crate::twin::sqlite::SqliteHand;

/// A file with everything in it.
#[derive(Clone)]
pub(crate) struct Sqlite {
    path: PathBuf,
    /// Deleted with the last clone; none in a process that did not make it.
    _folder: Option<Arc<tempfile::TempDir>>,
}

/// A connection with the settings that an application should have.
pub(crate) fn open(path: &Path) -> Fallible<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(20))?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
    Ok(connection)
}

impl Database for Sqlite {
    type Storage = SqliteStorage;
    type Client = SqliteClient;
    type Hand = SqliteHand;

    async fn fresh() -> Fallible<Self> {
        let folder = tempfile::tempdir()?;
        let database = Self { path: folder.path().join("bench.db"), _folder: Some(Arc::new(folder)) };
        let connection = open(&database.path)?;
        BUSINESS.iter().try_for_each(|table| connection.execute_batch(table))?;
        database.storage().await?.prepare().await?;
        Ok(database)
    }

    fn at(place: &str) -> Fallible<Self> {
        Ok(Self { path: place.into(), _folder: None })
    }

    fn place(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }

    async fn storage(&self) -> Fallible<SqliteStorage> {
        Ok(SqliteStorage::open(&self.path)?)
    }

    async fn client(&self) -> Fallible<SqliteClient> {
        Ok(SqliteClient(open(&self.path)?))
    }

    async fn hand(&self) -> Fallible<SqliteHand> {
        SqliteHand::open(&self.path)
    }

    async fn another(&self, first: &SqliteHand) -> Fallible<SqliteHand> {
        Ok(first.clone())
    }

    fn billing(&self, storage: &SqliteStorage, topic: &str, recorder: Recorder) -> Subscribe {
        let bill = move |tx: &mut SqliteTx<'_>, Json(number): Json<i64>, context: cap_engine::Context| {
            called_in_billing(&recorder, number, &context)?;
            tx.execute("INSERT INTO invoices (number, made_at) VALUES (?1, ?2)", (number, now_micros()))?;
            mishap()
        };
        Subscribe::transactional(topic, storage, bill)
    }

    /// There is one writer: whoever holds it holds up everybody.
    fn locking(&self, storage: &SqliteStorage, topic: &str, recorder: Recorder, hold: Duration) -> Subscribe {
        let lock = move |tx: &mut SqliteTx<'_>, Json(number): Json<i64>, context: cap_engine::Context| {
            called_in_billing(&recorder, number, &context)?;
            tx.execute("UPDATE locks SET holder = ?1 WHERE id = 1", (number,))?;
            std::thread::sleep(hold);
            tx.execute("INSERT INTO invoices (number, made_at) VALUES (?1, ?2)", (number, now_micros()))?;
            Ok::<(), HandlerError>(())
        };
        Subscribe::transactional(topic, storage, lock)
    }

    async fn business(&self) -> Fallible<Business> {
        let mut connection = open(&self.path)?;
        let snapshot = connection.transaction()?;
        let mut orders = snapshot.prepare("SELECT number FROM orders")?;
        let orders = orders.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut invoices = snapshot.prepare("SELECT number, made_at FROM invoices")?;
        let invoices = invoices.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(Business { orders, invoices })
    }

    async fn discard(self) -> Fallible {
        Ok(())
    }
}

/// An application's connection.
pub(crate) struct SqliteClient(Connection);

impl Client<SqliteStorage> for SqliteClient {
    async fn place(&mut self, cap: &Cap<SqliteStorage>, number: i64, message: Publish, end: End) -> Fallible {
        tokio::task::block_in_place(|| {
            let tx = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.prepare_cached("INSERT INTO orders (number, note) VALUES (?1, ?2)")?.execute((number, NOTE))?;
            cap.publish_many_in(&*tx, [message])?;
            match end {
                End::Commit => tx.commit()?,
                End::RollBack => tx.rollback()?,
            }
            Ok(())
        })
    }
}
