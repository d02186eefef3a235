//! How far a group is in one partition.
//!
//! Kafka keeps one offset for a group and a partition: all before it is done. Messages are acknowledged in any order, so
//! the offset is that of the first one that is still open, never a later one. What is done beyond it travels with it, in
//! the metadata that Kafka stores with an offset, so that the next consumer does not deliver it again: a message that is
//! held back for a day does not make a day's messages come twice.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::anchor::{Anchors, Verdict};
use crate::metadata::{Stored, decode, encode};

/// Where a message is that was fetched and is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It waits to be handed out.
    Ready,
    /// It is handed out.
    Out,
    /// It was given back, and will be fetched again.
    Released,
}

/// A message's timestamp: with its offset, what tells it from another one in a topic that was deleted and made again.
pub(crate) type Born = Option<i64>;

#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Everything before it was fetched; none as long as nothing is known.
    next: Option<i64>,
    /// What was fetched and is not done.
    open: BTreeMap<i64, (State, Born)>,
    /// What is done beyond `next`, as an earlier consumer left it.
    ahead: VecDeque<Range<i64>>,
    /// What was acknowledged after the partition had gone and come back, and was not yet fetched again.
    late: BTreeMap<i64, Born>,
    /// By what the log is known again that all of this counts for.
    anchors: Anchors,
}

impl Progress {
    /// Begins where the group has got to.
    pub(crate) fn begin(start: Option<i64>, metadata: &str) -> Self {
        let Stored { ahead, anchors } = start.map(|start| decode(start, metadata)).unwrap_or_default();
        Self { next: start, ahead, anchors, ..Self::default() }
    }

    /// A message has been fetched. How it is to be handed out, unless it is done or on its way already: whether for the
    /// first time here.
    pub(crate) fn arrive(&mut self, offset: i64, born: Born) -> Option<bool> {
        if self.next.is_some_and(|next| offset < next) {
            return match self.open.get_mut(&offset) {
                Some((state, known)) if *state == State::Released => {
                    (*state, *known) = (State::Ready, born);
                    Some(false)
                }
                _ => None,
            };
        }
        self.next = Some(offset + 1);
        self.anchors.arrive(offset, born);
        while self.ahead.front().is_some_and(|done| done.end <= offset) {
            self.ahead.pop_front();
        }
        let is_late = self.late.remove(&offset) == Some(born);
        self.late = self.late.split_off(&offset);
        if is_late || self.ahead.front().is_some_and(|done| done.contains(&offset)) {
            return None;
        }
        self.open.insert(offset, (State::Ready, born));
        Some(true)
    }

    pub(crate) fn hand_out(&mut self, offset: i64) {
        if let Some((state, _)) = self.open.get_mut(&offset) {
            *state = State::Out;
        }
    }

    /// A message is done. Its state until now, if it was open.
    pub(crate) fn settle(&mut self, offset: i64, born: Born) -> Option<State> {
        match self.open.get(&offset) {
            Some((_, same)) if *same == born => self.open.remove(&offset).map(|(state, _)| state),
            Some(_) => None,
            None => {
                if self.next.is_none_or(|next| offset >= next) {
                    self.late.insert(offset, born);
                }
                None
            }
        }
    }

    /// A message that is handed out is given back. Whether it must be fetched again.
    pub(crate) fn release(&mut self, offset: i64, born: Born) -> bool {
        match self.open.get_mut(&offset) {
            Some((state, same)) if *same == born && *state == State::Out => {
                *state = State::Released;
                true
            }
            _ => false,
        }
    }

    /// What is ready and will not be handed out any more comes again to whoever asks for it.
    pub(crate) fn withhold(&mut self) {
        for (state, _) in self.open.values_mut().filter(|(state, _)| *state == State::Ready) {
            *state = State::Released;
        }
    }

    /// The offset to commit, with its metadata.
    pub(crate) fn position(&self) -> Option<(i64, String)> {
        let mut offset = match self.open.first_key_value() {
            Some((first, _)) => *first,
            None => self.next?,
        };
        if self.open.is_empty() {
            let next = offset;
            offset = self.ahead.iter().take_while(|done| done.start <= next).fold(next, |end, done| end.max(done.end));
        }
        Some((offset, encode(offset, self.done_beyond(offset), self.anchors)))
    }

    /// By what the log is known again; nothing as long as no record was seen.
    pub(crate) fn anchors(&self) -> Anchors {
        self.anchors
    }

    /// The record that is to come next, as far as it is known.
    pub(crate) fn awaits(&self) -> Option<i64> {
        let released = self.open.iter().find(|(_, (state, _))| *state == State::Released);
        released.map(|(offset, _)| *offset).or(self.next)
    }

    /// The log was looked at, for these anchors. Whether there is more to store than before.
    pub(crate) fn confirm(&mut self, asked: Anchors, verdict: Verdict) -> bool {
        self.anchors.sure == asked.sure && self.anchors.confirm(asked, verdict)
    }

    /// Where to begin in a log that is the same only up to a record: behind it, or before it where something is open.
    pub(crate) fn cut(&self) -> Option<i64> {
        let (offset, _) = self.position()?;
        self.anchors.sure.map(|sure| offset.min(sure.offset + 1))
    }

