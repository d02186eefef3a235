//! A lane: one channel, with many messages on their way at once and each one's outcome its own.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use cap_core::transport::Confirm;
use cap_core::{Error, ErrorKind, Message, MessageId, Result, Topic};
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};

use crate::config::Unroutable;
use crate::connection::Link;
use crate::error::{lost, unavailable};
use crate::settings::Settings;
use crate::verdicts::{Acked, Verdict, Verdicts};
use crate::wire;

/// How many messages are written before confirms are looked at again.
const BURST: usize = 64;

/// A message on its way to a lane.
pub(crate) struct Parcel {
    pub(crate) message: Message,
    pub(crate) confirm: Confirm,
    pub(crate) deadline: Instant,
    /// Its place in the window.
    pub(crate) room: OwnedSemaphorePermit,
}

/// A message that the broker has not settled.
struct Sent {
    id: MessageId,
    topic: Topic,
    bytes: usize,
    /// None once it was reported: it is late, but keeps its place in the window, because it keeps its memory.
    confirm: Option<Confirm>,
    _room: OwnedSemaphorePermit,
}

type Confirming = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

pub(crate) struct Lane {
    settings: Arc<Settings>,
    /// Keeps the connection open while something is on its way.
    _link: Arc<Link>,
    channel: Arc<Channel>,
    inbox: UnboundedReceiver<Parcel>,
    closed: watch::Receiver<bool>,
    /// Set for all lanes of a connection: send nothing more on it.
    retired: Arc<AtomicBool>,
    wakes: Arc<Wakes>,
    in_flight: HashMap<u64, (Confirming, Sent)>,
    /// Settled on the first look, which is the moment of sending.
    early: Vec<(Sent, lapin::Result<Confirmation>)>,
    deadlines: VecDeque<(Instant, u64)>,
    verdicts: Verdicts<Sent>,
    next: u64,
}

impl Lane {
    pub(crate) fn new(
        settings: Arc<Settings>,
        link: Arc<Link>,
        channel: Arc<Channel>,
        inbox: UnboundedReceiver<Parcel>,
        closed: watch::Receiver<bool>,
        retired: Arc<AtomicBool>,
    ) -> Self {
        Self {
            settings,
            _link: link,
            channel,
            inbox,
            closed,
            retired,
            wakes: Arc::default(),
            in_flight: HashMap::new(),
            early: Vec::new(),
            deadlines: VecDeque::new(),
            verdicts: Verdicts::new(),
            next: 0,
        }
    }

    /// Sends and settles until there is nothing left to do on this channel.
    pub(crate) async fn run(mut self) {
        let mut accepts = true;
        let mut closed = self.closed.clone();
        loop {
            let deadline = self.deadlines.front().map(|(deadline, _)| *deadline);
            tokio::select! {
                biased;
                () = is_set(&mut closed) => return self.give_up("the transport is closed"),
                () = self.wakes.notify.notified() => {}
                parcel = self.inbox.recv(), if accepts => match parcel {
                    Some(parcel) => self.publish_burst(parcel),
                    None => accepts = false,
                },
                () = sleep_until(deadline) => {}
            }
            self.settle();
            self.expire();
            if !self.channel.status().connected() && self.in_flight.is_empty() {
                return self.give_up("the connection was lost");
            }
            let is_idle = self.deadlines.is_empty() && !self.verdicts.is_pending();
            if !accepts && is_idle {
                return;
            }
        }
    }

    fn publish_burst(&mut self, first: Parcel) {
        self.publish(first);
        for _ in 1..BURST {
            match self.inbox.try_recv() {
                Ok(parcel) => self.publish(parcel),
                Err(_) => return,
            }
        }
    }

    /// Hands a message to the driver. Its frames are queued on the first poll, so that messages keep their order.
    fn publish(&mut self, parcel: Parcel) {
        let Parcel { message, confirm, deadline, room } = parcel;
        let (channel, exchange) = (Arc::clone(&self.channel), self.settings.exchange.as_str().into());
        let properties = wire::properties(&message);
        let Message { id, topic, payload, .. } = message;
        let (key, bytes) = (topic.as_str().into(), payload.len());
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let mut confirming: Confirming =
            Box::pin(async move { channel.basic_publish(exchange, key, options, &payload, properties).await?.await });
        let sent = Sent { id, topic, bytes, confirm: Some(confirm), _room: room };
        let ticket = self.next;
        self.next += 1;
        match self.wakes.poll(ticket, &mut confirming) {
            Poll::Ready(outcome) => self.early.push((sent, outcome)),
            Poll::Pending => {
                self.in_flight.insert(ticket, (confirming, sent));
                self.deadlines.push_back((deadline, ticket));
            }
        }
    }

    /// Looks at everything that was woken, again and again until nothing was: see [`Verdicts`].
    fn settle(&mut self) {
        loop {
            let woken = self.wakes.take();
            let nothing_new = woken.is_empty() && self.early.is_empty();
            let mut outcomes = std::mem::take(&mut self.early);
            for ticket in woken {
                let Some((confirming, _)) = self.in_flight.get_mut(&ticket) else {
                    continue;
                };
                if let Poll::Ready(outcome) = self.wakes.poll(ticket, confirming) {
                    outcomes.extend(self.in_flight.remove(&ticket).map(|(_, sent)| (sent, outcome)));
                }
            }
            let mut found = Vec::with_capacity(outcomes.len());
            for (sent, outcome) in outcomes {
                found.extend(self.sort(sent, outcome));
            }
            for (sent, verdict) in self.verdicts.pass(found, self.in_flight.is_empty()) {
                self.judge(sent, verdict);
            }
            if nothing_new && !self.verdicts.is_pending() {
                break;
            }
        }
        while self.deadlines.front().is_some_and(|(_, ticket)| !self.in_flight.contains_key(ticket)) {
            self.deadlines.pop_front();
        }
    }

