//! What is on its way on one channel: many messages at once, and each one's answer its own.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use cap_core::{Error, ErrorKind};
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};

use crate::parcel::{Answer, Parcel};
use crate::settings::Settings;
use crate::verdicts::{Acked, Verdict, Verdicts};
use crate::wakes::Wakes;
use crate::wire;

/// Why no answer came.
struct Broken {
    /// Whether it may have reached the broker.
    was_sent: bool,
    cause: lapin::Error,
}

type Confirming = Pin<Box<dyn Future<Output = Result<Confirmation, Broken>> + Send>>;

/// A message without an answer, when the channel is over.
pub(crate) struct Unanswered {
    pub(crate) parcel: Parcel,
    pub(crate) was_sent: bool,
}

pub(crate) struct Flight {
    settings: Arc<Settings>,
    channel: Arc<Channel>,
    wakes: Arc<Wakes>,
    in_flight: HashMap<u64, (Confirming, Parcel)>,
    /// Settled on the first look, which is the moment of sending.
    early: Vec<(u64, Parcel, Result<Confirmation, Broken>)>,
    deadlines: BTreeSet<(Instant, u64)>,
    verdicts: Verdicts<(u64, Parcel)>,
    next: u64,
    /// The latest that the broker has answered.
    answered: u64,
    unanswered: Vec<(u64, Unanswered)>,
    /// With what the broker ended the channel, as far as it is known.
    cause: Option<lapin::Error>,
}

impl Flight {
    pub(crate) fn new(settings: Arc<Settings>, channel: Channel) -> Self {
        Self {
            settings,
            channel: Arc::new(channel),
            wakes: Arc::default(),
            in_flight: HashMap::new(),
            early: Vec::new(),
            deadlines: BTreeSet::new(),
            verdicts: Verdicts::new(),
            next: 0,
            answered: 0,
            unanswered: Vec::new(),
            cause: None,
        }
    }

    /// Hands a message to the driver. Its frames are queued on the first poll, so that messages keep their order.
    pub(crate) fn publish(&mut self, parcel: Parcel) {
        let (channel, exchange) = (Arc::clone(&self.channel), self.settings.exchange.as_str().into());
        let message = &parcel.message;
        let properties = wire::properties(message);
        let (key, payload) = (message.topic.as_str().into(), message.payload.clone());
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let mut confirming: Confirming = Box::pin(async move {
            let written = channel.basic_publish(exchange, key, options, &payload, properties).await;
            let confirm = written.map_err(|cause| Broken { was_sent: false, cause })?;
            confirm.await.map_err(|cause| Broken { was_sent: true, cause })
        });
        self.next += 1;
        let (ticket, deadline) = (self.next, parcel.deadline);
        match self.wakes.poll(ticket, &mut confirming) {
            Poll::Ready(outcome) => self.early.push((ticket, parcel, outcome)),
            Poll::Pending => {
                self.in_flight.insert(ticket, (confirming, parcel));
                self.deadlines.insert((deadline, ticket));
            }
        }
    }

    /// Waits until there is something to settle.
    pub(crate) fn woken(&self) -> impl Future<Output = ()> + Send + use<> {
        let wakes = Arc::clone(&self.wakes);
        async move { wakes.any().await }
    }

    /// When the next is late.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Whether nothing waits for an answer, but for what is late already.
    pub(crate) fn is_idle(&self) -> bool {
        self.deadlines.is_empty() && self.early.is_empty() && !self.verdicts.is_pending()
    }

    /// Whether the channel is over, and everything that was on its way is known to be without an answer.
    pub(crate) fn is_over(&self) -> bool {
        self.in_flight.is_empty() && self.early.is_empty() && !self.channel.status().connected()
    }

