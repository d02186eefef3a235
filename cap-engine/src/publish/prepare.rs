//! From a [`Publish`] to the record that is inserted: ids, headers and the wrapper object. Pure but for the clock that
//! informs people.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cap_core::storage::NewRecord;
use cap_core::{
    Error, Headers, Message, MessageId, Result, StoredForm, Timestamp, Topic, Version, codec, headers, lifecycle,
};

use crate::publish::Publish;

/// What every message of one engine has in common.
#[derive(Debug, Clone)]
pub(crate) struct Preparer {
    pub(crate) version: Version,
    /// The service that publishes.
    pub(crate) service: String,
    pub(crate) topic_prefix: Option<String>,
    pub(crate) payload_limit: usize,
    /// The longest content that the storage takes, in bytes, and how it is called.
    pub(crate) content_limit: Option<usize>,
    pub(crate) place: String,
    /// The storage takes ASCII alone.
    pub(crate) ascii_only: bool,
    pub(crate) stored_form: StoredForm,
}

/// Headers that only the engine itself may set: those of a reply.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reserved {
    pub(crate) correlation_id: Option<String>,
    pub(crate) correlation_sequence: u64,
}

impl Preparer {
    /// The outbox record for `publish`.
    ///
    /// # Errors
    /// `Invalid`, naming the topic, header, id or payload that cannot be published.
    pub(crate) fn prepare(&self, publish: Publish) -> Result<NewRecord> {
        self.prepare_with(publish, Reserved::default())
    }

    pub(crate) fn prepare_with(&self, publish: Publish, reserved: Reserved) -> Result<NewRecord> {
        let topic =
            if publish.prefixed { Topic::try_from(publish.topic.as_str())? } else { self.topic(&publish.topic)? };
        check_callers(&publish.headers)?;
        let payload = self.payload(&topic, publish.payload)?;
        let id = match &publish.id {
            Some(own) => MessageId::try_from(own.as_str())?,
            None => MessageId::generate(),
        };
        let callback = publish.callback.as_deref().map(|name| self.topic(name)).transpose()?;

        let now = Timestamp::now();
        let mut headers = publish.headers;
        set_correlation(&mut headers, &id, reserved);
        headers.set(headers::MESSAGE_ID, id.as_str());
        headers.set(headers::MESSAGE_NAME, topic.as_str());
        headers.set(headers::MESSAGE_TYPE, publish.type_name);
        headers.set(headers::SENT_TIME, sent_time(now));
        if publish.is_own_id {
            headers.set(headers::PUBLISHER, self.service.as_str());
        }
        if let Some(callback) = &callback {
            headers.set(headers::CALLBACK_NAME, callback.as_str());
        }
        if let Some(delay) = publish.delay {
            headers.set(headers::DELAY_TIME, time_span(delay));
        }
        if let Some(content_type) = publish.content_type {
            headers.set(headers::CONTENT_TYPE, content_type);
        }
        let message = Message { id, topic, headers, payload };
        Ok(NewRecord {
            content: self.content(&message, now)?,
            message_id: message.id,
            version: self.version.clone(),
            topic: message.topic,
            group: None,
            state: lifecycle::scheduled(publish.due),
        })
    }

    fn content(&self, message: &Message, now: Timestamp) -> Result<Arc<str>> {
        let topic = &message.topic;
        if self.ascii_only {
            for name in [topic.as_str(), message.id.as_str()] {
                self.check_name(name)?;
            }
        }
        let form = self.stored_form;
        let content = if self.ascii_only { form.wrap_ascii(message, now) } else { form.wrap(message, now) };
        if let Some(limit) = self.content_limit.filter(|limit| content.len() > *limit) {
            let (bytes, place) = (content.len(), &self.place);
            let reason = format!("with its headers it has {bytes} bytes, and {place} takes at most {limit}");
            return Err(Error::invalid(format!("the message for topic `{topic}`"), reason));
        }
        Ok(content.into())
    }

