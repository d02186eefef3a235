//! The server's clock between two looks at it.
//!
//! A look costs a round trip, and a transaction that publishes has only a few. So what the server said is kept for a
//! while, and the process's monotonic clock counts on from there. As the server said it before we heard it, the result is
//! never ahead of the server's clock, and behind it by no more than the look took: what is due at once is due when it is
//! stored.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, Document, RawDocumentBuf};

/// How long the server's word is good for: clocks drift, and another member may become primary.
const KEPT: Duration = Duration::from_secs(10);

/// More sessions than this that published in that time are asked for anew.
const REMEMBERED: usize = 1024;

/// What the server said, and when that was heard, by session: a session of the user's may be one of another cluster, and
/// with the same look it was seen that our collections are there.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<HashMap<Vec<u8>, (DateTime, Instant)>>);

impl Clock {
    fn readings(&self) -> MutexGuard<'_, HashMap<Vec<u8>, (DateTime, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clock now of the session's server, if it was looked at not long ago.
    pub(crate) fn now(&self, lsid: &Document) -> Option<DateTime> {
        let (said, heard) = *self.readings().get(&key(lsid))?;
        let since = heard.elapsed();
        if since > KEPT {
            return None;
        }
        let since = i64::try_from(since.as_millis()).unwrap_or_default();
        Some(DateTime::from_millis(said.timestamp_millis().saturating_add(since)))
    }

    /// The session's server said this a moment ago.
    pub(crate) fn heard(&self, lsid: &Document, said: DateTime) {
        let mut readings = self.readings();
        if readings.len() >= REMEMBERED {
            readings.retain(|_, (_, heard)| heard.elapsed() <= KEPT);
        }
        if readings.len() >= REMEMBERED {
            readings.clear();
        }
        readings.insert(key(lsid), (said, Instant::now()));
    }
}

fn key(lsid: &Document) -> Vec<u8> {
    RawDocumentBuf::try_from(lsid).map(RawDocumentBuf::into_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn it_counts_on_from_what_the_server_said_to_each_session() {
        let clock = Clock::default();
        let (one, other) = (doc! { "id": 1 }, doc! { "id": 2 });
        clock.heard(&one, DateTime::from_millis(1_000));
        std::thread::sleep(Duration::from_millis(3));
        let now = clock.now(&one).unwrap().timestamp_millis();
        assert!((1_003..2_000).contains(&now), "{now}");
        assert_eq!(clock.now(&other), None);
    }

    #[test]
    fn it_remembers_no_more_sessions_than_it_may() {
        let clock = Clock::default();
        for number in 0..2 * i64::try_from(REMEMBERED).unwrap() {
            clock.heard(&doc! { "id": number }, DateTime::from_millis(0));
        }
        assert!(clock.readings().len() <= REMEMBERED);
    }

    #[test]
    fn an_old_word_is_not_taken() {
        let (clock, lsid) = (Clock::default(), doc! { "id": 1 });
        let old = Instant::now().checked_sub(KEPT + Duration::from_secs(1)).unwrap();
        clock.readings().insert(key(&lsid), (DateTime::from_millis(0), old));
        assert_eq!(clock.now(&lsid), None);
    }
}
