//! What a consumer holds: messages that wait to be handed out, those that are out, and how far each partition is.
//!
//! Partitions come and go while deliveries are out. A delivery is known by its partition and offset, not by the time when
//! the partition was assigned, so that an acknowledgement still counts when the partition has gone and come back.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use cap_core::transport::{Delivery, DeliveryTag};

use crate::anchor::{Again, Anchors, Verdict};
use crate::audit::Question;
use crate::place::{Beginning, Place, Position};
use crate::progress::{Born, Progress, State};

#[derive(Debug)]
struct Partition {
    progress: Progress,
    delivered_before: i64,
    /// What was last committed, or is on its way to be.
    committed: Option<(i64, String)>,
    lull: Lull,
}

/// What a partition has waited for when its log was looked at. Nothing, as long as the consumer itself takes nothing more.
#[derive(Debug, Default)]
struct Lull {
    awaits: Option<i64>,
    /// The log had it by then.
    is_overdue: bool,
}

#[derive(Debug)]
struct Waiting {
    place: Place,
    offset: i64,
    born: Born,
    delivery: Delivery,
}

#[derive(Debug)]
struct Out {
    place: Place,
    offset: i64,
    born: Born,
    bytes: usize,
}

/// How much a consumer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Messages that wait or are out.
    pub(crate) messages: usize,
    /// Bytes of bodies that are out; one message may be, whatever its size.
    pub(crate) bytes: usize,
    /// Bytes of bodies that wait or are out when no more is asked for: less, since librdkafka holds some as well.
    pub(crate) asked: usize,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    budget: Budget,
    partitions: HashMap<Arc<str>, BTreeMap<i32, Partition>>,
    ready: VecDeque<Waiting>,
    bytes_ready: usize,
    /// What was handed out and neither acknowledged nor released, whoever has its partition now.
    out: BTreeMap<u64, Out>,
    bytes_out: usize,
    last_tag: u64,
    /// What was acknowledged when its partition was gone, for the case that it comes back; at most as many as may be held.
    late: Vec<Out>,
    /// Whether there may be something to commit.
    is_dirty: bool,
}

