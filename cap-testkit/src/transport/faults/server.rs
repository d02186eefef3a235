//! A double that behaves like a durable server, as far as one process can see.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cap_core::transport::{Confirm, Consumer, Outgoing, Subscription, TransportCapabilities};
use cap_core::{BoxFuture, Error, ErrorKind, Group, Message, Result, Topic, Transport};
use cap_transport_memory::MemoryTransport;
use tokio::sync::oneshot;

use super::{MAX_BODY, TransportFault, lock};

/// What the double declares.
pub(super) fn capabilities() -> TransportCapabilities {
    TransportCapabilities {
        durable: true,
        keeps_backlog: true,
        ordered: true,
        wildcards: true,
        reports_backlog: true,
        checks_routes: true,
        max_body: Some(MAX_BODY),
    }
}

/// The server: a broker in which every group has a member that never receives, so that its queue stays.
#[derive(Debug)]
pub(super) struct Server {
    broker: MemoryTransport,
    fault: Option<TransportFault>,
    keepers: Mutex<Vec<(Subscription, Box<dyn Consumer>)>>,
    links: Mutex<Vec<Weak<ServerTransport>>>,
    full: Mutex<HashSet<Topic>>,
    unbound: Mutex<HashSet<Topic>>,
    has_alarm: AtomicBool,
}

/// The header of a message for which the server breaks off.
const POISON: &str = "double-poison";

pub(super) fn poison(mut message: Message) -> Message {
    message.headers.set(POISON, "");
    message
}

impl Server {
    pub(super) fn new(broker: MemoryTransport, fault: Option<TransportFault>) -> Self {
        Self {
            broker,
            fault,
            keepers: Mutex::default(),
            links: Mutex::default(),
            full: Mutex::default(),
            unbound: Mutex::default(),
            has_alarm: false.into(),
        }
    }

    pub(super) fn open(self: &Arc<Self>) -> Arc<dyn Transport> {
        self.link(true)
    }

    pub(super) fn open_nowhere(self: &Arc<Self>) -> Arc<dyn Transport> {
        self.link(self.fault == Some(TransportFault::ConnectsToNowhere))
    }

    fn link(self: &Arc<Self>, is_there: bool) -> Arc<dyn Transport> {
        let server = Arc::clone(self);
        let (was_cut, closed) = (false.into(), false.into());
        let link = Arc::new(ServerTransport { server, is_there, link: Mutex::default(), was_cut, closed });
        lock(&self.links).push(Arc::downgrade(&link));
        link
    }

    pub(super) fn fill(&self, topic: Topic) {
        lock(&self.full).insert(topic);
    }

    pub(super) fn unbind(&self, topic: Topic) {
        lock(&self.unbound).insert(topic);
    }

    /// Whether a message comes back because its topic is unbound. Then it is bound again.
    fn returns(&self, topic: &Topic) -> bool {
        let mut unbound = lock(&self.unbound);
        if self.has(TransportFault::LeavesUnbound) { unbound.contains(topic) } else { unbound.remove(topic) }
    }

    pub(super) fn set_alarm(&self, is_on: bool) {
        let remembers = self.fault == Some(TransportFault::RemembersAlarms);
        self.has_alarm.fetch_or(is_on, Ordering::SeqCst);
        self.has_alarm.fetch_and(is_on || remembers, Ordering::SeqCst);
    }

    fn has(&self, fault: TransportFault) -> bool {
        self.fault == Some(fault)
    }

    /// What the server has against a message.
    fn objection(&self, message: &Message) -> Option<(ErrorKind, &'static str)> {
        use TransportFault::{KeepsThePoisonsReason, TakesFullForAway};
        let unless = |fault, kind| if self.has(fault) { ErrorKind::Unavailable } else { kind };
        if self.has_alarm.load(Ordering::SeqCst) {
            return Some((ErrorKind::Unavailable, "it has an alarm"));
        }
        if message.headers.get(POISON).is_some() {
            return Some((unless(KeepsThePoisonsReason, ErrorKind::Rejected), "it breaks off for it"));
        }
        if self.returns(&message.topic) {
            return Some((ErrorKind::Unroutable, "no group is bound to it"));
        }
        let is_full = lock(&self.full).contains(&message.topic);
        is_full.then(|| (unless(TakesFullForAway, ErrorKind::Environment), "a queue is full"))
    }

    /// Breaks all connections.
    pub(super) async fn cut(&self) -> Result<()> {
        let links: Vec<_> = lock(&self.links).iter().filter_map(Weak::upgrade).collect();
        for link in links {
            link.was_cut.store(true, Ordering::SeqCst);
            let broken = lock(&link.link).take();
            if let Some(broken) = broken {
                broken.close().await?;
            }
        }
        Ok(())
    }

