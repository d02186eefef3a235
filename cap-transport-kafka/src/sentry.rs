//! Looks after topics that are slow to confirm, so that one without a leader is known within a second and not only when its
//! messages have waited for as long as a confirm may take.

use std::sync::{Arc, Weak};
use std::time::Instant;

use cap_core::{ErrorKind, Result, Topic};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::Producer as _;

use crate::error::{lost, unavailable};
use crate::reports::Producer;
use crate::settings::Settings;
use crate::topics::Topics;
use crate::traffic::{Failure, Traffic};

/// How many topics are looked at in one round.
const ROUND: usize = 8;

/// Starts the thread that looks after a producer, as long as the producer lives.
pub(crate) fn start(
    producer: Weak<Producer>,
    traffic: Arc<Traffic>,
    topics: Arc<Topics>,
    settings: &Arc<Settings>,
) -> Result<()> {
    let place = settings.place.clone();
    let settings = Arc::clone(settings);
    let started = std::thread::Builder::new().name("cap-kafka sentry".into()).spawn(move || {
        let limit = settings.slow();
        while traffic.watch(limit / 2) {
            let Some(producer) = producer.upgrade() else { return };
            for topic in traffic.slow(Instant::now(), limit, ROUND) {
                if !look_at(&topic, &producer, &traffic, &topics, &settings) {
                    break;
                }
            }
        }
    });
    started.map(drop).map_err(|cause| unavailable("connect to", place, format!("no thread: {cause}")).because(cause))
}

/// Asks the brokers what is wrong with a topic, and tells its messages. Whether they answered.
fn look_at(topic: &Topic, producer: &Producer, traffic: &Traffic, topics: &Topics, settings: &Settings) -> bool {
    let limit = settings.slow();
    let answer = producer.client().fetch_metadata(Some(topic.as_str()), limit);
    let now = Instant::now();
    traffic.sign_of_life(now, answer.is_ok());
    let Ok(answer) = answer else { return false };
    let fault =
        answer.topics().iter().find(|told| told.name() == topic.as_str()).and_then(|told| fault(told, settings));
    match fault {
        // librdkafka gives its messages up within seconds, and does not send them if it is made again.
        Some(fault) if fault.kind == ErrorKind::Unroutable => topics.forget(topic.as_str()),
        Some(fault) => {
            tracing::debug!(messaging.destination.name = %topic, error.message = fault.reason, "nothing gets through to a topic");
            traffic.give_up(topic, now, limit, &fault);
        }
        None => {}
    }
    true
}

/// What is wrong with a topic, if it is known.
fn fault(topic: &MetadataTopic, settings: &Settings) -> Option<Failure> {
    if let Some(error) = topic.error() {
        return Some(lost(Code::from(error), settings, true));
    }
    let headless: Vec<i32> =
        topic.partitions().iter().filter(|partition| partition.leader() < 0).map(|partition| partition.id()).collect();
    let first = headless.first()?;
    let (count, all) = (headless.len(), topic.partitions().len());
    let reason = format!("{count} of its {all} partitions have no leader (the first: {first})");
    Some(Failure { kind: ErrorKind::Environment, reason })
}
