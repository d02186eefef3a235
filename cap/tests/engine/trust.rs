//! Messages from outside that command what their publisher has no right to.

use std::future::ready;

use cap::memory::MemoryTransport;
use cap::transport::{Confirm, Consumer, Delivery, DeliveryTag, Outgoing, Subscription, TransportCapabilities};
use cap::{BoxFuture, Context, Headers, Json, Message, MessageId, Options, Result, Status, Table, Topic, Transport};
use tokio::sync::oneshot;

use crate::support::{Seen, Shop, eventually, idle, options};

/// A header that says what the broker is to say of the delivery.
const ROUTED: &str = "x-test-routed";

/// A broker that has moved messages on its own.
#[derive(Debug, Clone)]
struct Moving(MemoryTransport);

impl Transport for Moving {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn capabilities(&self) -> TransportCapabilities {
        self.0.capabilities()
    }
    fn connect(&self) -> BoxFuture<'_, Result<()>> {
        self.0.connect()
    }
    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()> {
        self.0.send(messages)
    }
    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        Box::pin(async move { Ok(Box::new(Moved(self.0.subscribe(subscription).await?)) as Box<dyn Consumer>) })
    }
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.0.close()
    }
}

#[derive(Debug)]
struct Moved(Box<dyn Consumer>);

impl Consumer for Moved {
    fn receive(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>>> {
        Box::pin(async move {
            let mut deliveries = self.0.receive(max).await?;
            for delivery in &mut deliveries {
                if let Some(routed) = delivery.headers.remove(ROUTED) {
                    delivery.topic = routed;
                }
            }
            Ok(deliveries)
        })
    }
    fn ack(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        self.0.ack(tags)
    }
    fn release(&mut self, tags: Vec<DeliveryTag>) -> BoxFuture<'_, Result<()>> {
        self.0.release(tags)
    }
}

/// Publishes past the library, to what the rights of the broker allow.
async fn foreign(transport: &impl Transport, topic: &str, headers: &[(&str, &str)], payload: &'static str) {
    let headers: Headers = headers.iter().copied().collect();
    let (id, topic) = (MessageId::generate(), Topic::try_from(topic).unwrap());
    let message = Message { id, topic, headers, payload: payload.into() };
    let (tell, told) = oneshot::channel();
    let confirm = Confirm::new(move |outcome| tell.send(outcome).unwrap());
    transport.send(vec![Outgoing { message, confirm }]).await;
    told.await.unwrap().unwrap();
}

/// What became of foreign messages to `lp.x` with these headers, in a service that handles `secret.y`, too: the topics of
/// those that were handled, and topics and reasons of those that were parked.
async fn handled(options: Options, messages: &[&[(&str, &str)]]) -> (Vec<String>, Vec<(String, String)>) {
    let (shop, seen, dead) = (Shop::new(), Seen::new(), Seen::new());
    let transport = Moving(shop.transport.clone());
    let (left, right, told) = (seen.clone(), seen.clone(), dead.clone());
    let builder = shop.builder().transport(transport.clone()).options(options);
    let cap = builder
        .subscribe("lp.*", "g", move |context: Context| {
            left.push(format!("lp: {}", context.topic()));
            ready(())
        })
        .subscribe("secret.y", "g", move |context: Context| {
            right.push(format!("secret: {}", context.topic()));
            ready(())
        })
        .on_dead(move |letter| told.push((letter.topic.to_string(), letter.reason)))
        .start()
        .await
        .unwrap();
    for headers in messages {
        foreign(&transport, "lp.x", headers, "1").await;
    }
    idle(&cap).await;
    let records = shop.records(Table::Inbox).await;
    assert_eq!(records.len(), messages.len());
    cap.stop().await;
    (seen.rest().await, dead.rest().await)
}

const NAMES_SECRET: (&str, &str) = ("cap-msg-name", "secret.y");
const DIED_OF_SECRET: (&str, &str) = (
    "x-death",
    r#"[{"count":1,"exchange":"cap.default.router","queue":"g.v1","reason":"rejected","routing-keys":["secret.y"],"time":1700000000}]"#,
);

#[tokio::test]
async fn a_header_gives_no_right_that_the_broker_does_not() {
    let pretends_death: &[_] = &[NAMES_SECRET, DIED_OF_SECRET];
    let (handled, parked) =
        handled(options(), &[&[NAMES_SECRET], pretends_death, &[("cap-msg-name", "lp.x")], &[]]).await;
    assert_eq!(handled, ["lp: lp.x", "lp: lp.x"]);
    assert_eq!(parked.len(), 2);
    for (topic, reason) in parked {
        assert_eq!(topic, "lp.x");
        assert!(reason.contains("`secret.y`") && reason.contains("`lp.x`"), "{reason}");
    }
}

