//! What CAP's own tables hold at the end of a run, as far as it matters: the dead, and the records of trouble.

use cap_core::storage::{Query, Record, Storage, Table};
use cap_core::{MessageId, Status};

use crate::backend::{Fallible, Names};
use crate::crash::roles::GROUPS;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remaining {
    /// The message's id.
    pub(crate) message: String,
    /// The group's short name, in the inbox.
    pub(crate) group: Option<&'static str>,
    /// It will not be tried again.
    pub(crate) dead: bool,
    /// Why the last attempt failed, or it is dead; cut.
    pub(crate) reason: Option<String>,
}

/// Reasons may have megabytes.
const REASON: usize = 200;
const PAGE: usize = 200;

/// The dead of both tables, and all records of these messages.
pub(crate) async fn read(storage: &dyn Storage, names: &Names, messages: &[MessageId]) -> Fallible<Vec<Remaining>> {
    let mut remains = Vec::new();
    for table in [Table::Outbox, Table::Inbox] {
        let mut query = Query { status: Some(Status::Failed), limit: PAGE, ..Query::default() };
        loop {
            let page = storage.list(table, query.clone()).await?;
            remains.extend(page.iter().filter(|record| is_dead(record)).map(|record| remaining(record, names)));
            query.after = page.last().map(|record| record.id);
            if page.len() < PAGE {
                break;
            }
        }
        for message in messages {
            let query = Query { message_id: Some(message.clone()), limit: PAGE, ..Query::default() };
            let page = storage.list(table, query).await?;
            remains.extend(page.iter().filter(|record| !is_dead(record)).map(|record| remaining(record, names)));
        }
    }
    Ok(remains)
}

/// Whether a message has come to its end everywhere: it is dead in the outbox, or succeeded or dead in so many groups.
pub(crate) async fn is_over(storage: &dyn Storage, message: &MessageId, groups: usize) -> Fallible<bool> {
    let query = Query { message_id: Some(message.clone()), limit: PAGE, ..Query::default() };
    let sent = storage.list(Table::Outbox, query.clone()).await?;
    let received = storage.list(Table::Inbox, query).await?;
    let is_terminal = |record: &&Record| is_dead(record) || record.status == Status::Succeeded;
    Ok(sent.iter().any(is_dead) || received.iter().filter(is_terminal).count() >= groups)
}

fn is_dead(record: &Record) -> bool {
    record.status == Status::Failed && record.due.is_none()
}

fn remaining(record: &Record, names: &Names) -> Remaining {
    let queue = record.group.as_ref().map(|group| group.as_str().to_owned());
    let cut = |reason: &String| reason.chars().take(REASON).collect();
    Remaining {
        message: record.message_id.as_str().to_owned(),
        group: GROUPS.into_iter().find(|group| queue.as_deref() == Some(&names.queue_of(group))),
        dead: is_dead(record),
        reason: record.reason.as_ref().map(cut),
    }
}
