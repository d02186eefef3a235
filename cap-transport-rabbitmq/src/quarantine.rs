//! Where suspects are sent again: messages that were on their way when the broker broke off because of one of them.
//!
//! It has a connection of its own, so that what happens there hinders nobody else. The first suspect goes alone; each
//! time that all of a batch were answered to, the next batch is twice as large, so that innocents cost few rounds. When the
//! broker breaks off again, those of the batch that have no answer go one by one: a channel costs more than a round trip,
//! and the one for which the broker breaks off is then found at the price of two.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::bindings::Bindings;
use crate::blame::{self, Broken};
use crate::connection::Link;
use crate::driver::Alive;
use crate::flight::{Flight, Unanswered};
use crate::lane::{CONNECTION_LOST, Road, answered, convict, is_set, open_channel, sleep_until};
use crate::parcel::Parcel;
use crate::refusals::Refusals;
use crate::settings::Settings;

/// How many bytes of bodies may wait here; how many messages: as many as the window has.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The largest batch.
const MAX_BATCH: usize = 32;
/// How long the connection is kept when there is nothing to do.
const LINGER: Duration = Duration::from_secs(5);
/// The pause after the broker broke off, for each time in a row that it did.
const PAUSE: Duration = Duration::from_millis(5);
const MAX_PAUSE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Quarantine {
    refusals: Refusals,
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    parcels: VecDeque<Parcel>,
    bytes: usize,
    is_worked_on: bool,
}

impl Waiting {
    fn has_room(&self, parcel: &Parcel, window: usize) -> bool {
        self.parcels.is_empty()
            || (self.parcels.len() < window && self.bytes + parcel.message.payload.len() <= MAX_BYTES)
    }

    fn pop(&mut self) -> Option<Parcel> {
        let parcel = self.parcels.pop_front()?;
        self.bytes -= parcel.message.payload.len();
        Some(parcel)
    }
}

impl Quarantine {
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes suspects in; those that there is no room for are reported. Call it on the transport's own runtime.
    pub(crate) fn admit(self: &Arc<Self>, road: &Road, suspects: Vec<Parcel>) {
        if suspects.is_empty() {
            return;
        }
        let count = suspects.len();
        let mut too_many = Vec::new();
        let begins = {
            let mut waiting = self.lock();
            for mut parcel in suspects {
                if !waiting.has_room(&parcel, road.settings.window()) {
                    too_many.push(parcel);
                    continue;
                }
                parcel.room = None;
                waiting.bytes += parcel.message.payload.len();
                waiting.parcels.push_back(parcel);
            }
            !std::mem::replace(&mut waiting.is_worked_on, true)
        };
        tracing::debug!(count, place = road.settings.place, "messages are sent apart from others");
        let reason = "the broker broke off because of one of many messages, and too many are suspect";
        too_many.into_iter().for_each(|parcel| parcel.refuse(reason));
        if begins {
            tokio::spawn(Worker::new(Arc::clone(self), road).run());
        }
        self.arrived.notify_one();
    }

    fn put_back(&self, parcels: impl DoubleEndedIterator<Item = Parcel>) {
        let mut waiting = self.lock();
        for parcel in parcels.rev() {
            waiting.bytes += parcel.message.payload.len();
            waiting.parcels.push_front(parcel);
        }
    }

    /// The next batch: at most so many, or one that is to be alone.
    fn take(&self, max: usize) -> Vec<Parcel> {
        let mut waiting = self.lock();
        let mut batch = Vec::new();
        while batch.len() < max {
            let goes_alone = waiting.parcels.front().is_some_and(|parcel| parcel.is_probe);
            if goes_alone && !batch.is_empty() {
                break;
            }
            batch.extend(waiting.pop());
            if goes_alone || waiting.parcels.is_empty() {
                break;
            }
        }
        batch
    }

    fn deadline(&self) -> Option<Instant> {
        self.lock().parcels.iter().map(|parcel| parcel.deadline).min()
    }

    /// Reports those that have waited too long, or all.
    fn refuse(&self, which: impl Fn(&Parcel) -> bool, reason: &str) {
        let mut refused = Vec::new();
        {
            let mut waiting = self.lock();
            for parcel in std::mem::take(&mut waiting.parcels) {
                if which(&parcel) { refused.push(parcel) } else { waiting.parcels.push_back(parcel) }
            }
            waiting.bytes = waiting.parcels.iter().map(|parcel| parcel.message.payload.len()).sum();
        }
        refused.into_iter().for_each(|parcel| parcel.refuse(reason));
    }

    /// Whether the worker may go: nothing has come meanwhile.
    fn ends(&self) -> bool {
        let mut waiting = self.lock();
        waiting.is_worked_on = !waiting.parcels.is_empty();
        !waiting.is_worked_on
    }
}

/// Sends what is in quarantine.
struct Worker {
    quarantine: Arc<Quarantine>,
    settings: Arc<Settings>,
    bindings: Arc<Bindings>,
    closed: watch::Receiver<bool>,
    alive: Alive,
    link: Option<Arc<Link>>,
    flight: Option<Flight>,
    batch: usize,
    deaths: u32,
    lacks_exchange: bool,
}

impl Worker {
    fn new(quarantine: Arc<Quarantine>, road: &Road) -> Self {
        let (settings, closed, alive) = (Arc::clone(&road.settings), road.closed.clone(), road.link.alive());
        let bindings = Arc::clone(&road.bindings);
        let (link, flight, batch, deaths, lacks_exchange) = (None, None, 1, 0, false);
        Self { quarantine, settings, bindings, closed, alive, link, flight, batch, deaths, lacks_exchange }
    }

