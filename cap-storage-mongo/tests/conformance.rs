//! The storage suite of `cap-testkit` on a real server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{
    Enlist, Inserted, NewRecord, Settlement, Storage, StorageCapabilities, TransactAsync, Transacted,
};
use cap_core::{BoxFuture, Error, ErrorKind, HandlerError, Result};
use cap_storage_mongo::mongodb::bson::{Document, doc};
use cap_storage_mongo::mongodb::{self, ClientSession, Collection};
use cap_storage_mongo::{MongoOptions, MongoStorage};
use cap_testkit::storage::{Script, StorageFixture, UserTransaction};
use support::{Database, patient};

cap_testkit::storage_conformance!(MongoFixture::new().await);

/// A database of its own for each check.
struct MongoFixture {
    database: Database,
    /// Where handlers work.
    handlers: MongoStorage,
    unusable: MongoStorage,
    reads_in_order: bool,
}

impl MongoFixture {
    async fn new() -> Self {
        Database::drop_old().await;
        let database = Database::create().await;
        // The business data lives in the same database.
        database.run(doc! { "create": "effects" }).await;
        let nowhere = format!("mongodb://{}:{}@127.0.0.1:1/", database.name, support::PASSWORD);
        let nowhere = MongoOptions::new(nowhere).connect_timeout(Duration::from_secs(1));
        Self {
            handlers: database.storage().await,
            unusable: MongoStorage::connect_lazy(nowhere).await.unwrap(),
            // The name of SecantusDB's replica set.
            reads_in_order: !database
                .run(doc! { "hello": 1 })
                .await
                .get_str("setName")
                .is_ok_and(|set| set == "secantus"),
            database,
        }
    }

    fn effects_of(&self, storage: &MongoStorage) -> Collection<Document> {
        storage.client().database(&self.database.name).collection("effects")
    }
}

fn failed(error: mongodb::error::Error) -> Error {
    Error::with_source(ErrorKind::Unavailable, "work on", "the user's session", error)
}

async fn write(effects: &Collection<Document>, session: &mut ClientSession, effect: String) -> Result<()> {
    effects.insert_one(doc! { "effect": effect }).session(session).await.map_err(failed)?;
    Ok(())
}

impl StorageFixture for MongoFixture {
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            persistent: true,
            shared: true,
            enlists: true,
            transactional_handlers: true,
            savepoints: false,
            watches: true,
            host_clock: false,
            max_content: Some(15 << 20),
            ascii_only: false,
        }
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Storage>>> {
        Box::pin(async {
            // With clients of its own: only those can be used from every runtime.
            let options = MongoOptions::new(self.database.url().await).database(&self.database.name);
            let storage = MongoStorage::connect_lazy(patient(options)).await?;
            Ok(Arc::new(storage) as Arc<dyn Storage>)
        })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn UserTransaction>>> {
        Box::pin(async {
            let storage = self.database.storage().await;
            let effects = self.effects_of(&storage);
            let mut session = storage.client().start_session().await.map_err(failed)?;
            session.start_transaction().await.map_err(failed)?;
            Ok(Box::new(Transaction { storage, effects, session }) as Box<dyn UserTransaction>)
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
                write(&self.effects_of(&self.handlers), &mut tx, effect).await?;
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

    fn effects(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async {
            let mut found = self.database.collection("effects").find(doc! {}).await.map_err(failed)?;
            let mut effects = Vec::new();
            while found.advance().await.map_err(failed)? {
                effects.push(found.deserialize_current().map_err(failed)?.get_str("effect").unwrap().to_owned());
            }
            effects.sort();
            Ok(effects)
        })
    }

    /// A handler's transaction writes the settlement last.
    fn locks_records(&self) -> bool {
        false
    }

    fn reads_in_order(&self) -> bool {
        self.reads_in_order
    }

    fn set_unknown_schema_version(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let unknown = doc! { "_id": "version 77", "Version": 77_i64 };
            self.database.collection("cap.schema").insert_one(unknown).await.map_err(failed)?;
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
            // A check may have let a client die in a transaction.
            self.database.abandon().await;
            Ok(())
        })
    }
}

/// The user's own transaction on the user's own session.
struct Transaction {
    storage: MongoStorage,
    effects: Collection<Document>,
    session: ClientSession,
}

impl UserTransaction for Transaction {
    fn write(&mut self, effect: String) -> BoxFuture<'_, Result<()>> {
        Box::pin(write(&self.effects, &mut self.session, effect))
    }

    fn publish(&mut self, records: Vec<NewRecord>) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        self.storage.enlist(&mut self.session, records)
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.session.commit_transaction().await.map_err(failed) })
    }

    fn rollback(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.session.abort_transaction().await.map_err(failed) })
    }
}