    /// What is done beyond the first open message, in order.
    fn done_beyond(&self, offset: i64) -> impl Iterator<Item = Range<i64>> {
        let next = self.next.unwrap_or(offset);
        let opens = self.open.keys().copied();
        let ends = self.open.keys().copied().skip(1).chain([next]);
        let between = opens.zip(ends).map(|(open, end)| open + 1..end);
        let ahead = self.ahead.iter().map(move |done| done.start.max(next)..done.end);
        between.chain(ahead).map(move |done| done.start.max(offset)..done.end).filter(|done| !done.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(range: Range<i64>) -> Progress {
        let mut progress = Progress::begin(Some(range.start), "");
        for offset in range {
            assert_eq!(progress.arrive(offset, Some(offset)), Some(true));
            progress.hand_out(offset);
        }
        progress
    }

    /// The offset and, of what is stored with it, what is done.
    fn position(progress: &Progress) -> Option<(i64, Vec<(i64, i64)>)> {
        let (offset, metadata) = progress.position()?;
        let ahead = decode(offset, &metadata).ahead;
        Some((offset, ahead.into_iter().map(|done| (done.start, done.end)).collect()))
    }

    fn settle(progress: &mut Progress, offsets: impl IntoIterator<Item = i64>) {
        for offset in offsets {
            assert_eq!(progress.settle(offset, Some(offset)), Some(State::Out), "{offset}");
        }
    }

    #[test]
    fn the_offset_never_passes_an_open_message() {
        let mut progress = fetched(100..110);
        assert_eq!(position(&progress), Some((100, vec![])));
        settle(&mut progress, [104, 105, 108]);
        assert_eq!(position(&progress), Some((100, vec![(104, 106), (108, 109)])));
        settle(&mut progress, [100, 101, 102]);
        assert_eq!(position(&progress), Some((103, vec![(104, 106), (108, 109)])));
        settle(&mut progress, [103, 106, 107, 109]);
        assert_eq!(position(&progress), Some((110, vec![])));
    }

    #[test]
    fn what_is_done_beyond_the_offset_does_not_come_again() {
        let mut first = fetched(0..6);
        settle(&mut first, [2, 3, 5]);
        let (offset, metadata) = first.position().unwrap();
        let mut second = Progress::begin(Some(offset), &metadata);
        assert_eq!(second.position(), Some((0, metadata)), "it is passed on before anything came");
        let came: Vec<i64> = (0..8).filter(|offset| second.arrive(*offset, None).is_some()).collect();
        assert_eq!(came, [0, 1, 4, 6, 7]);
        for offset in came {
            second.settle(offset, None);
        }
        assert_eq!(position(&second), Some((8, vec![])));
    }

    #[test]
    fn offsets_that_do_not_exist_are_no_obstacle() {
        let mut progress = Progress::begin(None, "");
        assert_eq!(progress.position(), None);
        for offset in [5, 8, 13] {
            assert!(progress.arrive(offset, Some(offset)).is_some());
            progress.hand_out(offset);
        }
        settle(&mut progress, [8]);
        assert_eq!(position(&progress), Some((5, vec![(6, 13)])));
        settle(&mut progress, [5]);
        assert_eq!(position(&progress), Some((13, vec![])));
    }

    #[test]
    fn what_was_released_comes_once_more_and_the_others_do_not() {
        let mut progress = fetched(0..3);
        assert!(progress.release(1, Some(1)));
        assert!(!progress.release(1, Some(1)));
        let again: Vec<_> = (0..3).map(|offset| progress.arrive(offset, Some(offset))).collect();
        assert_eq!(again, [None, Some(false), None]);
        assert_eq!(position(&progress), Some((0, vec![])));
    }

    #[test]
    fn an_acknowledgement_that_comes_after_the_partition_came_back_counts() {
        let mut fetched_again = Progress::begin(Some(0), "");
        fetched_again.arrive(0, Some(70));
        assert_eq!(fetched_again.settle(0, Some(70)), Some(State::Ready));
        assert_eq!(position(&fetched_again), Some((1, vec![])));
        let mut not_yet_fetched = Progress::begin(Some(0), "");
        assert_eq!(not_yet_fetched.settle(1, Some(71)), None);
        assert_eq!(not_yet_fetched.arrive(0, Some(70)), Some(true));
        assert_eq!(not_yet_fetched.arrive(1, Some(71)), None);
        // The topic was deleted and made again: at the same offset there is another message.
        let mut another = Progress::begin(Some(0), "");
        another.settle(1, Some(71));
        another.arrive(0, Some(90));
        assert_eq!(another.arrive(1, Some(91)), Some(true));
        assert_eq!(another.settle(1, Some(71)), None);
    }

    #[test]
    fn the_log_that_a_position_counts_for_is_passed_on_with_it() {
        let mut first = fetched(100..110);
        settle(&mut first, 100..110);
        let asked = first.anchors();
        assert_eq!((asked.sure.unwrap().offset, asked.last.unwrap().offset), (100, 109));
        let (offset, metadata) = first.position().unwrap();
        let mut second = Progress::begin(Some(offset), &metadata);
        assert_eq!(second.anchors(), asked);
        assert_eq!(second.cut(), Some(101), "of the rest nothing is known");
        assert!(second.confirm(asked, Verdict::Sound { knows_last: true }));
        assert_eq!((second.anchors().sure.unwrap().offset, second.cut()), (109, Some(110)));
        assert!(!second.confirm(asked, Verdict::Unknown), "an answer to an earlier question");
    }

    #[test]
    fn what_is_open_before_a_cut_is_not_passed_over() {
        let mut progress = fetched(0..10);
        settle(&mut progress, 1..10);
        progress.confirm(progress.anchors(), Verdict::Sound { knows_last: true });
        assert_eq!(progress.cut(), Some(0));
    }
}
