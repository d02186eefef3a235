//! Stands between a node and a server, and cuts the node off when it is told to.

use std::io;
use std::pin::pin;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing gets through, and nobody is told.
    Stalled,
    /// All connections are ended, and no new ones are taken.
    Cut,
}

pub(crate) struct Proxy {
    /// Where it listens: `host:port`.
    pub(crate) place: String,
    way: watch::Sender<Way>,
}

impl Proxy {
    pub(crate) async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap().to_string();
        let way = watch::Sender::new(Way::Open);
        let ways = way.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server.clone(), ways.clone()));
            }
        });
        Self { place, way }
    }

    /// Ends all connections, and takes no new ones.
    pub(crate) fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// Keeps the connections, and carries nothing.
    pub(crate) fn stall(&self) {
        self.way.send_replace(Way::Stalled);
    }

    /// Carries again what is sent over new connections, and over those that it has kept.
    pub(crate) fn mend(&self) {
        self.way.send_replace(Way::Open);
    }
}

async fn carry(mut client: TcpStream, server: String, mut way: watch::Receiver<Way>) {
    let mut carrying = pin!(async {
        let mut server = TcpStream::connect(server).await?;
        copy_bidirectional(&mut client, &mut server).await?;
        io::Result::Ok(())
    });
    loop {
        // The proxy is gone with its node: so are the connections.
        let Ok(open) = way.wait_for(|way| *way != Way::Stalled).await.map(|way| *way == Way::Open) else { return };
        if !open {
            return;
        }
        tokio::select! {
            biased;
            changed = way.changed() => if changed.is_err() { return },
            _ = &mut carrying => return,
        }
    }
}
