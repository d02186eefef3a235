//! What librdkafka calls from the thread that polls: partitions come and go, and things go wrong.

use std::sync::Arc;
use std::time::Duration;

use cap_core::Topic;
use cap_core::transport::Subscription;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use crate::again::{Misplaced, begin_again, commit_now};
use crate::anchor::{Anchors, Verdict};
use crate::audit::{self, Question};
use crate::client::{COMMIT_FAILED, Fault, log};
use crate::error::{ended, unavailable};
use crate::groups::Groups;
use crate::metadata::{decode, moved};
use crate::pattern;
use crate::place::{Beginning, Place, Position};
use crate::post::Post;
use crate::settings::{STATIC_NAME, Settings};

/// How long the broker may take to tell where a group has got to in a partition.
const ASK: Duration = Duration::from_secs(5);

/// A consumer's context.
pub(crate) struct Context {
    pub(crate) post: Arc<Post>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) wanted: Subscription,
    pub(crate) groups: Arc<Groups>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
        if facility == COMMIT_FAILED {
            self.post.lock().ledger.uncommit_all();
            self.post.bell.notify_one();
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let fault = Fault::new(&error, reason);
        let has_joined = self.post.has_joined();
        tracing::debug!(target: "librdkafka", { messaging.consumer.group.name = %self.post.group, error.message = %error }, "{reason}");
        let end = ended(self.post.subject(), &fault);
        if fault.code == Code::AutoOffsetReset {
            tracing::error!(messaging.consumer.group.name = %self.post.group, error.message = reason, "a log does not have what is to be received next");
        }
        let is_outage = fault.code == Code::AllBrokersDown;
        if !is_outage {
            self.post.lock().fault = Some(fault);
        }
        // Before it has joined, nothing is out that others might have by now: librdkafka goes on trying.
        if let Some(end) = end.filter(|_| has_joined || !is_outage) {
            self.post.give_up(end);
        }
    }
}

impl ConsumerContext for Context {
    /// Where partitions begin is said, and not left to librdkafka: an offset that could not be committed yet is no reason to
    /// be over.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let outcome = if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            for (place, offset) in self.assigned(consumer, partitions) {
                if let Err(error) = partitions.set_partition_offset(&place.topic, place.partition, offset) {
                    tracing::error!(error.message = %error, ?offset, "not an offset");
                }
            }
            consumer.incremental_assign(partitions)
        } else {
            if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS {
                self.revoked(consumer, partitions);
            } else {
                tracing::warn!(error.message = %Code::from(err), messaging.consumer.group.name = %self.post.group, "a rebalance failed");
            }
            match consumer.rebalance_protocol() {
                RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
                _ => consumer.unassign(),
            }
        };
        if let Err(error) = outcome {
            let reason = format!("partitions that came or went could not be taken or left: {error}");
            self.post.give_up(unavailable("receive from", self.post.subject(), reason));
        }
    }
}

/// Where the group is in partitions that it gets.
#[derive(Default)]
struct Start {
    begun: Vec<(Place, Beginning)>,
    /// What is to be committed first.
    first: Vec<Position>,
    /// Positions beyond the log's end: with the ends, and by what the log would be known again.
    beyond: Vec<(Place, i64, (i64, i64), Anchors)>,
    /// Where to fetch from.
    offsets: Vec<(Place, Offset)>,
    /// What is not wanted.
    unwanted: Vec<Place>,
}

impl Context {
    /// Learns how far the group is in partitions that it gets. Where it has not begun, it begins now, and what is sent
    /// from now on is its own, whenever it is here.
    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Vec<(Place, Offset)> {
        let Start { begun, first, beyond, offsets, unwanted } = self.start(consumer, partitions);
        self.groups.note(&self.wanted.group, &begun);
        let mut state = self.post.lock();
        for (place, beginning) in begun {
            state.ledger.assign(place, beginning);
        }
        state.is_changed = true;
        state.placeless = None;
        drop(state);
        commit_now(consumer, &self.post, &first);
        if !beyond.is_empty() {
            begin_again(consumer, &self.post, self.misplaced(beyond));
        }
        if let Some(place) = unwanted.first() {
            self.leave_to_others(place);
        }
        tracing::debug!(messaging.consumer.group.name = %self.post.group, partitions = partitions.count(), "partitions were assigned");
        self.post.join();
        offsets
    }