impl Ledger {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            budget,
            partitions: HashMap::new(),
            ready: VecDeque::new(),
            bytes_ready: 0,
            out: BTreeMap::new(),
            bytes_out: 0,
            last_tag: 0,
            late: Vec::new(),
            is_dirty: false,
        }
    }

    /// Takes out of what is ready what `goes`.
    fn drop_ready(&mut self, goes: impl Fn(&Waiting) -> bool) {
        let bytes_ready = &mut self.bytes_ready;
        self.ready.retain(|waiting| {
            let goes = goes(waiting);
            if goes {
                *bytes_ready -= waiting.delivery.body.len();
            }
            !goes
        });
    }

    fn remove_out(&mut self, tag: DeliveryTag) -> Option<Out> {
        let out = self.out.remove(&tag.0)?;
        self.bytes_out -= out.bytes;
        Some(out)
    }

    fn partition(&mut self, place: &Place) -> Option<&mut Partition> {
        self.partitions.get_mut(&place.topic)?.get_mut(&place.partition)
    }

    /// A partition belongs to this consumer from now on.
    pub(crate) fn assign(&mut self, place: Place, beginning: Beginning) {
        let Beginning { start, metadata, delivered_before } = beginning;
        let mut progress = Progress::begin(start, &metadata);
        for late in self.late.extract_if(.., |late| late.place == place) {
            progress.settle(late.offset, late.born);
        }
        let committed = start.map(|start| (start, metadata));
        let partition = Partition { progress, delivered_before, committed, lull: Lull::default() };
        self.partitions.entry(place.topic).or_default().insert(place.partition, partition);
    }

    /// Partitions will go: nothing more of them is handed out.
    pub(crate) fn withhold(&mut self, places: &[Place]) {
        self.drop_ready(|waiting| places.contains(&waiting.place));
        for place in places {
            if let Some(partition) = self.partition(place) {
                partition.progress.withhold();
            }
        }
    }

    /// Whether something of these partitions is still out.
    pub(crate) fn is_out(&self, places: &[Place]) -> bool {
        self.out.values().any(|out| places.contains(&out.place))
    }

    /// Partitions belong to this consumer no longer. What is out of them stays out.
    pub(crate) fn revoke(&mut self, places: &[Place]) {
        self.withhold(places);
        for place in places {
            if let Some(partitions) = self.partitions.get_mut(&place.topic) {
                partitions.remove(&place.partition);
                if partitions.is_empty() {
                    self.partitions.remove(&place.topic);
                }
            }
        }
    }

    /// How many more may be asked for.
    pub(crate) fn room(&self) -> usize {
        let held = self.ready.len() + self.out.len();
        if held > 0 && self.bytes_ready + self.bytes_out >= self.budget.asked {
            return 0;
        }
        self.budget.messages.saturating_sub(held)
    }

    /// Whether at least half of what it may hold is free.
    pub(crate) fn is_half_free(&self) -> bool {
        let is_light = self.bytes_ready + self.bytes_out <= self.budget.asked / 2;
        is_light && self.room() * 2 >= self.budget.messages
    }

    /// A message has been fetched; `delivery` makes what is handed out, if it is to be. Whether it is.
    pub(crate) fn arrive(
        &mut self,
        topic: &str,
        partition: i32,
        (offset, born): (i64, Born),
        delivery: impl FnOnce() -> Delivery,
    ) -> bool {
        let Some((topic, partitions)) = self.partitions.get_key_value(topic) else {
            return false;
        };
        if !partitions.contains_key(&partition) {
            return false;
        }
        let place = Place { topic: Arc::clone(topic), partition };
        let Some(partition) = self.partition(&place) else {
            return false;
        };
        let Some(is_first) = partition.progress.arrive(offset, born) else {
            self.is_dirty = true;
            return false;
        };
        let redelivered = !is_first || offset < partition.delivered_before;
        let delivery = Delivery { redelivered, ..delivery() };
        self.bytes_ready += delivery.body.len();
        self.ready.push_back(Waiting { place, offset, born, delivery });
        true
    }

    /// Hands out as many as wait, as the budget leaves room for, and as `max` allows.
    pub(crate) fn take(&mut self, max: usize) -> Vec<Delivery> {
        let mut taken = Vec::new();
        while taken.len() < max && self.out.len() < self.budget.messages {
            let (is_empty, left) = (self.out.is_empty(), self.budget.bytes.saturating_sub(self.bytes_out));
            let fits = |first: &mut Waiting| is_empty || first.delivery.body.len() <= left;
            let Some(Waiting { place, offset, born, delivery }) = self.ready.pop_front_if(fits) else {
                break;
            };
            let bytes = delivery.body.len();
            self.bytes_ready -= bytes;
            self.bytes_out += bytes;
            if let Some(partition) = self.partition(&place) {
                partition.progress.hand_out(offset);
            }
            self.last_tag += 1;
            taken.push(Delivery { tag: DeliveryTag(self.last_tag), ..delivery });
            self.out.insert(self.last_tag, Out { place, offset, born, bytes });
        }
        taken
    }

    /// Those of the tags that are not out: the first, and how many.
    pub(crate) fn unknown(&self, tags: &[DeliveryTag]) -> Option<(u64, usize)> {
        let mut unknown = tags.iter().filter(|tag| !self.out.contains_key(&tag.0));
        let first = unknown.next()?;
        Some((first.0, 1 + unknown.count()))
    }

    /// Deliveries are done. What belongs to another member by now is delivered there; unless it comes back first, it is
    /// not ours to settle.
    pub(crate) fn ack(&mut self, tags: &[DeliveryTag]) {
        for tag in tags {
            let Some(Out { place, offset, born, bytes }) = self.remove_out(*tag) else {
                continue;
            };
            let Some(partition) = self.partition(&place) else {
                if self.late.len() < self.budget.messages {
                    self.late.push(Out { place, offset, born, bytes });
                }
                continue;
            };
            let state = partition.progress.settle(offset, born);
            self.is_dirty = true;
            if state == Some(State::Ready) {
                self.drop_ready(|waiting| waiting.place == place && waiting.offset == offset);
            }
        }
    }

    /// Deliveries are given back. From where each partition must be fetched again.
    pub(crate) fn release(&mut self, tags: &[DeliveryTag]) -> Vec<Position> {
        let mut first: BTreeMap<Place, i64> = BTreeMap::new();
        for tag in tags {
            let Some(Out { place, offset, born, .. }) = self.remove_out(*tag) else {
                continue;
            };
            let released = self.partition(&place).is_some_and(|partition| partition.progress.release(offset, born));
            if released {
                let earliest = first.entry(place).or_insert(offset);
                *earliest = (*earliest).min(offset);
            }
        }
        let position = |(place, offset)| Position { place, offset, metadata: String::new() };
        first.into_iter().map(position).collect()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// What is to be committed, and counts as committed from now on.
    pub(crate) fn commit(&mut self) -> Vec<Position> {
        self.is_dirty = false;
        let mut positions = Vec::new();
        for (topic, partitions) in &mut self.partitions {
            for (number, partition) in partitions {
                let Some(position) = partition.progress.position() else {
                    continue;
                };
                if partition.committed.as_ref() == Some(&position) {
                    continue;
                }
                partition.committed = Some(position.clone());
                let place = Place { topic: Arc::clone(topic), partition: *number };
                positions.push(Position { place, offset: position.0, metadata: position.1 });
            }
        }
        positions
    }

    /// Of these partitions only, which are about to go.
    pub(crate) fn commit_of(&mut self, places: &[Place]) -> Vec<Position> {
        let (mine, others) = self.commit().into_iter().partition(|position| places.contains(&position.place));
        self.uncommit(others);
        mine
    }

    /// What was to be committed was not.
    pub(crate) fn uncommit(&mut self, positions: Vec<Position>) {
        for position in positions {
            if let Some(partition) = self.partition(&position.place) {
                partition.committed = None;
                self.is_dirty = true;
            }
        }
    }

    /// Nobody knows what of it was committed.
    pub(crate) fn uncommit_all(&mut self) {
        let all = self.partitions.values_mut().flat_map(BTreeMap::values_mut);
        all.for_each(|partition| partition.committed = None);
        self.is_dirty = true;
    }

    pub(crate) fn out(&self) -> usize {
        self.out.len()
    }

    /// What is to be looked for in each log, to see whether it is still the same, and whether what it has comes.
    pub(crate) fn questions(&mut self) -> Vec<Question> {
        let all = self.partitions.iter_mut().flat_map(|(topic, partitions)| {
            partitions.iter_mut().map(|(number, partition)| {
                let place = Place { topic: Arc::clone(topic), partition: *number };
                Question { place, anchors: partition.progress.anchors(), awaits: partition.awaits_still() }
            })
        });
        all.filter(|asked| asked.anchors.sure.is_some() || asked.awaits.is_some()).collect()
    }

    /// The consumer takes nothing more for now: that nothing comes says nothing.
    pub(crate) fn excuse(&mut self) {
        let all = self.partitions.values_mut().flat_map(BTreeMap::values_mut);
        all.for_each(|partition| partition.lull = Lull::default());
    }

    /// Whether this record was there at the last look and is not here. The first time, that may be its way here.
    pub(crate) fn is_stalled(&mut self, asked: &Question, has_awaited: bool) -> bool {
        let Some(partition) = self.partition(&asked.place) else { return false };
        let is_same = asked.awaits.is_some() && partition.lull.awaits == asked.awaits;
        if !(has_awaited && is_same && partition.progress.awaits() == asked.awaits) {
            partition.lull.is_overdue = false;
            return false;
        }
        std::mem::replace(&mut partition.lull.is_overdue, true)
    }

    /// A log was looked at, for these anchors. If the position does not count for it, the partition is given up; answers
    /// where its next owner is to begin.
    pub(crate) fn judge(&mut self, place: &Place, asked: Anchors, verdict: Verdict) -> Option<Again> {
        let partition = self.partition(place)?;
        if verdict.is_sound() {
            let is_more = partition.progress.confirm(asked, verdict);
            self.is_dirty |= is_more;
            return None;
        }
        if partition.progress.anchors().sure != asked.sure {
            return None;
        }
        let cut = partition.progress.cut().filter(|_| verdict == Verdict::Cut);
        self.revoke(std::slice::from_ref(place));
        Some(cut.map_or(Again::Low, Again::At))
    }
}

