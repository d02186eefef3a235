//! Positions that do not count for the log that is there: it is told, and the log is begun again.

use rdkafka::consumer::{CommitMode, Consumer, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

use crate::anchor::{Again, Verdict};
use crate::audit::{Finding, Question};
use crate::error::unavailable;
use crate::place::{Place, Position};
use crate::post::Post;

/// A position that does not count.
#[derive(Debug)]
pub(crate) struct Misplaced {
    place: Place,
    /// Where the log is begun again.
    offset: i64,
    reason: String,
}

impl Misplaced {
    /// The log was looked at, and found to be another one.
    pub(crate) fn found(finding: Finding, again: Again) -> Self {
        let Finding { asked: Question { place, .. }, verdict, ends: (low, high), .. } = finding;
        let offset = match again {
            Again::Low => low,
            Again::At(offset) => offset.clamp(low, high),
        };
        let what = match verdict {
            Verdict::Cut => "the log was cut off below the group's position, and has other records there",
            _ => "the group's position was made in another log (was the topic deleted and made again?)",
        };
        Self { place, offset, reason: format!("{what}; it ends at {high}") }
    }

    /// The log ends before the position. `sure`: up to there it is the log that the position was made in.
    pub(crate) fn beyond(place: Place, position: i64, (low, high): (i64, i64), sure: Option<i64>) -> Self {
        let reason = format!(
            "the group has got to {position}, and the log ends at {high} (was the topic deleted and made again, or a \
             broker restored?)"
        );
        Self { place, offset: sure.map_or(low, |sure| (sure + 1).clamp(low, high)), reason }
    }
}

/// Commits where these logs are begun again, and gives the consumer up, so that it is told: the next one begins there. What
/// comes again is known to the inbox.
pub(crate) fn begin_again<C: ConsumerContext>(consumer: &impl Consumer<C>, post: &Post, misplaced: Vec<Misplaced>) {
    let Some(first) = misplaced.first() else { return };
    let Misplaced { place: Place { topic, partition }, offset, reason } = first;
    let more = match misplaced.len() {
        1 => String::new(),
        count => format!(" (and {} more partitions)", count - 1),
    };
    let told = format!("partition {partition} of `{topic}`: {reason}: it is begun again at {offset}{more}");
    for Misplaced { place: Place { topic, partition }, offset, reason } in &misplaced {
        tracing::error!(messaging.destination.name = %topic, partition, messaging.consumer.group.name = %post.group, offset, "{reason}: it is begun again there");
    }
    let position = |Misplaced { place, offset, .. }| Position { place, offset, metadata: String::new() };
    commit_now(consumer, post, &misplaced.into_iter().map(position).collect::<Vec<_>>());
    post.give_up(unavailable("receive from", post.subject(), told));
}

/// Commits, and waits for it.
pub(crate) fn commit_now<C: ConsumerContext>(consumer: &impl Consumer<C>, post: &Post, positions: &[Position]) {
    if positions.is_empty() {
        return;
    }
    if let Err(error) = consumer.commit(&offsets(positions), CommitMode::Sync) {
        // Nothing is lost: what is not committed comes again, and the inbox knows it.
        tracing::info!(error.message = %error, messaging.consumer.group.name = %post.group, "offsets could not be committed");
    }
}

pub(crate) fn offsets(positions: &[Position]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for Position { place, offset, metadata } in positions {
        let mut entry = list.add_partition(&place.topic, place.partition);
        if let Err(error) = entry.set_offset(Offset::Offset(*offset)) {
            tracing::error!(error.message = %error, offset, "not an offset");
        }
        entry.set_metadata(metadata);
    }
    list
}
