//! How far a group is in one partition.
//!
//! Kafka keeps one offset for a group and a partition: all before it is done. Messages are acknowledged in any order, so
//! the offset is that of the first one that is still open, never a later one. What is done beyond it travels with it, in
//! the metadata that Kafka stores with an offset, so that the next consumer does not deliver it again: a message that is
//! held back for a day does not make a day's messages come twice.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// What begins metadata that this transport wrote.
const MARK: &str = "cap1:";
/// Brokers take 4096 bytes of metadata (`offset.metadata.max.bytes`).
const MAX_METADATA: usize = 4_000;

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
}

impl Progress {
    /// Begins where the group has got to.
    pub(crate) fn begin(start: Option<i64>, metadata: &str) -> Self {
        let ahead = start.map(|start| decode(start, metadata)).unwrap_or_default();
        Self { next: start, ahead, ..Self::default() }
    }

    /// A message has been fetched. How it is to be handed out, unless it is done or on its way already: whether for the
    /// first time here.
    pub(crate) fn arrive(&mut self, offset: i64, born: Born) -> Option<bool> {
        if self.next.is_some_and(|next| offset < next) {
            return match self.open.get_mut(&offset) {
                Some((state, _)) if *state == State::Released => {
                    *state = State::Ready;
                    Some(false)
                }
                _ => None,
            };
        }
        self.next = Some(offset + 1);
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
        Some((offset, encode(offset, self.done_beyond(offset))))
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

/// Writes what is done beyond an offset, as `distance+length` of each run. What does not fit is left out, and is
/// delivered again.
fn encode(offset: i64, runs: impl Iterator<Item = Range<i64>>) -> String {
    let (mut text, mut end) = (String::new(), offset);
    for run in runs {
        let more = format!("{}+{}", run.start - end, run.end - run.start);
        if text.len() + more.len() + 1 > MAX_METADATA {
            break;
        }
        text.push_str(if text.is_empty() { MARK } else { "," });
        text.push_str(&more);
        end = run.end;
    }
    text
}

/// Reads what [`encode`] wrote; nothing, if it is another's.
fn decode(offset: i64, metadata: &str) -> VecDeque<Range<i64>> {
    let read = || {
        let mut end = offset;
        let mut runs = VecDeque::new();
        for run in metadata.strip_prefix(MARK)?.split(',') {
            let (distance, length) = run.split_once('+')?;
            let start = end.checked_add(distance.parse::<u32>().ok()?.into())?;
            end = start.checked_add(length.parse::<u32>().ok()?.into())?;
            runs.push_back(start..end);
        }
        Some(runs)
    };
    read().unwrap_or_default()
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

    fn settle(progress: &mut Progress, offsets: impl IntoIterator<Item = i64>) {
        for offset in offsets {
            assert_eq!(progress.settle(offset, Some(offset)), Some(State::Out), "{offset}");
        }
    }

    #[test]
    fn the_offset_never_passes_an_open_message() {
        let mut progress = fetched(100..110);
        assert_eq!(progress.position(), Some((100, String::new())));
        settle(&mut progress, [104, 105, 108]);
        assert_eq!(progress.position(), Some((100, "cap1:4+2,2+1".into())));
        settle(&mut progress, [100, 101, 102]);
        assert_eq!(progress.position(), Some((103, "cap1:1+2,2+1".into())));
        settle(&mut progress, [103, 106, 107, 109]);
        assert_eq!(progress.position(), Some((110, String::new())));
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
        assert_eq!(second.position(), Some((8, String::new())));
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
        assert_eq!(progress.position(), Some((5, "cap1:1+7".into())));
        settle(&mut progress, [5]);
        assert_eq!(progress.position(), Some((13, String::new())));
    }

    #[test]
    fn what_was_released_comes_once_more_and_the_others_do_not() {
        let mut progress = fetched(0..3);
        assert!(progress.release(1, Some(1)));
        assert!(!progress.release(1, Some(1)));
        let again: Vec<_> = (0..3).map(|offset| progress.arrive(offset, Some(offset))).collect();
        assert_eq!(again, [None, Some(false), None]);
        assert_eq!(progress.position(), Some((0, String::new())));
    }

    #[test]
    fn an_acknowledgement_that_comes_after_the_partition_came_back_counts() {
        let mut fetched_again = Progress::begin(Some(0), "");
        fetched_again.arrive(0, Some(70));
        assert_eq!(fetched_again.settle(0, Some(70)), Some(State::Ready));
        assert_eq!(fetched_again.position(), Some((1, String::new())));
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
    fn foreign_metadata_is_no_metadata() {
        for foreign in ["", "host-1", "cap1:", "cap1:x", "cap1:1+", "cap1:-1+2", "cap1:1+2,9999999999999999999+1"] {
            assert!(decode(7, foreign).is_empty(), "{foreign}");
        }
        assert_eq!(decode(7, "cap1:1+2,3+1"), [8..10, 13..14]);
    }

    #[test]
    fn metadata_stays_within_what_brokers_take() {
        let mut progress = fetched(0..10_000);
        settle(&mut progress, (0..10_000).filter(|offset| offset % 2 == 1));
        let (offset, metadata) = progress.position().unwrap();
        assert!(offset == 0 && metadata.len() <= MAX_METADATA && metadata.len() > MAX_METADATA / 2);
        assert!(decode(offset, &metadata).len() > 500);
    }
}