impl Partition {
    /// What it awaits, if that is the same as when it was last looked at.
    fn awaits_still(&mut self) -> Option<i64> {
        let awaits = self.progress.awaits();
        if self.lull.awaits != awaits {
            self.lull = Lull { awaits, is_overdue: false };
            return None;
        }
        awaits
    }
}

#[cfg(test)]
mod tests {
    use cap_core::Headers;

    use super::*;

    fn place(partition: i32) -> Place {
        Place { topic: "orders".into(), partition }
    }

    fn budget(messages: usize, bytes: usize) -> Budget {
        Budget { messages, bytes, asked: bytes / 4 * 3 }
    }

    fn ledger(prefetch: usize, partitions: &[i32]) -> Ledger {
        let mut ledger = Ledger::new(budget(prefetch, usize::MAX));
        for partition in partitions {
            let begins = Beginning { start: Some(0), delivered_before: 2, ..Beginning::default() };
            ledger.assign(place(*partition), begins);
        }
        ledger
    }

    fn arrive(ledger: &mut Ledger, partition: i32, offset: i64) -> bool {
        arrive_with(ledger, partition, offset, 0)
    }

    fn arrive_with(ledger: &mut Ledger, partition: i32, offset: i64, bytes: usize) -> bool {
        ledger.arrive("orders", partition, (offset, Some(offset)), || Delivery {
            tag: DeliveryTag(0),
            topic: "orders".into(),
            headers: Headers::new(),
            body: vec![b'7'; bytes].into(),
            origin: Some(format!("{partition}/{offset}")),
            redelivered: false,
        })
    }

