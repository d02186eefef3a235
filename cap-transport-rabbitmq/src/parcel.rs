//! A message on its way, from the moment that it was taken over for sending until its outcome is reported.

use std::time::Instant;

use cap_core::transport::Confirm;
use cap_core::{Error, ErrorKind, Message, Result};
use tokio::sync::OwnedSemaphorePermit;

use crate::error::unavailable;
use crate::settings::Settings;

/// A message, where its outcome is to be reported, and what has become of it so far.
pub(crate) struct Parcel {
    pub(crate) message: Message,
    /// None once it was reported: it is late, but keeps its place in the window, because it keeps its memory.
    confirm: Option<Confirm>,
    pub(crate) deadline: Instant,
    /// Its place in the window; none in quarantine, which has a limit of its own.
    pub(crate) room: Option<OwnedSemaphorePermit>,
    /// How many channels have ended with it on its way.
    pub(crate) channels_lost: u32,
    /// Whether it alone was on its way on one of them.
    pub(crate) was_alone: bool,
    /// To be sent with no other beside it.
    pub(crate) is_probe: bool,
}

impl Parcel {
    pub(crate) fn new(message: Message, confirm: Confirm, deadline: Instant) -> Self {
        Self {
            message,
            confirm: Some(confirm),
            deadline,
            room: None,
            channels_lost: 0,
            was_alone: false,
            is_probe: false,
        }
    }

    pub(crate) fn subject(&self) -> String {
        format!("message {} to topic `{}`", self.message.id, self.message.topic)
    }

    pub(crate) fn is_reported(&self) -> bool {
        self.confirm.is_none()
    }

    /// Reports the outcome, unless one was reported before.
    pub(crate) fn report(&mut self, outcome: Result<()>) {
        if let Some(confirm) = self.confirm.take() {
            confirm.report(outcome);
        }
    }

    /// Reports that it was not sent, or that nobody knows whether it was.
    pub(crate) fn refuse(mut self, reason: &str) {
        let error = unavailable("send", self.subject(), reason);
        self.report(Err(error));
    }

    /// Reports what the broker answered.
    pub(crate) fn settle(mut self, settings: &Settings, answer: Answer) {
        let outcome = match answer {
            Answer::Taken => Ok(()),
            Answer::Returned(reply) => {
                let reason = format!("no queue is bound for it on exchange `{}`: {reply}", settings.exchange);
                Err(Error::new(ErrorKind::Unroutable, "send", self.subject(), reason))
            }
            Answer::Refused => {
                // No refusal of the message: the same one is taken when the queue has room or its leader is back.
                let reason =
                    "the broker did not take it over (nack): a queue is full, or without a majority of its nodes";
                Err(Error::new(ErrorKind::Environment, "send", self.subject(), reason))
            }
        };
        self.report(outcome);
    }
}

/// What the broker answered to one message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It has it.
    Taken,
    /// No queue wants it; with the broker's words.
    Returned(String),
    /// A queue that wants it does not take it (nack).
    Refused,
}
