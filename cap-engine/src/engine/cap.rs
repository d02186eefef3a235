//! The handle of a running engine.

use std::fmt;
use std::sync::Arc;

use cap_core::storage::{Enlist, NewRecord, Receipt};
use cap_core::{ErrorKind, Published, Result, Storage, Table, Topic};
use serde::Serialize;

use crate::engine::builder::{CapBuilder, IDLE_LOOK, NoStorage};
use crate::engine::health::Health;
use crate::engine::scheduler::OUTBOX;
use crate::engine::{Engine, routes, stopped};
use crate::publish::{self, Publish};

/// What `publish_in` answers for a storage and a connection: for a synchronous driver a `Result<Published>`, for an
/// asynchronous one a future of it.
pub type PublishedIn<S, C> = <<S as Enlist<C>>::Receipt as Receipt>::Published;

/// The handle of a running engine: publishes, tells its health, and stops it. Cheap to clone.
///
/// When the last handle is dropped the engine stops as by [`Cap::stop`], in the background; what the runtime's end then
/// cuts off is taken over by another node, or by the next start.
pub struct Cap<S: ?Sized = dyn Storage> {
    engine: Arc<Engine>,
    storage: Arc<S>,
    last: Arc<StopOnDrop>,
}

struct StopOnDrop(Arc<Engine>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.requested.cancel();
    }
}

impl Cap<dyn Storage> {
    /// A builder, to be given at least a storage and a transport.
    pub fn builder() -> CapBuilder<NoStorage> {
        CapBuilder::new()
    }
}

impl<S: Storage> Cap<S> {
    pub(crate) fn new(engine: Arc<Engine>, storage: Arc<S>) -> Self {
        Self { last: Arc::new(StopOnDrop(Arc::clone(&engine))), engine, storage }
    }

    /// The same handle without the storage's type, for code that does not publish in transactions.
    pub fn erased(&self) -> Cap {
        Cap {
            engine: Arc::clone(&self.engine),
            storage: Arc::clone(&self.storage) as Arc<dyn Storage>,
            last: Arc::clone(&self.last),
        }
    }
}

impl<S: ?Sized> Cap<S> {
    /// The storage, for looking at records, requeueing and deleting them.
    pub fn storage(&self) -> &Arc<S> {
        &self.storage
    }

    /// Publishes a message on its own, its payload being `payload` as JSON. When it answers the message is committed;
    /// the relay sends it at once. Concurrent calls share a commit.
    ///
    /// # Errors
    /// `Invalid` for what cannot be published, before anything is written; what the storage says; `Stopped`. After
    /// `Unavailable` the message may be stored all the same: publish again with an id of your own
    /// ([`Publish::id`]) to be sure that it is there once.
    pub async fn publish<T: Serialize + ?Sized>(&self, topic: &str, payload: &T) -> Result<Published> {
        self.publish_one(Publish::json(topic, payload)).await
    }

    /// Publishes a message on its own, with headers, callback, id or delay.
    ///
    /// # Errors
    /// As [`Cap::publish`].
    pub async fn publish_one(&self, publish: Publish) -> Result<Published> {
        self.publish_many([publish]).await
    }

    /// Publishes messages together, in one transaction: all or, on an error, none.
    ///
    /// # Errors
    /// As [`Cap::publish`].
    pub async fn publish_many(&self, publishes: impl IntoIterator<Item = Publish>) -> Result<Published> {
        let records = self.prepare(publishes)?;
        if records.is_empty() {
            return Ok(Published::new(Vec::new(), &[]));
        }
        let ids = records.iter().map(|record| record.message_id.clone()).collect();
        let inserted = tokio::select! {
            biased;
            inserted = self.engine.batcher.insert(records) => inserted?,
            // A stop ends in time, and so does whoever publishes to a storage that hangs.
            () = self.engine.stop.finish.cancelled() => return Err(publish::unknown()),
        };
        Ok(Published::new(ids, &inserted))
    }

    /// Publishes a message in the caller's own transaction: it is sent after the caller commits, whoever commits, and
    /// never if the caller rolls back. `connection` is the driver's own type: `&rusqlite::Connection`, and the like.
    ///
    /// For a synchronous driver this answers a `Result<Published>`, for an asynchronous one a future of it.
    pub fn publish_in<C, T>(&self, connection: C, topic: &str, payload: &T) -> PublishedIn<S, C>
    where
        S: Enlist<C>,
        T: Serialize + ?Sized,
    {
        self.publish_many_in(connection, [Publish::json(topic, payload)])
    }

