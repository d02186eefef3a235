//! What publishing answers.

use crate::id::MessageId;
use crate::storage::Inserted;

/// What one publish call stored: an entry for each message, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    entries: Vec<(MessageId, bool)>,
}

impl Published {
    /// Of messages with these ids, what became of each when they were inserted: for what answers a publish call, such as a
    /// [`Receipt`](crate::storage::Receipt).
    pub fn new(ids: Vec<MessageId>, inserted: &[Inserted]) -> Self {
        debug_assert_eq!(ids.len(), inserted.len());
        let stored = inserted.iter().map(|outcome| matches!(outcome, Inserted::Stored(_)));
        Self { entries: ids.into_iter().zip(stored).collect() }
    }

    /// The id of the message (the first, if there are several).
    ///
    /// # Panics
    /// When nothing was published: `publish_many` of an empty list.
    pub fn id(&self) -> &MessageId {
        &self.entries.first().expect("at least one message was published").0
    }

    /// The ids, in the order given.
    pub fn ids(&self) -> impl Iterator<Item = &MessageId> {
        self.entries.iter().map(|(id, _)| id)
    }

    /// The ids that were there already: nothing was stored for them.
    pub fn duplicates(&self) -> impl Iterator<Item = &MessageId> {
        self.entries.iter().filter(|(_, stored)| !stored).map(|(id, _)| id)
    }

    /// Whether any of the messages was there already.
    pub fn is_duplicate(&self) -> bool {
        self.duplicates().next().is_some()
    }
}
