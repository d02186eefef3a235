//! What the kit needs of a database.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{
    Enlist, Inserted, NewRecord, Settlement, Storage, StorageCapabilities, TransactAsync, Transacted,
};
use cap_core::{BoxFuture, Error, ErrorKind, HandlerError, Result};
use cap_storage_mysql::sqlx::mysql::MySqlPoolOptions;
use cap_storage_mysql::sqlx::{self, Connection, MySqlConnection, Row};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};
use cap_testkit::storage::scene::message;
use cap_testkit::storage::{HandlerTransaction, Script, StorageFixture, UserTransaction};

use crate::support::{self, Database};

/// A database of its own for each check.
pub(crate) struct MySqlFixture {
    database: Database,
    /// Where handlers work.
    handlers: MySqlStorage,
    unusable: MySqlStorage,
    max_content: usize,
}

impl MySqlFixture {
    /// Over a database that is empty.
    pub(crate) async fn new(database: Database) -> Self {
        // Rights on single tables are what a session that is open notices the loss of.
        let name = &database.name;
        let tables = ["cap.published", "cap.received", "cap.nodes", "cap.chores", "cap.schema", "effects"];
        let grants = tables.map(|table| format!("GRANT CREATE, INSERT, UPDATE ON {name}.`{table}` TO {name}"));
        support::on_server(format!("REVOKE INSERT, UPDATE ON {name}.* FROM {name}; {}", grants.join("; "))).await;
        let mut connection = database.connection().await;
        let packet = sqlx::query_scalar("SELECT @@max_allowed_packet").fetch_one(&mut connection);
        let packet: u64 = packet.await.unwrap();
        // The business data lives in the same database.
        support::run(&mut connection, "CREATE TABLE effects (effect TEXT) ENGINE = InnoDB").await;
        let nowhere = database.options().host("127.0.0.1").port(1);
        let nowhere = MySqlPoolOptions::new().acquire_timeout(Duration::from_secs(1)).connect_lazy_with(nowhere);
        Self {
            handlers: MySqlStorage::new(database.pool(5)),
            unusable: MySqlStorage::with_pool(nowhere, MySqlOptions::default().connect_timeout(Duration::from_secs(1)))
                .unwrap(),
            database,
            max_content: usize::try_from(packet).unwrap() - (256 << 10),
        }
    }
}

fn failed(error: sqlx::Error) -> Error {
    Error::with_source(ErrorKind::Unavailable, "work on", "the user's connection", error)
}

async fn write(connection: &mut MySqlConnection, effect: String) -> Result<()> {
    sqlx::query("INSERT INTO effects VALUES (?)").bind(effect).execute(connection).await.map_err(failed)?;
    Ok(())
}