    /// Publishes messages in the caller's own transaction, with headers, callbacks, ids or delays; see
    /// [`Cap::publish_in`].
    pub fn publish_many_in<C>(&self, connection: C, publishes: impl IntoIterator<Item = Publish>) -> PublishedIn<S, C>
    where
        S: Enlist<C>,
    {
        let records = match self.prepare(publishes) {
            Ok(records) => records,
            Err(error) => return S::Receipt::refused(error),
        };
        let ids = records.iter().map(|record| record.message_id.clone()).collect();
        let due = |record: &NewRecord| Some((record.message_id.clone(), record.state.due()?));
        let waiting: Vec<_> = records.iter().filter_map(due).collect();
        let engine = Arc::clone(&self.engine);
        self.storage.enlist(connection, records).published(ids, move || engine.enlisted(waiting))
    }

    fn prepare(&self, publishes: impl IntoIterator<Item = Publish>) -> Result<Vec<NewRecord>> {
        publishes.into_iter().map(|publish| self.engine.services.preparer.prepare(publish)).collect()
    }

    /// Tells the relay that something was committed that it cannot know of: never needed, but a hint that saves a
    /// millisecond after a long transaction.
    pub fn wake(&self) {
        self.engine.scheduler.wake(OUTBOX);
    }

    /// How the engine is.
    pub fn health(&self) -> Health {
        Health::of(&self.engine)
    }

    /// Which of the topics that this service [publishes](CapBuilder::publishes) have no queue now: what is published to
    /// them stays in the outbox until a consumer of each has been started once, unless [`Options::unroutable`](crate::Options)
    /// says otherwise.
    ///
    /// # Errors
    /// `Unsupported` if the transport does not tell, otherwise what it says when it is asked; `Stopped`.
    pub async fn unrouted(&self) -> Result<Vec<Topic>> {
        if self.engine.stop.requested.is_cancelled() {
            return Err(stopped("check the routes of"));
        }
        routes::unrouted(&self.engine).await
    }

    /// How many messages are in flight in this process: claimed for sending, or for handling.
    pub fn in_flight(&self) -> usize {
        self.engine.held(Table::Outbox) + self.engine.held(Table::Inbox)
    }

    /// Waits until nothing is left to do in the storage: no record of this engine's version is due, in flight or to be
    /// retried in either table (dead ones and those published for later aside). For tests and programs that end; with
    /// other nodes on the same tables it waits for their work, too.
    ///
    /// Over the in-process transport it also waits for what is on its way to the groups of this engine. Other brokers do
    /// not tell what they hold (`reports_backlog` in their capabilities): there it may return between a message's confirm
    /// and its arrival. Wait for an effect of the handler instead.
    ///
    /// # Errors
    /// What the storage or the transport says when it is asked; `Stopped`.
    pub async fn wait_idle(&self) -> Result<()> {
        let engine = &self.engine;
        loop {
            if engine.stop.requested.is_cancelled() {
                return Err(stopped("wait for idleness of"));
            }
            let moved = engine.activity.moved.notified();
            let before = engine.activity.moves();
            if self.in_flight() == 0 && self.nothing_pending().await? && engine.activity.moves() == before {
                return Ok(());
            }
            tokio::time::sleep(IDLE_LOOK).await;
            tokio::select! {
                () = moved => {}
                () = tokio::time::sleep(IDLE_LOOK * 4) => {}
            }
        }
    }

    async fn nothing_pending(&self) -> Result<bool> {
        let engine = &self.engine;
        let pending = async |table| {
            let counts = engine.storage.counts(table, engine.options.version.clone()).await?;
            Ok::<_, cap_core::Error>(counts.pending())
        };
        if pending(Table::Outbox).await? > 0 {
            return Ok(false);
        }
        for group in &engine.groups {
            match engine.transport.backlog(group.name.clone()).await {
                Ok(0) => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pending(Table::Inbox).await? == 0 && pending(Table::Outbox).await? == 0)
    }

    /// Stops: takes no new work, finishes what is in flight or gives it back, and signs the node off. Returns when that is
    /// done, and at the latest after [`Options::drain`](crate::Options::drain), whatever hangs: what could not be given back
    /// by then is taken over by another node when this one's lease is over. May be called more than once.
    pub async fn stop(&self) {
        self.engine.stop.requested.cancel();
        self.engine.stop.done.cancelled().await;
    }
}

impl<S: ?Sized> Clone for Cap<S> {
    fn clone(&self) -> Self {
        Self { engine: Arc::clone(&self.engine), storage: Arc::clone(&self.storage), last: Arc::clone(&self.last) }
    }
}

impl<S: ?Sized> fmt::Debug for Cap<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cap")
            .field("storage", &self.engine.storage)
            .field("transport", &self.engine.transport)
            .field("node", &self.engine.node.current().map(|epoch| epoch.id))
            .finish_non_exhaustive()
    }
}
