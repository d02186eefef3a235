//! Topics: which there are, who makes those that are missing, and which would be wanted.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cap_core::transport::Subscription;
use cap_core::{Error, ErrorKind, Result, Topic, TopicPattern};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::client::Quiet;
use crate::config::CreateTopics;
use crate::error::{create, creation, unavailable, words};
use crate::pattern;
use crate::publisher::Publisher;
use crate::settings::Settings;

/// How often a topic that was made is looked for, until every broker that is asked knows it.
const LOOK: Duration = Duration::from_millis(20);

/// How long nobody tries to make a topic again, after it was refused.
const REFUSED: Duration = Duration::from_secs(1);

/// What a broker tells of all topics.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    names: HashSet<String>,
    /// The patterns that somebody has subscribed.
    patterns: Vec<TopicPattern>,
}

impl Listing {
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let names: HashSet<String> = names.into_iter().collect();
        let patterns = names.iter().filter_map(|name| pattern::remembered(name)).collect();
        Self { names, patterns }
    }

    fn is_wanted(&self, topic: &str) -> bool {
        Topic::try_from(topic).is_ok_and(|topic| self.patterns.iter().any(|pattern| pattern.matches(&topic)))
    }
}

/// What is known of topics.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    /// Those that exist, as far as anybody has said.
    known: Mutex<HashSet<String>>,
    /// One looks or creates for all; with the last time that looking failed.
    turn: tokio::sync::Mutex<Option<(Instant, Error)>>,
    refused: Mutex<Refused>,
}

/// Topics that could not be made, with when and why: messages to them are answered with the same for a while.
#[derive(Debug, Default)]
struct Refused(HashMap<String, (Instant, Error)>);

impl Refused {
    fn add(&mut self, topic: &str, error: Error, now: Instant) {
        self.0.retain(|_, (at, _)| *at + REFUSED > now);
        self.0.insert(topic.to_owned(), (now, error));
    }

    fn get(&self, topic: &str, now: Instant) -> Option<Error> {
        self.0.get(topic).filter(|(at, _)| *at + REFUSED > now).map(|(_, error)| error.clone())
    }
}

