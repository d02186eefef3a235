//! The fixture of `cap-storage-memory`: the shortest there can be, and the one that the faulty doubles build upon.

use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{
    BoxFuture, Enlist, Inserted, NewRecord, Settlement, Storage, StorageCapabilities, Transact, TransactAsync,
    Transacted,
};
use cap_core::{Error, Result};
use cap_storage_memory::{MemoryStorage, MemoryStorageOptions, MemoryTransaction, Savepoint};

use crate::storage::fixture::{HandlerTransaction, Script, StorageFixture, UserTransaction};

/// A fresh [`MemoryStorage`], which locks what handlers are at work on. Time passes by moving its clock.
#[derive(Debug, Clone)]
pub struct MemoryFixture {
    storage: MemoryStorage,
}

/// The longest content that it takes, so that the check of too long ones applies.
const MAX_CONTENT: usize = 4 << 20;

impl Default for MemoryFixture {
    fn default() -> Self {
        let options = MemoryStorageOptions {
            max_content: Some(MAX_CONTENT),
            lock_records: true,
            ..MemoryStorageOptions::default()
        };
        Self { storage: MemoryStorage::with_options(options) }
    }
}

impl MemoryFixture {
    /// An empty database.
    pub fn new() -> Self {
        Self::default()
    }

    /// The storage itself.
    pub fn storage(&self) -> &MemoryStorage {
        &self.storage
    }
}

impl StorageFixture for MemoryFixture {
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            enlists: true,
            transactional_handlers: true,
            savepoints: true,
            watches: true,
            host_clock: true,
            max_content: Some(MAX_CONTENT),
            ..StorageCapabilities::default()
        }
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Storage>>> {
        Box::pin(async { Ok(Arc::new(self.storage.clone()) as Arc<dyn Storage>) })
    }

    fn effects(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async { Ok(self.storage.entries().into_iter().map(|(effect, _)| effect).collect()) })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn UserTransaction>>> {
        let (storage, tx) = (self.storage.clone(), self.storage.begin());
        Box::pin(async { Ok(Box::new(Transaction { storage, tx, savepoint: None }) as Box<dyn UserTransaction>) })
    }

    fn transact(&self, settlement: Settlement, script: Script) -> BoxFuture<'_, Result<Transacted>> {
        let work = move |tx: &mut MemoryTransaction| {
            script.play(|effect| {
                tx.put(effect, "");
                Ok(())
            })
        };
        self.storage.transact(settlement, Box::new(work))
    }

    fn begin_handler(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<Box<dyn HandlerTransaction>>>> {
        let storage = self.storage.clone();
        Box::pin(async move {
            let tx = TransactAsync::begin(&storage, settlement).await?;
            Ok(tx.map(|tx| Box::new(Handler { storage, tx }) as Box<dyn HandlerTransaction>))
        })
    }

    fn pass(&self, time: Duration) -> BoxFuture<'_, ()> {
        self.storage.advance(time);
        Box::pin(async {})
    }
}

struct Transaction {
    storage: MemoryStorage,
    tx: MemoryTransaction,
    savepoint: Option<Savepoint>,
}

impl UserTransaction for Transaction {
    fn write(&mut self, effect: String) -> BoxFuture<'_, Result<()>> {
        self.tx.put(effect, "");
        Box::pin(async { Ok(()) })
    }

    fn publish(&mut self, records: Vec<NewRecord>) -> BoxFuture<'_, Result<Vec<Inserted>>> {
        Box::pin(async { self.storage.enlist(&mut self.tx, records) })
    }

    fn savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        self.savepoint = Some(self.tx.savepoint());
        Box::pin(async { Ok(()) })
    }

    fn rollback_to_savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let missing = || Error::invalid("the savepoint", "none was set");
            self.tx.rollback_to(self.savepoint.ok_or_else(missing)?);
            Ok(())
        })
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async {
            self.tx.commit();
            Ok(())
        })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async {
            self.tx.rollback();
            Ok(())
        })
    }
}

struct Handler {
    storage: MemoryStorage,
    tx: MemoryTransaction,
}

impl HandlerTransaction for Handler {
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { TransactAsync::commit(&self.storage, self.tx, Vec::new()).await })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { TransactAsync::rollback(&self.storage, self.tx).await })
    }
}
