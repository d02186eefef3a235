//! Where a claim begins to read.
//!
//! While somebody holds a snapshot open, the index keeps an entry for each record that was due since then, and a claim reads
//! past all of them; and so it does past all records that wait because their topic is excepted. Once that takes long, claims of the lane begin a while before the time at which one left nothing due
//! behind. What has come to be due before that later on (a transaction that published and committed long afterwards, a time
//! that was over when it was given) waits for the next claim that reads everything, [`FOR`] from now at most.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cap_core::storage::{ClaimRequest, Claimed, Lane};
use cap_core::{Timestamp, Topic, Version};

/// A claim that takes less time reads everything: nothing is to be gained.
const SLOW: Duration = Duration::from_millis(40);

/// So many have to be slow, one after the other: a single one may have other reasons, such as a busy machine.
const ENOUGH: u32 = 3;

/// How long claims begin at a floor before one reads everything again.
const FOR: Duration = Duration::from_secs(2);

/// How far a floor lies before the time at which nothing was due: how late most transactions may commit.
const GRACE: Duration = Duration::from_secs(10);

/// The floors of the lanes that one handle claims from.
#[derive(Debug, Default)]
pub(crate) struct Floors(Mutex<HashMap<(Lane, Version), Known>>);

/// What is known of a lane whose claims are slow.
#[derive(Debug, Default)]
struct Known {
    slow: u32,
    floor: Option<Floor>,
    /// What is due before the floor may be of these topics.
    except: Vec<Topic>,
}

/// The floor of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) due: Timestamp,
    until: Instant,
}

impl Floors {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Lane, Version), Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That of this lane, if it has one, for claims that leave these topics alone.
    pub(crate) fn of(&self, lane: &Lane, version: &Version, except: &[Topic], now: Instant) -> Option<Floor> {
        let known = self.lock();
        if known.is_empty() {
            return None;
        }
        let key = (lane.clone(), version.clone());
        let known = known.get(&key)?;
        let leaves_all = known.except.iter().all(|topic| except.contains(topic));
        known.floor.filter(|floor| leaves_all && now < floor.until)
    }

    /// Notes that a claim that read everything took so long, and was answered this at `asked` by the server's clock.
    pub(crate) fn learn(
        &self,
        request: &ClaimRequest,
        claimed: &Claimed,
        asked: Timestamp,
        took: Duration,
        now: Instant,
    ) {
        let left_nothing = claimed.records.len() < request.limit && claimed.next_due != Some(Duration::ZERO);
        if !left_nothing {
            return;
        }
        let key = (request.lane.clone(), request.version.clone());
        if took < SLOW {
            self.lock().remove(&key);
            return;
        }
        let due = asked.as_micros().saturating_sub(i64::try_from(GRACE.as_micros()).unwrap_or(i64::MAX));
        let floor = Floor { due: Timestamp::from_micros(due), until: now + FOR };
        let mut known = self.lock();
        let known = known.entry(key).or_default();
        known.slow = known.slow.saturating_add(1);
        known.floor = (known.slow >= ENOUGH).then_some(floor);
        known.except.clone_from(&request.except);
    }
}

impl Floor {
    /// What a claim that began here answers: ask again when one is to read everything.
    pub(crate) fn answer(self, claimed: Claimed, limit: usize, now: Instant) -> Claimed {
        let next_due = (claimed.records.len() < limit).then(|| self.wait(claimed.next_due, now));
        Claimed { next_due, ..claimed }
    }

    /// The same for when the next record is due that a look from here on has found.
    pub(crate) fn wait(self, next_due: Option<Duration>, now: Instant) -> Duration {
        let left = self.until.saturating_duration_since(now);
        next_due.map_or(left, |next| next.min(left))
    }
}

#[cfg(test)]
mod tests {
    use cap_core::NodeId;
    use cap_core::storage::Claim;

    use super::*;

    const ASKED: Timestamp = Timestamp::from_micros(60_000_000);

    fn request(lane: Lane) -> ClaimRequest {
        ClaimRequest::new(lane, Version::default(), Claim::by(NodeId::generate()), 10)
    }

    #[test]
    fn slow_claims_that_left_nothing_set_a_floor_for_a_while() {
        let (floors, now) = (Floors::default(), Instant::now());
        let outbox = request(Lane::Outbox);
        for _ in 0..ENOUGH {
            assert_eq!(floors.of(&outbox.lane, &outbox.version, &[], now), None);
            floors.learn(&outbox, &Claimed::default(), ASKED, SLOW, now);
        }
        let floor = floors.of(&outbox.lane, &outbox.version, &[], now).unwrap();
        assert_eq!(floor.due, Timestamp::from_micros(50_000_000));
        let another = Lane::Inbox("g".try_into().unwrap());
        assert_eq!(floors.of(&another, &outbox.version, &[], now), None);
        let later = now + FOR / 2;
        assert_eq!(floor.answer(Claimed::default(), 10, later).next_due, Some(FOR / 2), "all is read then");
        let sooner = Claimed { next_due: Some(Duration::from_millis(3)), ..Claimed::default() };
        assert_eq!(floor.answer(sooner, 10, later).next_due, Some(Duration::from_millis(3)));
        assert_eq!(floors.of(&outbox.lane, &outbox.version, &[], now + FOR), None);
        // While it stays slow one claim in a while is, until one is fast again.
        floors.learn(&outbox, &Claimed::default(), ASKED, SLOW, now + FOR);
        assert!(floors.of(&outbox.lane, &outbox.version, &[], now + FOR).is_some());
        floors.learn(&outbox, &Claimed::default(), ASKED, SLOW / 2, now + FOR * 2);
        floors.learn(&outbox, &Claimed::default(), ASKED, SLOW, now + FOR * 2);
        assert_eq!(floors.of(&outbox.lane, &outbox.version, &[], now + FOR * 2), None);
    }

    #[test]
    fn a_fast_claim_and_one_that_left_something_set_none() {
        let (floors, now) = (Floors::default(), Instant::now());
        let outbox = request(Lane::Outbox);
        for _ in 1..ENOUGH {
            floors.learn(&outbox, &Claimed::default(), ASKED, SLOW, now);
        }
        let left = Claimed { next_due: Some(Duration::ZERO), ..Claimed::default() };
        floors.learn(&outbox, &left, ASKED, SLOW, now);
        floors.learn(&ClaimRequest { limit: 0, ..outbox.clone() }, &Claimed::default(), ASKED, SLOW, now);
        assert_eq!(floors.of(&outbox.lane, &outbox.version, &[], now), None);
    }

    #[test]
    fn what_an_excepted_topic_has_below_the_floor_is_passed_over_only_while_it_is_excepted() {
        let (floors, now) = (Floors::default(), Instant::now());
        let [a, b] = ["a", "b"].map(|topic| Topic::try_from(topic).unwrap());
        let request = ClaimRequest { except: vec![a.clone()], ..request(Lane::Outbox) };
        for _ in 0..ENOUGH {
            floors.learn(&request, &Claimed::default(), ASKED, SLOW, now);
        }
        let has_floor = |except: &[Topic]| floors.of(&request.lane, &request.version, except, now).is_some();
        assert!(has_floor(std::slice::from_ref(&a)) && has_floor(&[b.clone(), a]));
        assert!(!has_floor(&[]) && !has_floor(&[b]));
    }
}
