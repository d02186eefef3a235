//! What the log says, and in which words.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cap::{Context, HandlerError, Headers, Json, Outbox, Publish, RetryPolicy, Subscribe};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context as LayerContext, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::support::{Seen, Shop, eventually, idle, options};

type Fields = BTreeMap<String, String>;

/// A line, with the fields of the spans that it is in.
#[derive(Debug, Clone)]
struct Line {
    level: Level,
    target: String,
    own: Fields,
    spans: Fields,
}

impl Line {
    fn text(&self) -> &str {
        self.own.get("message").map_or("", String::as_str)
    }

    fn is_ours(&self) -> bool {
        self.target.starts_with("cap_engine")
    }
}

/// What is told on this thread down to a level.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<Line>>>, Level);

struct Collect<'f>(&'f mut Fields);

impl Collect<'_> {
    fn add(&mut self, field: &Field, value: String) {
        let before = self.0.insert(field.name().to_owned(), value);
        assert_eq!(before, None, "the field `{}` is there twice", field.name());
    }
}

impl Visit for Collect<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Log {
    fn enabled(&self, metadata: &Metadata<'_>, _: LayerContext<'_, S>) -> bool {
        *metadata.level() <= self.1
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: LayerContext<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Collect(&mut fields));
        context.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_event(&self, event: &Event<'_>, context: LayerContext<'_, S>) {
        let (mut own, mut spans) = (Fields::new(), Fields::new());
        event.record(&mut Collect(&mut own));
        for span in context.event_scope(event).into_iter().flatten() {
            spans.extend(span.extensions().get::<Fields>().cloned().unwrap_or_default());
        }
        let (level, target) = (*event.metadata().level(), event.metadata().target().to_owned());
        self.0.lock().unwrap().push(Line { level, target, own, spans });
    }
}

impl Log {
    /// Listens on this thread until the guard is dropped.
    fn listen(level: Level) -> (Self, DefaultGuard) {
        let log = Self(Arc::default(), level);
        let guard = tracing_subscriber::registry().with(log.clone()).set_default();
        (log, guard)
    }

    fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap().clone()
    }
}

/// Does most things that are told of.
async fn a_busy_shop(id: &str) {
    let shop = Shop::new();
    let cap = shop
        .builder()
        .subscribe("fails", "g", async |context: Context| match context.attempt() {
            1 => Err::<(), _>(HandlerError::retry("no row 17")),
            _ => Err(HandlerError::permanent("no row 17\u{202e}\n at all")),
        })
        .subscribe("speaks", "g", || {
            tracing::info!("the handler says so");
            ready(())
        })
        .start()
        .await
        .unwrap();
    cap.publish_one(Publish::json("fails", &1).id(id)).await.unwrap();
    cap.publish_one(Publish::json("speaks", &1).id(format!("{id}-2"))).await.unwrap();
    idle(&cap).await;
    cap.stop().await;
}

#[tokio::test]
async fn fields_are_open_telemetrys_or_have_our_prefix_and_no_text_is_lost() {
    let (log, _guard) = Log::listen(Level::TRACE);
    a_busy_shop("m-1").await;
    let lines: Vec<Line> = log.lines().into_iter().filter(Line::is_ours).collect();
    assert!(lines.iter().any(|line| line.own.contains_key("messaging.message.id")));
    let prefixes = ["cap.", "messaging.", "error.", "otel."];
    for line in &lines {
        assert!(!line.text().is_empty() && line.text() != "m-1", "{line:?}");
        for name in line.own.keys().chain(line.spans.keys()).filter(|name| *name != "message") {
            assert!(prefixes.iter().any(|prefix| name.starts_with(prefix)), "`{name}` of {line:?}");
        }
    }
}

