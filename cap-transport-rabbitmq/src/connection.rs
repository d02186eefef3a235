//! Connections: how one is made, how it ends, and how a lost one is replaced.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cap_core::{Error, ErrorKind, Result};
use futures_core::Stream;
use lapin::tcp::{AsyncTcpStream, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Channel, ConnectionProperties, Event};
use socket2::{SockRef, Socket};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::driver::Alive;
use crate::error::{Stage, connect, unavailable};
use crate::settings::Settings;
use crate::silence::silence_this_thread;
use crate::version::{self, Version};

/// The purpose of the connection for consuming.
pub(crate) const CONSUMER: &str = "consumer";
/// How long the broker may take to agree that a connection ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// A connection that is open, or was. Dropped, it is closed.
pub(crate) struct Link {
    connection: Arc<lapin::Connection>,
    /// The same socket once more: the way to end a connection that the broker no longer answers on.
    socket: Arc<Socket>,
    runtime: Handle,
    alive: Alive,
    /// The broker's words when it said that it takes nothing more on this connection.
    alarm: Arc<Mutex<Option<String>>>,
    listening: AbortHandle,
    version: Option<Version>,
}

/// What is known of an attempt while it lasts.
struct Attempt {
    stage: Stage,
    socket: Option<Socket>,
}

impl Link {
    /// Connects to the first host that can be reached, within the connect time limit. `purpose` names the connection in the
    /// broker's own lists.
    pub(crate) async fn open(settings: &Arc<Settings>, purpose: &'static str, alive: Alive) -> Result<Self> {
        let tls = tls_config(settings).await?;
        let (hosts, mut failures) = (settings.hosts(), Vec::new());
        let deadline = Instant::now() + settings.connect_timeout();
        for (tried, (place, uri)) in hosts.iter().enumerate() {
            let left = u32::try_from(hosts.len() - tried).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            // It is large, and most callers find a connection that is there.
            let opening = Box::pin(Self::open_at(settings, uri, tls.clone(), purpose, share, alive.clone()));
            match opening.await {
                Ok(link) => {
                    settings.reached(*place);
                    return Ok(link);
                }
                Err(error) => failures.push(error),
            }
        }
        Err(all_failed(settings, failures))
    }

    async fn open_at(
        settings: &Arc<Settings>,
        uri: &AMQPUri,
        tls: OwnedTLSConfig,
        purpose: &'static str,
        limit: Duration,
        alive: Alive,
    ) -> Result<Self> {
        let attempt = Arc::new(Mutex::new(Attempt { stage: Stage::Resolve, socket: None }));
        let runtime = lapin::runtime::default_runtime().map_err(|cause| connect(uri, Stage::Resolve, cause))?;
        let (noted, owned, dials) = (Arc::clone(&attempt), Arc::clone(settings), runtime.clone());
        let dial = async move |uri: AMQPUri| {
            let dialling = async {
                let addresses = resolve(&uri, &noted).await?;
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for address in addresses {
                    let stream = match AsyncTcpStream::connect(&dials, address).await {
                        Ok(stream) => stream,
                        Err(error) => {
                            last = error;
                            continue;
                        }
                    };
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        note_socket(&noted, &SockRef::from(plain.get_ref()))?;
                    }
                    if !owned.uses_tls() {
                        note(&noted, |attempt| attempt.stage = Stage::Handshake);
                        return Ok(stream);
                    }
                    note(&noted, |attempt| attempt.stage = Stage::Tls);
                    let stream = stream.into_tls(&uri.authority.host, tls.as_ref()).await?;
                    note(&noted, |attempt| attempt.stage = Stage::Handshake);
                    return Ok(stream);
                }
                Err(last)
            };
            let dialled = tokio::time::timeout(limit, dialling).await;
            dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(lapin::Error::from)
        };
        let properties = ConnectionProperties::default().with_connection_name(format!("cap {purpose}").into());
        let (asks_version, is_loud) = (purpose == CONSUMER && settings.asks_version(), settings.driver_logs());
        let connecting = async {
            let version = match asks_version {
                true => version::ask(dial(uri.clone()).await?).await?,
                false => None,
            };
            // Called on the thread that the driver has for this connection, before all else that it does.
            let connector = async move |uri, _| {
                if !is_loud {
                    silence_this_thread();
                }
                dial(uri).await
            };
            Ok((lapin::Connection::connector(uri.clone(), runtime, connector, properties).await?, version))
        };
        let connected = tokio::time::timeout(limit, connecting).await;
        let (stage, socket) = note(&attempt, |attempt| (attempt.stage, attempt.socket.take()));
        match (connected, socket) {
            (Ok(Ok((connection, version))), Some(socket)) => {
                let alarm = Arc::default();
                let listening = tokio::spawn(listen(connection.events_listener(), Arc::clone(&alarm))).abort_handle();
                let (connection, socket) = (Arc::new(connection), Arc::new(socket));
                Ok(Self { connection, socket, runtime: Handle::current(), alive, alarm, listening, version })
            }
            (Ok(Ok(_)), None) => {
                let reason = "it is connected without a socket";
                Err(Error::new(ErrorKind::Internal, "connect to", &settings.place, reason))
            }
            (Ok(Err(cause)), _) => Err(connect(uri, stage, cause)),
            (Err(_), socket) => {
                // Else the driver would wait on it for as long as the other side keeps it open.
                let _ = socket.map(|socket| socket.shutdown(Shutdown::Both));
                let reason = format!("it did not answer within {limit:?} ({stage:?} was not over)");
                Err(unavailable("connect to", &settings.place, reason))
            }
        }
    }

    /// The broker's version, if it was asked for and is RabbitMQ's.
    pub(crate) fn version(&self) -> Option<Version> {
        self.version
    }

    pub(crate) fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    /// Why the broker takes no messages on this connection, if it has said so and not taken it back.
    pub(crate) fn alarm(&self) -> Option<String> {
        let status = self.connection.status();
        if !status.connected() || !status.blocked() {
            return None;
        }
        let told = self.alarm.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let words = told.filter(|words| !words.is_empty()).unwrap_or_else(|| "without a reason".into());
        Some(format!("the broker takes no messages because of an alarm of its own (connection.blocked: {words})"))
    }

    /// What keeps the thread running that drives it.
    pub(crate) fn alive(&self) -> Alive {
        self.alive.clone()
    }

    pub(crate) async fn channel(&self) -> lapin::Result<Channel> {
        self.connection.create_channel().await
    }

    /// Closes a channel, without waiting for it.
    pub(crate) fn end_channel(&self, channel: Channel) {
        let alive = self.alive.clone();
        self.runtime.spawn(async move {
            let _until_ended = alive;
            if channel.status().connected() {
                let _ = tokio::time::timeout(FAREWELL, channel.close(200, "OK".into())).await;
            }
        });
    }

    /// The largest frame that the broker takes, in bytes.
    pub(crate) fn frame_max(&self) -> usize {
        usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX)
    }

    /// Ends the connection: in good order if the broker answers, and anyway if it does not.
    pub(crate) fn end(&self) -> impl Future<Output = ()> + Send + 'static {
        let (connection, socket) = (Arc::clone(&self.connection), Arc::clone(&self.socket));
        let alive = self.alive.clone();
        async move {
            let _until_ended = alive;
            if connection.status().connected() {
                let _ = tokio::time::timeout(FAREWELL, connection.close(200, "OK".into())).await;
            }
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listening.abort();
        self.runtime.spawn(self.end());
    }
}

