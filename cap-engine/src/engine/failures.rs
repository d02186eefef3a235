//! Failed attempts, told to people: the first of a kind at once, then how many more there were, once a minute. Each for
//! itself would bury everything else; none at all would tell of a service that fails only when its first message is dead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::{Group, Table, Topic, shown};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::engine::held::Held;

/// How often a kind that goes on failing is told of.
const EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether one is to be told of.
const LOOK: Duration = Duration::from_secs(5);
/// So many kinds are told apart; what is of none of them is counted together.
const KINDS: usize = 200;
/// So many letters of a reason tell kinds apart.
const SHAPE: usize = 100;

/// The kinds of failures of late.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<HashMap<Kind, Count>>);

/// What failures have in common that are told of together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    table: Table,
    /// None for what is counted together.
    place: Option<(Topic, Option<Group>)>,
    /// The reason without its numbers.
    shape: String,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    /// How many there were since it was told of.
    more: u64,
    last: String,
}

impl Failures {
    fn kinds(&self) -> MutexGuard<'_, HashMap<Kind, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt failed and will be made again.
    pub(crate) fn note(&self, table: Table, held: &Held, reason: &str) {
        let place = Some((held.topic.clone(), held.group.clone()));
        if !self.is_first(Kind { table, place, shape: shape(reason) }, reason) {
            return;
        }
        tracing::warn!(
            messaging.message.id = %held.message_id.shown(),
            messaging.destination.name = %held.topic.shown(),
            messaging.consumer.group.name = held.group.as_ref().map(|group| tracing::field::display(group.shown())),
            cap.attempt = held.begun.attempts,
            cap.reason = %shown(reason),
            "{} and will be tried again; more of the kind are counted, and told of every minute",
            what(table)
        );
    }

    /// Counts one; answers whether it is the first of its kind.
    fn is_first(&self, mut kind: Kind, reason: &str) -> bool {
        let mut kinds = self.kinds();
        if kinds.len() >= KINDS && !kinds.contains_key(&kind) {
            kind = Kind { table: kind.table, place: None, shape: String::new() };
        }
        match kinds.get_mut(&kind) {
            Some(count) => {
                count.more += 1;
                reason.clone_into(&mut count.last);
                false
            }
            None => {
                kinds.insert(kind, Count { since: Instant::now(), more: 0, last: String::new() });
                true
            }
        }
    }

    /// The kinds that are to be told of, with how many there were and the last reason. What did not happen again is
    /// forgotten: the next one is a first.
    fn due(&self, age: Duration) -> Vec<(Kind, u64, String)> {
        let now = Instant::now();
        let mut due = Vec::new();
        self.kinds().retain(|kind, count| {
            if now - count.since < age {
                return true;
            }
            if count.more == 0 {
                return false;
            }
            due.push((kind.clone(), std::mem::take(&mut count.more), std::mem::take(&mut count.last)));
            count.since = now;
            true
        });
        due
    }

    fn tell(&self, age: Duration) {
        for (Kind { table, place, .. }, more, last) in self.due(age) {
            let (topic, group) = place.map_or((None, None), |(topic, group)| (Some(topic), group));
            tracing::warn!(
                messaging.destination.name = topic.as_ref().map(|topic| tracing::field::display(topic.shown())),
                messaging.consumer.group.name = group.as_ref().map(|group| tracing::field::display(group.shown())),
                cap.failures = more,
                cap.reason = %shown(&last),
                "{}, {more} times more within a minute",
                what(table)
            );
        }
    }
}

fn what(table: Table) -> &'static str {
    match table {
        Table::Outbox => "a message could not be sent",
        Table::Inbox => "a handler failed",
    }
}

/// The beginning of a reason, with `#` for each word that has a digit: ids, amounts and times tell no kinds apart.
fn shape(reason: &str) -> String {
    let mut shape = String::new();
    for word in reason.split_inclusive(|char: char| !char.is_alphanumeric()) {
        match word.contains(|char: char| char.is_numeric()) {
            true => shape.push('#'),
            false => shape.push_str(word),
        }
        if shape.len() >= SHAPE {
            break;
        }
    }
    shape
}

/// Tells of what goes on failing, until the end of a stop.
pub(crate) async fn run(engine: Arc<Engine>) {
    let finish: &CancellationToken = &engine.stop.finish;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => engine.failures.tell(EVERY),
            () = finish.cancelled() => return engine.failures.tell(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(topic: &str, reason: &str) -> Kind {
        Kind { table: Table::Inbox, place: Some((Topic::from_stored(topic), None)), shape: shape(reason) }
    }

    fn counts(failures: &Failures, age: Duration) -> Vec<(u64, String)> {
        failures.due(age).into_iter().map(|(_, more, last)| (more, last)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_of_a_kind_is_told_at_once_and_the_others_are_counted() {
        let failures = Failures::default();
        let fails = |topic, reason| failures.is_first(kind(topic, reason), reason);
        assert!(fails("a", "no invoice 17"));
        assert!(!fails("a", "no invoice 18"));
        assert!(!fails("a", "no invoice 19"));
        assert!(fails("a", "no customer 17"));
        assert!(fails("b", "no invoice 17"));
        assert_eq!(counts(&failures, EVERY), []);
        tokio::time::advance(EVERY).await;
        assert_eq!(counts(&failures, EVERY), [(2, "no invoice 19".to_owned())]);
        // What did not happen again is forgotten, what did goes on being counted.
        assert!(fails("b", "no invoice 17"));
        assert!(!fails("a", "no invoice 20"));
        tokio::time::advance(EVERY).await;
        assert_eq!(counts(&failures, EVERY), [(1, "no invoice 20".to_owned())]);
    }

    #[test]
    fn kinds_are_bounded() {
        let failures = Failures::default();
        let letters =
            |number: usize| number.to_string().bytes().map(|digit| char::from(digit + 49)).collect::<String>();
        let first = (0..KINDS * 2).filter(|number| failures.is_first(kind("a", &letters(*number)), "no")).count();
        assert_eq!((first, failures.kinds().len()), (KINDS + 1, KINDS + 1));
    }

    #[test]
    fn numbers_and_ids_tell_no_kinds_apart() {
        assert_eq!(shape("no row 65f0a1 of order-17 at 10:03:59"), shape("no row 1b of order-3 at 9:00:00"));
        assert_ne!(shape("no row"), shape("no table"));
        assert!(shape(&"word ".repeat(10_000)).len() <= SHAPE + 5);
    }
}