    fn tags(deliveries: &[Delivery]) -> Vec<DeliveryTag> {
        deliveries.iter().map(|delivery| delivery.tag).collect()
    }

    fn offsets(positions: &[Position]) -> Vec<(i32, i64)> {
        positions.iter().map(|position| (position.place.partition, position.offset)).collect()
    }

    #[test]
    fn no_more_than_the_prefetch_are_fetched_or_out() {
        let mut ledger = ledger(3, &[0]);
        for offset in 0..3 {
            assert!(arrive(&mut ledger, 0, offset));
        }
        assert_eq!(ledger.room(), 0);
        let taken = ledger.take(2);
        assert_eq!((taken.len(), ledger.room(), ledger.out()), (2, 0, 2));
        ledger.ack(&tags(&taken[..1]));
        assert_eq!((ledger.room(), ledger.take(9).len()), (1, 1));
    }

    #[test]
    fn no_more_bytes_than_the_budget_are_out_but_for_one_larger_message() {
        let mut ledger = ledger(9, &[0]);
        ledger.budget = budget(9, 100);
        for (offset, bytes) in [(0, 40), (1, 40), (2, 40), (3, 500), (4, 10)] {
            assert!(arrive_with(&mut ledger, 0, offset, bytes));
        }
        assert_eq!((ledger.room(), ledger.is_half_free()), (0, false));
        let sizes = |taken: &[Delivery]| taken.iter().map(|delivery| delivery.body.len()).collect::<Vec<_>>();
        let first = ledger.take(9);
        assert_eq!((sizes(&first), ledger.take(9).len()), (vec![40, 40], 0));
        ledger.ack(&tags(&first[..1]));
        let second = ledger.take(9);
        assert_eq!((sizes(&second), ledger.take(9).len()), (vec![40], 0));
        ledger.release(&tags(&first[1..]));
        ledger.ack(&tags(&second));
        let large = ledger.take(9);
        assert_eq!((sizes(&large), ledger.take(9).len()), (vec![500], 0), "the large one is out alone");
        ledger.ack(&tags(&large));
        let last = ledger.take(9);
        ledger.ack(&tags(&last));
        assert_eq!((sizes(&last), ledger.bytes_ready, ledger.bytes_out), (vec![10], 0, 0));
        assert!(ledger.is_half_free());
    }

    #[test]
    fn nothing_more_is_asked_for_when_three_quarters_of_the_budget_are_held_and_what_goes_is_free_again() {
        let mut ledger = ledger(9, &[0, 1]);
        ledger.budget = budget(9, 100);
        arrive_with(&mut ledger, 0, 0, 74);
        assert_eq!(ledger.room(), 8);
        arrive_with(&mut ledger, 1, 0, 1);
        assert_eq!(ledger.room(), 0);
        ledger.revoke(&[place(0)]);
        assert_eq!((ledger.room(), ledger.bytes_ready), (8, 1));
    }

    #[test]
    fn what_may_have_been_delivered_before_is_marked() {
        let mut ledger = ledger(9, &[0]);
        (0..4).for_each(|offset| assert!(arrive(&mut ledger, 0, offset)));
        let marked: Vec<bool> = ledger.take(9).iter().map(|delivery| delivery.redelivered).collect();
        assert_eq!(marked, [true, true, false, false]);
    }