impl StorageFixture for MySqlFixture {
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: true,
            shared: true,
            enlists: true,
            transactional_handlers: true,
            savepoints: true,
            watches: false,
            host_clock: false,
            max_content: Some(self.max_content),
            ascii_only: false,
        }
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Storage>>> {
        Box::pin(async { Ok(Arc::new(self.database.storage()) as Arc<dyn Storage>) })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn UserTransaction>>> {
        Box::pin(async {
            let mut connection = self.database.connection().await;
            sqlx::raw_sql("BEGIN").execute(&mut connection).await.map_err(failed)?;
            let transaction = Transaction { storage: self.database.storage(), connection };
            Ok(Box::new(transaction) as Box<dyn UserTransaction>)
        })
    }

    /// What the engine does with a handler that asks for the transaction.
    fn transact(&self, settlement: Settlement, script: Script) -> BoxFuture<'_, Result<Transacted>> {
        Box::pin(async move {
            // It has to know what the server takes.
            self.handlers.prepare().await?;
            let Some(mut tx) = self.handlers.begin(settlement).await? else { return Ok(Transacted::Lost) };
            let mut effects = Vec::new();
            let played = catch_unwind(AssertUnwindSafe(|| {
                script.play(|effect| {
                    effects.push(effect);
                    Ok(())
                })
            }));
            for effect in effects {
                write(&mut tx, effect).await?;
            }
            match played.unwrap_or_else(|_| Err(HandlerError::retry("the handler panicked"))) {
                Ok(records) => {
                    self.handlers.commit(tx, records).await?;
                    Ok(Transacted::Committed)
                }
                Err(error) => {
                    self.handlers.rollback(tx).await?;
                    Ok(Transacted::RolledBack(error))
                }
            }
        })
    }

    fn begin_handler(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<Box<dyn HandlerTransaction>>>> {
        Box::pin(async move {
            let storage = self.handlers.clone();
            let begun = storage.begin(settlement).await?;
            Ok(begun.map(|tx| Box::new(Handler { storage, tx }) as Box<dyn HandlerTransaction>))
        })
    }

    fn can_refuse_writes(&self) -> bool {
        true
    }

    fn set_writable(&self, writable: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let name = &self.database.name;
            let change = if writable { ("GRANT", "TO") } else { ("REVOKE", "FROM") };
            for table in ["published", "received"] {
                let change = format!("{} INSERT, UPDATE ON {name}.`cap.{table}` {} {name}", change.0, change.1);
                support::on_server(change).await;
            }
            Ok(())
        })
    }

    fn effects(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async {
            let mut connection = self.database.connection().await;
            support::run(&mut connection, "SET SESSION sql_select_limit = DEFAULT, sql_big_selects = 1").await;
            let select = sqlx::query("SELECT effect FROM effects ORDER BY CAST(effect AS BINARY)");
            let rows = select.fetch_all(&mut connection).await.map_err(failed)?;
            rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
        })
    }

    /// A server whose packets it does not fit into would end the connection.
    fn refused_record(&self) -> Option<NewRecord> {
        Some(NewRecord { content: "x".repeat(self.max_content + 1).into(), ..message("refused") })
    }

    fn set_unknown_schema_version(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let mut connection = self.database.connection().await;
            support::run(&mut connection, "INSERT INTO `cap.schema` VALUES (77, UTC_TIMESTAMP(6))").await;
            Ok(())
        })
    }

    fn unusable(&self) -> Option<(Arc<dyn Storage>, String)> {
        Some((Arc::new(self.unusable.clone()), "127.0.0.1:1".to_owned()))
    }

    fn secret(&self) -> Option<String> {
        Some(support::PASSWORD.to_owned())
    }

    fn clean_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.database.drop().await;
            Ok(())
        })
    }
}

/// A handler at work.
struct Handler {
    storage: MySqlStorage,
    tx: sqlx::Transaction<'static, sqlx::MySql>,
}

impl HandlerTransaction for Handler {
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.storage.commit(self.tx, Vec::new()).await })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.storage.rollback(self.tx).await })
    }
}

/// The user's own transaction on the user's own connection.
struct Transaction {
    storage: MySqlStorage,
    connection: MySqlConnection,
}

impl Transaction {
    async fn run(&mut self, sql: &'static str) -> Result<()> {
        sqlx::raw_sql(sql).execute(&mut self.connection).await.map_err(failed)?;
        Ok(())
    }

    async fn end(mut self, sql: &'static str) -> Result<()> {
        self.run(sql).await?;
        self.connection.close().await.map_err(failed)
    }
}

impl UserTransaction for Transaction {
    fn write(&mut self, effect: String) -> BoxFuture<'_, Result<()>> {
        Box::pin(write(&mut self.connection, effect))
    }

    fn publish(&mut self, records: Vec<NewRecord>) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        self.storage.enlist(&mut self.connection, records)
    }

    fn savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.run("SAVEPOINT kit"))
    }

    fn rollback_to_savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.run("ROLLBACK TO kit"))
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(self.end("COMMIT"))
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(self.end("ROLLBACK"))
    }
}
