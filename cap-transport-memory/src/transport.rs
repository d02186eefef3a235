//! The transport: a connection to an in-process broker.

use std::fmt;
use std::sync::Arc;

use cap_core::transport::{Consumer, Outgoing, Subscription, TransportCapabilities};
use cap_core::{BoxFuture, Group, Result, Topic, Transport};

use crate::broker::{Broker, stopped};
use crate::config::MemoryTransportOptions;
use crate::confirms::ConnectionId;
use crate::consumer::MemoryConsumer;

/// A connection to a broker that lives in this process.
///
/// A clone is another connection to the same broker, as another process has one to a server: engines that each hold a
/// clone exchange messages, and one that closes its own does not disturb the others. A connection that is dropped and
/// was not closed leaves its consumers running; the broker ends when the last connection is dropped.
pub struct MemoryTransport {
    broker: Arc<Broker>,
    connection: ConnectionId,
    /// Shared by all connections; the last one ends the broker.
    last: Arc<LastConnection>,
}

impl MemoryTransport {
    /// A connection to a new broker with default options.
    pub fn new() -> Self {
        Self::with_options(MemoryTransportOptions::default())
    }

    /// A connection to a new broker.
    pub fn with_options(options: MemoryTransportOptions) -> Self {
        let broker = Broker::new(options);
        let last = Arc::new(LastConnection(Arc::clone(&broker)));
        Self { connection: broker.open(), broker, last }
    }
}

impl Default for MemoryTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryTransport {
    /// Another connection to the same broker, open even if this one is closed.
    fn clone(&self) -> Self {
        let broker = Arc::clone(&self.broker);
        Self { connection: broker.open(), broker, last: Arc::clone(&self.last) }
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.broker.forget(self.connection);
    }
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport").field("connection", &self.connection.0).finish_non_exhaustive()
    }
}

impl Transport for MemoryTransport {
    fn describe(&self) -> String {
        "memory broker in this process".into()
    }

    fn capabilities(&self) -> TransportCapabilities {
        TransportCapabilities {
            durable: false,
            keeps_backlog: false,
            ordered: true,
            wildcards: true,
            reports_backlog: true,
            checks_routes: true,
            max_body: self.broker.options.body_limit(),
        }
    }

    fn connect(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let closed = || stopped("connect to", self.describe());
            self.broker.is_open(self.connection).then_some(()).ok_or_else(closed)
        })
    }

    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()> {
        Box::pin(self.broker.send(self.connection, messages))
    }

    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        Box::pin(async move {
            let (group, id, wake) = self.broker.subscribe(self.connection, subscription)?;
            let broker = Arc::clone(&self.broker);
            Ok(Box::new(MemoryConsumer { broker, group, id, wake }) as Box<dyn Consumer>)
        })
    }

    fn backlog(&self, group: Group) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.broker.backlog(self.connection, &group) })
    }

    fn unrouted(&self, topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        Box::pin(async move { self.broker.unrouted(self.connection, topics) })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.broker.close(self.connection);
            Ok(())
        })
    }
}

/// Ends the broker when dropped. Consumers do not hold it: without a connection there is nothing to wait for.
struct LastConnection(Arc<Broker>);

impl Drop for LastConnection {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}
