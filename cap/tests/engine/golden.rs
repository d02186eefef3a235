//! Messages and rows that .NET CAP 10 has really written: each is handled.

use std::collections::BTreeMap;

use cap::storage::NewRecord;
use cap::transport::{Confirm, Outgoing};
use cap::{
    Due, Group, Headers, Json, Message, MessageId, Storage as _, Table, Topic, Transport as _, Version, content,
    lifecycle,
};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::support::{Seen, Shop, idle};

const RABBITMQ: &str = include_str!("../../../test-data/dotnet-cap-10.0.2/rabbitmq-messages.jsonl");
const KAFKA: &str = include_str!("../../../test-data/dotnet-cap-10.0.2/kafka-messages.jsonl");
const ROWS: [&str; 2] = [
    include_str!("../../../test-data/dotnet-cap-10.0.2/postgres-rows.jsonl"),
    include_str!("../../../test-data/dotnet-cap-10.0.2/mysql-rows.jsonl"),
];

/// What is told of a message, by its id: topic, headers, payload.
type Told = BTreeMap<String, (String, BTreeMap<String, String>, Value)>;

fn lines(text: &str) -> impl Iterator<Item = Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// An empty body is null.
fn payload(body: &str) -> Value {
    serde_json::from_str(if body.is_empty() { "null" } else { body }).unwrap()
}

/// Headers of nothing, which brokers carry, are none.
fn headers<'a>(all: impl Iterator<Item = (&'a str, &'a Value)>) -> BTreeMap<String, String> {
    all.filter_map(|(name, value)| Some((name.to_owned(), value.as_str()?.to_owned()))).collect()
}

/// The messages as their receivers are to see them, and their bodies.
fn messages() -> (Told, BTreeMap<String, String>) {
    let (mut told, mut bodies) = (Told::new(), BTreeMap::new());
    let rabbit = lines(RABBITMQ).map(|line| {
        let all = line["properties"]["headers"].as_object().unwrap();
        let headers = headers(all.iter().map(|(name, value)| (name.as_str(), value)));
        (text(&line["routing_key"]), headers, line["body"].as_str().unwrap_or_default().to_owned())
    });
    let kafka = lines(KAFKA).map(|line| {
        let all = line["headers"].as_array().unwrap();
        let headers = headers(all.iter().map(|pair| (pair[0].as_str().unwrap(), &pair[1])));
        (text(&line["topic"]), headers, line["value"].as_str().unwrap_or_default().to_owned())
    });
    for (topic, headers, body) in rabbit.chain(kafka) {
        let id = headers["cap-msg-id"].clone();
        bodies.insert(id.clone(), body.clone());
        told.insert(id, (topic, headers, payload(&body)));
    }
    (told, bodies)
}

/// Handles everything of any topic in `group`, until as many came as are expected, and compares.
async fn handles(shop: &Shop, group: &str, expected: &Told, bring: impl AsyncFnOnce()) {
    let seen = Seen::new();
    let told = seen.clone();
    let builder = shop.builder().subscribe("golden.#", group, move |message: Message, Json(value): Json<Value>| {
        told.push((message, value));
        std::future::ready(())
    });
    let cap = builder.start().await.unwrap();
    bring().await;
    let mut handled = Told::new();
    for _ in expected {
        let (message, value) = seen.next().await;
        let headers: BTreeMap<_, _> = message.headers.iter().map(|(name, value)| (name.into(), value.into())).collect();
        handled.insert(message.id.to_string(), (message.topic.to_string(), headers, value));
    }
    for (id, (topic, headers, value)) in expected {
        let (handled_topic, handled_headers, handled_value) = &handled[id];
        assert_eq!((handled_topic, handled_value), (topic, value), "{id}");
        for (name, header) in headers {
            assert_eq!(handled_headers.get(name), Some(header), "{name} of {id}");
        }
    }
    idle(&cap).await;
    assert!(seen.rest().await.is_empty());
    cap.stop().await;
}

#[tokio::test]
async fn each_message_that_cap_10_sends_is_handled() {
    let shop = Shop::new();
    let (told, bodies) = messages();
    assert_eq!(told.len(), RABBITMQ.lines().count() + KAFKA.lines().count());
    let bring = async || {
        for (id, (topic, headers, _)) in &told {
            let headers: Headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let (id, topic, payload) = (MessageId::generate(), Topic::try_from(topic.as_str()).unwrap(), &bodies[id]);
            let message = Message { id, topic, headers, payload: payload.clone().into() };
            let (tell, outcome) = oneshot::channel();
            let confirm = Confirm::new(move |outcome| tell.send(outcome).unwrap());
            shop.transport.send(vec![Outgoing { message, confirm }]).await;
            outcome.await.unwrap().unwrap();
        }
    };
    handles(&shop, "golden", &told, bring).await;
}

#[tokio::test]
async fn each_row_that_cap_10_has_left_is_handled() {
    for rows in ROWS {
        let shop = Shop::new();
        let mut told = Told::new();
        let mut records = Vec::new();
        for line in lines(rows).filter(|line| line["table"].as_str().unwrap().ends_with("published")) {
            let row = &line["row"];
            let (id, topic) = (row["Id"].to_string(), text(&row["Name"]));
            let wrapper: Value = serde_json::from_str(row["Content"].as_str().unwrap()).unwrap();
            let member = |name: &str| wrapper.get(name).unwrap_or_else(|| &wrapper[name.to_lowercase()]);
            let all = member("Headers").as_object().unwrap();
            let headers = headers(all.iter().map(|(name, value)| (name.as_str(), value)));
            told.insert(id.clone(), (topic.clone(), headers, member("Value").clone()));
            records.push(NewRecord {
                message_id: MessageId::try_from(id.as_str()).unwrap(),
                version: Version::default(),
                topic: Topic::try_from(topic.as_str()).unwrap(),
                group: None::<Group>,
                content: text(&row["Content"]).into(),
                state: lifecycle::scheduled(Due::Now),
            });
        }
        let of = |record: &NewRecord| content::unwrap(&record.content, &record.topic, &record.message_id).unwrap();
        assert!(records.iter().all(|record| of(record).id == record.message_id));
        let bring = async || {
            shop.storage.insert(Table::Outbox, records, None).await.unwrap();
        };
        handles(&shop, "golden", &told, bring).await;
    }
}