    /// Refuses a topic, group or id that the storage cannot store.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        if !self.ascii_only || name.is_ascii() {
            return Ok(());
        }
        let reason = format!("{} is not in Unicode: topics, groups and ids must be ASCII there", self.place);
        Err(Error::invalid(format!("the name `{name}`"), reason))
    }

    /// The topic that `name` is published to.
    ///
    /// # Errors
    /// `Invalid` for what is no topic.
    pub(crate) fn topic(&self, name: &str) -> Result<Topic> {
        let topic = Topic::try_from(name)?;
        match &self.topic_prefix {
            Some(prefix) => Topic::try_from(format!("{prefix}.{topic}").as_str()),
            None => Ok(topic),
        }
    }

    fn payload(&self, topic: &Topic, payload: Result<Bytes>) -> Result<Bytes> {
        let payload = payload?;
        if payload.len() > self.payload_limit {
            return Err(Error::invalid(
                format!("the payload for topic `{topic}`"),
                format!("it has {} bytes, the limit is {}", payload.len(), self.payload_limit),
            ));
        }
        Ok(payload)
    }
}

/// Checks headers that a caller wants to publish with.
///
/// # Errors
/// `Invalid`, naming the header: an empty or over-long name, one with a control character, or a reserved one.
fn check_callers(headers: &Headers) -> Result<()> {
    for (name, _) in headers.iter() {
        let refuse = |reason: String| Err(Error::invalid(format!("header {name:.60?}"), reason));
        if name.is_empty() {
            return refuse("its name is empty".into());
        }
        if name.len() > headers::MAX_HEADER_NAME {
            return refuse(format!("its name has {} bytes, the limit is {}", name.len(), headers::MAX_HEADER_NAME));
        }
        if name.chars().any(char::is_control) {
            return refuse("its name holds a control character".into());
        }
        if headers::RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name)) {
            return refuse("it is reserved: publishing sets it".into());
        }
    }
    Ok(())
}

fn set_correlation(headers: &mut Headers, id: &MessageId, reserved: Reserved) {
    if let Some(correlation_id) = reserved.correlation_id {
        headers.set(headers::CORRELATION_ID, correlation_id);
        headers.set(headers::CORRELATION_SEQUENCE, reserved.correlation_sequence.to_string());
    } else if headers.get(headers::CORRELATION_ID).is_none() {
        headers.set(headers::CORRELATION_ID, id.as_str());
        headers.set(headers::CORRELATION_SEQUENCE, "0");
    }
}

/// `MM/dd/yyyy HH:mm:ss`, the invariant form that .NET CAP writes since 8.3; in UTC.
fn sent_time(now: Timestamp) -> String {
    let rfc3339 = now.to_string();
    let part = |range: std::ops::Range<usize>| rfc3339.get(range).unwrap_or_default();
    format!("{}/{}/{} {}", part(5..7), part(8..10), part(0..4), part(11..19))
}

/// .NET's constant ("c") format of a time span: `[d.]hh:mm:ss[.fffffff]`.
fn time_span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let mut text = if days > 0 { format!("{days}.") } else { String::new() };
    text.push_str(&format!("{hours:02}:{minutes:02}:{:02}", seconds % 60));
    let ticks = span.subsec_nanos() / 100;
    if ticks > 0 {
        text.push_str(&format!(".{ticks:07}"));
    }
    text
}

/// For replies and other messages whose payload is already JSON.
pub(crate) fn json_bytes(topic: &str, payload: Bytes) -> Publish {
    Publish::bytes(topic, payload, codec::JSON)
}

#[cfg(test)]
mod tests {
    use cap_core::{ErrorKind, Status, content};

    use super::*;

    fn preparer() -> Preparer {
        let (content_limit, place, ascii_only) = (None, "a database".to_owned(), false);
        Preparer {
            version: Version::default(),
            service: "orders".into(),
            topic_prefix: None,
            payload_limit: 32,
            content_limit,
            place,
            ascii_only,
            stored_form: StoredForm::Own,
        }
    }