    /// Looks at everything that was woken, again and again until nothing was (see [`Verdicts`]), and tells the answers.
    pub(crate) fn settle(&mut self) -> Vec<(Parcel, Answer)> {
        let mut answers = Vec::new();
        loop {
            let woken = self.wakes.take();
            let nothing_new = woken.is_empty() && self.early.is_empty();
            let mut outcomes = std::mem::take(&mut self.early);
            for ticket in woken {
                let Some((confirming, _)) = self.in_flight.get_mut(&ticket) else {
                    continue;
                };
                if let Poll::Ready(outcome) = self.wakes.poll(ticket, confirming) {
                    outcomes.extend(self.in_flight.remove(&ticket).map(|(_, parcel)| (ticket, parcel, outcome)));
                }
            }
            let mut found = Vec::with_capacity(outcomes.len());
            for (ticket, parcel, outcome) in outcomes {
                found.extend(self.sort(ticket, parcel, outcome, &mut answers));
            }
            // Where a channel breaks off, returns may be left in the driver: what is not certain stays so.
            let is_last = self.in_flight.is_empty() && self.unanswered.is_empty();
            for ((_, parcel), verdict) in self.verdicts.pass(found, is_last) {
                let answer = match verdict {
                    Verdict::Taken => Answer::Taken,
                    Verdict::Returned(reply) => Answer::Returned(reply),
                };
                answers.push((parcel, answer));
            }
            if nothing_new && !self.verdicts.is_pending() {
                break;
            }
        }
        while self.deadlines.first().is_some_and(|(_, ticket)| !self.in_flight.contains_key(ticket)) {
            self.deadlines.pop_first();
        }
        answers
    }

    /// What was acknowledged is still to be judged; the rest is sorted out.
    fn sort(
        &mut self,
        ticket: u64,
        mut parcel: Parcel,
        outcome: Result<Confirmation, Broken>,
        answers: &mut Vec<(Parcel, Answer)>,
    ) -> Option<Acked<(u64, Parcel)>> {
        let (returned, is_acked) = match outcome {
            Ok(Confirmation::Ack(returned)) => (returned, true),
            Ok(Confirmation::Nack(returned)) => (returned, false),
            Ok(Confirmation::NotRequested) => {
                let reason = "confirms are off on its channel";
                let error = Error::new(ErrorKind::Internal, "send", parcel.subject(), reason);
                parcel.report(Err(error));
                return None;
            }
            Err(Broken { was_sent, cause }) => {
                self.unanswered.push((ticket, Unanswered { parcel, was_sent }));
                let tells_more = self.cause.is_none() || cause.is_amqp_error();
                self.cause = if tells_more { Some(cause) } else { self.cause.take() };
                return None;
            }
        };
        self.answered = self.answered.max(ticket);
        let alone = returned.is_none();
        if let Some(returned) = returned {
            let id = returned.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string);
            self.verdicts.note_return(id, returned.reply_text.to_string());
        }
        if is_acked {
            return Some(Acked { id: parcel.message.id.as_str().to_owned(), alone, item: (ticket, parcel) });
        }
        answers.push((parcel, Answer::Refused));
        None
    }

    /// Reports what is late, and tells whether anything was. `alarm`: why the broker takes nothing, if it said so.
    pub(crate) fn expire(&mut self, alarm: Option<&str>) -> bool {
        let (now, mut any) = (Instant::now(), false);
        while let Some((_, ticket)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            self.deadlines.pop_first();
            let Some((_, parcel)) = self.in_flight.get_mut(&ticket) else {
                continue;
            };
            any |= !parcel.is_reported();
            let limit = self.settings.confirm_timeout();
            let (kind, reason) = match alarm {
                Some(alarm) => (ErrorKind::Unavailable, format!("not confirmed within {limit:?}, because {alarm}")),
                // The broker is well: it is a queue of this topic that does not take it.
                None if ticket < self.answered => {
                    let reason = "the broker answered to others that were sent later: a queue for it is stuck, without a \
                                  leader or a majority";
                    (ErrorKind::Environment, format!("not confirmed within {limit:?}, while {reason}"))
                }
                None => (ErrorKind::Unavailable, format!("the broker did not confirm it within {limit:?}")),
            };
            let error = Error::new(kind, "send", parcel.subject(), reason);
            parcel.report(Err(error));
        }
        any
    }

    /// Everything that has no answer, in the order of sending, and what the broker ended the channel with.
    pub(crate) fn into_unanswered(mut self) -> (Vec<Unanswered>, Option<lapin::Error>) {
        let sent = |(ticket, parcel)| (ticket, Unanswered { parcel, was_sent: true });
        let mut all = self.unanswered;
        all.extend(self.in_flight.drain().map(|(ticket, (_, parcel))| sent((ticket, parcel))));
        all.extend(self.early.into_iter().map(|(ticket, parcel, _)| sent((ticket, parcel))));
        all.extend(self.verdicts.into_unjudged().map(sent));
        // What was reported as late has its outcome.
        all.retain(|(_, unanswered)| !unanswered.parcel.is_reported());
        all.sort_by_key(|(ticket, _)| *ticket);
        (all.into_iter().map(|(_, unanswered)| unanswered).collect(), self.cause)
    }
}
