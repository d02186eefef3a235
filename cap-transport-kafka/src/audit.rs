//! Looks whether logs are still the ones that positions were made in, and whether what is in them comes, by reading single
//! records of them.
//!
//! Each time with a client of its own: one that was there before has its own idea of a topic, and may not notice that it
//! is another one by now. (librdkafka 2.12 goes on at the old offset when a topic is made again, and never fetches again
//! if the new one's leader epoch is lower.)

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cap_core::transport::Subscription;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use crate::anchor::{Anchor, Anchors, Sight, Verdict};
use crate::client::Quiet;
use crate::error::words;
use crate::place::Place;
use crate::settings::Settings;
use crate::wire;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);

/// What a log is looked at for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) place: Place,
    /// By what it is known again.
    pub(crate) anchors: Anchors,
    /// The record that should come next and has not for a while, if there is one.
    pub(crate) awaits: Option<i64>,
}

/// What was found of one log.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) asked: Question,
    pub(crate) verdict: Verdict,
    /// The log has what is awaited.
    pub(crate) has_awaited: bool,
    /// Its offsets: the first one, and the one behind the last.
    pub(crate) ends: (i64, i64),
}

/// Looks at logs. Of those that no broker tells of in time there is no finding.
///
/// What may have been replaced is looked at before what is sure: the other way round, a log that is replaced in between
/// would seem to be the same up to what is sure.
pub(crate) fn look(settings: &Settings, wanted: &Subscription, asked: Vec<Question>) -> Vec<Finding> {
    let deadline = Instant::now() + LIMIT;
    let audit = || Audit::new(settings, wanted, deadline);
    let Some(first) = audit() else { return Vec::new() };
    let ranged = first.ranged(asked);
    // It has no partition yet, so that it can read once.
    let mut spare = Some(first);
    let mut see = |wants: &dyn Fn(&Question) -> Option<Anchor>| {
        let each = ranged.iter().filter_map(|(asked, ends)| Some((&asked.place, wants(asked)?, *ends)));
        let each: Vec<_> = each.collect();
        match each.is_empty() {
            true => BTreeMap::new(),
            false => spare.take().or_else(audit).map(|audit| audit.see(each.into_iter())).unwrap_or_default(),
        }
    };
    let seen_last = see(&|asked| asked.anchors.last.filter(|_| asked.anchors.last != asked.anchors.sure));
    let seen_sure = see(&|asked| asked.anchors.sure);
    // Whatever is there: only its offset is known.
    let seen_awaited = see(&|asked| asked.awaits.map(|offset| Anchor { offset, born: i64::MIN }));
    let find = |(asked, ends): &(Question, (i64, i64))| {
        let (place, anchors) = (&asked.place, asked.anchors);
        let last = match anchors.last != anchors.sure {
            true => Some(*seen_last.get(place)?),
            false => None,
        };
        let verdict = match anchors.sure {
            Some(_) => Verdict::of(*seen_sure.get(place)?, last),
            None => Verdict::Unknown,
        };
        let has_awaited = seen_awaited.get(place).is_some_and(|sight| *sight != Sight::Beyond);
        Some(Finding { asked: asked.clone(), verdict, has_awaited, ends: *ends })
    };
    ranged.iter().filter_map(find).collect()
}

/// A client that reads once. (One that is assigned a partition, and then the same one elsewhere, may abort the process when
/// it ends soon: librdkafka waits for the fetcher's end twice, `rd_kafka_assignment_partition_stopped`.)
struct Audit {
    reader: BaseConsumer<Quiet>,
    deadline: Instant,
}

impl Audit {
    fn new(settings: &Settings, wanted: &Subscription, deadline: Instant) -> Option<Self> {
        match settings.auditor(wanted).create_with_context(Quiet) {
            Ok(reader) => Some(Self { reader, deadline }),
            Err(error) => {
                tracing::warn!(error.message = words(&error), messaging.consumer.group.name = %wanted.group, "logs cannot be looked at now");
                None
            }
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// With the ends of each log; of one that is not told, nothing.
    fn ranged(&self, asked: Vec<Question>) -> Vec<(Question, (i64, i64))> {
        let ends = |place: &Place| {
            let left = Some(self.left()).filter(|left| !left.is_zero())?;
            self.reader.fetch_watermarks(&place.topic, place.partition, left).ok()
        };
        asked.into_iter().filter_map(|asked| ends(&asked.place).map(|ends| (asked, ends))).collect()
    }

    /// What is where each record was.
    fn see<'a>(self, anchors: impl Iterator<Item = (&'a Place, Anchor, (i64, i64))>) -> BTreeMap<Place, Sight> {
        let (mut seen, mut wanted) = (BTreeMap::new(), BTreeMap::new());
        for (place, anchor, (low, high)) in anchors {
            match anchor.offset {
                offset if offset < low => drop(seen.insert(place.clone(), Sight::Gone)),
                offset if offset >= high => drop(seen.insert(place.clone(), Sight::Beyond)),
                _ => drop(wanted.insert(place.clone(), anchor)),
            }
        }
        self.read(wanted, &mut seen);
        seen
    }

    /// Reads the record at each place, or the next one behind it.
    fn read(&self, mut wanted: BTreeMap<Place, Anchor>, seen: &mut BTreeMap<Place, Sight>) {
        if wanted.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(wanted.len());
        for (place, anchor) in &wanted {
            let _ = list.add_partition_offset(&place.topic, place.partition, Offset::Offset(anchor.offset));
        }
        if self.reader.assign(&list).is_err() {
            return;
        }
        while !wanted.is_empty() && !self.left().is_zero() {
            let Some(Ok(record)) = self.reader.poll(POLL.min(self.left())) else { continue };
            let place = Place { topic: record.topic().into(), partition: record.partition() };
            let Some(anchor) = wanted.remove(&place) else { continue };
            let sight = match (record.offset() == anchor.offset, wire::born(&record) == Some(anchor.born)) {
                (true, true) => Sight::Same,
                (true, false) => Sight::Other,
                (false, _) => Sight::Gone,
            };
            seen.insert(place, sight);
        }
    }
}
