//! A batch of settlements: which of them count, which have their outcome in common, and what to answer.

use std::collections::{HashMap, HashSet};

use crate::id::{ClaimToken, RecordId};
use crate::lifecycle::State;
use crate::storage::{Settled, Settlement};

/// A record, and the token that it was claimed with.
pub type Holder = (RecordId, ClaimToken);

/// A batch of settlements. Of several for one claim the first counts, and the others come too late.
#[derive(Debug)]
pub struct Settlements<'s> {
    all: &'s [Settlement],
    places: HashMap<Holder, usize>,
}

impl<'s> Settlements<'s> {
    /// These.
    pub fn new(all: &'s [Settlement]) -> Self {
        let mut places = HashMap::with_capacity(all.len());
        for (place, Settlement { record, token, .. }) in all.iter().enumerate() {
            places.entry((*record, *token)).or_insert(place);
        }
        Self { all, places }
    }

    /// Those that count, in their order.
    pub fn first(&self) -> impl Iterator<Item = &'s Settlement> {
        let is_first = |(place, Settlement { record, token, .. }): &(usize, &Settlement)| {
            self.places.get(&(*record, *token)) == Some(place)
        };
        self.all.iter().enumerate().filter(is_first).map(|(_, settlement)| settlement)
    }

    /// Those that count and are about what is still held, in their order.
    pub fn of(&self, held: &HashSet<Holder>) -> Vec<&'s Settlement> {
        self.first().filter(|settlement| held.contains(&(settlement.record, settlement.token))).collect()
    }

    /// The answer when these were written.
    pub fn answer(&self, written: impl IntoIterator<Item = Holder>) -> Vec<Settled> {
        let mut answers = vec![Settled::Lost; self.all.len()];
        for holder in written {
            if let Some(place) = self.places.get(&holder) {
                answers[*place] = Settled::Written;
            }
        }
        answers
    }
}

/// Settlements that one statement can write: of one token, with one outcome.
#[derive(Debug)]
pub struct Alike<'s> {
    /// The token of all of them.
    pub token: ClaimToken,
    /// The state of all of them.
    pub state: &'s State,
    /// Their records.
    pub records: Vec<RecordId>,
}

impl<'s> Alike<'s> {
    /// How many of the latest groups are looked through: settlements that are alike mostly follow each other, and a group
    /// that is parted does no harm.
    const RECENT: usize = 8;

    /// Settlements in groups that are alike.
    pub fn group(settlements: impl IntoIterator<Item = &'s Settlement>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for Settlement { record, token, state } in settlements {
            let recent = groups.len().saturating_sub(Self::RECENT);
            match groups[recent..].iter_mut().rfind(|group| group.token == *token && group.state == state) {
                Some(group) => group.records.push(*record),
                None => groups.push(Self { token: *token, state, records: vec![*record] }),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle;
    use crate::time::Due;

    fn settlement(record: i64, token: ClaimToken) -> Settlement {
        Settlement { record: RecordId(record), token, state: lifecycle::scheduled(Due::Now) }
    }

    #[test]
    fn of_two_for_one_claim_the_first_counts() {
        let (ours, others) = (ClaimToken::generate(), ClaimToken::generate());
        let all = [settlement(1, ours), settlement(1, ours), settlement(1, others), settlement(2, ours)];
        let settlements = Settlements::new(&all);
        assert_eq!(settlements.first().count(), 3);
        let held = HashSet::from([(RecordId(1), ours)]);
        assert_eq!(settlements.of(&held), [&all[0]]);
        let answers = settlements.answer(held);
        assert_eq!(answers, [Settled::Written, Settled::Lost, Settled::Lost, Settled::Lost]);
    }

    #[test]
    fn what_is_alike_is_in_one_group_and_nothing_is_in_two() {
        let (ours, others) = (ClaimToken::generate(), ClaimToken::generate());
        let all = [settlement(1, ours), settlement(2, others), settlement(3, ours)];
        let groups = Alike::group(&all);
        let records: Vec<_> = groups.iter().map(|group| (group.token, &group.records[..])).collect();
        assert_eq!(records, [(ours, &[RecordId(1), RecordId(3)][..]), (others, &[RecordId(2)][..])]);
    }
}
