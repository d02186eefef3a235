//! What tells one log from another.
//!
//! Kafka keeps a position as a number, and a number says nothing of the log that it counts in: a topic that was deleted
//! and made again, a broker that was restored from a copy, or a leader that had not got everything has other records
//! under the same offsets. So a position goes with two records that were seen on the way to it, and counts as long as
//! they are where they were. A record is known again by its offset and its time.

/// A record that was seen in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) offset: i64,
    /// Its timestamp, in milliseconds since 1970.
    pub(crate) born: i64,
}

/// By what a log is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Anchors {
    /// Up to this one the log is known to be one and the same.
    pub(crate) sure: Option<Anchor>,
    /// The furthest one that was fetched. The log may have been replaced between the two.
    pub(crate) last: Option<Anchor>,
}

impl Anchors {
    /// A record was fetched.
    pub(crate) fn arrive(&mut self, offset: i64, born: Option<i64>) {
        let Some(born) = born else { return };
        let anchor = Anchor { offset, born };
        // The first one says itself which log this is.
        self.sure.get_or_insert(anchor);
        if self.last.is_none_or(|last| last.offset < offset) {
            self.last = Some(anchor);
        }
    }

    /// The log was found to be the one that these were asked for. Whether more is known now than before.
    pub(crate) fn confirm(&mut self, asked: Self, verdict: Verdict) -> bool {
        let earlier = *self;
        match verdict {
            Verdict::Sound { knows_last: true } => self.sure = asked.last.or(asked.sure),
            // Both went with their time; the next one that comes is as good as the first.
            Verdict::Unknown => self.sure = None,
            Verdict::Sound { knows_last: false } | Verdict::Replaced | Verdict::Cut => {}
        }
        *self != earlier
    }
}

/// What is where a record was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// It itself.
    Same,
    /// Another one.
    Other,
    /// It was deleted, as the topic's retention or compaction does.
    Gone,
    /// The log ends before it.
    Beyond,
}

/// Whether a position counts for the log that is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It does.
    Sound {
        /// The last record was seen as well, so that all before it is sure.
        knows_last: bool,
    },
    /// It is another log.
    Replaced,
    /// It is the same up to the record that is sure, and another one behind it.
    Cut,
    /// What could have told is deleted.
    Unknown,
}

impl Verdict {
    /// `last`: none if it is the same record as the one that is sure.
    pub(crate) fn of(sure: Sight, last: Option<Sight>) -> Self {
        match (sure, last) {
            (Sight::Other | Sight::Beyond, _) | (Sight::Gone, Some(Sight::Other | Sight::Beyond)) => Self::Replaced,
            (Sight::Same, Some(Sight::Other | Sight::Beyond)) => Self::Cut,
            (Sight::Same, None) | (Sight::Same | Sight::Gone, Some(Sight::Same)) => Self::Sound { knows_last: true },
            (Sight::Same, Some(Sight::Gone)) => Self::Sound { knows_last: false },
            (Sight::Gone, None | Some(Sight::Gone)) => Self::Unknown,
        }
    }

    pub(crate) fn is_sound(self) -> bool {
        matches!(self, Self::Sound { .. } | Self::Unknown)
    }
}

/// Where to begin in a log that a position does not count for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// At its low end.
    Low,
    /// There: up to it, it is the log that it was.
    At(i64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors(sure: (i64, i64), last: (i64, i64)) -> Anchors {
        let anchor = |(offset, born)| Some(Anchor { offset, born });
        Anchors { sure: anchor(sure), last: anchor(last) }
    }

    #[test]
    fn the_first_record_is_sure_and_what_follows_it_is_when_it_was_looked_at() {
        let mut known = Anchors::default();
        for (offset, born) in [(5, Some(50)), (6, None), (7, Some(70)), (6, Some(60))] {
            known.arrive(offset, born);
        }
        assert_eq!(known, anchors((5, 50), (7, 70)));
        let asked = known;
        known.arrive(8, Some(80));
        assert!(known.confirm(asked, Verdict::Sound { knows_last: true }));
        assert_eq!(known, anchors((7, 70), (8, 80)), "what came after the question is not answered");
        assert!(!known.confirm(known, Verdict::Sound { knows_last: false }));
        known.confirm(known, Verdict::Unknown);
        known.arrive(9, Some(90));
        assert_eq!(known, anchors((9, 90), (9, 90)));
    }

    #[test]
    fn a_position_counts_only_for_its_own_log() {
        let sound = Verdict::Sound { knows_last: true };
        for (sure, last, verdict) in [
            (Sight::Same, None, sound),
            (Sight::Same, Some(Sight::Same), sound),
            (Sight::Gone, Some(Sight::Same), sound),
            (Sight::Same, Some(Sight::Gone), Verdict::Sound { knows_last: false }),
            (Sight::Same, Some(Sight::Other), Verdict::Cut),
            (Sight::Same, Some(Sight::Beyond), Verdict::Cut),
            (Sight::Other, None, Verdict::Replaced),
            (Sight::Beyond, Some(Sight::Beyond), Verdict::Replaced),
            (Sight::Other, Some(Sight::Same), Verdict::Replaced),
            (Sight::Gone, Some(Sight::Other), Verdict::Replaced),
            (Sight::Gone, Some(Sight::Gone), Verdict::Unknown),
        ] {
            assert_eq!(Verdict::of(sure, last), verdict, "{sure:?} {last:?}");
        }
        assert!(!Verdict::Cut.is_sound() && !Verdict::Replaced.is_sound() && Verdict::Unknown.is_sound());
    }
}
