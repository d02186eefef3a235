//! The storage inside the process: nothing outlives it, so there is nothing to crash.

use std::time::Duration;

use cap_core::storage::Storage as _;
use cap_engine::{Cap, Json, Publish, Subscribe, Tx};
use cap_storage_memory::MemoryStorage;

use crate::backend::{Business, Client, Database, End, Fallible};
use crate::crash::recorder::Recorder;
use crate::crash::roles::mishap;
use crate::crash::trouble::called_in_billing;
use crate::database::{NOTE, now_micros};
use crate::twin::memory::MemoryHand;

/// One storage.
#[derive(Clone)]
pub(crate) struct Memory(MemoryStorage);

impl Database for Memory {
    type Storage = MemoryStorage;
    type Client = MemoryClient;
    type Hand = MemoryHand;

    async fn fresh() -> Fallible<Self> {
        let storage = MemoryStorage::new();
        storage.prepare().await?;
        Ok(Self(storage))
    }

    fn at(_: &str) -> Fallible<Self> {
        Err("the memory storage is in one process".into())
    }

    fn place(&self) -> Option<String> {
        None
    }

    async fn storage(&self) -> Fallible<MemoryStorage> {
        Ok(self.0.clone())
    }

    async fn client(&self) -> Fallible<MemoryClient> {
        Ok(MemoryClient(self.0.clone()))
    }

    async fn hand(&self) -> Fallible<MemoryHand> {
        MemoryHand::join(self.0.clone()).await
    }

    async fn another(&self, first: &MemoryHand) -> Fallible<MemoryHand> {
        Ok(first.clone())
    }

    fn billing(&self, _: &MemoryStorage, topic: &str, recorder: Recorder) -> Subscribe {
        Subscribe::to(topic, move |Json(number): Json<i64>, context: cap_engine::Context, mut tx: Tx<MemoryStorage>| {
            let recorder = recorder.clone();
            async move {
                called_in_billing(&recorder, number, &context)?;
                tx.put(format!("invoice/{number}/{}", context.attempt()), now_micros().to_string());
                mishap()
            }
        })
    }

    /// No crash run gets here: nothing outlives the process.
    fn locking(&self, storage: &MemoryStorage, topic: &str, recorder: Recorder, _: Duration) -> Subscribe {
        self.billing(storage, topic, recorder)
    }

    async fn business(&self) -> Fallible<Business> {
        let mut business = Business::default();
        for (key, value) in self.0.entries() {
            let mut parts = key.split('/');
            match (parts.next(), parts.next().map(str::parse)) {
                (Some("order"), Some(Ok(number))) => business.orders.push(number),
                (Some("invoice"), Some(Ok(number))) => business.invoices.push((number, value.parse()?)),
                _ => return Err(format!("an unknown entry {key}").into()),
            }
        }
        Ok(business)
    }

    async fn discard(self) -> Fallible {
        Ok(())
    }
}

/// An application's handle.
pub(crate) struct MemoryClient(MemoryStorage);

impl Client<MemoryStorage> for MemoryClient {
    async fn place(&mut self, cap: &Cap<MemoryStorage>, number: i64, message: Publish, end: End) -> Fallible {
        let mut tx = self.0.begin();
        tx.put(format!("order/{number}"), NOTE);
        cap.publish_many_in(&mut tx, [message])?;
        match end {
            End::Commit => tx.commit(),
            End::RollBack => tx.rollback(),
        }
        Ok(())
    }
}
