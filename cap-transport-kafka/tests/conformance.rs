//! The transport suite on a real broker, once with topics of one partition and once with topics of three.

mod support;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::transport::TransportCapabilities;
use cap_core::{BoxFuture, Result, Topic, Transport};
use cap_testkit::server;
use cap_testkit::transport::TransportFixture;
use cap_transport_kafka::{Kafka, KafkaOptions};
use support::proxy::Proxy;
use support::{Names, PASSWORD, SERVER, make_again, url, with_user};
use tokio::sync::OwnedRwLockReadGuard;

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 512 * 1024;

/// Names of its own on the server, through a proxy if the server is ours.
struct KafkaFixture {
    partitions: i32,
    names: Names,
    proxy: Option<Proxy>,
    /// Held while a restart of the server would be in the way.
    shares_server: Mutex<Option<OwnedRwLockReadGuard<()>>>,
}

impl KafkaFixture {
    async fn new(partitions: i32) -> Self {
        let shares_server = Mutex::new(Some(server::lock().read_owned().await));
        let names = Names::new();
        let proxy = std::env::var_os("CAP_TEST_KAFKA_PROXIED_URL").map(|_| Proxy::start(names.run()));
        Self { partitions, names, proxy, shares_server }
    }

    fn options(&self, place: &str) -> KafkaOptions {
        let options = self.names.options(place).partitions(self.partitions);
        options.confirm_timeout(CONFIRM_TIMEOUT).max_body(MAX_BODY)
    }

    fn open_at(&self, place: &str) -> Result<Arc<dyn Transport>> {
        let options = self.options(place);
        let options = if self.proxy.is_some() { with_user(options) } else { options };
        Ok(Arc::new(Kafka::with_options(options)?))
    }
}

impl TransportFixture for KafkaFixture {
    fn capabilities(&self) -> TransportCapabilities {
        TransportCapabilities {
            durable: true,
            keeps_backlog: true,
            ordered: true,
            wildcards: true,
            reports_backlog: false,
            checks_routes: true,
            max_body: Some(MAX_BODY),
        }
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Transport>>> {
        Box::pin(async { self.open_at(&self.proxy.as_ref().map_or_else(url, |proxy| proxy.place.clone())) })
    }

    fn unique(&self, name: &str) -> String {
        self.names.unique(name)
    }

    fn allows_topic(&self, name: &str) -> bool {
        name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    }

    /// For room and for the confirm.
    fn confirm_limit(&self) -> Duration {
        CONFIRM_TIMEOUT * 2
    }

    /// A restart takes a while, and waits for the checks that run beside it.
    fn patience(&self) -> Duration {
        Duration::from_secs(50)
    }

    fn secret(&self) -> Option<String> {
        self.proxy.is_some().then(|| PASSWORD.to_owned())
    }

    fn can_restart_broker(&self) -> bool {
        SERVER.is_ours()
    }

    fn restart_broker(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.shares_server.lock().unwrap_or_else(PoisonError::into_inner).take();
            let alone = server::lock().write_owned().await;
            SERVER.run(&["kill", "restart"], Some(alone)).await
        })
    }

    fn can_cut_connections(&self) -> bool {
        self.proxy.is_some()
    }

    fn cut_connections(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if let Some(proxy) = &self.proxy {
                proxy.cut();
            }
            Ok(())
        })
    }

    fn can_remake_topic(&self) -> bool {
        true
    }

    fn remake_topic(&self, topic: Topic) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            make_again(topic.as_str(), self.partitions).await;
            Ok(())
        })
    }

    fn can_open_nowhere(&self) -> bool {
        true
    }

    fn open_nowhere(&self) -> BoxFuture<'_, Result<Arc<dyn Transport>>> {
        // Nothing listens on the discard port.
        Box::pin(async { self.open_at("127.0.0.1:9") })
    }

    fn clean_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.names.clean_up().await;
            Ok(())
        })
    }
}

mod one_partition {
    use super::KafkaFixture;

    cap_testkit::transport_conformance!(KafkaFixture::new(1).await);
}

mod three_partitions {
    use super::KafkaFixture;

    cap_testkit::transport_conformance!(KafkaFixture::new(3).await);
}
