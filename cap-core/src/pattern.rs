//! What a subscription matches: an exact topic, or words with the wildcards `*` and `#`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::name::{MAX_NAME, Topic};

/// The topics that a subscription wants: one exact topic, or a pattern of words separated by dots in which `*` stands
/// for exactly one word and `#` for any number of words, none included.
///
/// These are the rules of AMQP 0-9-1 topic exchanges, which is what CAP's patterns mean on RabbitMQ; every transport
/// here follows them. A wildcard inside a word (`ord*`) means different things on different brokers of CAP and is
/// refused. Matching is case-sensitive.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TopicPattern {
    text: Box<str>,
    wild: bool,
}

impl TopicPattern {
    /// A pattern that a broker gives back: it was checked when it was subscribed, or another system bound it. Whatever it
    /// holds, it matches what it matches in an AMQP 0-9-1 topic exchange: a wildcard inside a word is an ordinary
    /// character there, and a word may be empty.
    pub fn from_stored(text: &str) -> Self {
        Self { text: text.into(), wild: text.contains(['*', '#']) }
    }

    /// Whether `topic` is matched.
    pub fn matches(&self, topic: &Topic) -> bool {
        if !self.wild {
            return &*self.text == topic.as_str();
        }
        let pattern: Vec<&str> = self.text.split('.').collect();
        let words: Vec<&str> = topic.as_str().split('.').collect();
        matches_words(&pattern, &words)
    }

    /// The one topic that this matches, unless it has wildcards.
    pub fn exact(&self) -> Option<Topic> {
        (!self.wild).then(|| Topic::from_stored(&self.text))
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Matches word by word, remembering only the last `#`: linear in practice, at worst words × pattern.
fn matches_words(pattern: &[&str], words: &[&str]) -> bool {
    let (mut p, mut w) = (0, 0);
    let mut last_hash: Option<(usize, usize)> = None;
    while w < words.len() {
        match pattern.get(p) {
            Some(&"#") => {
                last_hash = Some((p, w));
                p += 1;
            }
            Some(&expected) if expected == "*" || expected == words[w] => {
                p += 1;
                w += 1;
            }
            _ => match last_hash {
                Some((hash, swallowed)) => {
                    last_hash = Some((hash, swallowed + 1));
                    p = hash + 1;
                    w = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&rest| rest == "#")
}

impl TryFrom<&str> for TopicPattern {
    type Error = Error;

    /// # Errors
    /// `Invalid` for what is no topic, and for wildcards that are not whole words.
    fn try_from(text: &str) -> Result<Self> {
        let wild = text.contains(['*', '#']);
        if !wild {
            return Topic::try_from(text).map(|topic| Self { text: topic.as_str().into(), wild });
        }
        let refuse = |reason: String| Err(Error::invalid(format!("topic pattern {text:.60?}"), reason));
        if text.len() > MAX_NAME {
            return refuse(format!("it has {} bytes, the limit is {MAX_NAME}", text.len()));
        }
        if text.chars().any(char::is_control) {
            return refuse("it holds a control character".into());
        }
        for word in text.split('.') {
            if word.is_empty() {
                return refuse("it has an empty word between its dots".into());
            }
            if word.len() > 1 && word.contains(['*', '#']) {
                return refuse(format!("`*` and `#` stand for whole words, but `{word}` mixes them with others"));
            }
        }
        Ok(Self { text: text.into(), wild })
    }
}

impl Serialize for TopicPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for TopicPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::try_from(text.as_str()).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicPattern({})", self.text)
    }
}

/// The table that every transport's matching is held to: pattern, topic, whether it matches.
pub const MATCH_TABLE: &[(&str, &str, bool)] = &[
    ("order.placed", "order.placed", true),
    ("order.placed", "order.Placed", false),
    ("order.placed", "order.placed.eu", false),
    ("order.*", "order.placed", true),
    ("order.*", "order.placed-late_2", true),
    ("order.*", "order", false),
    ("order.*", "order.placed.eu", false),
    ("*.placed", "order.placed", true),
    ("order.*.eu", "order.placed.eu", true),
    ("order.#", "order", true),
    ("order.#", "order.placed", true),
    ("order.#", "order.placed.eu", true),
    ("order.#", "orders.placed", false),
    ("#", "anything.at.all", true),
    ("#.eu", "order.placed.eu", true),
    ("#.eu", "eu", true),
    ("#.eu", "order.eu.x", false),
    ("a.#.b.#.c", "a.b.b.x.c", true),
    ("a.#.b.#.c", "a.c", false),
    ("*.#", "order", true),
    ("a(b", "a(b", true),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_table_says() {
        for &(pattern, topic, expected) in MATCH_TABLE {
            let matched = TopicPattern::try_from(pattern).unwrap().matches(&Topic::try_from(topic).unwrap());
            assert_eq!(matched, expected, "{pattern} against {topic}");
        }
    }

    #[test]
    fn a_stored_pattern_that_nobody_could_subscribe_matches_as_in_amqp() {
        for (pattern, topic, expected) in [
            ("a..*", "a..b", true),
            ("a.*.b", "a..b", true),
            ("#.", "a.", true),
            ("ord*", "order", false),
            ("ord*.#", "order.placed", false),
            ("", "order", false),
            (&format!("{}order", "#.".repeat(110)), "order", true),
        ] {
            let matched = TopicPattern::from_stored(pattern).matches(&Topic::try_from(topic).unwrap());
            assert_eq!(matched, expected, "{pattern} against {topic}");
        }
    }

    #[test]
    fn a_wildcard_inside_a_word_is_refused() {
        for bad in ["ord*", "order.#x", "order..*", "", ".#"] {
            assert!(TopicPattern::try_from(bad).is_err(), "{bad:?}");
        }
    }
}