#[tokio::test]
async fn what_a_handler_says_carries_its_message_at_info() {
    let (log, _guard) = Log::listen(Level::INFO);
    a_busy_shop("m").await;
    let lines = log.lines();
    let said = lines.iter().find(|line| line.text() == "the handler says so").unwrap();
    let field = |name| said.spans.get(name).map(String::as_str);
    assert_eq!(field("messaging.message.id"), Some("m-2"));
    assert_eq!(field("messaging.destination.name"), Some("speaks"));
    assert_eq!(field("messaging.consumer.group.name"), Some("g.v1"));
    assert_eq!(field("cap.attempt"), Some("1"));
}

#[tokio::test]
async fn the_first_failed_attempt_is_told_at_once_and_the_next_of_its_kind_are_counted() {
    let (log, _guard) = Log::listen(Level::INFO);
    let shop = Shop::new();
    let failing = |Json(n): Json<u32>| ready(Err::<(), _>(HandlerError::retry(format!("no row {n}"))));
    let subscription = Subscribe::to("t", failing).group("g").retry(RetryPolicy::fixed(9, Duration::from_secs(3600)));
    let cap = shop.builder().options(options()).subscription(subscription).start().await.unwrap();
    let failed =
        || log.lines().into_iter().filter(|line| line.text().starts_with("a handler failed")).collect::<Vec<_>>();
    cap.publish("t", &1).await.unwrap();
    eventually(async || (!failed().is_empty()).then_some(())).await;
    cap.publish_many((2..=5).map(|n| Publish::json("t", &n))).await.unwrap();
    eventually(async || {
        let records = shop.records(cap::Table::Inbox).await;
        (records.len() == 5 && records.iter().all(|record| record.attempts == 1 && record.owner.is_none()))
            .then_some(())
    })
    .await;
    let told = failed();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].level, told[0].own["cap.reason"].as_str()), (Level::WARN, "no row 1"));
    // At the end what was counted is told, without waiting for the minute.
    cap.stop().await;
    let told = failed();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((told[1].own["cap.failures"].as_str(), told[1].own["cap.reason"].as_str()), ("4", "no row 5"));
}

#[tokio::test]
async fn nothing_from_outside_steers_the_log() {
    let (log, _guard) = Log::listen(Level::TRACE);
    let id = "order\u{202e}7\u{2066}";
    a_busy_shop(id).await;
    let lines = log.lines();
    let is_plain = |text: &String| !text.chars().any(|char| char.is_control() || "\u{202e}\u{2066}".contains(char));
    let mut escaped = 0;
    for (name, value) in lines.iter().filter(|line| line.is_ours()).flat_map(|line| line.own.iter().chain(&line.spans))
    {
        assert!(is_plain(value), "`{name}` is {value:?}");
        escaped += usize::from(value.contains(r"order\u{202e}7\u{2066}"));
    }
    assert!(escaped > 0);
    assert!(
        lines
            .iter()
            .any(|line| line.own.get("cap.reason").is_some_and(|reason| reason == r"no row 17\u{202e}\n at all"))
    );
}

#[tokio::test]
async fn what_a_handler_publishes_belongs_to_the_trace_of_its_message_unless_it_says_otherwise() {
    let (shop, seen) = (Shop::new(), Seen::new());
    let told = seen.clone();
    let cap = shop
        .builder()
        .subscribe("a", "g", async |outbox: Outbox| {
            outbox.publish("b", &1)?;
            outbox.publish_one(Publish::json("b", &2).header("traceparent", "00-other")).map(drop)
        })
        .subscribe("b", "g", move |headers: Headers| {
            told.push(["traceparent", "tracestate"].map(|name| headers.get(name).unwrap_or("none").to_owned()));
            ready(())
        })
        .start()
        .await
        .unwrap();
    let message = Publish::json("a", &1).header("traceparent", "00-first").header("tracestate", "v=1");
    cap.publish_one(message).await.unwrap();
    let mut traces = [seen.next().await, seen.next().await];
    traces.sort();
    assert_eq!(traces, [["00-first", "v=1"], ["00-other", "none"]]);
    cap.stop().await;
}
