//! Which topics have no queue, asked of the real management API, and what is said when it cannot be asked.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cap_core::{ErrorKind, Topic, Transport};
use cap_transport_rabbitmq::RabbitMq;
use lapin::ExchangeKind;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use support::scene::{Scene, refused};
use support::{Raw, management_url, management_url_of_nobody};
use tokio::net::TcpListener;

async fn open(scene: &Scene) -> RabbitMq {
    scene.open(scene.options().management_url(management_url())).await
}

async fn unrouted(transport: &RabbitMq, topics: &[&Topic]) -> Vec<Topic> {
    transport.unrouted(topics.iter().copied().cloned().collect()).await.expect("an answer")
}

/// A queue of somebody else's, bound to the scene's exchange by this key.
async fn bind_foreign(scene: &Scene, raw: &Raw, key: &str) {
    let queue = scene.names.unique("foreign");
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    raw.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.expect("declared");
    let (exchange, options) = (scene.names.exchange().into(), QueueBindOptions::default());
    raw.channel
        .queue_bind(queue.as_str().into(), exchange, key.into(), options, FieldTable::default())
        .await
        .expect("bound");
}

#[tokio::test]
async fn the_queues_of_other_systems_count_whatever_keys_they_are_bound_by() {
    let scene = Scene::new();
    let (transport, raw) = (open(&scene).await, Raw::open().await);
    let topics = ["order", "paid", "late"].map(|name| scene.topic(name));
    let [order, paid, late] = &topics;
    for key in ["", "ord*", "*x.#", "a..b", &format!("ü {}", "x".repeat(200))] {
        bind_foreign(&scene, &raw, key).await;
    }
    assert_eq!(unrouted(&transport, &[order, paid, late]).await, topics);
    bind_foreign(&scene, &raw, paid.as_str()).await;
    assert_eq!(unrouted(&transport, &[late, order, paid]).await, [late.clone(), order.clone()]);
    bind_foreign(&scene, &raw, "#").await;
    assert_eq!(unrouted(&transport, &[order, late]).await, []);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn what_goes_on_to_another_exchange_does_not_count() {
    let scene = Scene::new();
    let (transport, raw) = (open(&scene).await, Raw::open().await);
    let topic = scene.topic("order");
    let other = scene.names.unique("other");
    let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
    let declared =
        raw.channel.exchange_declare(other.as_str().into(), ExchangeKind::Fanout, options, FieldTable::default());
    declared.await.expect("declared");
    let (source, key, options) = (scene.names.exchange().into(), topic.as_str().into(), ExchangeBindOptions::default());
    raw.channel.exchange_bind(other.as_str().into(), source, key, options, FieldTable::default()).await.expect("bound");
    assert_eq!(unrouted(&transport, &[&topic]).await, [topic]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn without_its_exchange_no_topic_has_a_queue() {
    let scene = Scene::new();
    let (transport, raw) = (open(&scene).await, Raw::open().await);
    let topic = scene.topic("order");
    drop(transport.subscribe(scene.wants(&[&topic])).await.expect("a consumer"));
    assert_eq!(unrouted(&transport, &[&topic]).await, []);
    let deleted = raw.channel.exchange_delete(scene.names.exchange().into(), ExchangeDeleteOptions::default());
    deleted.await.expect("deleted");
    assert_eq!(unrouted(&transport, &[&topic]).await, [topic]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn an_exchange_may_have_a_name_that_no_url_could_hold() {
    let scene = Scene::new();
    let name = format!("{}/%2F ?#ü&", scene.names.unique("exchange"));
    let transport = scene.open(scene.options().exchange(&name).management_url(management_url())).await;
    let (topic, nobody) = (scene.topic("order"), scene.topic("nobody"));
    drop(transport.subscribe(scene.wants(&[&topic])).await.expect("a consumer"));
    assert_eq!(unrouted(&transport, &[&topic, &nobody]).await, [nobody]);
    let raw = Raw::open().await;
    raw.channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.expect("deleted");
    scene.names.clean_up().await;
}

#[tokio::test]
async fn a_handle_that_is_closed_asks_nothing() {
    let scene = Scene::new();
    let transport = open(&scene).await;
    transport.close().await.expect("closed");
    refused(transport.unrouted(vec![scene.topic("order")]).await, ErrorKind::Stopped, &["closed"]);
    scene.names.clean_up().await;
}

#[tokio::test]
async fn without_the_option_the_refusal_says_how_to_enable_it() {
    let scene = Scene::new();
    let transport = RabbitMq::with_options(scene.options()).expect("options");
    let advice = ["management_url", "`rabbitmq-management` of cap", &transport.describe()];
    refused(transport.unrouted(vec![scene.topic("order")]).await, ErrorKind::Unsupported, &advice);
}

#[tokio::test]
async fn refusals_are_told_apart_and_show_no_secret() {
    let scene = Scene::new();
    let place = management_url_of_nobody();
    let place = place.strip_prefix("http://").expect("it is no TLS port");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent_place = silent.local_addr().expect("an address");
    for (url, kind, word) in [
        (format!("http://nobody:s3cret-x@{place}"), ErrorKind::Rejected, "user `nobody` is refused"),
        (format!("http://u:s3cret-x@{place}/elsewhere"), ErrorKind::Rejected, "is this the address"),
        ("http://u:s3cret-x@127.0.0.1:9".into(), ErrorKind::Unavailable, "plugin `rabbitmq_management`"),
        ("http://u:s3cret-x@no-such-host.invalid:15672".into(), ErrorKind::Unavailable, "cannot be reached"),
        (format!("http://u:s3cret-x@{}", support::server()), ErrorKind::Rejected, "does not speak HTTP"),
        (format!("https://u:s3cret-x@{place}"), ErrorKind::Unavailable, "cannot be reached"),
        (format!("http://u:s3cret-x@{silent_place}"), ErrorKind::Unavailable, "within 3s"),
    ] {
        let begun = Instant::now();
        let options = scene.options().connect_timeout(Duration::from_secs(3)).management_url(&url);
        let transport = RabbitMq::with_options(options).expect("options");
        let answer = transport.unrouted(vec![scene.topic("order")]).await;
        let error = refused(answer, kind, &[word, &scene.names.exchange()]);
        assert!(begun.elapsed() < Duration::from_secs(6), "{error} took {:?}", begun.elapsed());
        assert!(!format!("{error} {error:?} {transport:?}").contains("s3cret"), "{error}");
    }
}

/// A server that gives one answer, for what the real one of one version does not say.
fn answering(head: &'static str, body: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = client.read(&mut request);
            let _ = write!(client, "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    format!("http://u:s3cret-x@{place}")
}

#[tokio::test]
async fn answers_of_other_versions_and_other_servers_are_understood() {
    let scene = Scene::new();
    let topic = scene.topic("order");
    let ask = async |head, body| {
        let options = scene.options().management_url(answering(head, body));
        RabbitMq::with_options(options).expect("options").unrouted(vec![topic.clone()]).await
    };
    let no_exchange = ask("404 Not Found", r#"{"error":"Object Not Found","reason":"Not Found"}"#).await;
    assert_eq!(no_exchange.expect("an answer"), std::slice::from_ref(&topic));
    let not_user = r#"{"error":"not_authorised","reason":"Not management user"}"#;
    for (head, body, kind, word) in [
        ("401 Unauthorized", not_user, ErrorKind::Rejected, "Not management user"),
        ("404 Not Found", "<html>", ErrorKind::Rejected, "is this the address"),
        ("301 Moved\r\nLocation: http://127.0.0.1:9/", "", ErrorKind::Rejected, "301"),
        ("200 OK", "<html>", ErrorKind::Rejected, "no list of bindings"),
        ("503 Service Unavailable", r#"{"reason":"no quorum"}"#, ErrorKind::Unavailable, "no quorum"),
    ] {
        let error = refused(ask(head, body).await, kind, &[word]);
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
    }
}

/// The management API behind a TLS server for `localhost` with a certificate of its own, for any number of requests.
/// The certificate in PEM form, and the port.
fn behind_tls() -> (String, u16) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificate: CertificateDer<'static> = own.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("TLS").with_no_client_auth().with_single_cert(vec![certificate], key.into());
    let config = Arc::new(config.expect("a certificate that fits its key"));
    let listener = std::net::TcpListener::bind("localhost:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let tls = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            // One that is not trusted is given up by its client.
            let _ = pass_on(StreamOwned::new(tls, client));
        }
    });
    (own.cert.pem(), port)
}

fn pass_on(mut client: StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        request.extend(byte);
    }
    request.truncate(request.len() - 2);
    request.extend(b"Connection: close\r\n\r\n");
    let place = management_url_of_nobody();
    let mut server = TcpStream::connect(place.trim_start_matches("http://"))?;
    server.write_all(&request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    client.write_all(&answer)?;
    client.conn.send_close_notify();
    client.flush()
}

#[tokio::test]
async fn a_certificate_is_trusted_only_when_its_file_is_named() {
    let scene = Scene::new();
    let (certificate, port) = behind_tls();
    let options = || {
        let url = management_url();
        let user = url.split_once("://").expect("a URL").1.rsplit_once('@').expect("the URL names a user").0;
        scene.options().management_url(format!("https://{user}@localhost:{port}"))
    };
    let topic = scene.topic("order");
    let untrusting = scene.open(options()).await;
    refused(untrusting.unrouted(vec![topic.clone()]).await, ErrorKind::Rejected, &["not trusted", "`ca_file`"]);

    let file = std::env::temp_dir().join(format!("{}.pem", scene.names.exchange()));
    fs::write(&file, certificate).expect("a file");
    let trusting = scene.open(options().ca_file(&file)).await;
    assert_eq!(unrouted(&trusting, &[&topic]).await, std::slice::from_ref(&topic));
    fs::remove_file(&file).expect("removed");
    refused(trusting.unrouted(vec![topic]).await, ErrorKind::Rejected, &["`ca_file`", "cannot be read"]);
    scene.names.clean_up().await;
}