    /// Reports what failed; what was acknowledged is still to be judged.
    fn sort(&mut self, sent: Sent, outcome: lapin::Result<Confirmation>) -> Option<Acked<Sent>> {
        let (returned, is_acked) = match outcome {
            Ok(Confirmation::Ack(returned)) => (returned, true),
            Ok(Confirmation::Nack(returned)) => (returned, false),
            Ok(Confirmation::NotRequested) => {
                let error = Error::new(ErrorKind::Internal, "send", sent.subject(), "confirms are off on its channel");
                sent.report(Err(error));
                return None;
            }
            Err(cause) => {
                self.retired.store(true, Ordering::Relaxed);
                let error = lost(sent.subject(), sent.topic.as_str(), sent.bytes, &cause);
                sent.report(Err(error));
                return None;
            }
        };
        let alone = returned.is_none();
        if let Some(returned) = returned {
            let id = returned.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string);
            self.verdicts.note_return(id, returned.reply_text.to_string());
        }
        if is_acked {
            return Some(Acked { id: sent.id.as_str().to_owned(), alone, item: sent });
        }
        // No refusal of the message: the same one may be taken when the queue has room or its leader is back.
        let reason = "the broker did not take it over (nack): a queue is full, or without a majority of its nodes";
        let error = unavailable("send", sent.subject(), reason);
        sent.report(Err(error));
        None
    }

    fn judge(&self, sent: Sent, verdict: Verdict) {
        let reply = match verdict {
            Verdict::Taken => return sent.report(Ok(())),
            Verdict::Returned(reply) => reply,
        };
        match self.settings.unroutable() {
            Unroutable::Retry => {
                let reason = format!("no queue is bound for it on exchange `{}`: {reply}", self.settings.exchange);
                let error = Error::new(ErrorKind::Unroutable, "send", sent.subject(), reason);
                sent.report(Err(error));
            }
            Unroutable::Drop => {
                let (id, topic) = (sent.id.as_str(), sent.topic.as_str());
                tracing::warn!(message = id, topic, "dropped: no queue is bound for it");
                sent.report(Ok(()));
            }
        }
    }

    /// Reports what is late. The connection is not used for more: either it is ill, or a queue behind it is, whose
    /// messages would fill the window.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((_, ticket)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline <= now) {
            let Some((_, sent)) = self.in_flight.get_mut(&ticket) else {
                continue;
            };
            self.retired.store(true, Ordering::Relaxed);
            let reason = format!("the broker did not confirm it within {:?}", self.settings.confirm_timeout());
            let error = unavailable("send", sent.subject(), reason);
            sent.confirm.take().into_iter().for_each(|confirm| confirm.report(Err(error.clone())));
        }
    }

    fn give_up(mut self, reason: &str) {
        self.retired.store(true, Ordering::Relaxed);
        self.inbox.close();
        let on_their_way = self.in_flight.into_values().map(|(_, sent)| sent);
        let settled = self.early.into_iter().map(|(sent, _)| sent);
        for sent in on_their_way.chain(settled).chain(self.verdicts.into_unjudged()) {
            let error = unavailable("send", sent.subject(), reason);
            sent.report(Err(error));
        }
        while let Ok(parcel) = self.inbox.try_recv() {
            refuse(parcel, reason);
        }
    }
}

impl Sent {
    fn subject(&self) -> String {
        subject(&self.id, &self.topic)
    }

    fn report(self, outcome: Result<()>) {
        if let Some(confirm) = self.confirm {
            confirm.report(outcome);
        }
    }
}

fn subject(id: &MessageId, topic: &Topic) -> String {
    format!("message {id} to topic `{topic}`")
}

/// Reports a message that never got on its way.
pub(crate) fn refuse(parcel: Parcel, reason: &str) {
    let subject = subject(&parcel.message.id, &parcel.message.topic);
    parcel.confirm.report(Err(unavailable("send", subject, reason)));
}

async fn is_set(closed: &mut watch::Receiver<bool>) {
    if closed.wait_for(|closed| *closed).await.is_err() {
        // The last handle is gone, and none can close it now: what is on its way comes to its end.
        std::future::pending().await
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Who was woken, in the order of waking. The driver settles confirms one after the other and wakes each at once, so
/// this is the order of settling.
#[derive(Default)]
struct Wakes {
    woken: Mutex<Vec<u64>>,
    notify: Notify,
}

struct Ticket {
    number: u64,
    wakes: Arc<Wakes>,
}

impl Wake for Ticket {
    fn wake(self: Arc<Self>) {
        self.wakes.lock().push(self.number);
        self.wakes.notify.notify_one();
    }
}

impl Wakes {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.lock())
    }

    fn poll(self: &Arc<Self>, number: u64, confirming: &mut Confirming) -> Poll<lapin::Result<Confirmation>> {
        let waker = Waker::from(Arc::new(Ticket { number, wakes: Arc::clone(self) }));
        confirming.as_mut().poll(&mut Context::from_waker(&waker))
    }
}
