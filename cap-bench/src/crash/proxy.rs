//! A TCP proxy through which all processes reach a server, so that their connections can be cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::backend::Fallible;

/// One proxy; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    open: Arc<Mutex<CancellationToken>>,
    end: CancellationToken,
}

impl Proxy {
    /// Listens on `port`, or on one of its own, and connects to `target`, a host and a port.
    pub(crate) async fn start(target: String, port: Option<u16>) -> Fallible<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0))).await?;
        let proxy = Self {
            address: listener.local_addr()?,
            open: Arc::new(Mutex::new(CancellationToken::new())),
            end: CancellationToken::new(),
        };
        let (open, end) = (Arc::clone(&proxy.open), proxy.end.clone());
        tokio::spawn(async move {
            while let Some(Ok((client, _))) = end.run_until_cancelled(listener.accept()).await {
                let cut = open.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let (target, end) = (target.clone(), end.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = cut.cancelled() => {}
                        () = end.cancelled() => {}
                        // How a connection ends is its two ends' business.
                        _ = pass(client, &target) => {}
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
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

async fn pass(mut client: TcpStream, target: &str) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
}
