//! The service as its users run it: real processes on real servers, killed and cut off.

#![allow(clippy::print_stdout, reason = "what processes said shows with the test that failed")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use support::{Api, Process, Proxy, World, wait_until};

const ORDERS: &str = "SELECT count(*) FROM shop.orders";
const INVOICES: &str = "SELECT count(*) FROM shop.invoices";
const MESSAGES: &str = r#"SELECT count(*) FROM "cap"."published""#;

/// Posts orders until it is told that it is enough: each round a new one, one that all clients post, and a bad one.
/// Answers the ids of those that were taken.
fn post_until(enough: &AtomicBool, api: &Api, client: usize) -> Vec<String> {
    let mut taken = Vec::new();
    for round in 0.. {
        if enough.load(Ordering::Relaxed) {
            break;
        }
        let own = format!("own-{client}-{round}");
        assert_eq!(api.order(&own), 201);
        assert_eq!(api.order(&own), 409, "the same order again");
        taken.push(own);
        let shared = format!("shared-{round}");
        match api.order(&shared) {
            201 => taken.push(shared),
            status => assert_eq!(status, 409, "another client was first"),
        }
        let (status, _) = api.post(r#"{"id":"bad","customer":"Ada","amount":-1}"#);
        assert_eq!(status, 422);
    }
    taken
}

#[test]
fn each_order_that_was_taken_is_invoiced_once_though_billing_is_killed() {
    let world = World::new();
    let mut api = world.api();
    let billing = world.billing();
    let enough = AtomicBool::new(false);

    let (mut taken, mut billing) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (enough, api) = (&enough, &api);
                scope.spawn(move || post_until(enough, api, client))
            })
            .collect();
        // If an assertion below fails, the clients must end, too.
        let _guard = EnoughOnDrop(&enough);
        wait_until("billing is at work", || world.number(INVOICES) > 50);
        billing.kill();
        let before = world.number(ORDERS);
        wait_until("orders pile up", || world.number(ORDERS) > before + 50);
        let billing = world.billing();
        let before = world.number(INVOICES);
        wait_until("billing is at work again", || world.number(INVOICES) > before + 50);
        enough.store(true, Ordering::Relaxed);
        let taken: Vec<String> = clients.into_iter().flat_map(|client| client.join().expect("a client")).collect();
        (taken, billing)
    });

    world.wait_for_invoices();
    assert!(api.process.ask_to_stop("-TERM").success());
    assert!(billing.ask_to_stop("-INT").success());
    taken.sort();
    assert_eq!(world.orders(), taken, "what is in the database, and what was answered with 201");
    world.assert_one_invoice_each();
    assert_eq!(world.number(MESSAGES), i64::try_from(taken.len()).expect("few"), "messages");
}

struct EnoughOnDrop<'a>(&'a AtomicBool);

impl Drop for EnoughOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn orders_are_taken_while_the_broker_is_away_and_outlive_the_api() {
    let world = World::new();
    let proxy = Proxy::start(&world.runtime, &world.broker);
    let api = world.api_by(&proxy.url);
    let _billing = world.billing_by(&proxy.url);
    assert_eq!(api.order("before"), 201);
    world.wait_for_invoices();

    proxy.broker_is_away(true);
    for number in 0..20 {
        assert_eq!(api.order(&format!("away-{number}")), 201);
    }
    api.process.wait_for("failed and will try again");
    assert_eq!(world.number(INVOICES), 1, "while the broker is away");
    api.process.kill();

    proxy.broker_is_away(false);
    let _api = world.api_by(&proxy.url);
    world.wait_for_invoices();
    assert_eq!(world.number(ORDERS), 21);
    world.assert_one_invoice_each();
}

#[test]
fn orders_wait_for_the_first_billing() {
    let world = World::new();
    let api = world.api();
    assert_eq!(api.order("A-1"), 201);
    let tried = r#"SELECT count(*) FROM "cap"."published" WHERE "Reason" LIKE '%no queue is bound%' AND "Retries" = 0"#;
    wait_until("it could not be routed", || world.number(tried) == 1);
    let (status, shown) = api.get("A-1");
    assert_eq!((status, &*shown), (200, r#"{"id":"A-1","customer":"Ada","amount":12.5,"invoiced":false}"#));
    let said = api.process.said();
    assert!(!said.contains("BasicReturnMessage"), "a returned order, which names a customer, is in the log: {said}");

    let _billing = world.billing();
    wait_until("it is invoiced", || api.get("A-1").1.ends_with(r#""invoiced":true}"#));
}

#[test]
fn bad_requests_are_told_what_is_wrong_and_leave_nothing() {
    let world = World::new();
    let api = world.api();
    let long_id = format!(r#"{{"id":"{}","customer":"Ada","amount":1}}"#, "x".repeat(65));
    let refused = [
        (r#"{"id":"A-1","customer":"Ada","amount":-0.01}"#, 422, "`amount`"),
        (r#"{"id":"A-1","customer":"Ada","amount":NaN}"#, 400, "line 1 column"),
        (r#"{"id":"A-1","customer":"Ada","amount":1e999}"#, 400, "number out of range"),
        (r#"{"id":"A-1","customer":"Ada","amount":"12.5"}"#, 422, "amount: invalid type: string"),
        (r#"{"id":"A-1","customer":"Ada"}"#, 422, "missing field `amount`"),
        (r#"{"id":"","customer":"Ada","amount":1}"#, 422, "`id`"),
        (r#"{"id":"a/b","customer":"Ada","amount":1}"#, 422, "`id`"),
        (&long_id, 422, "`id`"),
        (r#"{"id":"A-1","customer":"","amount":1}"#, 422, "`customer`"),
        (r#"{"id":"A-1","customer":"Ada\u0000","amount":1}"#, 422, "`customer`"),
        ("id=A-1", 400, "parse"),
        ("", 400, "EOF"),
    ];
    for (body, status, words) in refused {
        let (answered, text) = api.post(body);
        assert!(answered == status && text.contains(words), "{body}: {answered} {text}");
    }
    assert_eq!(api.order("A-1"), 201);
    let (status, text) = api.post(r#"{"id":"A-1","customer":"Bob","amount":99}"#);
    assert!(status == 409 && text.contains("A-1"), "{status} {text}");
    assert_eq!((world.number(ORDERS), world.number(MESSAGES)), (1, 1));
    for unknown in ["A-2", "%00", "a%2Fb"] {
        assert_eq!(api.get(unknown), (404, "there is no such order".to_owned()));
    }
}

#[test]
fn a_start_without_a_server_fails_naming_it_and_no_secret() {
    let world = World::new();
    let cases = [
        ("postgres://cap:swordfish@127.0.0.1:1/shop", &*world.broker, "127.0.0.1:1/shop"),
        (&*world.database, "amqp://cap:swordfish@127.0.0.1:1/shop", "127.0.0.1:1/shop"),
        ("postgres:cap:swordfish", &*world.broker, "postgres URL"),
        (&*world.database, "http://cap:swordfish@127.0.0.1", "RabbitMQ"),
    ];
    for (database, broker, words) in cases {
        for arguments in [&["api", "--listen", "127.0.0.1:0"][..], &["billing"]] {
            let mut process = Process::start(arguments, database, broker, &world.version);
            assert_eq!(process.ended().code(), Some(1));
            let told = process.wait_for("ERROR");
            assert!(told.contains(words), "{words:?} is not in: {told}");
            assert!(!process.said().contains("swordfish"), "{}", process.said());
        }
    }
}