    async fn run(mut self) {
        let quarantine = Arc::clone(&self.quarantine);
        let mut closed = self.closed.clone();
        tokio::select! {
            biased;
            () = is_set(&mut closed) => {}
            () = self.work() => {}
        }
        while !quarantine.ends() {
            quarantine.refuse(|_| true, "the transport is closed");
        }
    }

    async fn work(&mut self) {
        loop {
            self.expire();
            let batch = self.quarantine.take(self.batch);
            if !batch.is_empty() {
                self.send(batch).await;
                continue;
            }
            let mut closed = self.closed.clone();
            let is_over = tokio::select! {
                () = self.quarantine.arrived.notified() => false,
                () = tokio::time::sleep(LINGER) => true,
                // Also when the last handle is gone.
                _ = closed.wait_for(|closed| *closed) => true,
            };
            if is_over && self.quarantine.ends() {
                return;
            }
        }
    }

    fn expire(&self) {
        let (now, limit) = (Instant::now(), self.settings.confirm_timeout());
        let reason = match self.link.as_ref().and_then(|link| link.alarm()) {
            Some(alarm) => format!("not confirmed within {limit:?}, because {alarm}"),
            None => {
                format!("the broker broke off while it was on its way, and took it over by no other within {limit:?}")
            }
        };
        self.quarantine.refuse(|parcel| parcel.deadline <= now, &reason);
    }

    /// Sends a batch and waits for all answers, or for the end of the channel.
    async fn send(&mut self, batch: Vec<Parcel>) {
        let mut flight = match self.take_flight().await {
            Ok(flight) => flight,
            Err(reason) => {
                batch.into_iter().for_each(|parcel| parcel.refuse(&reason));
                return self.quarantine.refuse(|_| true, &reason);
            }
        };
        let is_alone = batch.len() == 1;
        batch.into_iter().for_each(|parcel| flight.publish(parcel));
        loop {
            let deadline = flight.deadline().into_iter().chain(self.quarantine.deadline()).min();
            tokio::select! {
                () = flight.woken() => {}
                () = sleep_until(deadline) => {}
            }
            for (parcel, answer) in flight.settle() {
                self.quarantine.refusals.clear(&parcel.message);
                answered(&self.settings, &self.bindings, parcel, answer);
            }
            self.expire();
            let alarm = self.link.as_ref().and_then(|link| link.alarm());
            if flight.expire(alarm.as_deref()) {
                // What is late may be answered to later: not on a channel that others are sent on.
                self.link = None;
                let (unanswered, _) = flight.into_unanswered();
                return self.quarantine.put_back(unanswered.into_iter().map(|unanswered| unanswered.parcel));
            }
            if flight.is_over() {
                return self.broken(flight, is_alone).await;
            }
            if flight.is_idle() {
                (self.batch, self.deaths) = ((self.batch * 2).min(MAX_BATCH), 0);
                self.flight = Some(flight);
                return;
            }
        }
    }

    async fn take_flight(&mut self) -> Result<Flight, String> {
        let usable = self.link.as_ref().is_some_and(|link| link.is_open());
        if !usable {
            (self.link, self.flight) = (None, None);
        }
        if let Some(flight) = self.flight.take().filter(|flight| !flight.is_over()) {
            return Ok(flight);
        }
        let limit = self.settings.connect_timeout();
        let opening = async {
            let link = match &self.link {
                Some(link) => Arc::clone(link),
                None => {
                    let opened = Link::open(&self.settings, "publisher of suspects", self.alive.clone()).await;
                    Arc::new(opened.map_err(|error| error.to_string())?)
                }
            };
            let channel = open_channel(&link, &self.settings, self.lacks_exchange).await?;
            Ok((link, channel))
        };
        let late = |_| Err(format!("the broker broke off, and opened no other channel within {limit:?}"));
        let (link, channel) = tokio::time::timeout(limit, opening).await.unwrap_or_else(late)?;
        self.link = Some(link);
        self.lacks_exchange = false;
        Ok(Flight::new(Arc::clone(&self.settings), channel))
    }

    /// Finds out what the end of the channel means for what was on its way.
    async fn broken(&mut self, flight: Flight, is_alone: bool) {
        let (unanswered, cause) = flight.into_unanswered();
        let kind = blame::broken(cause.as_ref());
        let Some(cause) = cause.filter(|_| kind != Broken::Lost) else {
            self.link = None;
            return unanswered.into_iter().for_each(|unanswered| unanswered.parcel.refuse(CONNECTION_LOST));
        };
        if kind == Broken::Connection {
            self.link = None;
        }
        self.lacks_exchange = blame::lacks_exchange(&cause);
        let is_certain = kind == Broken::Channel && !self.lacks_exchange;
        let mut again = Vec::new();
        for Unanswered { mut parcel, was_sent } in unanswered {
            let is_guilty =
                blame::is_named(&cause, &self.settings, &parcel) || (is_alone && (is_certain || parcel.was_alone));
            if was_sent && is_guilty {
                convict(&self.settings, &self.quarantine.refusals, parcel, &cause);
                continue;
            }
            parcel.was_alone |= is_alone;
            parcel.is_probe = true;
            again.push(parcel);
        }
        self.batch = (self.batch / 2).max(1);
        self.deaths += 1;
        self.quarantine.put_back(again.into_iter());
        tokio::time::sleep((PAUSE * self.deaths).min(MAX_PAUSE)).await;
    }
}
