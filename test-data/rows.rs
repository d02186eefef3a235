// Shared by the tests of storages (`#[path]`): rows of .NET CAP, and what is to become of them.

use cap_core::storage::Record;
use cap_core::{Status, content};
use serde_json::Value;

/// A row, as .NET CAP left it.
pub(crate) struct Row {
    pub(crate) table: String,
    pub(crate) columns: Value,
}

pub(crate) fn rows(lines: &str) -> Vec<Row> {
    let rows = lines.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        Row { table: line["table"].as_str().unwrap().to_owned(), columns: line["row"].take() }
    });
    rows.collect()
}

impl Row {
    pub(crate) fn text(&self, column: &str) -> Option<&str> {
        self.columns[column].as_str()
    }

    pub(crate) fn id(&self) -> i64 {
        self.columns["Id"].as_i64().unwrap()
    }

    /// Whether .NET CAP would still have done something with it.
    pub(crate) fn is_open(&self) -> bool {
        self.text("StatusName") != Some("Succeeded")
    }

    /// A wrapper's member, whatever capitals it was given.
    fn member(wrapper: &Value, name: &str) -> Value {
        let members = wrapper.as_object().unwrap().iter();
        members.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).unwrap().1.clone()
    }

    /// Checks what became of it: status, attempts and times, the message's id, its headers and its payload.
    pub(crate) fn check(&self, record: &Record) {
        let status = self.text("StatusName").unwrap();
        assert_eq!(record.status.as_str(), status, "{}", self.columns);
        assert_eq!(u64::from(record.attempts), self.columns["Retries"].as_u64().unwrap(), "{}", self.columns);
        let same_time = |ours: Option<cap_core::Timestamp>, theirs: Option<&str>| match (ours, theirs) {
            (Some(ours), Some(theirs)) => ours.to_string().starts_with(&theirs.replace(' ', "T")),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        let expires = self.text("ExpiresAt");
        match record.status {
            Status::Succeeded => assert!(record.due.is_none() && same_time(record.expires, expires), "{record:?}"),
            Status::Delayed => assert!(record.expires.is_none() && same_time(record.due, expires), "{record:?}"),
            // None of them had used up its attempts: they go on.
            _ => assert!(record.expires.is_none() && record.due.is_some(), "{record:?}"),
        }

        let wrapper: Value = serde_json::from_str(self.text("Content").unwrap()).unwrap();
        let (headers, value) = (Self::member(&wrapper, "Headers"), Self::member(&wrapper, "Value"));
        let message = content::unwrap(&record.content, &record.topic, &record.message_id).unwrap();
        assert_eq!(Some(message.id.as_str()), headers["cap-msg-id"].as_str());
        for (name, value) in headers.as_object().unwrap() {
            assert_eq!(message.headers.get(name), value.as_str(), "{name} of {}", self.columns);
        }
        if value.is_null() {
            assert!(message.payload.is_empty());
        } else {
            assert_eq!(serde_json::from_slice::<Value>(&message.payload).unwrap(), value);
        }
    }
}
