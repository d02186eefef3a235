//! Which choice holds for a message that no group wants at present.

use std::collections::BTreeMap;

use cap_core::{Result, Topic, TopicPattern, Unroutable};

/// The choice for each topic.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnroutableRules {
    others: Unroutable,
    topics: Vec<(TopicPattern, Unroutable)>,
}

impl UnroutableRules {
    /// `others`: what holds for a topic that none of `topics` matches, which get the prefix.
    pub(crate) fn new(others: Unroutable, topics: &BTreeMap<String, Unroutable>, prefix: Option<&str>) -> Result<Self> {
        let pattern = |text: &String| match prefix {
            Some(prefix) => TopicPattern::try_from(format!("{prefix}.{text}").as_str()),
            None => TopicPattern::try_from(text.as_str()),
        };
        let rule = |(text, choice): (&String, &Unroutable)| Ok((pattern(text)?, *choice));
        let topics = topics.iter().map(rule).collect::<Result<_>>()?;
        Ok(Self { others, topics })
    }

    /// The choice for a topic. If several match, the one that loses least counts.
    pub(crate) fn choice(&self, topic: &Topic) -> Unroutable {
        let matching = self.topics.iter().filter(|(pattern, _)| pattern.matches(topic));
        matching.map(|(_, choice)| *choice).min().unwrap_or(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_its_own_choice_and_of_several_the_one_that_loses_least() {
        let text = r#"{"metrics.#": "drop", "metrics.paid": "wait", "audit.*": "dead"}"#;
        let topics: BTreeMap<String, Unroutable> = serde_json::from_str(text).unwrap();
        let rules = UnroutableRules::new(Unroutable::Wait, &topics, None).unwrap();
        let choice = |topic: &str| rules.choice(&topic.parse().unwrap());
        assert_eq!((choice("metrics.cpu"), choice("metrics.paid")), (Unroutable::Drop, Unroutable::Wait));
        assert_eq!((choice("audit.login"), choice("order")), (Unroutable::Dead, Unroutable::Wait));
    }

    #[test]
    fn the_topic_prefix_goes_before_each() {
        let topics = BTreeMap::from([("metrics".to_owned(), Unroutable::Drop)]);
        let rules = UnroutableRules::new(Unroutable::Dead, &topics, Some("shop")).unwrap();
        assert_eq!(rules.choice(&"shop.metrics".parse().unwrap()), Unroutable::Drop);
        assert_eq!(rules.choice(&"metrics".parse().unwrap()), Unroutable::Dead);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let topics = BTreeMap::from([("metrics*".to_owned(), Unroutable::Drop)]);
        assert!(UnroutableRules::new(Unroutable::Wait, &topics, None).is_err());
    }
}
