//! The broker inside the process. A queue needs its consumer, and a message is confirmed when that one has it.

use cap_core::transport::{Confirm, Outgoing, Transport as _};
use cap_transport_memory::MemoryTransport;

use crate::backend::{Broker, Fallible, FullQueue, Names, Wire as _};
use crate::bench::load::message_on;
use crate::twin::memory::MemoryWire;

/// One broker.
#[derive(Clone)]
pub(crate) struct MemoryBroker {
    transport: MemoryTransport,
    names: Names,
}

impl Broker for MemoryBroker {
    type Transport = MemoryTransport;
    type Wire = MemoryWire;

    async fn fresh() -> Fallible<Self> {
        Ok(Self { transport: MemoryTransport::new(), names: Names::fresh() })
    }

    /// Another process has a broker of its own: the names are all that they share.
    fn at(place: &str) -> Fallible<Self> {
        Ok(Self { transport: MemoryTransport::new(), names: serde_json::from_str(place)? })
    }

    fn place(&self) -> Option<String> {
        serde_json::to_string(&self.names).ok()
    }

    fn names(&self) -> &Names {
        &self.names
    }

    async fn transport(&self) -> Fallible<MemoryTransport> {
        Ok(self.transport.clone())
    }

    async fn wire(&self) -> Fallible<MemoryWire> {
        Ok(MemoryWire { transport: self.transport.clone(), names: self.names.clone(), consumer: None })
    }

    async fn prepare(&self) -> Fallible {
        Ok(())
    }

    /// Each process has its own broker, and its engine subscribes before it answers.
    async fn declare_groups(&self) -> Fallible {
        Ok(())
    }

    async fn sink(&self) -> Fallible {
        let mut wire = self.wire().await?;
        wire.consume(1000).await?;
        tokio::spawn(async move {
            while let Ok(arrived) = wire.receive(1000).await {
                if wire.ack(arrived.into_iter().map(|message| message.tag).collect()).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Its consumer takes nothing, and there is no room left.
    async fn full_queue(&self, topic: &str) -> Fallible<Option<FullQueue>> {
        const CAPACITY: usize = 10_000;
        let (transport, names) =
            (self.transport.clone(), Names { topic: topic.into(), group: format!("{topic}.full") });
        let consumer = transport.subscribe(names.subscription(&names.queue(), &[""])?).await?;
        let outgoing = |number: usize| {
            let message = message_on(topic, number.to_string().into_bytes())?;
            Ok(Outgoing { message, confirm: Confirm::new(drop) })
        };
        transport.send((0..CAPACITY).map(outgoing).collect::<Fallible<_>>()?).await;
        Ok(Some(Box::new((transport, consumer))))
    }

    async fn discard(self) -> Fallible {
        Ok(self.transport.close().await?)
    }
}
