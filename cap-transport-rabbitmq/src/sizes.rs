//! How large the messages of a group are, and how many of them may therefore be on their way.
//!
//! RabbitMQ is told a number of messages and not of bytes, so the number follows from the largest that came lately.

use std::collections::VecDeque;

/// What a message is taken for until one has come.
const UNKNOWN: usize = 8 * 1024 * 1024;
/// Of how many messages the largest counts.
const RECENT: usize = 256;
/// How many may be asked for, for each that has come.
const TRUST: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Sizes {
    recent: VecDeque<usize>,
    seen: usize,
}

impl Sizes {
    pub(crate) fn note(&mut self, bytes: usize) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(bytes);
        self.seen = self.seen.saturating_add(1);
    }

    /// The largest of the recent ones; none if none has come.
    pub(crate) fn largest(&self) -> Option<usize> {
        self.recent.iter().copied().max()
    }

    /// How many may be on their way so that they keep within `budget` bytes: at least 1, at most `wanted`.
    pub(crate) fn fitting(&self, wanted: usize, budget: usize) -> usize {
        let blind = budget / UNKNOWN;
        let count = match self.largest() {
            None => blind,
            // With something to spare: sizes vary.
            Some(largest) => (budget / (largest + largest / 8).max(1)).min(blind.max(self.seen.saturating_mul(TRUST))),
        };
        count.min(wanted).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn few_are_asked_for_until_sizes_are_known_and_then_as_many_as_fit() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.fitting(1_000, 64 * MIB), 8);
        assert_eq!(sizes.fitting(1_000, MIB), 1);
        assert_eq!(sizes.fitting(3, 64 * MIB), 3);
        let mut asked = Vec::new();
        while asked.last() != Some(&1_000) {
            let count = sizes.fitting(1_000, 64 * MIB);
            (0..count).for_each(|_| sizes.note(300));
            asked.push(count);
        }
        assert!(asked.len() <= 4, "{asked:?}");
    }

    #[test]
    fn a_large_one_counts_until_many_small_ones_have_come() {
        let mut sizes = Sizes::default();
        (0..1_000).for_each(|_| sizes.note(100));
        sizes.note(8 * MIB);
        assert_eq!(sizes.fitting(1_000, 64 * MIB), 7);
        sizes.note(100 * MIB);
        assert_eq!(sizes.fitting(1_000, 64 * MIB), 1);
        (0..RECENT).for_each(|_| sizes.note(100));
        assert_eq!(sizes.fitting(1_000, 64 * MIB), 1_000);
    }
}
