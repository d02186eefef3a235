//! Stands between the processes and the broker, so that a test can take the broker away without hindering others.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub(crate) struct Proxy {
    /// The broker's URL, by way of here.
    pub(crate) url: String,
    away: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) fn start(runtime: &Runtime, broker: &str) -> Self {
        let (scheme, rest) = broker.split_once("://").expect("a URL");
        let (place, vhost) = rest.split_once('/').unwrap_or((rest, "%2f"));
        let (user, server) = place.rsplit_once('@').unwrap_or(("guest:guest", place));
        let server = if server.contains(':') { server.to_owned() } else { format!("{server}:5672") };

        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (away, told) = watch::channel(false);
        runtime.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut told, server) = (told.clone(), server.clone());
                tokio::spawn(async move {
                    let carry = async {
                        let mut broker = TcpStream::connect(server).await?;
                        copy_bidirectional(&mut client, &mut broker).await
                    };
                    tokio::select! {
                        biased;
                        _ = told.wait_for(|away| *away) => {}
                        _ = carry => {}
                    }
                });
            }
        });
        Self { url: format!("{scheme}://{user}@{address}/{vhost}"), away }
    }

    /// Cuts all connections and lets none through, or lets them through again.
    pub(crate) fn broker_is_away(&self, away: bool) {
        self.away.send_replace(away);
    }
}
