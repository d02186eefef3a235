//! What Kafka stores with a position: what is done beyond it, and by what its log is known again.

use std::collections::VecDeque;
use std::ops::Range;

use crate::anchor::{Anchor, Anchors};

/// What begins metadata that this transport wrote; then come runs, and behind `;` the anchors.
const MARK: &str = "cap2:";
/// What an earlier version of it wrote: only runs.
const EARLIER: &str = "cap1:";
/// Brokers take 4096 bytes of metadata (`offset.metadata.max.bytes`).
const MAX: usize = 4_000;
/// What both anchors may take of it.
const ANCHORS: usize = 100;

/// What was stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// What is done beyond the offset, in order.
    pub(crate) ahead: VecDeque<Range<i64>>,
    pub(crate) anchors: Anchors,
}

/// Writes what is done beyond an offset, as `distance+length` of each run, and the anchors, as `distance@time`. What does
/// not fit is left out, and is delivered again.
pub(crate) fn encode(offset: i64, runs: impl Iterator<Item = Range<i64>>, anchors: Anchors) -> String {
    let (mut text, mut end) = (String::new(), offset);
    for run in runs {
        let more = format!("{}+{}", run.start - end, run.end - run.start);
        if text.len() + more.len() + 1 > MAX - ANCHORS {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&more);
        end = run.end;
    }
    let known: Vec<String> = match (anchors.sure, anchors.last) {
        (Some(sure), Some(last)) if sure != last => vec![written(offset, sure), written(offset, last)],
        (sure, last) => sure.or(last).map(|anchor| written(offset, anchor)).into_iter().collect(),
    };
    if text.is_empty() && known.is_empty() {
        return text;
    }
    known.into_iter().fold(format!("{MARK}{text}"), |text, anchor| format!("{text};{anchor}"))
}

fn written(offset: i64, anchor: Anchor) -> String {
    format!("{}@{}", anchor.offset - offset, anchor.born)
}

/// Reads what [`encode`] wrote; nothing, if it is another's.
pub(crate) fn decode(offset: i64, metadata: &str) -> Stored {
    let read = || {
        if let Some(runs) = metadata.strip_prefix(EARLIER) {
            return Some(Stored { ahead: ahead(offset, runs)?, anchors: Anchors::default() });
        }
        let mut parts = metadata.strip_prefix(MARK)?.split(';');
        let runs = parts.next()?;
        let ahead = if runs.is_empty() { VecDeque::new() } else { ahead(offset, runs)? };
        let known = parts.map(|text| anchor(offset, text)).collect::<Option<Vec<_>>>()?;
        let sure = known.first().copied();
        let last = known.get(1).copied().or(sure);
        Some(Stored { ahead, anchors: Anchors { sure, last } })
    };
    read().unwrap_or_default()
}

/// The same for a later offset, before which nothing is left.
pub(crate) fn moved(offset: i64, to: i64, metadata: String) -> String {
    if offset == to {
        return metadata;
    }
    let Stored { ahead, anchors } = decode(offset, &metadata);
    encode(to, ahead.into_iter().map(|run| run.start.max(to)..run.end).filter(|run| !run.is_empty()), anchors)
}

fn ahead(offset: i64, text: &str) -> Option<VecDeque<Range<i64>>> {
    let mut end = offset;
    let mut runs = VecDeque::new();
    for run in text.split(',') {
        let (distance, length) = run.split_once('+')?;
        let start = end.checked_add(distance.parse::<u32>().ok()?.into())?;
        end = start.checked_add(length.parse::<u32>().ok()?.into())?;
        runs.push_back(start..end);
    }
    Some(runs)
}

fn anchor(offset: i64, text: &str) -> Option<Anchor> {
    let (distance, born) = text.split_once('@')?;
    let offset = offset.checked_add(distance.parse().ok()?)?;
    Some(Anchor { offset, born: born.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(sure: i64, last: i64) -> Anchors {
        let anchor = |offset| Some(Anchor { offset, born: 1_700_000_000_000 + offset });
        Anchors { sure: anchor(sure), last: anchor(last) }
    }

    #[test]
    fn what_was_stored_is_read_again() {
        for (runs, anchors) in [
            (vec![], Anchors::default()),
            (vec![(8, 10), (13, 14)], Anchors::default()),
            (vec![], known(6, 6)),
            (vec![(8, 10)], known(3, 12)),
            (vec![(8, 10)], known(9, 9)),
        ] {
            let ahead: VecDeque<Range<i64>> = runs.into_iter().map(|(start, end)| start..end).collect();
            let text = encode(7, ahead.iter().cloned(), anchors);
            assert_eq!(decode(7, &text), Stored { ahead, anchors }, "{text}");
        }
        assert_eq!(encode(7, std::iter::once(8..10), known(6, 6)), "cap2:1+2;-1@1700000000006");
        assert_eq!(encode(7, std::iter::empty(), Anchors::default()), "");
    }

    #[test]
    fn what_is_done_beyond_a_later_offset_is_kept() {
        let text = encode(7, [8..10, 13..14].into_iter(), known(6, 20));
        let stored = decode(9, &moved(7, 9, text.clone()));
        assert_eq!(stored, Stored { ahead: [9..10, 13..14].into(), anchors: known(6, 20) });
        assert_eq!(moved(7, 7, text.clone()), text);
    }

    #[test]
    fn what_an_earlier_version_stored_is_read() {
        assert_eq!(decode(7, "cap1:1+2,3+1").ahead, [8..10, 13..14]);
    }

    #[test]
    fn foreign_metadata_is_no_metadata() {
        let foreign = ["", "host-1", "cap1:", "cap1:x", "cap1:1+", "cap1:-1+2", "cap1:1+2,9999999999999999999+1"];
        for foreign in foreign.into_iter().chain(["cap2:x", "cap2:;", "cap2:;1@", "cap2:;-1@5;x", "cap3:1+2"]) {
            assert_eq!(decode(7, foreign), Stored::default(), "{foreign}");
        }
    }

    #[test]
    fn metadata_stays_within_what_brokers_take() {
        let far = Anchor { offset: i64::MIN / 2, born: i64::MIN };
        let text = encode(0, (0..5_000).map(|n| n * 2 + 1..n * 2 + 2), Anchors { sure: Some(far), ..known(0, 1) });
        assert!(text.len() <= MAX && text.len() > MAX / 2);
        let stored = decode(0, &text);
        assert!(stored.ahead.len() > 500 && stored.anchors.sure == Some(far));
    }
}