impl Topics {
    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, listing: &Listing) {
        self.known().clone_from(&listing.names);
    }

    /// A topic is gone.
    pub(crate) fn forget(&self, topic: &str) {
        self.known().remove(topic);
    }

    pub(crate) fn unknown<'a>(&self, topics: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let known = self.known();
        topics.into_iter().filter(|topic| !known.contains(*topic)).collect()
    }

    /// Those of the topics that cannot be sent to, each with the reason. What is missing and may be made is made.
    pub(crate) async fn route(
        &self,
        publisher: &Publisher,
        settings: &Arc<Settings>,
        topics: HashSet<&str>,
    ) -> HashMap<String, Error> {
        let (mut refused, topics) = self.lately_refused(self.unknown(topics));
        if topics.is_empty() {
            return refused;
        }
        let asked = Instant::now();
        let mut turn = self.turn.lock().await;
        // Another may have looked, or tried, meanwhile.
        let (more, unknown) = self.lately_refused(self.unknown(topics));
        refused.extend(more);
        if unknown.is_empty() {
            return refused;
        }
        let listing = match look(&mut turn, asked, publisher, "send to").await {
            Ok(listing) => listing,
            Err(error) => {
                refused.extend(unknown.iter().map(|topic| ((*topic).to_owned(), sending(topic, &error))));
                return refused;
            }
        };
        self.note(&listing);
        let missing = unknown.iter().copied().filter(|topic| !listing.names.contains(*topic));
        let (made, unwanted): (Vec<&str>, Vec<&str>) = missing.partition(|topic| may_send(settings, &listing, topic));
        refused.extend(unwanted.into_iter().map(|topic| (topic.to_owned(), unroutable(topic, settings))));
        for (topic, error) in self.create(publisher, settings, made).await {
            let error = sending(&topic, &error);
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).add(&topic, error.clone(), Instant::now());
            refused.insert(topic, error);
        }
        refused
    }

    /// Those of the topics that could not be made a moment ago, with the reason, and the others.
    fn lately_refused<'a>(&self, topics: Vec<&'a str>) -> (HashMap<String, Error>, Vec<&'a str>) {
        let (lately, now) = (self.refused.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let (mut refused, mut others) = (HashMap::new(), Vec::new());
        for topic in topics {
            match lately.get(topic, now) {
                Some(error) => drop(refused.insert(topic.to_owned(), error)),
                None => others.push(topic),
            }
        }
        (refused, others)
    }

    /// Those of the topics that a message would be `Unroutable` to now, in their order.
    pub(crate) async fn unrouted(
        &self,
        publisher: &Publisher,
        settings: &Settings,
        mut topics: Vec<Topic>,
    ) -> Result<Vec<Topic>> {
        let listing = publisher.list("tell which topics do not exist on").await?;
        self.note(&listing);
        topics.retain(|topic| {
            let topic = topic.as_str();
            !listing.names.contains(topic) && !may_send(settings, &listing, topic)
        });
        Ok(topics)
    }

    /// Makes what a subscription needs: its topics, and what remembers its patterns. Whether any topic exists that it wants.
    pub(crate) async fn prepare(
        &self,
        publisher: &Publisher,
        settings: &Arc<Settings>,
        wanted: &Subscription,
    ) -> Result<bool> {
        let asked = Instant::now();
        let mut turn = self.turn.lock().await;
        let mut listing = look(&mut turn, asked, publisher, "subscribe to").await?;
        let exact: BTreeSet<Topic> = wanted.topics.iter().filter_map(TopicPattern::exact).collect();
        let missing: Vec<&str> =
            exact.iter().map(Topic::as_str).filter(|topic| !listing.names.contains(*topic)).collect();
        if let (Some(topic), CreateTopics::Never) = (missing.first(), settings.create_topics()) {
            let reason = "it does not exist, and is not made here (`create_topics` is `never`)";
            let subject = format!("topic `{topic}` on {}", settings.place);
            return Err(Error::new(ErrorKind::Environment, "subscribe to", subject, reason));
        }
        if let Some((_, error)) = self.create(publisher, settings, missing).await.into_iter().next() {
            return Err(error);
        }
        listing.names.extend(exact.iter().map(|topic| topic.as_str().to_owned()));
        let patterns = wanted.topics.iter().filter(|pattern| pattern.exact().is_none());
        let remembering: BTreeSet<String> = patterns.map(pattern::remembering).collect();
        let forgotten =
            remembering.iter().map(String::as_str).filter(|topic| !listing.names.contains(*topic)).collect();
        if settings.create_topics() != CreateTopics::Never {
            // Without it, the group gets what is sent to topics that exist, and to those that others make.
            for (topic, error) in self.create(publisher, settings, forgotten).await {
                tracing::warn!(topic, error.message = %error, "a pattern is not remembered: first messages to new topics that it matches wait");
            }
        }
        listing.names.extend(remembering);
        self.note(&listing);
        let names = listing.names.iter().filter(|name| !pattern::is_internal(name));
        let topics: Vec<Topic> = names.map(|name| Topic::from_stored(name)).collect();
        Ok(wanted.topics.iter().any(|pattern| topics.iter().any(|topic| pattern.matches(topic))))
    }

    /// Makes topics, and waits until they are there to be used. What could not be made, with the reason.
    async fn create(&self, publisher: &Publisher, settings: &Arc<Settings>, topics: Vec<&str>) -> Vec<(String, Error)> {
        if topics.is_empty() {
            return Vec::new();
        }
        let (names, making) =
            (topics.iter().map(|topic| (*topic).to_owned()).collect::<Vec<_>>(), Arc::clone(settings));
        let asked = names.clone();
        let deadline = Instant::now() + settings.connect_timeout();
        // The client's end joins a thread, and its future belongs to no runtime.
        let handle = tokio::runtime::Handle::current();
        let made = tokio::task::spawn_blocking(move || handle.block_on(ask_to_create(&making, &asked))).await;
        let made =
            made.unwrap_or_else(|panic| Err(unavailable("create topics on", &settings.place, panic.to_string())));
        let refused = match made {
            Ok(refused) => refused,
            Err(error) => return names.into_iter().map(|topic| (topic, error.clone())).collect(),
        };
        let is_refused = |topic: &String| refused.iter().any(|(refused, _)| refused == topic);
        let created: Vec<String> = names.iter().filter(|topic| !is_refused(topic)).cloned().collect();
        let mut failed: Vec<(String, Error)> = refused
            .into_iter()
            .map(|(topic, code)| {
                let error = create(&topic, code, settings);
                (topic, error)
            })
            .collect();
        loop {
            let left: Vec<&String> = match publisher.list("create topics on").await {
                Ok(listing) => created.iter().filter(|topic| !listing.names.contains(*topic)).collect(),
                Err(_) => created.iter().collect(),
            };
            if left.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                let late = |topic: &String| {
                    let reason = "it was made, and no broker has it after the connect time limit";
                    (topic.clone(), unavailable("create", format!("topic `{topic}` on {}", settings.place), reason))
                };
                failed.extend(left.into_iter().map(late));
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let is_failed = |topic: &String| failed.iter().any(|(failed, _)| failed == topic);
        self.known().extend(created.into_iter().filter(|topic| !is_failed(topic)));
        failed
    }
}

/// Asks which topics there are. Who waited while another's attempt failed gets its error, so that brokers that are away cost
/// everyone one time limit and not one each.
async fn look(
    turn: &mut Option<(Instant, Error)>,
    asked: Instant,
    publisher: &Publisher,
    operation: &'static str,
) -> Result<Listing> {
    if let Some((_, error)) = turn.as_ref().filter(|(at, _)| *at > asked) {
        return Err(error.clone());
    }
    publisher.list(operation).await.inspect_err(|error| *turn = Some((Instant::now(), error.clone())))
}

/// Whether a topic that does not exist is made for a message to it.
fn may_send(settings: &Settings, listing: &Listing, topic: &str) -> bool {
    match settings.create_topics() {
        CreateTopics::Always => true,
        CreateTopics::OnSubscribe => listing.is_wanted(topic),
        CreateTopics::Never => false,
    }
}

async fn ask_to_create(settings: &Settings, topics: &[String]) -> Result<Vec<(String, Code)>> {
    let admin: AdminClient<Quiet> =
        settings.admin().create_with_context(Quiet).map_err(|cause| creation(settings, cause))?;
    let replication = || TopicReplication::Fixed(settings.replicas());
    let new: Vec<NewTopic<'_>> = topics
        .iter()
        .map(|topic| match pattern::remembered(topic) {
            Some(_) => NewTopic::new(topic, 1, replication()),
            None => NewTopic::new(topic, settings.partitions(), replication()),
        })
        .collect();
    let limit = settings.connect_timeout();
    let options = AdminOptions::new().request_timeout(Some(limit)).operation_timeout(Some(limit));
    let failed = |cause: KafkaError| unavailable("create topics on", &settings.place, words(&cause)).because(cause);
    let made = admin.create_topics(&new, &options).await.map_err(failed)?;
    Ok(made
        .into_iter()
        .filter_map(std::result::Result::err)
        .filter(|(_, code)| *code != Code::TopicAlreadyExists)
        .collect())
}

fn unroutable(topic: &str, settings: &Settings) -> Error {
    let reason = match settings.create_topics() {
        CreateTopics::Never => "it does not exist, and is not made here (`create_topics` is `never`)",
        _ => "it does not exist: no group has subscribed it, nor a pattern that matches it",
    };
    Error::new(ErrorKind::Unroutable, "send to", format!("topic `{topic}` on {}", settings.place), reason)
}

/// Why a message to a topic cannot be sent: what is wrong is wrong with the topic or the broker. Unless the topic can
/// never be, it stays in the outbox.
fn sending(topic: &str, cause: &Error) -> Error {
    let kind = if cause.operation() == "create" { cause.kind() } else { ErrorKind::Unavailable };
    Error::new(kind, "send to", format!("topic `{topic}`"), cause.to_string()).because(cause.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KafkaOptions;

    #[test]
    fn a_topic_that_could_not_be_made_is_left_alone_for_a_while() {
        let (mut refused, now) = (Refused::default(), Instant::now());
        let error = || Error::new(ErrorKind::Environment, "create", "topic `orders`", "no right to");
        refused.add("orders", error(), now);
        assert!(refused.get("orders", now).is_some() && refused.get("bills", now).is_none());
        assert!(refused.get("orders", now + REFUSED).is_none());
        refused.add("bills", error(), now + REFUSED);
        assert_eq!(refused.0.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn a_missing_topic_is_made_if_a_pattern_wants_it_or_the_options_say_so() {
        let remembered = pattern::remembering(&TopicPattern::try_from("order.*").unwrap());
        let listing = Listing::new(["bill".to_owned(), remembered]);
        let may = |create: CreateTopics, topic: &str| {
            may_send(&KafkaOptions::default().create_topics(create).check().unwrap(), &listing, topic)
        };
        assert!(may(CreateTopics::OnSubscribe, "order.placed"));
        assert!(!may(CreateTopics::OnSubscribe, "order.placed.eu"));
        assert!(may(CreateTopics::Always, "order.placed.eu"));
        assert!(!may(CreateTopics::Never, "order.placed"));
    }
}