    fn start(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Start {
        let mut is_away = false;
        let committed = match partitions.count() {
            0 => None,
            _ => consumer.committed_offsets(partitions.clone(), ASK).ok(),
        };
        let mut start = Start::default();
        for partition in partitions.elements() {
            let (topic, number) = (partition.topic(), partition.partition());
            let place = Place { topic: topic.into(), partition: number };
            if !self.wants(topic) {
                // Nothing of it is handed out or committed: it is others'.
                start.offsets.push((place.clone(), Offset::End));
                start.unwanted.push(place);
                continue;
            }
            let asks = committed.is_some() && !is_away;
            let range = asks.then(|| consumer.fetch_watermarks(topic, number, ASK).ok()).flatten();
            let stored = committed.as_ref().and_then(|list| list.find_partition(topic, number));
            let stored = stored.map(|stored| (stored.offset(), stored.metadata().to_owned()));
            if committed.is_some() && range.is_none() {
                // A broker that is away costs one time limit, not one for each partition.
                is_away = true;
            }
            self.begin(&mut start, place, stored, range);
        }
        start
    }

    /// Where the group begins in a partition, by what is stored and by the ends of the log, if the broker tells.
    fn begin(&self, start: &mut Start, place: Place, stored: Option<(Offset, String)>, ends: Option<(i64, i64)>) {
        let (topic, partition) = (&*place.topic, place.partition);
        // If the broker does not tell, whatever comes may have been delivered before.
        let mut beginning = Beginning { delivered_before: i64::MAX, ..Beginning::default() };
        let is_new = !self.groups.has_begun(&self.wanted.group, &place.topic);
        let at_end = is_new && self.settings.begins_at_end();
        let mut first = None;
        match (stored, ends) {
            (Some((Offset::Offset(offset), metadata)), Some((low, high))) if offset > high => {
                start.beyond.push((place, offset, (low, high), decode(offset, &metadata).anchors));
                return;
            }
            (Some((Offset::Offset(offset), metadata)), Some((low, high))) => {
                beginning.start = Some(offset.max(low));
                beginning.metadata = moved(offset, offset.max(low), metadata);
                beginning.delivered_before = high;
                if offset < low {
                    let lost = low - offset;
                    tracing::error!(topic, partition, messaging.consumer.group.name = %self.post.group, lost,
                        "the broker has deleted records that the group had not received (the topic's retention)");
                    first = Some((low, beginning.metadata.clone()));
                }
            }
            (Some((Offset::Invalid, _)), Some((low, high))) => {
                let offset = if at_end { high } else { low };
                beginning.start = Some(offset);
                beginning.delivered_before = i64::MIN;
                first = Some((offset, String::new()));
            }
            (Some((Offset::Invalid, _)), None) => {
                let offset = if at_end { Offset::End } else { Offset::Beginning };
                start.offsets.push((place.clone(), offset));
            }
            _ => tracing::warn!(topic, partition, "the broker does not tell how far the group is"),
        }
        if let Some(offset) = beginning.start {
            start.offsets.push((place.clone(), Offset::Offset(offset)));
        }
        if let Some((offset, metadata)) = first {
            start.first.push(Position { place: place.clone(), offset, metadata });
        }
        start.begun.push((place, beginning));
    }

    /// A member with a static name is given what the last one of that name had, whatever it subscribes itself (a node that was
    /// replaced by another version has other topics). What it does not want would wait with it for ever, so it goes, and joins
    /// again without the name; as soon as the name's session is over, the group shares out what it had.
    fn leave_to_others(&self, Place { topic, .. }: &Place) {
        let group = &self.wanted.group;
        if self.groups.is_nameless(group) || !self.settings.has_static_name() {
            tracing::warn!(messaging.destination.name = %topic, messaging.consumer.group.name = %group, "the group gives a member partitions of a topic that it has not subscribed: they wait until another has them");
            return;
        }
        self.groups.drop_name(group);
        let reason = format!(
            "it was given partitions of `{topic}`, which it has not subscribed and a member of its name (`{STATIC_NAME}`) \
             had: it joins again without that name"
        );
        tracing::warn!(messaging.destination.name = %topic, messaging.consumer.group.name = %group, "{reason}");
        self.post.give_up(unavailable("receive from", self.post.subject(), reason));
    }

    /// Where logs begin again that end before the group's position: if the first part of one is the same, behind that.
    fn misplaced(&self, beyond: Vec<(Place, i64, (i64, i64), Anchors)>) -> Vec<Misplaced> {
        let known = beyond.iter().filter(|(.., anchors)| anchors.sure.is_some());
        let question = |place: &Place, anchors: Anchors| Question { place: place.clone(), anchors, awaits: None };
        let known: Vec<_> = known.map(|(place, .., anchors)| question(place, *anchors)).collect();
        let found = match known.is_empty() {
            true => Vec::new(),
            false => audit::look(&self.settings, &self.wanted, known),
        };
        let is_cut = |place: &Place| {
            found.iter().any(|finding| finding.asked.place == *place && finding.verdict == Verdict::Cut)
        };
        let misplaced = |(place, position, ends, anchors): (Place, i64, (i64, i64), Anchors)| {
            let sure = anchors.sure.filter(|_| is_cut(&place)).map(|sure| sure.offset);
            Misplaced::beyond(place, position, ends, sure)
        };
        beyond.into_iter().map(misplaced).collect()
    }

    /// Commits what is done of partitions that go to other members.
    fn revoked(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let places: Vec<Place> = partitions
            .elements()
            .iter()
            .map(|partition| Place { topic: partition.topic().into(), partition: partition.partition() })
            .collect();
        let is_lost = consumer.assignment_lost();
        if !is_lost {
            self.post.hand_over(&places);
        }
        // A partition that goes while it is paused would be paused when it comes back.
        if let Err(error) = consumer.resume(partitions) {
            tracing::debug!(error.message = %error, messaging.consumer.group.name = %self.post.group, "partitions that go could not be resumed");
        }
        let mut state = self.post.lock();
        let positions = state.ledger.commit_of(&places);
        state.ledger.revoke(&places);
        if is_lost {
            state.placeless.get_or_insert_with(Instant::now);
        }
        drop(state);
        self.post.bell.notify_one();
        if !is_lost {
            commit_now(consumer, &self.post, &positions);
        }
        tracing::debug!(messaging.consumer.group.name = %self.post.group, partitions = places.len(), is_lost, "partitions were revoked");
    }

    fn wants(&self, topic: &str) -> bool {
        let topic = Topic::from_stored(topic);
        !pattern::is_internal(topic.as_str()) && self.wanted.topics.iter().any(|pattern| pattern.matches(&topic))
    }
}
