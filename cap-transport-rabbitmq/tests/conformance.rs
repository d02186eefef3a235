//! The transport suite on a real broker, once with quorum queues and once with classic ones.

mod support;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::transport::TransportCapabilities;
use cap_core::{BoxFuture, Group, Message, Result, Topic, Transport};
use cap_testkit::server;
use cap_testkit::transport::TransportFixture;
use cap_transport_rabbitmq::{QueueType, RabbitMq, RabbitMqOptions};
use support::{CLOSES_CHANNEL, Names, Proxy, SERVER};
use tokio::sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 1024 * 1024;
const CHECKS_ROUTES: bool = cfg!(feature = "management");

/// A user of our own, whose password is no word that an error may hold by chance.
const USER: &str = "cap-conformance";
const PASSWORD: &str = "not-to-be-shown-7f3a";
static SECRET_USER: OnceCell<bool> = OnceCell::const_new();

/// Adds the user, if the server is ours.
async fn add_secret_user() -> bool {
    if !SERVER.is_ours() {
        return false;
    }
    // It may be there already.
    let _ = SERVER.client(&["add_user", USER, PASSWORD]).await;
    let tag = SERVER.client(&["set_user_tags", USER, "management"]).await;
    tag.is_ok() && SERVER.client(&["set_permissions", USER, ".*", ".*", ".*"]).await.is_ok()
}

/// An exchange of its own on the server, through a proxy of its own.
struct RabbitMqFixture {
    queue_type: QueueType,
    names: Names,
    proxy: Proxy,
    has_secret: bool,
    /// Held while a restart of the server would be in the way.
    shares_server: Mutex<Option<OwnedRwLockReadGuard<()>>>,
    /// Held while the server has an alarm.
    alone: tokio::sync::Mutex<Option<OwnedRwLockWriteGuard<()>>>,
}

impl RabbitMqFixture {
    async fn new(queue_type: QueueType) -> Self {
        let shares_server = Mutex::new(Some(server::lock().read_owned().await));
        let has_secret = *SECRET_USER.get_or_init(add_secret_user).await;
        Self {
            queue_type,
            names: Names::new(),
            proxy: Proxy::start().await,
            has_secret,
            shares_server,
            alone: Default::default(),
        }
    }

    fn options(&self, place: &str) -> RabbitMqOptions {
        let url = match self.has_secret {
            true => format!("amqp://{USER}:{PASSWORD}@{place}/%2f"),
            false => support::url_at(place),
        };
        let options = self.names.options(&url).queue_type(self.queue_type);
        // What is unbound stays so unless a message tells of it.
        let options = options.bind_every(Duration::from_secs(3600));
        let options = options.confirm_timeout(CONFIRM_TIMEOUT).max_body(MAX_BODY);
        if !CHECKS_ROUTES {
            return options;
        }
        // The user is that of the AMQP URL.
        options.management_url(support::management_url_of_nobody())
    }

    fn open_at(&self, place: &str) -> Result<Arc<dyn Transport>> {
        Ok(Arc::new(RabbitMq::with_options(self.options(place))?))
    }
}

/// What RabbitMQ writes down only after a second: without it, a quorum queue that was declared in the last second before
/// a kill never finds its leader again. What it has confirmed in a queue that is older is not affected.
const WRITE_DOWN: &[&str] = &["eval", "[dets:sync(Table) || Table <- dets:all()]."];

impl TransportFixture for RabbitMqFixture {
    fn capabilities(&self) -> TransportCapabilities {
        TransportCapabilities {
            durable: true,
            keeps_backlog: true,
            ordered: true,
            wildcards: true,
            reports_backlog: false,
            checks_routes: CHECKS_ROUTES,
            max_body: Some(MAX_BODY),
        }
    }

    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Transport>>> {
        Box::pin(async { self.open_at(&self.proxy.place) })
    }

    fn unique(&self, name: &str) -> String {
        self.names.unique(name)
    }

    fn confirm_limit(&self) -> Duration {
        CONFIRM_TIMEOUT
    }

    /// A restart takes a while, and waits for the checks that run beside it.
    fn patience(&self) -> Duration {
        Duration::from_secs(40)
    }

    fn secret(&self) -> Option<String> {
        self.has_secret.then(|| PASSWORD.to_owned())
    }

    fn can_restart_broker(&self) -> bool {
        SERVER.is_ours()
    }

    fn restart_broker(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.shares_server.lock().unwrap_or_else(PoisonError::into_inner).take();
            let alone = server::lock().write_owned().await;
            SERVER.client(WRITE_DOWN).await?;
            SERVER.run(&["kill", "restart"], Some(alone)).await
        })
    }

    fn can_cut_connections(&self) -> bool {
        true
    }

    fn cut_connections(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.proxy.cut();
            Ok(())
        })
    }

    fn can_poison(&self) -> bool {
        true
    }

    /// The proxy makes of the header what RabbitMQ breaks off for.
    fn poison(&self, mut message: Message) -> Message {
        message.headers.set(CLOSES_CHANNEL, "x");
        message
    }

    fn can_fill(&self) -> bool {
        true
    }

    fn fill(&self, topic: Topic) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            support::fill(&self.names, topic.as_str()).await;
            Ok(())
        })
    }

    fn can_set_alarm(&self) -> bool {
        SERVER.is_ours()
    }

    fn set_alarm(&self, is_on: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if !is_on {
                self.alone.lock().await.take();
                return SERVER.client(&["set_vm_memory_high_watermark", "0.6"]).await;
            }
            self.shares_server.lock().unwrap_or_else(PoisonError::into_inner).take();
            *self.alone.lock().await = Some(server::lock().write_owned().await);
            SERVER.client(&["set_vm_memory_high_watermark", "0"]).await
        })
    }

    fn can_unbind(&self) -> bool {
        true
    }

    fn unbind(&self, group: Group, topic: Topic) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            support::unbind(&self.names, group.as_str(), topic.as_str()).await;
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
            if self.alone.lock().await.is_some() {
                self.set_alarm(false).await?;
            }
            self.names.clean_up().await;
            Ok(())
        })
    }
}

mod quorum {
    use super::{QueueType, RabbitMqFixture};

    cap_testkit::transport_conformance!(RabbitMqFixture::new(QueueType::Quorum).await);
}

mod classic {
    use super::{QueueType, RabbitMqFixture};

    cap_testkit::transport_conformance!(RabbitMqFixture::new(QueueType::Classic).await);
}
