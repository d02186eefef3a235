//! The broker inside the process. A queue needs its consumer, and a message is confirmed when that one has it.

use cap_core::transport::Transport as _;
use cap_transport_memory::MemoryTransport;

use crate::backend::{Broker, Fallible, Names, Wire as _};
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

    async fn discard(self) -> Fallible {
        Ok(self.transport.close().await?)
    }
}
