//! Deliveries whose id is in the inbox already: the same message once more, another one, or one that contradicts it.
//!
//! The engine's own ids are unique in the world. One that a caller chose means something only beside its topic and the
//! service that publishes it: two services that both say `42` are not to silence each other. And whoever sends something
//! else under an id that is known must not have it dropped in silence. So a duplicate is looked at before it counts as one.

use std::sync::Arc;

use cap_core::storage::Query;
use cap_core::{Error, ErrorKind, Message, MessageId, Result, Table, content, headers};
use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::engine::arrival::Arrival;
use crate::engine::group::Group;

/// So many duplicates are looked at at once.
const LOOKS: usize = 8;

/// What the inbox knows an arrival by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// By its id alone: so it is tried first.
    Id,
    /// By its topic, its publisher and its id, as another message has the same id.
    Scoped,
    /// By its content as well, as it contradicts the message that it claims to be.
    Contradiction,
}

/// What a duplicate is.
#[derive(Debug, PartialEq, Eq)]
enum Twin {
    /// The same message.
    Same,
    /// Another one.
    Another,
    /// One that says that it is the same, and differs.
    Contradicts,
}

/// Looks at the arrivals at `places`, which were found to be duplicates. Answers the places of those that are to be stored
/// after all, under what the inbox is to know them by from now on, and of those that could not be looked at, with why.
pub(crate) async fn look(
    engine: &Arc<Engine>,
    group: &Arc<Group>,
    arrivals: &mut [Arrival],
    places: &[usize],
) -> (Vec<usize>, Option<Error>) {
    let (mut again, mut failed) = (Vec::new(), None);
    let mut looks = JoinSet::new();
    let places: Vec<usize> = places.iter().copied().filter(|place| arrivals[*place].may_have_twins()).collect();
    let mut places = places.into_iter();
    loop {
        while looks.len() < LOOKS
            && let Some(place) = places.next()
        {
            let id = arrivals[place].record.message_id.clone();
            looks.spawn(stored(Arc::clone(engine), Arc::clone(group), id, place));
        }
        let Some(looked) = looks.join_next().await else { break };
        let (place, stored) = match looked {
            Ok(looked) => looked,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        match stored {
            Ok(Some(stored)) if arrivals[place].meets(group, &stored) => again.push(place),
            // If it is gone since, or not to be read, nothing can be said against its being the same.
            Ok(_) => {}
            Err(error) => {
                again.push(place);
                failed = Some(error);
            }
        }
    }
    again.sort_unstable();
    (again, failed)
}

/// The message that the inbox has under `id`.
async fn stored(
    engine: Arc<Engine>,
    group: Arc<Group>,
    id: MessageId,
    place: usize,
) -> (usize, Result<Option<Message>>) {
    let query = Query { group: Some(group.name.clone()), message_id: Some(id), limit: 1, ..Query::default() };
    let found = engine.storage.list(Table::Inbox, query).await;
    let read = found.map(|records| {
        let record = records.into_iter().next()?;
        content::unwrap(&record.content, &record.topic, &record.message_id).ok()
    });
    // Whatever ails it, it is no fault of the duplicate.
    (place, read.map_err(|error| Error::new(ErrorKind::Unavailable, "look at", "a duplicate", error.reason())))
}

impl Arrival {
    /// Compares itself with what is stored under its id; answers whether it is to be stored under another.
    fn meets(&mut self, group: &Group, stored: &Message) -> bool {
        let (id, topic) = (self.message.id.clone(), self.message.topic.clone());
        match compare(&self.message, stored) {
            Twin::Same => false,
            Twin::Another if self.identity == Identity::Id => {
                self.identity = Identity::Scoped;
                self.record.message_id = scoped(&self.message);
                tracing::info!(
                    messaging.message.id = %id.shown(),
                    messaging.destination.name = %topic.shown(),
                    messaging.consumer.group.name = %group.name.shown(),
                    "another message has the same id, from another publisher or to another topic: both are handled"
                );
                true
            }
            Twin::Another | Twin::Contradicts => {
                let reason = format!(
                    "it has the id `{}` of a message that was received before and has another content (SHA-256 {}, this \
                     one {}): that one counts, and this one is kept for a person to look at",
                    id.shown(),
                    content::digest(&stored.payload),
                    content::digest(&self.message.payload)
                );
                let digest = content::digest(&self.message.payload);
                self.identity = Identity::Contradiction;
                self.record.message_id =
                    MessageId::derive(&[b"contradicts", self.record.message_id.as_str().as_bytes(), digest.as_bytes()]);
                self.park(&reason, group);
                true
            }
        }
    }
}

fn compare(arrived: &Message, stored: &Message) -> Twin {
    let publisher = |message: &Message| message.headers.get(headers::PUBLISHER).map(str::to_owned);
    if arrived.topic != stored.topic || publisher(arrived) != publisher(stored) {
        return Twin::Another;
    }
    match is_same_payload(&arrived.payload, &stored.payload) {
        true => Twin::Same,
        false => Twin::Contradicts,
    }
}

/// To the byte, or the same JSON: another implementation may write it otherwise.
fn is_same_payload(arrived: &[u8], stored: &[u8]) -> bool {
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    arrived == stored || json(arrived).is_some_and(|arrived| Some(arrived) == json(stored))
}

fn scoped(message: &Message) -> MessageId {
    let publisher = message.headers.get(headers::PUBLISHER).unwrap_or_default();
    MessageId::derive(&[b"of", publisher.as_bytes(), message.topic.as_str().as_bytes(), message.id.as_str().as_bytes()])
}

#[cfg(test)]
mod tests {
    use cap_core::Topic;

    use super::*;

    fn message(topic: &str, publisher: Option<&str>, payload: &str) -> Message {
        let headers = publisher.into_iter().map(|publisher| (headers::PUBLISHER, publisher)).collect();
        let id = MessageId::try_from("42").unwrap();
        Message { id, topic: Topic::from_stored(topic), headers, payload: payload.to_owned().into() }
    }

    #[test]
    fn a_message_is_known_by_its_topic_its_publisher_and_its_id() {
        let first = message("a", Some("orders"), "1");
        assert_eq!(compare(&first, &first), Twin::Same);
        assert_eq!(compare(&message("b", Some("orders"), "1"), &first), Twin::Another);
        assert_eq!(compare(&message("a", Some("stock"), "1"), &first), Twin::Another);
        assert_eq!(compare(&message("a", None, "1"), &first), Twin::Another);
        assert_eq!(compare(&message("a", Some("orders"), "2"), &first), Twin::Contradicts);
        assert_ne!(scoped(&first), scoped(&message("b", Some("orders"), "1")));
        assert_ne!(scoped(&first), scoped(&message("a", Some("stock"), "1")));
    }

    #[test]
    fn json_that_is_written_otherwise_is_the_same() {
        assert!(is_same_payload(br#"{"a":1,"b":"\u00e9"}"#, "{ \"b\": \"é\", \"a\": 1 }".as_bytes()));
        assert!(!is_same_payload(b"\xff", b"\xfe"));
        assert!(!is_same_payload(b"", b"null"));
    }
}
