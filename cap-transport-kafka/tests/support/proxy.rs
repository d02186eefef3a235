//! A proxy in front of the server's listener for proxied clients.
//!
//! Kafka tells its clients where to connect, so a proxy must stand where the broker says: there is one, at a fixed port,
//! for all tests of a process. Which test a connection belongs to is told by the client id, which is in the first request.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of the connections of one client id.
#[derive(Clone)]
struct Wires {
    cut: watch::Sender<u64>,
    stall: watch::Sender<bool>,
}

pub(crate) struct Proxy {
    /// Where clients connect.
    pub(crate) place: String,
    wires: Wires,
}

fn all() -> &'static Mutex<HashMap<String, Wires>> {
    static ALL: OnceLock<Mutex<HashMap<String, Wires>>> = OnceLock::new();
    ALL.get_or_init(Mutex::default)
}

fn wires(client: &str) -> Wires {
    let mut all = all().lock().unwrap_or_else(PoisonError::into_inner);
    let new = || Wires { cut: watch::Sender::default(), stall: watch::Sender::default() };
    all.entry(client.to_owned()).or_insert_with(new).clone()
}

impl Proxy {
    /// For the clients of this id.
    pub(crate) fn start(client: &str) -> Self {
        static PLACE: OnceLock<String> = OnceLock::new();
        let place = PLACE.get_or_init(|| {
            let server = super::SERVER.value("CAP_TEST_KAFKA_PROXIED_URL");
            let (host, port) = server.rsplit_once(':').expect("host:port");
            // Where the broker says that it is.
            let place = format!("{host}:{}", port.parse::<u16>().expect("a port") + 1);
            let listener = std::net::TcpListener::bind(&place).expect("the port that the broker tells its clients");
            listener.set_nonblocking(true).expect("a listener");
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(serve(listener, server));
            });
            place
        });
        Self { place: place.clone(), wires: wires(client) }
    }

    /// Ends all connections that there are.
    pub(crate) fn cut(&self) {
        self.wires.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Carries nothing more, on the connections that there are and on new ones, until it is told otherwise.
    pub(crate) fn stall(&self, stalls: bool) {
        self.wires.stall.send_replace(stalls);
    }
}

async fn serve(listener: std::net::TcpListener, server: String) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    while let Ok((client, _)) = listener.accept().await {
        let server = server.clone();
        tokio::spawn(async move {
            let _ = carry(client, server).await;
        });
    }
}

async fn carry(mut client: TcpStream, server: String) -> std::io::Result<()> {
    // Length, API key, version, correlation id, and the client id with its length.
    let mut head = [0; 14];
    client.read_exact(&mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[12], head[13]]));
    let mut id = vec![0; length];
    client.read_exact(&mut id).await?;
    let wires = wires(&String::from_utf8_lossy(&id));
    let (mut cuts, mut stalls) = (wires.cut.subscribe(), wires.stall.subscribe());
    let mut server = TcpStream::connect(server).await?;
    server.write_all(&head).await?;
    server.write_all(&id).await?;
    loop {
        let stalled = *stalls.borrow_and_update();
        tokio::select! {
            biased;
            _ = cuts.changed() => return Ok(()),
            _ = stalls.changed() => {}
            done = copy_bidirectional(&mut client, &mut server), if !stalled => return done.map(drop),
        }
    }
}
