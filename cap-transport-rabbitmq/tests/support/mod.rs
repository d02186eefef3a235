//! What the tests share: the server, names that are theirs alone, and a proxy that can cut connections.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod scene;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use cap_core::MessageId;
use cap_testkit::server::Server;
use cap_transport_rabbitmq::RabbitMqOptions;
use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) const SERVER: Server = Server {
    variable: "CAP_TEST_RABBITMQ_URL",
    name: "rabbitmq",
    hint: "set it to a broker of yours: amqp://user:password@localhost:5672/%2f; and \
           CAP_TEST_RABBITMQ_MANAGEMENT_URL to its management API: http://user:password@localhost:15672",
};

/// The server's URL.
pub(crate) fn url() -> String {
    SERVER.url()
}

/// The URL of the server's management API.
pub(crate) fn management_url() -> String {
    SERVER.value("CAP_TEST_RABBITMQ_MANAGEMENT_URL")
}

/// The management API's URL without its user.
pub(crate) fn management_url_of_nobody() -> String {
    let url = management_url();
    let (scheme, rest) = url.split_once("://").expect("a URL");
    format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, place)| place))
}

/// The URL with another place in it: `host:port`.
pub(crate) fn url_at(place: &str) -> String {
    let url = url();
    let (head, tail) = url.split_once('@').expect("the URL names a user");
    let (_, vhost) = tail.split_once('/').unwrap_or((tail, "%2f"));
    format!("{head}@{place}/{vhost}")
}

/// The server's `host:port`.
pub(crate) fn server() -> String {
    let url = url();
    let tail = url.split_once('@').expect("the URL names a user").1;
    tail.split(['/', '?']).next().unwrap_or(tail).to_owned()
}

/// Names that no other test uses, and what is to be removed from the broker because of them.
pub(crate) struct Names {
    run: MessageId,
    used: Mutex<BTreeSet<String>>,
}

impl Names {
    pub(crate) fn new() -> Self {
        Self { run: MessageId::generate(), used: Mutex::default() }
    }

    pub(crate) fn exchange(&self) -> String {
        format!("cap.test.{}", self.run)
    }

    pub(crate) fn unique(&self, name: &str) -> String {
        let unique = format!("{name}-{}", self.run);
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(unique.clone());
        unique
    }

    /// Options for this exchange on the server at `place`.
    pub(crate) fn options(&self, url: &str) -> RabbitMqOptions {
        RabbitMqOptions::new(url).exchange(self.exchange())
    }

    pub(crate) async fn clean_up(&self) {
        let names = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        let raw = Raw::open().await;
        for name in names {
            let _ = raw.channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await;
        }
        let _ = raw.channel.exchange_delete(self.exchange().as_str().into(), ExchangeDeleteOptions::default()).await;
    }
}

/// The driver itself, to see and to do what the transport does not offer.
pub(crate) struct Raw {
    pub(crate) channel: Channel,
    _connection: Connection,
}

impl Raw {
    pub(crate) async fn open() -> Self {
        let connection = Connection::connect(&url(), ConnectionProperties::default()).await.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        Self { channel, _connection: connection }
    }
}

/// Binds a queue to a topic that takes nothing more.
pub(crate) async fn fill(names: &Names, topic: &str) {
    let raw = Raw::open().await;
    let queue = names.unique("full");
    let mut table = FieldTable::default();
    table.insert("x-max-length".into(), AMQPValue::LongInt(1));
    table.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    raw.channel.queue_declare(queue.as_str().into(), options, table).await.expect("declared");
    let (exchange, key) = (names.exchange().into(), topic.into());
    let binding =
        raw.channel.queue_bind(queue.as_str().into(), exchange, key, Default::default(), FieldTable::default());
    binding.await.expect("bound");
    raw.channel.confirm_select(Default::default()).await.expect("confirms");
    loop {
        let sending =
            raw.channel.basic_publish("".into(), queue.as_str().into(), Default::default(), b"1", Default::default());
        if sending.await.expect("sent").await.expect("an answer").is_nack() {
            return;
        }
    }
}

/// Takes a binding away, as an operator would.
pub(crate) async fn unbind(names: &Names, queue: &str, key: &str) {
    let raw = Raw::open().await;
    let unbinding = raw.channel.queue_unbind(queue.into(), names.exchange().into(), key.into(), FieldTable::default());
    unbinding.await.expect("unbound");
}

/// A header of this name, passing through a [`Proxy`], makes RabbitMQ close the channel: it becomes a `BCC` that is no list.
pub(crate) const CLOSES_CHANNEL: &str = "QCC";
/// A header of this name, passing through a [`Proxy`], makes RabbitMQ close the connection: its value gets a type that does
/// not exist.
pub(crate) const CLOSES_CONNECTION: &str = "QCX";

/// What the proxy finds, and what it makes of it: the header's name and the type of its value.
const POISONS: [(&[u8; 5], &[u8; 5]); 2] = [(b"\x03QCCS", b"\x03BCCS"), (b"\x03QCXS", b"\x03QCX?")];

/// Carries what a client sends, and poisons what asks for it.
async fn carry(mut client: impl AsyncReadExt + Unpin, mut server: impl AsyncWriteExt + Unpin) -> std::io::Result<()> {
    let mut held: Vec<u8> = Vec::new();
    loop {
        if client.read_buf(&mut held).await? == 0 {
            return server.shutdown().await;
        }
        for (found, made) in POISONS {
            while let Some(place) = held.windows(found.len()).position(|bytes| bytes == found) {
                held[place..place + made.len()].copy_from_slice(made);
            }
        }
        // The beginning of one may be at the end: nothing else that a client sends whole ends like it.
        let is_begun = |length: &usize| POISONS.iter().any(|(found, _)| held.ends_with(&found[..*length]));
        let kept = (1..5).rev().find(is_begun).unwrap_or(0);
        let rest = held.split_off(held.len() - kept);
        server.write_all(&held).await?;
        held = rest;
    }
}

/// Stands between a transport and the server. It cuts all connections, or stops carrying anything on those that there
/// are, when it is told to.
pub(crate) struct Proxy {
    pub(crate) place: String,
    cut: watch::Sender<u64>,
    stall: watch::Sender<u64>,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let place = listener.local_addr().expect("an address").to_string();
        let (cut, cuts) = watch::channel(0);
        let (stall, stalls) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                let mut stalls = stalls.clone();
                cuts.mark_unchanged();
                stalls.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server()).await else {
                        return;
                    };
                    // Else a round trip takes as long as an acknowledgement of TCP may be put off.
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let (from_client, mut to_client) = client.split();
                    let (mut from_server, to_server) = server.split();
                    let both = async {
                        let answers = async {
                            copy(&mut from_server, &mut to_client).await?;
                            to_client.shutdown().await
                        };
                        tokio::try_join!(carry(from_client, to_server), answers)
                    };
                    tokio::select! {
                        _ = both => {}
                        _ = cuts.changed() => {}
                        _ = stalls.changed() => drop(cuts.changed().await),
                    }
                });
            }
        });
        Self { place, cut, stall }
    }

    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    pub(crate) fn stall(&self) {
        self.stall.send_modify(|stalls| *stalls += 1);
    }
}
