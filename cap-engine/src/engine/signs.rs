//! Which of the other nodes are dead, by a clock that nobody sets: that of this process.
//!
//! A sign of life names the end of a lease by the database's clock. What is left of the lease is counted once, when the sign
//! is first seen, and from then on by this process: a node is dead when that time has passed and its sign is still the same.
//! So a database's clock that steps back keeps nobody alive, and one that steps forward kills nobody: by how far it stepped
//! since this node's last look is known, and is given back to the signs that came in between. Only a node that was not
//! there before the step has nothing but the clock to go by.

use std::collections::HashMap;
use std::time::Duration;

use cap_core::storage::Sign;
use cap_core::time::FAR;
use cap_core::{NodeId, Timestamp};
use tokio::time::Instant;

/// A step of the database's clock by less than this is none, but the time that an answer took.
const STEP: Duration = Duration::from_secs(1);

/// The leases of one fleet are at most so many times as long as one another.
const TIMES: u32 = 10;

/// What a node knows of the others.
#[derive(Debug)]
pub(crate) struct Signs {
    /// No lease is longer than this: what a sign says of more was written before the clock stepped back.
    longest: Duration,
    /// The last sign of each, and when it is dead unless there is another.
    seen: HashMap<NodeId, (Timestamp, Instant)>,
    /// The last look, by both clocks.
    clocks: Option<(Instant, Timestamp)>,
}

impl Signs {
    /// Of a node with such a lease; the others' are at most ten times as long.
    pub(crate) fn new(lease: Duration) -> Self {
        Self { longest: lease.saturating_mul(TIMES).min(FAR), seen: HashMap::new(), clocks: None }
    }

    /// Learns the others' signs, as they were when the database's clock was at `now`, which was after `asked`. Answers
    /// whether it is the first look.
    pub(crate) fn look(&mut self, asked: Instant, now: Timestamp, others: Vec<Sign>) -> bool {
        let stepped = self.stepped(now);
        let here = Instant::now();
        let mut before = std::mem::take(&mut self.seen);
        for sign in others {
            let known = before.remove(&sign.node).filter(|(until, _)| *until == sign.until);
            let first_seen = || {
                let left = sign.until.as_micros().saturating_sub(now.as_micros());
                let left = left.saturating_add(cap_core::time::micros(stepped));
                here + Duration::from_micros(u64::try_from(left).unwrap_or(0)).min(self.longest)
            };
            let dies = known.map_or_else(first_seen, |(_, dies)| dies);
            self.seen.insert(sign.node, (sign.until, dies));
        }
        self.clocks.replace((asked, now)).is_none()
    }

    /// How far the database's clock has stepped forward since the last look.
    fn stepped(&self, now: Timestamp) -> Duration {
        let Some((asked, before)) = self.clocks else { return Duration::ZERO };
        let stepped = between(before, now).saturating_sub(asked.elapsed());
        if stepped < STEP {
            return Duration::ZERO;
        }
        tracing::warn!(?stepped, "the database's clock has stepped forward: what is due was due too early");
        stepped
    }

    /// When the first of them is dead, unless it gives another sign.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.seen.values().map(|(_, dies)| *dies).min()
    }

    /// The last signs of those that are dead.
    pub(crate) fn dead(&self) -> Vec<Sign> {
        let now = Instant::now();
        let dead = self.seen.iter().filter(|(_, (_, dies))| *dies <= now);
        dead.map(|(node, (until, _))| Sign { node: *node, until: *until }).collect()
    }
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    let micros = later.as_micros().saturating_sub(earlier.as_micros());
    Duration::from_micros(u64::try_from(micros).unwrap_or(0)).min(FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);
    const HOUR: i64 = 3_600_000_000;

    /// A database's clock, and another node that gives signs by it.
    struct Database {
        began: Instant,
        offset: i64,
        other: NodeId,
        until: i64,
    }

    impl Database {
        fn new() -> Self {
            Self { began: Instant::now(), offset: HOUR, other: NodeId::generate(), until: 0 }
        }

        fn now(&self) -> i64 {
            cap_core::time::micros(self.began.elapsed()) + self.offset
        }

        fn sign(&mut self) {
            self.until = self.now() + cap_core::time::micros(LEASE);
        }

        fn is_dead_to(&self, signs: &mut Signs) -> bool {
            let until = Timestamp::from_micros(self.until);
            signs.look(Instant::now(), Timestamp::from_micros(self.now()), vec![Sign { node: self.other, until }]);
            !signs.dead().is_empty()
        }
    }

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_dead_when_it_has_given_no_sign_for_its_lease() {
        let (mut database, mut signs) = (Database::new(), Signs::new(LEASE));
        for _ in 0..10 {
            database.sign();
            assert!(!database.is_dead_to(&mut signs));
            pass(LEASE / 3).await;
        }
        assert_eq!(signs.next(), Some(Instant::now() + LEASE - LEASE / 3));
        pass(LEASE - LEASE / 3).await;
        assert!(database.is_dead_to(&mut signs));
        assert_eq!(signs.dead()[0].node, database.other);
        signs.look(Instant::now(), Timestamp::from_micros(database.now()), Vec::new());
        assert_eq!((signs.dead().len(), signs.next()), (0, None), "it was taken over from");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_steps_back_keeps_nobody_alive() {
        let (mut database, mut signs) = (Database::new(), Signs::new(LEASE));
        database.sign();
        assert!(!database.is_dead_to(&mut signs));
        database.offset -= HOUR / 6;
        pass(LEASE / 2).await;
        assert!(!database.is_dead_to(&mut signs));
        pass(LEASE / 2).await;
        assert!(database.is_dead_to(&mut signs));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_from_before_a_step_back_keeps_nobody_alive_for_long() {
        let (mut database, mut signs) = (Database::new(), Signs::new(LEASE));
        database.sign();
        database.offset -= HOUR / 6;
        assert!(!database.is_dead_to(&mut signs));
        pass(LEASE * TIMES).await;
        assert!(database.is_dead_to(&mut signs));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_steps_forward_kills_nobody() {
        let (mut database, mut signs) = (Database::new(), Signs::new(LEASE));
        database.sign();
        assert!(!database.is_dead_to(&mut signs));
        pass(LEASE / 3).await;
        // One sign that was not seen before the step, and one that was.
        database.sign();
        for seen_before in [false, true] {
            assert!(!seen_before || !database.is_dead_to(&mut signs));
            pass(LEASE / 6).await;
            database.offset += HOUR;
            assert!(!database.is_dead_to(&mut signs), "seen before the step: {seen_before}");
            pass(LEASE / 6).await;
            assert!(!database.is_dead_to(&mut signs), "seen before the step: {seen_before}");
            database.sign();
        }
        assert!(!database.is_dead_to(&mut signs));
        pass(LEASE).await;
        assert!(database.is_dead_to(&mut signs));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_node_takes_from_the_dead_at_once() {
        let mut database = Database::new();
        database.sign();
        pass(LEASE).await;
        assert!(database.is_dead_to(&mut Signs::new(LEASE)));
    }
}
