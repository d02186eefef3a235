//! The transport suite on the in-process broker.

use std::sync::Arc;
use std::time::Duration;

use cap_core::transport::TransportCapabilities;
use cap_core::{BoxFuture, Result, Transport};
use cap_testkit::transport::TransportFixture;
use cap_transport_memory::{MemoryTransport, MemoryTransportOptions};

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_BODY: usize = 1024 * 1024;

/// A broker of its own for each check, so that names need no isolation.
struct MemoryFixture(MemoryTransport);

impl MemoryFixture {
    fn new() -> Self {
        let options = MemoryTransportOptions::default().confirm_timeout(CONFIRM_TIMEOUT).max_body(MAX_BODY);
        Self(MemoryTransport::with_options(options))
    }
}

impl TransportFixture for MemoryFixture {
    fn capabilities(&self) -> TransportCapabilities {
        TransportCapabilities {
            durable: false,
            keeps_backlog: false,
            ordered: true,
            wildcards: true,
            reports_backlog: true,
            checks_routes: true,
            max_body: Some(MAX_BODY),
        }
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Transport>>> {
        Box::pin(async { Ok(Arc::new(self.0.clone()) as Arc<dyn Transport>) })
    }

    fn unique(&self, name: &str) -> String {
        name.to_owned()
    }

    fn confirm_limit(&self) -> Duration {
        CONFIRM_TIMEOUT
    }
}

cap_testkit::transport_conformance!(MemoryFixture::new());
