//! A delivery as the record that is to be stored for it: as it came, or parked in a form that any database takes.

use std::sync::Arc;

use cap_core::storage::NewRecord;
use cap_core::transport::{Delivery, DeliveryTag};
use cap_core::{Error, Message, MessageId, Timestamp, Topic, content, headers, lifecycle, shown};

use crate::engine::Engine;
use crate::engine::group::Group;
use crate::engine::origin::{INVALID, Origin};
use crate::engine::twins::Identity;

/// A delivery as a message, and as the record that is to be stored for it.
pub(crate) struct Arrival {
    pub(crate) tag: DeliveryTag,
    pub(crate) record: NewRecord,
    pub(crate) message: Message,
    /// The subscription of this node that matches, by its place.
    handler: Option<usize>,
    form: Form,
    /// What the inbox knows it by.
    pub(crate) identity: Identity,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    AsItCame,
    /// The same in ASCII.
    Ascii,
    /// Dead, without its payload.
    LeftOut,
}

impl Arrival {
    /// Whether it is to be handled, and not parked.
    pub(crate) fn is_due(&self) -> bool {
        self.record.state.due().is_some()
    }

    /// The place of the subscription that can begin to handle it at once, if one can.
    pub(crate) fn begins(&self) -> Option<usize> {
        self.handler.filter(|_| self.is_due())
    }

    /// The record, with its first attempt begun or not.
    pub(crate) fn record_to_store(&self, begins: bool) -> NewRecord {
        let mut record = self.record.clone();
        if begins {
            record.state = lifecycle::received(true);
        }
        record
    }

    /// Whether a duplicate of it may be another message: with its payload left out nothing can be said.
    pub(crate) fn may_have_twins(&self) -> bool {
        self.form != Form::LeftOut && self.identity != Identity::Contradiction
    }

    /// It is not to be handled.
    pub(crate) fn park(&mut self, reason: &str, group: &Group) {
        self.record.state = lifecycle::parked(reason, &group.rules);
    }

    /// The storage refuses it: takes the next form, of which more is sure to be stored. Answers whether there was one.
    pub(crate) fn give_way(&mut self, engine: &Engine, group: &Group, error: &Error) -> bool {
        let is_plain = self.record.content.is_ascii();
        self.form = match self.form {
            Form::AsItCame if !is_plain && self.record.topic.as_str().is_ascii() => Form::Ascii,
            Form::AsItCame | Form::Ascii => Form::LeftOut,
            Form::LeftOut => return false,
        };
        match self.form {
            Form::Ascii => {
                self.record.content = engine.options.stored_form.wrap_ascii(&self.message, Timestamp::now()).into();
                if let Some(plain) = self.record.state.in_plain_words() {
                    self.record.state = plain;
                }
            }
            Form::AsItCame | Form::LeftOut => self.leave_out(engine, group, error.reason()),
        }
        true
    }

    /// Parks it without its payload, of which size and digest are told.
    fn leave_out(&mut self, engine: &Engine, group: &Group, why: &str) {
        let Message { id, topic, payload, .. } = &self.message;
        tracing::error!(
            messaging.message.id = %id.shown(),
            messaging.destination.name = %topic.shown(),
            messaging.consumer.group.name = %group.name.shown(),
            cap.reason = %shown(why),
            "the inbox refuses a delivery: parked without its payload"
        );
        let reason = format!(
            "the inbox refuses it, so its payload of {} bytes (SHA-256 {}) was left out: {why}",
            payload.len(),
            content::digest(payload)
        );
        let state = lifecycle::parked(reason, &group.rules);
        self.record.state = state.in_plain_words().unwrap_or(state);
        if !self.record.topic.as_str().is_ascii() {
            self.record.topic = Topic::from_stored(INVALID);
        }
        if !self.record.message_id.as_str().is_ascii() {
            self.record.message_id = MessageId::derive(&[b"refused", id.as_str().as_bytes()]);
        }
        self.record.content = engine.options.stored_form.without_payload(&self.message, Timestamp::now()).into();
        self.record.version = engine.options.version.clone();
    }
}

/// The inbox record of a delivery, be it ours or foreign. What can never be handled is parked with the reason.
pub(crate) fn arrival(engine: &Engine, group: &Group, delivery: Delivery) -> Arrival {
    let tag = delivery.tag;
    let (message, fault) = message(engine, group, delivery);
    let handler = group.handler(&message.topic);
    if handler.is_none() && fault.is_none() {
        group.unhandled.note(&group.name, &message.topic);
    }
    let stored_form = engine.options.stored_form;
    let (content, form) = match engine.services.preparer.ascii_only {
        false => (stored_form.wrap(&message, Timestamp::now()), Form::AsItCame),
        true => (stored_form.wrap_ascii(&message, Timestamp::now()), Form::Ascii),
    };
    let record = NewRecord {
        content: Arc::from(content),
        version: engine.options.version.clone(),
        group: Some(group.name.clone()),
        state: match fault {
            None => lifecycle::received(false),
            Some(reason) => lifecycle::parked(reason, &group.rules),
        },
        message_id: message.id.clone(),
        topic: message.topic.clone(),
    };
    let mut arrival = Arrival { tag, record, message, handler, form, identity: Identity::Id };
    if let Some(limit) = engine.services.preparer.content_limit.filter(|limit| arrival.record.content.len() > *limit) {
        let bytes = arrival.record.content.len();
        let storage = engine.storage.describe();
        arrival.form = Form::LeftOut;
        arrival.leave_out(engine, group, &format!("its content has {bytes} bytes, {storage} takes at most {limit}"));
    }
    arrival
}

fn message(engine: &Engine, group: &Group, delivery: Delivery) -> (Message, Option<String>) {
    let mut headers = delivery.headers;
    let routed = delivery.topic.as_str();
    let id = message_id(group, headers.get(headers::MESSAGE_ID), routed, delivery.origin.as_deref());
    // By the queue's own name it comes without having been published to any topic.
    let is_subscribed = |topic: &Topic| routed != group.name.as_str() && group.subscription(topic).is_some();
    let (topic, fault) = Origin { routed, headers: &headers }.topic(&engine.options, is_subscribed);
    headers.set(headers::MESSAGE_GROUP, group.name.as_str());
    for (name, value) in [(headers::MESSAGE_ID, id.as_str()), (headers::MESSAGE_NAME, topic.as_str())] {
        if headers.get(name) != Some(value) {
            headers.set(name, value);
        }
    }
    (Message { id, topic, headers, payload: delivery.body }, fault)
}

/// A foreign message has no id: the broker's own identity of it gives one that a redelivery repeats. Without either a
/// redelivery cannot be told from a second message, and is handled again rather than lost.
fn message_id(group: &Group, header: Option<&str>, topic: &str, origin: Option<&str>) -> MessageId {
    if let Some(id) = header.and_then(|id| MessageId::try_from(id).ok()) {
        return id;
    }
    match origin {
        Some(origin) => {
            MessageId::derive(&[b"origin", topic.as_bytes(), group.name.as_str().as_bytes(), origin.as_bytes()])
        }
        None => MessageId::generate(),
    }
}
