//! What happened, as JSON lines: each life of each process has a file of its own, and each line is one write, so that
//! it survives a SIGKILL of its writer.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::backend::Fallible;
use crate::database::now_micros;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Microseconds since 1970, by the host's clock.
    pub(crate) at: i64,
    /// Which process.
    pub(crate) who: String,
    /// What.
    #[serde(flatten)]
    pub(crate) what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum What {
    /// The process' engine runs.
    Started,
    /// A business transaction is about to begin. Without a later line about it its outcome is unknown, and the
    /// business tables tell.
    Begun { id: i64 },
    /// The driver said that it is committed.
    Committed { id: i64 },
    /// The driver said that it is rolled back.
    RolledBack { id: i64 },
    /// A handler was called. For the group `audit` this line is the effect itself.
    Handled { group: String, id: i64, attempt: u32 },
    /// The nemesis did something.
    Attack { on: String },
    /// A server was away, or a role had no process that ran, from then until this line.
    Outage {
        of: String,
        from: i64,
        /// Who must say that they are ill meanwhile.
        ails: Option<Ails>,
    },
    /// Whether the process' engine says that it is ready, and which of its loops say that they are ill, and why: when that changes,
    /// and otherwise once a second for as long as the process runs.
    Health { ready: bool, ill: Vec<String> },
    /// A message that makes trouble is about to be stored in the outbox: its number, and its message id. Committed if
    /// that is said later, and otherwise if CAP's tables have it.
    Trouble { id: i64, message: String },
    /// A nemesis was at work, or none, from then until this line; judged: its neighbours are to keep their speed.
    Window { of: String, from: i64, judged: bool },
}

impl What {
    /// An outage until now, of which nobody need say anything.
    pub(crate) fn outage(of: impl Into<String>, from: i64) -> Self {
        Self::Outage { of: of.into(), from, ails: None }
    }
}

/// Who must say that they are ill while an outage lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ails {
    /// Only the processes that consume.
    pub(crate) only_consumers: bool,
    /// So many microseconds after its beginning.
    pub(crate) within: i64,
}

/// Where a process writes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    who: Arc<str>,
    file: Arc<Mutex<File>>,
}

impl Recorder {
    /// A new file in `folder` for one life of a process.
    pub(crate) fn create(folder: &Path, who: &str, life: u32) -> Fallible<Self> {
        let path = folder.join(format!("{who}-{life}.jsonl"));
        let file = OpenOptions::new().create_new(true).append(true).open(path)?;
        Ok(Self { who: who.into(), file: Arc::new(Mutex::new(file)) })
    }

    /// Writes it down, now.
    pub(crate) fn record(&self, what: What) -> std::io::Result<()> {
        let event = Event { at: now_micros(), who: self.who.to_string(), what };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }

    /// A handler was called.
    pub(crate) fn handled(&self, group: &str, id: i64, attempt: u32) -> std::io::Result<()> {
        self.record(What::Handled { group: group.to_owned(), id, attempt })
    }
}

/// All events of all files, in the order of time. A last line that a kill cut off is left out.
pub(crate) fn read(folder: &Path) -> Fallible<Vec<Event>> {
    let mut events = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            events.push(serde_json::from_str(line).map_err(|error| format!("{}: {error}: {line}", path.display()))?);
        }
    }
    events.sort_by_key(|event: &Event| event.at);
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_and_a_cut_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(folder.path(), "publisher-0", 1).unwrap();
        recorder.record(What::Committed { id: 7 }).unwrap();
        recorder.handled("audit", 7, 2).unwrap();
        recorder.file.lock().unwrap().write_all(br#"{"at":1,"who":"#).unwrap();
        let events = read(folder.path()).unwrap();
        let whats: Vec<_> = events.into_iter().map(|event| event.what).collect();
        let handled = What::Handled { group: "audit".into(), id: 7, attempt: 2 };
        assert_eq!(whats, [What::Committed { id: 7 }, handled]);
    }
}
