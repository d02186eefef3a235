//! Which topics have a queue, seen from the exchange's bindings.

use cap_core::{Topic, TopicPattern};
use serde::Deserialize;

/// A binding of the exchange, as the broker lists it.
#[derive(Debug, Deserialize)]
pub(crate) struct Binding {
    /// `queue` or `exchange`.
    destination_type: String,
    destination: String,
    routing_key: String,
}

/// Those of the topics that no queue is bound for, in their order.
///
/// Only bindings to queues count. What another exchange does with a message depends on its type, and for some types on
/// the message's headers; so a topic that reaches its queue through one is reported, with a line in the log.
pub(crate) fn unrouted(mut topics: Vec<Topic>, bindings: &[Binding]) -> Vec<Topic> {
    let (to_queues, to_exchanges): (Vec<_>, Vec<_>) = bindings
        .iter()
        .map(|binding| (TopicPattern::from_stored(&binding.routing_key), binding))
        .partition(|(_, binding)| binding.destination_type == "queue");
    topics.retain(|topic| !to_queues.iter().any(|(key, _)| key.matches(topic)));
    for topic in &topics {
        if let Some((_, binding)) = to_exchanges.iter().find(|(key, _)| key.matches(topic)) {
            tracing::info!(messaging.destination.name = %topic, exchange = binding.destination, "goes to another exchange, whose queues are not looked at");
        }
    }
    topics
}

#[cfg(test)]
mod tests {
    use cap_core::pattern::MATCH_TABLE;

    use super::*;

    fn binding(destination_type: &str, key: &str) -> Binding {
        Binding { destination_type: destination_type.into(), destination: "x".into(), routing_key: key.into() }
    }

    fn topics(names: &[&str]) -> Vec<Topic> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn keys_match_as_the_table_says() {
        for &(key, topic, matches) in MATCH_TABLE {
            let left = unrouted(topics(&[topic]), &[binding("queue", key)]);
            assert_eq!(left.is_empty(), matches, "{key} against {topic}");
        }
    }

    #[test]
    fn only_queues_count_and_the_order_is_kept() {
        let bindings = [binding("queue", "b"), binding("exchange", "#"), binding("queue", "d.*")];
        assert_eq!(unrouted(topics(&["z", "b", "d.e", "d", "a"]), &bindings), topics(&["z", "d", "a"]));
    }

    #[test]
    fn a_key_that_is_no_pattern_of_ours_is_no_obstacle() {
        let bindings = [binding("queue", ""), binding("queue", "a*"), binding("queue", " "), binding("queue", "b..*")];
        assert_eq!(unrouted(topics(&["ab", "b..c"]), &bindings), topics(&["ab"]));
    }
}