    #[test]
    fn each_partition_is_committed_up_to_its_first_open_message_and_only_when_that_moves() {
        let mut ledger = ledger(9, &[0, 1]);
        (0..2).for_each(|offset| assert!(arrive(&mut ledger, 0, offset) && arrive(&mut ledger, 1, offset)));
        let taken = ledger.take(9);
        let sorted = |positions: &[Position]| {
            let mut found = offsets(positions);
            found.sort_unstable();
            found
        };
        assert_eq!(sorted(&ledger.commit()), [(0, 0), (1, 0)], "with what was seen of the logs");
        assert_eq!(ledger.commit(), []);
        ledger.ack(&tags(&taken[..3]));
        let committed = ledger.commit();
        assert_eq!(sorted(&committed), [(0, 2), (1, 1)]);
        assert!(!ledger.is_dirty() && ledger.commit().is_empty());
        ledger.uncommit(committed);
        assert!(ledger.is_dirty());
        assert_eq!(ledger.commit().len(), 2);
    }

    #[test]
    fn an_acknowledgement_for_a_partition_that_went_is_dropped_and_counts_if_it_came_back() {
        let mut ledger = ledger(9, &[0]);
        (0..3).for_each(|offset| assert!(arrive(&mut ledger, 0, offset)));
        let taken = ledger.take(2);
        assert!(ledger.is_out(&[place(0)]));
        ledger.revoke(&[place(0)]);
        assert_eq!(ledger.take(9).len(), 0, "what was ready went with its partition");
        assert!(!arrive(&mut ledger, 0, 3), "a record of a partition that went");
        ledger.ack(&tags(&taken[..1]));
        assert!(ledger.commit().is_empty());

        let begins = Beginning { start: Some(0), ..Beginning::default() };
        ledger.assign(place(0), begins);
        let came: Vec<bool> = (0..3).map(|offset| arrive(&mut ledger, 0, offset)).collect();
        assert_eq!(came, [false, true, true], "the first was acknowledged before it came back");
        ledger.ack(&tags(&taken[1..]));
        let again: Vec<_> = ledger.take(9).into_iter().filter_map(|delivery| delivery.origin).collect();
        assert_eq!(again, ["0/2"], "the second when it had");
    }

    #[test]
    fn what_is_released_is_fetched_from_the_earliest_on() {
        let mut ledger = ledger(9, &[0, 1]);
        (0..4).for_each(|offset| assert!(arrive(&mut ledger, 0, offset)));
        let taken = ledger.take(9);
        assert_eq!(offsets(&ledger.release(&tags(&taken[1..3]))), [(0, 1)]);
        let again: Vec<bool> = (1..4).map(|offset| arrive(&mut ledger, 0, offset)).collect();
        assert_eq!(again, [true, true, false]);
        assert!(ledger.take(9).iter().all(|delivery| delivery.redelivered));
    }

    #[test]
    fn what_the_log_has_and_does_not_come_is_noticed_at_the_second_look() {
        let mut ledger = ledger(9, &[0]);
        // Looks once, with what was found; tells whether the partition is stalled.
        let look = |ledger: &mut Ledger, has_awaited: bool| {
            let asked = ledger.questions().pop().unwrap_or(Question {
                place: place(0),
                anchors: Anchors::default(),
                awaits: None,
            });
            ledger.is_stalled(&asked, has_awaited && asked.awaits.is_some())
        };
        let looks =
            |ledger: &mut Ledger, found: &[bool]| found.iter().map(|has| look(ledger, *has)).collect::<Vec<_>>();
        assert_eq!(looks(&mut ledger, &[true, false, false, true, true]), [false, false, false, false, true]);
        arrive(&mut ledger, 0, 0);
        assert_eq!(looks(&mut ledger, &[true, true]), [false; 2], "it waits for another one by now");
        ledger.excuse();
        assert_eq!(looks(&mut ledger, &[true, true, true]), [false, false, true]);
        let tag = ledger.take(1)[0].tag;
        ledger.release(&[tag]);
        assert_eq!(looks(&mut ledger, &[true, true, true]), [false, false, true], "what was given back");
    }

    #[test]
    fn tags_that_are_not_out_are_told() {
        let mut ledger = ledger(9, &[0]);
        arrive(&mut ledger, 0, 0);
        let tag = ledger.take(1)[0].tag;
        assert_eq!(ledger.unknown(&[tag]), None);
        assert_eq!(ledger.unknown(&[DeliveryTag(7), tag, DeliveryTag(8)]), Some((7, 2)));
        ledger.ack(&[tag]);
        assert_eq!(ledger.unknown(&[tag]), Some((tag.0, 1)));
    }
}