#[tokio::test]
async fn what_the_broker_itself_has_moved_is_handled_as_what_it_was_published_as() {
    let by_queue_name: &[_] = &[NAMES_SECRET, DIED_OF_SECRET, (ROUTED, "g.v1")];
    let by_another_key: &[_] = &[NAMES_SECRET, DIED_OF_SECRET, (ROUTED, "retry.g")];
    let by_nobody: &[_] = &[NAMES_SECRET, (ROUTED, "g.v1")];
    let (handled, parked) = handled(options(), &[by_queue_name, by_another_key, by_nobody]).await;
    assert_eq!(handled, ["secret: secret.y", "secret: secret.y"]);
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].0, "g.v1");
}

#[tokio::test]
async fn options_say_where_messages_are_moved_by_hand_and_where_the_header_counts() {
    let by_hand: &[_] = &[NAMES_SECRET, (ROUTED, "g.v1")];
    let moved = Options { moved_topics: vec!["g.v1".try_into().unwrap()], ..options() };
    let (seen, parked) = handled(moved, &[by_hand, &[NAMES_SECRET]]).await;
    assert_eq!((seen, parked.len()), (vec!["secret: secret.y".to_owned()], 1));
    let trusting = Options { header_names_topic: true, ..options() };
    let (seen, parked) = handled(trusting, &[by_hand, &[NAMES_SECRET]]).await;
    assert_eq!((seen, parked.len()), (vec!["secret: secret.y".to_owned(); 2], 0));
}

/// Asks the handlers of `sum` (which replies) and `note` (which never does) for a reply on `callback`; answers what was
/// handled, and why what was not is dead.
async fn asked(options: Options, callback: &'static str) -> (Vec<&'static str>, Vec<String>, usize) {
    let (shop, seen, dead) = (Shop::new(), Seen::new(), Seen::new());
    let (adds, notes, told) = (seen.clone(), seen.clone(), dead.clone());
    let cap = shop
        .builder()
        .options(options)
        .publishes(["sum.done"])
        .subscribe("sum", "g", move |Json(numbers): Json<Vec<u32>>| {
            adds.push("sum");
            ready(Json(numbers.iter().sum::<u32>()))
        })
        .subscribe("note", "g", move || {
            notes.push("note");
            ready(())
        })
        .on_dead(move |letter| told.push(letter.reason))
        .start()
        .await
        .unwrap();
    for topic in ["sum", "note"] {
        foreign(&shop.transport, topic, &[("cap-callback-name", callback)], "[2,3]").await;
    }
    idle_inbox(&shop).await;
    cap.stop().await;
    let mut handled = seen.rest().await;
    handled.sort_unstable();
    (handled, dead.rest().await, shop.records(Table::Outbox).await.len())
}

/// Replies to nobody stay in the outbox.
async fn idle_inbox(shop: &Shop) {
    eventually(async || {
        let records = shop.records(Table::Inbox).await;
        let is_over = |status| matches!(status, Status::Succeeded | Status::Failed);
        (records.len() == 2 && records.iter().all(|record| is_over(record.status))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reply_goes_only_where_it_is_allowed_and_that_is_asked_before_the_handler_runs() {
    let (handled, dead, replies) = asked(options(), "users.delete").await;
    // A handler that never replies does not mind.
    assert_eq!((handled, replies), (vec!["note"], 0));
    assert!(dead.len() == 1 && dead[0].contains("`users.delete`") && dead[0].contains("reply_topics"), "{dead:?}");

    let (handled, dead, replies) = asked(options(), "sum.done").await;
    assert_eq!((handled, dead, replies), (vec!["note", "sum"], vec![], 1));

    let allowing = Options { reply_topics: vec!["users.#".try_into().unwrap()], ..options() };
    let (handled, dead, replies) = asked(allowing, "users.delete").await;
    assert_eq!((handled, dead, replies), (vec!["note", "sum"], vec![], 1));
}

#[tokio::test]
async fn a_callback_that_is_no_topic_is_told_as_that_before_the_handler_runs() {
    let (handled, dead, replies) = asked(options(), "sum.*").await;
    assert_eq!((handled, replies), (vec!["note"], 0));
    assert!(dead.len() == 1 && dead[0].contains("`sum.*`, which is no topic"), "{dead:?}");
}