    fn unwrap(record: &NewRecord) -> Message {
        content::unwrap(&record.content, &record.topic, &record.message_id).unwrap()
    }

    #[test]
    fn a_prepared_message_has_caps_headers() {
        let record = preparer().prepare(Publish::json("order.placed", &5).callback("order.billed")).unwrap();
        let message = unwrap(&record);
        let header = |name| message.headers.get(name).unwrap().to_owned();
        assert_eq!(header("cap-msg-id"), record.message_id.as_str());
        assert_eq!(header("cap-corr-id"), record.message_id.as_str());
        assert_eq!(header("cap-corr-seq"), "0");
        assert_eq!(header("cap-msg-name"), "order.placed");
        assert_eq!(header("cap-msg-type"), "i32");
        assert_eq!(header("cap-callback-name"), "order.billed");
        assert_eq!(record.state.status(), Status::Scheduled);
    }

    #[test]
    fn callers_may_not_set_reserved_or_unprintable_names() {
        for bad in ["", "a\nb", "cap-msg-id", "CAP-MSG-ID", &"n".repeat(256)] {
            let headers = Headers::from_iter([(bad, "x")]);
            let error = check_callers(&headers).unwrap_err().to_string();
            assert!(error.contains("header"), "{error}");
        }
        assert!(check_callers(&Headers::from_iter([("traceparent", "x"), ("cap-kafka-key", "k")])).is_ok());
    }

    #[test]
    fn sent_time_and_delay_have_nets_invariant_forms() {
        assert_eq!(sent_time(Timestamp::from_micros(1_782_921_740_000_000)), "07/01/2026 16:02:20");
        assert_eq!(time_span(Duration::from_secs(90_061)), "1.01:01:01");
        assert_eq!(time_span(Duration::from_millis(1_500)), "00:00:01.5000000");
    }

    #[test]
    fn what_cannot_be_published_is_told_before_anything_is_written() {
        let refused = |publish: Publish| preparer().prepare(publish).unwrap_err();
        let error = refused(Publish::json("order.placed", &"x".repeat(40)));
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("42 bytes, the limit is 32"), "{error}");
        assert!(refused(Publish::json("", &1)).to_string().contains("topic"));
        assert!(refused(Publish::json("t", &1).header("cap-msg-id", "7")).to_string().contains("cap-msg-id"));
        assert!(refused(Publish::json("t", &1).id("")).to_string().contains("message id"));
        assert!(refused(Publish::json("t", &1).callback("a*")).to_string().contains("a*"));
        let not_json = std::collections::HashMap::from([((1, 2), 3)]);
        assert_eq!(refused(Publish::json("t", &not_json)).kind(), ErrorKind::Invalid);
    }

    #[test]
    fn what_the_storage_cannot_store_is_told_before_anything_is_written() {
        let small = Preparer { content_limit: Some(100), ..preparer() };
        let error = small.prepare(Publish::json("order.placed", &5)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("a database takes at most 100"), "{error}");
        let ascii = Preparer { ascii_only: true, ..preparer() };
        assert!(ascii.prepare(Publish::json("注文", &5)).unwrap_err().to_string().contains("ASCII"));
        let record = ascii.prepare(Publish::json("order.placed", &"日本")).unwrap();
        assert!(record.content.is_ascii());
        assert_eq!(unwrap(&record).payload, "\"日本\"");
    }

    #[test]
    fn a_topic_prefix_goes_before_topic_and_callback() {
        let preparer = Preparer { topic_prefix: Some("shop".into()), ..preparer() };
        let message = unwrap(&preparer.prepare(Publish::json("a", &1).callback("b")).unwrap());
        assert_eq!((message.topic.as_str(), message.callback()), ("shop.a", Some("shop.b")));
    }
}
