//! Which topic a delivery is of. The broker's rights were granted on the routing key or topic that a message was published
//! to, so that decides, and no header that its publisher wrote, except where the broker or an operator has moved it.

use cap_core::{Error, Headers, Topic, headers, shown};
use serde::Deserialize;

use crate::options::Options;

/// What RabbitMQ writes down when it moves a message from one queue on: each queue with the routing keys that the message
/// had come there with.
const DEATHS: &str = "x-death";

/// Stands for a topic that is none.
pub(crate) const INVALID: &str = "invalid";

/// Where a delivery came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'d> {
    /// The routing key or topic name that it was delivered with.
    pub(crate) routed: &'d str,
    pub(crate) headers: &'d Headers,
}

impl Origin<'_> {
    /// The topic, and why the message is not to be handled, if so.
    ///
    /// `is_subscribed` tells whether a subscription of the group asked for what it was delivered with. If none did that is
    /// the queue's own name, or a key that somebody bound by hand: who publishes to topics cannot have put it there.
    pub(crate) fn topic(self, options: &Options, is_subscribed: impl Fn(&Topic) -> bool) -> (Topic, Option<String>) {
        let routed = Topic::try_from(self.routed);
        let name = self.headers.get(headers::MESSAGE_NAME).filter(|name| !name.is_empty() && *name != self.routed);
        let named = match name {
            Some(name) if self.believes(name, options, is_subscribed) => Topic::try_from(name).ok(),
            _ => None,
        };
        match (named, routed, name) {
            (Some(named), ..) => (named, None),
            (None, Ok(routed), Some(name)) if !options.header_names_topic => (routed, Some(self.disagreement(name))),
            (None, Ok(routed), _) => (routed, None),
            (None, Err(error), name) => (Topic::from_stored(INVALID), Some(self.no_topic(&error, name))),
        }
    }

    /// Whether the header is to be believed against what the broker says.
    fn believes(self, name: &str, options: &Options, is_subscribed: impl Fn(&Topic) -> bool) -> bool {
        let routed = Topic::from_stored(self.routed);
        options.header_names_topic
            || options.moved_topics.iter().any(|moved| moved.matches(&routed))
            || (!is_subscribed(&routed) && self.was_moved_from(name))
    }

    /// Whether the broker itself says that it moved the message, which had been published to `topic`.
    fn was_moved_from(self, topic: &str) -> bool {
        #[derive(Deserialize)]
        struct Death {
            #[serde(rename = "routing-keys", default)]
            routing_keys: Vec<String>,
        }
        let Some(deaths) = self.headers.get(DEATHS) else { return false };
        let deaths: Vec<Death> = serde_json::from_str(deaths).unwrap_or_default();
        deaths.iter().flat_map(|death| &death.routing_keys).any(|key| key == topic)
    }

    fn disagreement(self, name: &str) -> String {
        format!(
            "its header `{}` says `{}`, but it was published to `{}`, and that decides (the options `moved_topics` and \
             `header_names_topic` tell when it does not)",
            headers::MESSAGE_NAME,
            shown(name),
            shown(self.routed)
        )
    }

    fn no_topic(self, error: &Error, name: Option<&str>) -> String {
        match name {
            Some(name) => format!("{error}; {}", self.disagreement(name)),
            None => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a delivery to a group that has subscribed `lp.x` and `secret.y`, and whose queue is called `g.v1`.
    fn topic(routed: &str, headers: &[(&str, &str)], options: &Options) -> Result<String, String> {
        let headers: Headers = headers.iter().copied().collect();
        let is_subscribed = |topic: &Topic| ["lp.x", "secret.y"].contains(&topic.as_str());
        let (topic, fault) = Origin { routed, headers: &headers }.topic(options, is_subscribed);
        match fault {
            None => Ok(topic.to_string()),
            Some(fault) => Err(format!("{topic}: {fault}")),
        }
    }

    const SECRET: (&str, &str) = ("cap-msg-name", "secret.y");
    const DEATH: (&str, &str) =
        ("x-death", r#"[{"count":1,"exchange":"cap","queue":"g.v1","routing-keys":["secret.y"]}]"#);

    #[test]
    fn what_the_broker_says_decides() {
        let options = Options::default();
        assert_eq!(topic("lp.x", &[], &options), Ok("lp.x".into()));
        assert_eq!(topic("lp.x", &[("cap-msg-name", "lp.x")], &options), Ok("lp.x".into()));
        assert_eq!(topic("lp.x", &[("cap-msg-name", "")], &options), Ok("lp.x".into()));
        for routed in ["lp.x", "g.v1"] {
            let fault = topic(routed, &[SECRET], &options).unwrap_err();
            assert!(fault.starts_with(&format!("{routed}: ")) && fault.contains("`secret.y`"), "{fault}");
        }
        assert!(topic("lp.x", &[("cap-msg-name", "a*")], &options).is_err());
        assert!(topic("", &[SECRET], &options).unwrap_err().contains("invalid: "));
    }

    #[test]
    fn what_the_broker_itself_has_moved_keeps_its_topic() {
        let options = Options::default();
        assert_eq!(topic("g.v1", &[SECRET, DEATH], &options), Ok("secret.y".into()));
        assert_eq!(topic("", &[SECRET, DEATH], &options), Ok("secret.y".into()));
        let of_another = ("x-death", r#"[{"routing-keys":["lp.x"]},{}]"#);
        for deaths in [of_another, ("x-death", "secret.y"), ("x-death", "{}")] {
            assert!(topic("g.v1", &[SECRET, deaths], &options).is_err(), "{deaths:?}");
        }
    }

    #[test]
    fn who_may_publish_to_a_topic_cannot_pretend_that_the_broker_moved_a_message() {
        assert!(topic("lp.x", &[SECRET, DEATH], &Options::default()).is_err());
    }

    #[test]
    fn options_say_where_the_header_decides() {
        let moved = Options { moved_topics: vec!["g.#".try_into().unwrap()], ..Options::default() };
        assert_eq!(topic("g.v1", &[SECRET], &moved), Ok("secret.y".into()));
        assert!(topic("lp.x", &[SECRET], &moved).is_err());
        assert!(topic("g.v1", &[("cap-msg-name", "a*")], &moved).is_err());
        let trusting = Options { header_names_topic: true, ..Options::default() };
        assert_eq!(topic("lp.x", &[SECRET], &trusting), Ok("secret.y".into()));
        assert_eq!(topic("lp.x", &[("cap-msg-name", "a*")], &trusting), Ok("lp.x".into()));
    }

    #[test]
    fn a_fault_shows_no_letters_that_mislead() {
        let fault = topic("lp.x", &[("cap-msg-name", "a\u{202e}b\n")], &Options::default()).unwrap_err();
        assert!(fault.contains(r"`a\u{202e}b\n`"), "{fault}");
    }
}
