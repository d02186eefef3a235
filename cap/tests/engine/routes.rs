//! Topics that a service publishes and nobody has a queue for: told when it starts, and whenever it asks.

use std::sync::Arc;

use cap::memory::{MemoryStorage, MemoryTransport};
use cap::transport::{Consumer, Outgoing, Subscription, TransportCapabilities};
use cap::{BoxFuture, Cap, CapBuilder, Error, ErrorKind, Options, Result, Topic, Transport};
use cap_testkit::log::Log;
use tracing_subscriber::util::SubscriberInitExt;

use crate::doubles::away;
use crate::support::{Shop, options};

async fn nothing() {}

fn strict() -> Options {
    Options { require_routes: true, ..options() }
}

async fn refused(builder: CapBuilder<Arc<MemoryStorage>>, kind: ErrorKind) -> Error {
    let error = builder.start().await.expect_err("it started");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

fn names(topics: &[Topic]) -> Vec<&str> {
    topics.iter().map(Topic::as_str).collect()
}

/// What is logged in this thread while the guard is there.
fn log_of_this_thread() -> (Log, impl Drop) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.writer()).finish();
    (log, subscriber.set_default())
}

#[tokio::test]
async fn topics_without_a_queue_are_logged_with_advice_and_told_until_a_consumer_was_there() {
    let (log, _guard) = log_of_this_thread();
    let shop = Shop::new();
    let builder = shop.builder().subscribe("order.paid", "billing", nothing);
    let cap = builder.publishes(["order.placed", "order.paid"]).publishes(["order.sent"]).start().await.unwrap();
    let warnings = log.lines_with("WARN");
    let warning = warnings.iter().find(|line| line.contains("`order.placed`, `order.sent`"));
    assert!(warning.is_some_and(|line| line.contains("start a consumer of each once")), "{warnings:?}");
    assert_eq!(names(&cap.unrouted().await.unwrap()), ["order.placed", "order.sent"]);

    let other = Shop { transport: shop.transport.clone(), ..Shop::new() };
    other.builder().subscribe("order.*", "shipping", nothing).start().await.unwrap().stop().await;
    assert_eq!(names(&cap.unrouted().await.unwrap()), [""; 0]);
    cap.stop().await;
    assert_eq!(cap.unrouted().await.unwrap_err().kind(), ErrorKind::Stopped);
}

#[tokio::test]
async fn an_engine_that_requires_routes_does_not_start_and_names_all_that_have_none() {
    let shop = Shop::new();
    let topics = ["order.placed", "order.paid", "order.sent"];
    let builder = || shop.builder().options(strict()).subscribe("order.paid", "billing", nothing).publishes(topics);
    let error = refused(builder(), ErrorKind::Unroutable).await;
    let text = error.to_string();
    assert!(text.contains("`order.placed`, `order.sent`:") && text.contains("start a consumer of each once"), "{text}");
    let other = Shop { transport: shop.transport.clone(), ..Shop::new() };
    let consumer = other.builder().subscribe("order.#", "shipping", nothing).start().await.unwrap();
    builder().start().await.unwrap().stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn services_that_wait_for_each_other_come_up_when_they_are_started_again() {
    let (one, other) = (Shop::new(), Shop::new());
    let other = Shop { transport: one.transport.clone(), ..other };
    let first = || one.builder().options(strict()).subscribe("reply", "one", nothing).publishes(["question"]);
    let second = || other.builder().options(strict()).subscribe("question", "other", nothing).publishes(["reply"]);
    refused(first(), ErrorKind::Unroutable).await;
    let second = second().start().await.unwrap();
    let first = first().start().await.unwrap();
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn published_topics_get_the_prefix_and_count_once() {
    let shop = Shop::new();
    let options = Options { topic_prefix: Some("shop".into()), ..strict() };
    let builder = shop.builder().options(options).subscribe("a", "g", nothing);
    let text = refused(builder.publishes(["b", "a", "b"]), ErrorKind::Unroutable).await.to_string();
    assert!(text.contains(" for `shop.b`:"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_published_cannot_be_named() {
    let shop = Shop::new();
    for bad in ["", "order.*", " a"] {
        let error = refused(shop.builder().publishes([bad]), ErrorKind::Invalid).await.to_string();
        assert!(error.contains("topic"), "{error}");
    }
}

#[tokio::test]
async fn a_required_check_that_names_no_topic_is_pointed_out() {
    let (log, _guard) = log_of_this_thread();
    let cap = Shop::new().builder().options(strict()).start().await.unwrap();
    assert!(log.lines_with("WARN").iter().any(|line| line.contains("publishes")), "{:?}", log.lines_with("WARN"));
    cap.stop().await;
}

/// A memory transport that does not tell routes.
#[derive(Debug, Clone)]
struct Reticent {
    inner: MemoryTransport,
    /// It declares that it does, and is not there when it is asked.
    is_away: bool,
}

const HOW: &str = "set the option `tell`";

impl Transport for Reticent {
    fn describe(&self) -> String {
        "reticent broker".into()
    }
    fn capabilities(&self) -> TransportCapabilities {
        TransportCapabilities { checks_routes: self.is_away, ..self.inner.capabilities() }
    }
    fn connect(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.connect()
    }
    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()> {
        self.inner.send(messages)
    }
    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        self.inner.subscribe(subscription)
    }
    fn unrouted(&self, _topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        let refusal = Error::new(ErrorKind::Unsupported, "tell routes of", self.describe(), HOW);
        Box::pin(async move { Err(if self.is_away { away() } else { refusal }) })
    }
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

fn on(transport: &Reticent) -> CapBuilder<Arc<MemoryStorage>> {
    Cap::builder().storage(MemoryStorage::new()).transport(transport.clone()).publishes(["order.placed"])
}

#[tokio::test]
async fn a_transport_that_does_not_tell_routes_is_no_obstacle_unless_they_are_required() {
    let transport = Reticent { inner: MemoryTransport::new(), is_away: false };
    let text = refused(on(&transport).options(strict()), ErrorKind::Unsupported).await.to_string();
    assert!([HOW, "require_routes", "reticent broker"].iter().all(|part| text.contains(part)), "{text}");
    let cap = on(&transport).options(options()).start().await.unwrap();
    assert_eq!(cap.unrouted().await.unwrap_err().kind(), ErrorKind::Unsupported);
    cap.stop().await;
}

#[tokio::test]
async fn routes_that_cannot_be_asked_for_now_are_no_obstacle_unless_they_are_required() {
    let (log, _guard) = log_of_this_thread();
    let transport = Reticent { inner: MemoryTransport::new(), is_away: true };
    refused(on(&transport).options(strict()), ErrorKind::Unavailable).await;
    let cap = on(&transport).options(options()).start().await.unwrap();
    assert!(log.lines_with("WARN").iter().any(|line| line.contains("could not check")), "{:?}", log.lines_with("WARN"));
    cap.stop().await;
}
