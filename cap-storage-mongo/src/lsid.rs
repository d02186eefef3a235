//! The server's sessions on which this process has had transactions.
//!
//! The server keeps what a transaction has written locked until it ends, also when its client has died: for a minute, by
//! default. So each node tells, with its heartbeats, on which sessions the transactions of its process are, and who
//! takes over from a dead node has the server end them. Ending one is always safe: what is not committed is taken back.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use mongodb::bson::{Bson, Document};

/// The driver uses a session again that is free, so there are as many as there were transactions at one time. Those that
/// were begun longest ago are forgotten beyond this number.
const REMEMBERED: usize = 512;

/// As documents, the latest last.
#[derive(Debug, Default)]
pub(crate) struct Lsids(Mutex<VecDeque<Document>>);

impl Lsids {
    /// A transaction is to be begun on it.
    pub(crate) fn note(&self, lsid: &Document) {
        let mut lsids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = lsids.iter().rposition(|known| known == lsid) {
            lsids.remove(place);
        }
        lsids.push_back(lsid.clone());
        if lsids.len() > REMEMBERED {
            lsids.pop_front();
        }
    }

    /// All of them, to be stored.
    pub(crate) fn list(&self) -> Vec<Bson> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().map(Bson::from).collect()
    }

    /// Those of a dead node's that are not this process's own: it may have been that node before.
    pub(crate) fn foreign(&self, stored: &Document) -> Vec<Bson> {
        let Ok(stored) = stored.get_array("Sessions") else { return Vec::new() };
        let own = self.list();
        stored.iter().filter(|lsid| lsid.as_document().is_some() && !own.contains(lsid)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_session_is_remembered_once_and_the_oldest_are_forgotten() {
        let lsids = Lsids::default();
        for number in 0..REMEMBERED {
            lsids.note(&doc! { "id": i64::try_from(number).unwrap() });
        }
        lsids.note(&doc! { "id": 0_i64 });
        assert_eq!(lsids.list().len(), REMEMBERED);
        lsids.note(&doc! { "id": -1_i64 });
        let list = lsids.list();
        assert!(list.contains(&doc! { "id": 0_i64 }.into()), "it was used again");
        assert!(!list.contains(&doc! { "id": 1_i64 }.into()), "it was used longest ago");
    }

    #[test]
    fn a_process_does_not_end_its_own_sessions() {
        let lsids = Lsids::default();
        lsids.note(&doc! { "id": 1 });
        let node = doc! { "Sessions": [{ "id": 1 }, { "id": 2 }, "odd"] };
        assert_eq!(lsids.foreign(&node), [doc! { "id": 2 }.into()]);
        assert!(lsids.foreign(&doc! {}).is_empty());
    }
}