    pub(super) async fn restart(&self) -> Result<()> {
        self.cut().await?;
        if self.fault == Some(TransportFault::LosesItsQueuesOnRestart) {
            let kept: Vec<Subscription> = lock(&self.keepers).drain(..).map(|(subscription, _)| subscription).collect();
            for subscription in kept {
                self.keep(subscription).await?;
            }
        }
        Ok(())
    }

    /// Gives a group the member that keeps its queue.
    async fn keep(&self, subscription: Subscription) -> Result<()> {
        let keeper = self.broker.subscribe(subscription.clone()).await?;
        lock(&self.keepers).push((subscription, keeper));
        Ok(())
    }
}

#[derive(Debug)]
struct ServerTransport {
    server: Arc<Server>,
    is_there: bool,
    /// None before connecting, and after a cut.
    link: Mutex<Option<Arc<MemoryTransport>>>,
    was_cut: AtomicBool,
    closed: AtomicBool,
}

impl ServerTransport {
    fn link(&self) -> Result<Arc<MemoryTransport>> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Stopped, "use", self.describe(), "the transport is closed"));
        }
        lock(&self.link).clone().ok_or_else(|| self.away())
    }

    fn away(&self) -> Error {
        Error::new(ErrorKind::Unavailable, "reach", self.describe(), "there is no connection")
    }

    fn reconnects(&self) -> bool {
        let stays = self.server.fault == Some(TransportFault::StaysDisconnected);
        self.is_there && !(stays && self.was_cut.load(Ordering::SeqCst))
    }

    /// Confirms what is queued, and refuses what the broker refuses at once.
    async fn send_one(&self, link: &MemoryTransport, outgoing: Outgoing) {
        if let Some((kind, reason)) = self.server.objection(&outgoing.message) {
            return outgoing.confirm.report(Err(Error::new(kind, "send to", self.describe(), reason)));
        }
        let (report, mut outcome) = oneshot::channel();
        let probe = Confirm::new(move |result| drop(report.send(result)));
        if self.server.fault == Some(TransportFault::ConfirmsWithoutStoring) {
            return outgoing.confirm.report(Ok(()));
        }
        link.send(vec![Outgoing { message: outgoing.message, confirm: probe }]).await;
        // What is queued stays, because its group has a member for ever.
        outgoing.confirm.report(outcome.try_recv().unwrap_or(Ok(())));
    }
}

impl Transport for ServerTransport {
    fn describe(&self) -> String {
        format!("server double {}", if self.is_there { "here" } else { "nowhere" })
    }

    fn capabilities(&self) -> TransportCapabilities {
        capabilities()
    }

    fn connect(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            match self.link() {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::Stopped => Err(error),
                Err(error) if !self.reconnects() => Err(error),
                Err(_) => {
                    *lock(&self.link) = Some(Arc::new(self.server.broker.clone()));
                    Ok(())
                }
            }
        })
    }

    fn send(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let link = self.link();
            let is_poisoned = messages.iter().any(|outgoing| outgoing.message.headers.get(POISON).is_some());
            for outgoing in messages {
                match &link {
                    Ok(_) if is_poisoned && self.server.has(TransportFault::BlamesAllForOne) => {
                        outgoing.confirm.report(Err(self.away()));
                    }
                    Ok(link) => self.send_one(link, outgoing).await,
                    Err(_) => outgoing.confirm.report(Err(self.away())),
                }
            }
        })
    }

    fn obstacle(&self) -> Option<Error> {
        let is_told = !self.server.has(TransportFault::HidesAlarms) && self.server.has_alarm.load(Ordering::SeqCst);
        let reason = "the server has an alarm";
        is_told.then(|| Error::new(ErrorKind::Unavailable, "send to", self.describe(), reason))
    }

    fn subscribe(&self, subscription: Subscription) -> BoxFuture<'_, Result<Box<dyn Consumer>>> {
        Box::pin(async {
            let link = self.link()?;
            self.server.keep(subscription.clone()).await?;
            link.subscribe(subscription).await
        })
    }

    fn backlog(&self, group: Group) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async { self.link()?.backlog(group).await })
    }

    fn unrouted(&self, topics: Vec<Topic>) -> BoxFuture<'_, Result<Vec<Topic>>> {
        Box::pin(async { self.link()?.unrouted(topics).await })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.closed.store(true, Ordering::SeqCst);
            let link = lock(&self.link).take();
            match link {
                Some(link) => link.close().await,
                None => Ok(()),
            }
        })
    }
}
