//! A lane: a place in the order of sending, on one channel at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::bindings::Bindings;
use crate::blame::{self, Broken, Forbidden};
use crate::connection::Link;
use crate::flight::{Flight, Unanswered};
use crate::parcel::{Answer, Parcel};
use crate::quarantine::Quarantine;
use crate::refusals::Refusals;
use crate::settings::Settings;
use crate::topology;

/// How many messages are written before confirms are looked at again.
const BURST: usize = 64;
/// How many channels may end with a message on its way before it is a suspect, whatever the broker said.
const MAX_CHANNELS_LOST: u32 = 3;

/// Why a message has no outcome, if nobody can be blamed.
pub(crate) const CONNECTION_LOST: &str = "the connection was lost before the broker confirmed it";

/// What all lanes of a connection, and their quarantine, have in common.
#[derive(Clone)]
pub(crate) struct Road {
    pub(crate) settings: Arc<Settings>,
    /// Keeps the connection open while something is on its way.
    pub(crate) link: Arc<Link>,
    pub(crate) closed: watch::Receiver<bool>,
    /// Set for all lanes of a connection: send nothing more on it.
    pub(crate) retired: Arc<AtomicBool>,
    pub(crate) quarantine: Arc<Quarantine>,
    pub(crate) bindings: Arc<Bindings>,
}

impl Road {
    fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

pub(crate) struct Lane {
    road: Road,
    inbox: UnboundedReceiver<Parcel>,
    flight: Flight,
}

impl Lane {
    pub(crate) fn new(road: Road, channel: Channel, inbox: UnboundedReceiver<Parcel>) -> Self {
        let flight = Flight::new(Arc::clone(&road.settings), channel);
        Self { road, inbox, flight }
    }

    /// Sends and settles until there is nothing left to do on this connection.
    pub(crate) async fn run(mut self) {
        let mut accepts = true;
        let mut closed = self.road.closed.clone();
        loop {
            tokio::select! {
                biased;
                () = is_set(&mut closed) => return self.give_up("the transport is closed"),
                () = self.flight.woken() => {}
                parcel = self.inbox.recv(), if accepts => match parcel {
                    Some(parcel) => self.publish_burst(parcel),
                    None => accepts = false,
                },
                () = sleep_until(self.flight.deadline()) => {}
            }
            self.settle();
            let alarm = self.road.link.alarm();
            // Late without an alarm: either the connection is ill, or a queue behind it is, whose messages would fill the
            // window.
            if self.flight.expire(alarm.as_deref()) && alarm.is_none() {
                self.road.retire();
            }
            if self.flight.is_over() {
                let mending = self.mend();
                self = tokio::select! {
                    biased;
                    () = is_set(&mut closed) => return,
                    mended = mending => match mended {
                        Some(lane) => lane,
                        None => return,
                    },
                };
            }
            if !accepts && self.flight.is_idle() {
                return;
            }
        }
    }

    fn publish_burst(&mut self, first: Parcel) {
        self.flight.publish(first);
        for _ in 1..BURST {
            match self.inbox.try_recv() {
                Ok(parcel) => self.flight.publish(parcel),
                Err(_) => return,
            }
        }
    }

    fn settle(&mut self) {
        for (parcel, answer) in self.flight.settle() {
            answered(&self.road.settings, &self.road.bindings, parcel, answer);
        }
    }

    /// Goes on with a new channel when the broker has closed the last one. Whose fault that was is found out by its words
    /// if they tell, and in quarantine if they do not; the others are sent again at once.
    async fn mend(self) -> Option<Self> {
        let Self { road, mut inbox, flight } = self;
        let (unanswered, cause) = flight.into_unanswered();
        let kind = blame::broken(cause.as_ref());
        let was_idle = road.link.is_open() && unanswered.iter().all(|unanswered| !unanswered.was_sent);
        let Some(cause) = cause.filter(|_| kind != Broken::Lost || was_idle) else {
            road.retire();
            refuse_all(inbox, unanswered, CONNECTION_LOST);
            return None;
        };
        if kind == Broken::Connection {
            // Some of them were not sent, but there is nowhere else to send them now.
            road.retire();
            inbox.close();
            let mut suspects: Vec<Parcel> = unanswered.into_iter().map(suspect).collect();
            while let Ok(parcel) = inbox.try_recv() {
                suspects.push(parcel);
            }
            road.quarantine.admit(&road, suspects);
            return None;
        }
        // A channel that ended while nothing was on its way is replaced, and nobody is suspect.
        let (again, suspects) = sort(&road, unanswered, &cause);
        road.quarantine.admit(&road, suspects);
        let limit = road.settings.connect_timeout();
        let opening = open_channel(&road.link, &road.settings, blame::lacks_exchange(&cause));
        let opened = tokio::time::timeout(limit, opening).await.unwrap_or_else(|_| {
            Err(format!("the broker closed the channel ({cause}), and opened no other within {limit:?}"))
        });
        let channel = match opened {
            Ok(channel) => channel,
            Err(reason) => {
                road.retire();
                let never_sent = again.into_iter().map(|parcel| Unanswered { parcel, was_sent: false });
                refuse_all(inbox, never_sent.collect(), &reason);
                return None;
            }
        };
        let mut lane = Self::new(road, channel, inbox);
        for parcel in again {
            lane.flight.publish(parcel);
        }
        Some(lane)
    }