/// Keeps the words with which the broker blocks the connection.
async fn listen(events: impl Stream<Item = Event>, alarm: Arc<Mutex<Option<String>>>) {
    let mut events = pin!(events);
    while let Some(event) = poll_fn(|cx| events.as_mut().poll_next(cx)).await {
        let told = match event {
            Event::ConnectionBlocked(words) => Some(words),
            Event::ConnectionUnblocked => None,
            _ => continue,
        };
        *alarm.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }
}

/// What it means that none of the hosts could be used.
fn all_failed(settings: &Settings, mut failures: Vec<Error>) -> Error {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    let are_rejected = failures.iter().all(|error| error.kind() == ErrorKind::Rejected);
    let kind = if are_rejected { ErrorKind::Rejected } else { ErrorKind::Unavailable };
    let reasons: Vec<String> =
        failures.iter().map(|error| format!("{}: {}", error.subject(), error.reason())).collect();
    Error::new(kind, "connect to", &settings.place, format!("none of the hosts can be used: {}", reasons.join("; ")))
}

async fn resolve(uri: &AMQPUri, attempt: &Mutex<Attempt>) -> io::Result<Vec<SocketAddr>> {
    let authority = &uri.authority;
    let addresses = tokio::net::lookup_host((authority.host.as_str(), authority.port)).await?.collect();
    note(attempt, |attempt| attempt.stage = Stage::Dial);
    Ok(addresses)
}

fn note_socket(attempt: &Mutex<Attempt>, socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let copy = socket.try_clone()?;
    note(attempt, |attempt| attempt.socket = Some(copy));
    Ok(())
}

fn note<T>(attempt: &Mutex<Attempt>, change: impl FnOnce(&mut Attempt) -> T) -> T {
    change(&mut attempt.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What is trusted beside the system's certificates, and the client's own certificate.
async fn tls_config(settings: &Settings) -> Result<OwnedTLSConfig> {
    let cert_chain = match settings.ca_file() {
        Some(path) => Some(read(settings, "ca_file", path).await?),
        None => None,
    };
    let identity = match settings.identity_files() {
        Some((certificate, key)) => {
            let pem = read(settings, "certificate_file", certificate).await?.into_bytes();
            let key = read(settings, "key_file", key).await?.into_bytes();
            Some(OwnedIdentity::PKCS8 { pem, key })
        }
        None => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

async fn read(settings: &Settings, option: &str, path: &Path) -> Result<String> {
    let (shown, path) = (path.display().to_string(), path.to_owned());
    let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
    read.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(|cause| {
        let reason = format!("the `{option}` {shown} cannot be read: {cause}");
        Error::new(ErrorKind::Rejected, "connect to", &settings.place, reason).because(cause)
    })
}
