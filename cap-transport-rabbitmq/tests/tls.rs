//! TLS with client certificates, on a listener of the real broker that asks for one.

mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use cap_core::{ErrorKind, Transport};
use cap_transport_rabbitmq::{RabbitMq, RabbitMqOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use support::scene::{Scene, message, receive, refused, send};
use support::{SERVER, url};

/// The files of an authority, a server and a client.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn make() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // The broker reads them as another user.
        #[cfg(unix)]
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("readable");
        let files = Self { directory };
        let authority_key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
        authority.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        files.write("ca.pem", &authority.self_signed(&authority_key).expect("a certificate").pem());
        let issuer = Issuer::new(authority, authority_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().expect("a key");
            let parameters = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
            files.write(&format!("{name}.pem"), &parameters.signed_by(&key, &issuer).expect("a certificate").pem());
            files.write(&format!("{name}.key"), &key.serialize_pem());
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }
}

/// A listener of the broker that asks for a client certificate.
struct Listener {
    port: u16,
}

impl Listener {
    async fn start(files: &Files) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let file = |name: &str| format!("{:?}", files.path(name).display().to_string());
        let options = format!(
            "[{{cacertfile,{}}},{{certfile,{}}},{{keyfile,{}}},{{verify,verify_peer}},{{fail_if_no_peer_cert,true}}]",
            file("ca.pem"),
            file("server.pem"),
            file("server.key")
        );
        let starting = format!(
            "rabbit_networking:ensure_ssl(), ok = rabbit_networking:start_ssl_listener({{\"127.0.0.1\",{port}}},{options},1,1)."
        );
        SERVER.client(&["eval", &starting]).await.expect("a listener");
        Self { port }
    }

    fn url(&self) -> String {
        let url = url();
        let (user, vhost) = url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).expect("a user");
        let vhost = vhost.split_once('/').map_or("%2f", |(_, vhost)| vhost);
        format!("amqps://{user}@localhost:{}/{vhost}", self.port)
    }

    async fn stop(self) {
        let stopping = format!("rabbit_networking:stop_tcp_listener({{\"127.0.0.1\",{}}}).", self.port);
        SERVER.client(&["eval", &stopping]).await.expect("no listener");
    }
}

async fn connect(options: RabbitMqOptions) -> cap_core::Result<RabbitMq> {
    let transport = RabbitMq::with_options(options)?;
    Transport::connect(&transport).await?;
    Ok(transport)
}

/// The broker tells it, or breaks off so fast that the network tells only that.
fn unwanted(answer: cap_core::Result<RabbitMq>) {
    let error = answer.expect_err("a refusal");
    assert!(matches!(error.kind(), ErrorKind::Rejected | ErrorKind::Unavailable), "{error}");
    assert!(error.reason().contains("`certificate_file`"), "{error}");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_broker_that_asks_for_one() {
    let scene = Scene::new();
    let files = Files::make();
    let listener = Listener::start(&files).await;
    let options = || scene.names.options(&listener.url()).ca_file(files.path("ca.pem"));

    unwanted(connect(options()).await);
    let own = options().certificate_file(files.path("client.pem")).key_file(files.path("client.key"));
    let transport = connect(own).await.unwrap();
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
    receive(&mut *consumer, 1).await;

    // The same in a URL.
    let [ca, certificate, key] = ["ca.pem", "client.pem", "client.key"].map(|name| text(&files.path(name)));
    let url = format!("{}?cacertfile={ca}&certfile={certificate}&keyfile={key}&verify=verify_peer", listener.url());
    connect(scene.names.options(&url)).await.unwrap();

    // One of another authority.
    let others = Files::make();
    let foreign = options().certificate_file(others.path("client.pem")).key_file(others.path("client.key"));
    unwanted(connect(foreign).await);
    let missing = options().certificate_file("/nowhere/client.pem").key_file(files.path("client.key"));
    refused(connect(missing).await, ErrorKind::Rejected, &["`certificate_file`", "/nowhere/client.pem"]);
    listener.stop().await;
    scene.names.clean_up().await;
}
