//! What the kit needs of a database.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{
    Enlist, Inserted, NewRecord, Settlement, Storage, StorageCapabilities, TransactAsync, Transacted,
};
use cap_core::{BoxFuture, Error, ErrorKind, HandlerError, Result};
use cap_storage_postgres::sqlx::postgres::PgPoolOptions;
use cap_storage_postgres::sqlx::{self, Connection, PgConnection, Row};
use cap_storage_postgres::{PostgresOptions, PostgresStorage};
use cap_testkit::storage::scene::message;
use cap_testkit::storage::{HandlerTransaction, Script, StorageFixture, UserTransaction};

use crate::support::{self, Database};

/// A database of its own for each check.
pub(crate) struct PostgresFixture {
    database: Database,
    /// Where handlers work.
    handlers: PostgresStorage,
    unusable: PostgresStorage,
}

impl PostgresFixture {
    /// With these settings of the database, which sessions have from the beginning.
    pub(crate) async fn new(settings: &[(&str, &str)]) -> Self {
        let database = Database::create().await;
        database.set(settings).await;
        // The business data lives in the same database.
        support::run(&mut database.connection().await, "CREATE TABLE public.effects (effect TEXT)").await;
        let nowhere = database.options().host("127.0.0.1").port(1);
        let nowhere = PgPoolOptions::new().acquire_timeout(Duration::from_secs(1)).connect_lazy_with(nowhere);
        Self {
            handlers: PostgresStorage::new(database.pool(5)),
            unusable: PostgresStorage::with_pool(
                nowhere,
                PostgresOptions::default().connect_timeout(Duration::from_secs(1)),
            )
            .unwrap(),
            database,
        }
    }
}

fn failed(error: sqlx::Error) -> Error {
    Error::with_source(ErrorKind::Unavailable, "work on", "the user's connection", error)
}

async fn write(connection: &mut PgConnection, effect: String) -> Result<()> {
    sqlx::query("INSERT INTO public.effects VALUES ($1)").bind(effect).execute(connection).await.map_err(failed)?;
    Ok(())
}

impl StorageFixture for PostgresFixture {
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: true,
            shared: true,
            enlists: true,
            transactional_handlers: true,
            savepoints: true,
            watches: true,
            host_clock: false,
            max_content: None,
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
            let tables = r#""cap"."published", "cap"."received""#;
            let change = format!("{} INSERT, UPDATE ON {tables} {} {name}", change.0, change.1);
            support::run(&mut self.database.connection().await, change).await;
            Ok(())
        })
    }

    fn can_set_addresses_back(&self) -> bool {
        true
    }

    fn set_addresses_back(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let set_back =
                r#"SELECT setval('"cap"."published_Id"', 1, false), setval('"cap"."received_Id"', 1, false)"#;
            support::run(&mut self.database.connection().await, set_back).await;
            Ok(())
        })
    }

    fn effects(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async {
            let mut connection = self.database.connection().await;
            let select = sqlx::query("SELECT effect FROM public.effects ORDER BY effect COLLATE \"C\"");
            let rows = select.fetch_all(&mut connection).await.map_err(failed)?;
            rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
        })
    }

    /// The text of PostgreSQL holds no NUL.
    fn refused_record(&self) -> Option<NewRecord> {
        Some(NewRecord { content: "\"a\0b\"".into(), ..message("refused") })
    }

    fn set_unknown_schema_version(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let mut connection = self.database.connection().await;
            support::run(&mut connection, r#"INSERT INTO "cap"."schema" VALUES (77, now())"#).await;
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
    storage: PostgresStorage,
    tx: sqlx::Transaction<'static, sqlx::Postgres>,
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
    storage: PostgresStorage,
    connection: PgConnection,
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
