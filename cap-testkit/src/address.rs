//! An address that leads to one server, and later to another: what operators do with a primary that moves, or with a pooler
//! that they put before a server.

use std::net::SocketAddr;

use cap_core::{Error, ErrorKind, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A port of this machine. Connections that are open stay where they are. It is closed when the runtime ends.
#[derive(Debug)]
pub struct Address {
    /// Where clients connect.
    pub place: SocketAddr,
    target: watch::Sender<(String, u16)>,
}

impl Address {
    /// One that leads to this host and port.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no port.
    pub async fn of(host: &str, port: u16) -> Result<Self> {
        let no_port = |cause: std::io::Error| {
            Error::new(ErrorKind::Unavailable, "bind", "a port of 127.0.0.1", cause.to_string())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(no_port)?;
        let place = listener.local_addr().map_err(no_port)?;
        let (target, leads_to) = watch::channel((host.to_owned(), port));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let target = leads_to.borrow().clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(target).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Ok(Self { place, target })
    }

    /// From now on new connections go there.
    pub fn lead_to(&self, host: &str, port: u16) {
        self.target.send_replace((host.to_owned(), port));
    }
}
