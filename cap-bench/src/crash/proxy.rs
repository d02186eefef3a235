//! A TCP proxy through which all processes reach a server, so that their connections can be cut.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::Fallible;

/// One proxy; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    /// A host and a port.
    target: Arc<Mutex<String>>,
    open: Arc<Mutex<CancellationToken>>,
    /// What nothing passes through for so long is closed, if anything is.
    limit: watch::Sender<Option<Duration>>,
    closed: Arc<AtomicU32>,
    end: CancellationToken,
}

impl Proxy {
    /// Listens on `port`, or on one of its own, and connects to `target`, a host and a port.
    pub(crate) async fn start(target: String, port: Option<u16>) -> Fallible<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0))).await?;
        let proxy = Self {
            address: listener.local_addr()?,
            target: Arc::new(Mutex::new(target)),
            open: Arc::new(Mutex::new(CancellationToken::new())),
            limit: watch::Sender::new(None),
            closed: Arc::default(),
            end: CancellationToken::new(),
        };
        let (open, target, end) = (Arc::clone(&proxy.open), Arc::clone(&proxy.target), proxy.end.clone());
        let (limit, closed) = (proxy.limit.clone(), Arc::clone(&proxy.closed));
        tokio::spawn(async move {
            while let Some(Ok((client, _))) = end.run_until_cancelled(listener.accept()).await {
                let cut = open.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let target = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let end = end.clone();
                let (limit, closed) = (limit.subscribe(), Arc::clone(&closed));
                tokio::spawn(async move {
                    let seen = watch::Sender::new(Instant::now());
                    tokio::select! {
                        () = cut.cancelled() => {}
                        () = end.cancelled() => {}
                        () = idle(limit, &seen) => drop(closed.fetch_add(1, Ordering::Relaxed)),
                        // How a connection ends is its two ends' business.
                        _ = pass(client, &target, &seen) => {}
                    }
                });
            }
        });
        Ok(proxy)
    }

    /// Where to connect to instead of the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all connections that are open; new ones are let through.
    pub(crate) fn cut(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *open).cancel();
    }

    /// From now on leads new connections elsewhere; answers where it has led. The others stay where they are.
    pub(crate) fn lead_to(&self, target: String) -> String {
        std::mem::replace(&mut *self.target.lock().unwrap_or_else(PoisonError::into_inner), target)
    }

    /// From now on closes what nothing passes through for so long, or leaves it open.
    pub(crate) fn close_idle(&self, limit: Option<Duration>) {
        self.limit.send_replace(limit);
    }

    /// How many were closed because nothing passed through them.
    pub(crate) fn closed(&self) -> u32 {
        self.closed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

async fn pass(client: TcpStream, target: &str, seen: &watch::Sender<Instant>) -> std::io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::try_join!(copy(from_client, to_server, seen), copy(from_server, to_client, seen)).map(drop)
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, seen: &watch::Sender<Instant>) -> std::io::Result<()> {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let number = from.read(&mut bytes).await?;
        if number == 0 {
            return to.shutdown().await;
        }
        seen.send_replace(Instant::now());
        to.write_all(&bytes[..number]).await?;
    }
}

/// Waits until nothing was seen for as long as the limit is; without one, for ever.
async fn idle(mut limit: watch::Receiver<Option<Duration>>, seen: &watch::Sender<Instant>) {
    loop {
        let now = *limit.borrow_and_update();
        let over = async {
            let Some(limit) = now else { return std::future::pending().await };
            loop {
                // While it sleeps, more may pass.
                let until = *seen.borrow() + limit;
                if until <= Instant::now() {
                    return;
                }
                tokio::time::sleep_until(until).await;
            }
        };
        tokio::select! {
            () = over => return,
            changed = limit.changed() => if changed.is_err() { std::future::pending().await },
        }
    }
}

/// The host and port of a URL, and the URL with others in their place.
pub(crate) fn rewritten(url: &str, address: SocketAddr) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (credentials, target) = match authority.rsplit_once('@') {
        Some((credentials, target)) => (format!("{credentials}@"), target),
        None => (String::new(), authority),
    };
    let target = match (target.contains(':'), scheme) {
        (true, _) => target.to_owned(),
        (false, "amqp") => format!("{target}:5672"),
        (false, "mongodb") => format!("{target}:27017"),
        (false, _) => format!("{target}:5432"),
    };
    Some((target, format!("{scheme}://{credentials}{address}{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_of_a_url_are_replaced() {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let rewritten = |url| rewritten(url, address).unwrap();
        assert_eq!(
            rewritten("postgres://cap:c@p@db:1/cap?x=1"),
            ("db:1".into(), "postgres://cap:c@p@127.0.0.1:9/cap?x=1".into())
        );
        assert_eq!(rewritten("amqp://mq"), ("mq:5672".into(), "amqp://127.0.0.1:9".into()));
        assert_eq!(super::rewritten("no url", address), None);
    }

    #[tokio::test]
    async fn a_cut_ends_open_connections_and_lets_new_ones_through() {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Proxy::start(server.local_addr().unwrap().to_string(), None).await.unwrap();
        for _ in 0..2 {
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            let (mut accepted, _) = server.accept().await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(accepted.read_u8().await.unwrap(), b'x');
            proxy.cut();
            assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
        }
    }

    #[tokio::test]
    async fn new_connections_are_led_elsewhere() {
        let (old, new) = (TcpListener::bind(("127.0.0.1", 0)).await, TcpListener::bind(("127.0.0.1", 0)).await);
        let (old, new) = (old.unwrap(), new.unwrap());
        let place = |server: &TcpListener| server.local_addr().unwrap().to_string();
        let proxy = Proxy::start(place(&old), None).await.unwrap();
        assert_eq!(proxy.lead_to(place(&new)), place(&old));
        let _client = TcpStream::connect(proxy.address()).await.unwrap();
        tokio::select! {
            accepted = new.accept() => drop(accepted.unwrap()),
            _ = old.accept() => panic!("the old server is still used"),
        }
    }

    #[tokio::test]
    async fn what_is_idle_is_closed_and_what_is_used_is_not() {
        const LIMIT: Duration = Duration::from_millis(200);
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Proxy::start(server.local_addr().unwrap().to_string(), None).await.unwrap();
        let mut idle = TcpStream::connect(proxy.address()).await.unwrap();
        let mut used = TcpStream::connect(proxy.address()).await.unwrap();
        let (_first, _second) = (server.accept().await.unwrap(), server.accept().await.unwrap());
        proxy.close_idle(Some(LIMIT));
        let mut pace = tokio::time::interval(LIMIT / 10);
        let closed = loop {
            tokio::select! {
                read = idle.read_u8() => break read,
                _ = pace.tick() => used.write_all(b"x").await.unwrap(),
            }
        };
        assert!(closed.is_err(), "{closed:?}");
        assert_eq!(proxy.closed(), 1);
        proxy.close_idle(None);
        assert!(tokio::time::timeout(LIMIT * 2, used.read(&mut [0])).await.is_err(), "nobody is closed any more");
    }
}