    fn give_up(self, reason: &str) {
        self.road.retire();
        let (unanswered, _) = self.flight.into_unanswered();
        refuse_all(self.inbox, unanswered, reason);
    }
}

/// Reports what the broker answered, and has bindings made again if it shows that some are gone.
pub(crate) fn answered(settings: &Settings, bindings: &Bindings, parcel: Parcel, answer: Answer) {
    if matches!(answer, Answer::Returned(_)) {
        bindings.missed(&parcel.message.topic);
    }
    parcel.settle(settings, answer);
}

/// Counts a channel that ended with the message on its way.
fn suspect(unanswered: Unanswered) -> Parcel {
    let mut parcel = unanswered.parcel;
    parcel.channels_lost += 1;
    parcel
}

/// What is to be sent again, and what is suspect. Whom the broker named gets its outcome.
fn sort(road: &Road, unanswered: Vec<Unanswered>, cause: &lapin::Error) -> (Vec<Parcel>, Vec<Parcel>) {
    let (mut again, mut suspects) = (Vec::new(), Vec::new());
    let is_named =
        |unanswered: &Unanswered| unanswered.was_sent && blame::is_named(cause, &road.settings, &unanswered.parcel);
    let is_told = blame::lacks_exchange(cause) || unanswered.iter().any(is_named);
    for unanswered in unanswered {
        let was_sent = unanswered.was_sent;
        if is_named(&unanswered) {
            convict(&road.settings, road.quarantine.refusals(), unanswered.parcel, cause);
            continue;
        }
        let parcel = suspect(unanswered);
        let is_suspect = (was_sent && !is_told) || parcel.channels_lost > MAX_CHANNELS_LOST;
        if is_suspect { suspects.push(parcel) } else { again.push(parcel) }
    }
    (again, suspects)
}

/// Gives the message for which the broker broke off its outcome, and remembers what there is to remember.
pub(crate) fn convict(settings: &Settings, refusals: &Refusals, mut parcel: Parcel, cause: &lapin::Error) {
    let error = blame::outcome(cause, &parcel);
    let reason = || error.reason().to_owned();
    match blame::forbidden(cause, &settings.exchange, &parcel.message.topic) {
        Some(Forbidden::Topic) => refusals.forbid(Some(parcel.message.topic.clone()), reason(), Instant::now()),
        Some(Forbidden::Exchange) => refusals.forbid(None, reason(), Instant::now()),
        None => refusals.blame(&parcel.message.id),
    }
    parcel.report(Err(error));
}

/// A channel with confirms. `declares`: the exchange is missing.
pub(crate) async fn open_channel(link: &Link, settings: &Settings, declares: bool) -> Result<Channel, String> {
    let failed = |cause: lapin::Error| format!("no channel could be opened: {cause}");
    let channel = link.channel().await.map_err(failed)?;
    if declares {
        topology::declare_exchange(&channel, settings).await.map_err(|error| error.to_string())?;
    }
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
    Ok(channel)
}

fn refuse_all(mut inbox: UnboundedReceiver<Parcel>, unanswered: Vec<Unanswered>, reason: &str) {
    inbox.close();
    unanswered.into_iter().for_each(|unanswered| unanswered.parcel.refuse(reason));
    while let Ok(parcel) = inbox.try_recv() {
        parcel.refuse(reason);
    }
}

pub(crate) async fn is_set(closed: &mut watch::Receiver<bool>) {
    if closed.wait_for(|closed| *closed).await.is_err() {
        // The last handle is gone, and none can close it now: what is on its way comes to its end.
        std::future::pending().await
    }
}

pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
