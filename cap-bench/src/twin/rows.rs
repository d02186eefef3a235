//! Rows as the twins write them: the same columns, of the same size, as those of the engine.

use std::borrow::Cow;
use std::collections::BTreeMap;

use cap_core::MessageId;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::backend::{Arrived, Fallible, InboxRow, OutboxRow};

/// An outbox row whose payload is `payload` as JSON.
pub(crate) fn outbox_row(number: i64, topic: &str, payload: &str) -> OutboxRow {
    let message_id = MessageId::generate().to_string();
    let content = wrapped(&message_id, topic, payload);
    OutboxRow { number, topic: topic.to_owned(), message_id, content }
}

/// The column `Content` of a row.
pub(crate) fn wrapped(message_id: &str, topic: &str, payload: &str) -> String {
    format!(
        r#"{{"Id":"{message_id}","Timestamp":"2026-01-01T00:00:00.000000Z","Content":{payload},"CallbackName":null,"Headers":{{"cap-corr-id":"{message_id}","cap-corr-seq":"0","cap-msg-id":"{message_id}","cap-msg-name":"{topic}","cap-msg-type":"String","cap-senttime":"01/01/2026 00:00:00"}}}}"#
    )
}

/// The message in the column `Content` of a row.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Opened<'a> {
    #[serde(borrow)]
    pub(crate) content: &'a RawValue,
    #[serde(borrow)]
    pub(crate) headers: BTreeMap<&'a str, Cow<'a, str>>,
}

/// Reads the column `Content` of a row.
pub(crate) fn opened(content: &str) -> Fallible<Opened<'_>> {
    Ok(serde_json::from_str(content)?)
}

/// The inbox row of a message that arrived, with all its headers and the group's.
pub(crate) fn inbox_row(arrived: Arrived, group: &str) -> Fallible<InboxRow> {
    let Arrived { message_id, mut headers, body, .. } = arrived;
    headers.insert(cap_core::headers::MESSAGE_GROUP.to_owned(), group.to_owned());
    let (payload, headers) = (std::str::from_utf8(&body)?, serde_json::to_string(&headers)?);
    let content = format!(
        r#"{{"Id":"{message_id}","Timestamp":"2026-01-01T00:00:00.000000Z","Content":{payload},"CallbackName":null,"Headers":{headers}}}"#
    );
    Ok(InboxRow { message_id, content })
}

/// The payload in a wrapper object of ours that starts with the fixed members, without parsing the rest: as a
/// hand-written consumer that knows its own rows would.
pub(crate) fn number_in(content: &str) -> Option<i64> {
    let (_, rest) = content.split_once(r#""Content":"#)?;
    let digits: String = rest.chars().skip_while(|c| *c == '"').take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use cap_core::{MessageId, Topic, content};

    use super::*;

    #[test]
    fn the_twins_rows_are_rows_that_the_engine_reads() {
        let topic = Topic::try_from("order.placed").unwrap();
        let row = outbox_row(7, topic.as_str(), r#""7-xxxx""#);
        let message = content::unwrap(&row.content, &topic, &MessageId::generate()).unwrap();
        assert_eq!(message.id.as_str(), row.message_id);
        assert_eq!(&message.payload[..], br#""7-xxxx""#);
        assert_eq!(number_in(&row.content), Some(7));
    }
}
