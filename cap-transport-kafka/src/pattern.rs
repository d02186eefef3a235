//! Topics and patterns as Kafka knows them: names that it allows, expressions to subscribe with, and the topics that
//! remember which patterns are wanted.
//!
//! Kafka knows which topics exist, but not which patterns somebody subscribed, so that a first message to a new topic
//! would look like one that nobody wants. So a pattern that is subscribed is remembered as a topic without messages,
//! named after it: as a binding is on RabbitMQ. It stays until somebody deletes it.

use cap_core::{Error, ErrorKind, Result, TopicPattern};

/// The longest topic of Kafka, in bytes.
const MAX_TOPIC: usize = 249;
/// What begins the name of a topic that remembers a pattern.
const REMEMBERED: &str = "cap.pattern.";
/// `*` and `#` as words of such a name; a word that begins like them gets one more in front.
const ONE_WORD: &str = "__one";
const ANY_WORDS: &str = "__any";
const ESCAPE: &str = "__";

/// What no pattern matches, as librdkafka's expressions: Kafka's own topics and those that remember patterns.
pub(crate) const NEVER_CONSUMED: &[&str] =
    &["^__consumer_offsets$", "^__transaction_state$", "^__share_group_state$", "^cap\\.pattern\\..*"];

/// Whether a topic is none that messages are sent to.
pub(crate) fn is_internal(topic: &str) -> bool {
    topic.starts_with(REMEMBERED)
        || ["__consumer_offsets", "__transaction_state", "__share_group_state"].contains(&topic)
}

/// Refuses a name that Kafka does not allow.
pub(crate) fn check(operation: &'static str, topic: &str) -> Result<()> {
    let refuse =
        |reason: String| Err(Error::new(ErrorKind::Invalid, operation, format!("topic `{topic:.60}`"), reason));
    if topic.len() > MAX_TOPIC {
        return refuse(format!("its name has {} bytes, Kafka allows {MAX_TOPIC}", topic.len()));
    }
    if topic == "." || topic == ".." {
        return refuse("Kafka does not allow this name".into());
    }
    if let Some(bad) = topic.chars().find(|c| !is_allowed(*c)) {
        return refuse(format!("its name holds {bad:?}; Kafka allows letters, digits, `.`, `_` and `-`"));
    }
    if is_internal(topic) {
        return refuse("the name is reserved".into());
    }
    Ok(())
}

/// Refuses a pattern that could match nothing that Kafka allows.
pub(crate) fn check_pattern(operation: &'static str, pattern: &TopicPattern) -> Result<()> {
    match pattern.exact() {
        Some(topic) => check(operation, topic.as_str()),
        None => {
            let refuse = |reason| {
                Err(Error::new(ErrorKind::Invalid, operation, format!("topic pattern `{pattern:.60}`"), reason))
            };
            if let Some(bad) = pattern.as_str().chars().find(|c| !is_allowed(*c) && !['*', '#'].contains(c)) {
                return refuse(format!("it holds {bad:?}; Kafka allows letters, digits, `.`, `_` and `-` in topics"));
            }
            if remembering(pattern).len() > MAX_TOPIC {
                return refuse("it is too long to be remembered".into());
            }
            Ok(())
        }
    }
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c)
}

/// What is subscribed for a pattern: the topic itself, or an expression that begins with `^`. It matches what the pattern
/// matches, and nothing else.
pub(crate) fn subscribed(pattern: &TopicPattern) -> String {
    if let Some(topic) = pattern.exact() {
        return topic.as_str().to_owned();
    }
    let words: Vec<&str> = pattern.as_str().split('.').collect();
    if words.iter().all(|word| *word == "#") {
        return "^.*$".into();
    }
    let mut expression = String::from("^");
    // Whether the next word follows without a dot: it is the first, or what is before it brings its own.
    let mut begins = true;
    let mut leads = false;
    for word in words {
        if word == "#" {
            match (begins, leads) {
                (true, false) => expression.push_str("(.*\\.)?"),
                (true, true) => {}
                (false, _) => expression.push_str("(\\..*)?"),
            }
            leads = begins;
            continue;
        }
        if !begins {
            expression.push_str("\\.");
        }
        // Of what is allowed in a word, nothing has a meaning in an expression.
        expression.push_str(if word == "*" { "[^.]*" } else { word });
        begins = false;
    }
    expression.push('$');
    expression
}

/// The topic that remembers a pattern.
pub(crate) fn remembering(pattern: &TopicPattern) -> String {
    let words: Vec<String> = pattern
        .as_str()
        .split('.')
        .map(|word| match word {
            "*" => ONE_WORD.to_owned(),
            "#" => ANY_WORDS.to_owned(),
            word if word.starts_with(ESCAPE) => format!("{ESCAPE}{word}"),
            word => word.to_owned(),
        })
        .collect();
    format!("{REMEMBERED}{}", words.join("."))
}

/// The pattern that a topic remembers, if it is one that does.
pub(crate) fn remembered(topic: &str) -> Option<TopicPattern> {
    let words: Vec<&str> = topic
        .strip_prefix(REMEMBERED)?
        .split('.')
        .map(|word| match word {
            ONE_WORD => "*",
            ANY_WORDS => "#",
            word if word.starts_with("____") => &word[ESCAPE.len()..],
            word => word,
        })
        .collect();
    Some(TopicPattern::from_stored(&words.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> TopicPattern {
        TopicPattern::try_from(text).unwrap()
    }

    #[test]
    fn patterns_become_expressions() {
        for (text, expression) in [
            ("order.placed", "order.placed"),
            ("order.*", "^order\\.[^.]*$"),
            ("order.#", "^order(\\..*)?$"),
            ("#.eu", "^(.*\\.)?eu$"),
            ("#.#.eu", "^(.*\\.)?eu$"),
            ("*.#", "^[^.]*(\\..*)?$"),
            ("a.#.b.*", "^a(\\..*)?\\.b\\.[^.]*$"),
            ("#", "^.*$"),
            ("#.#", "^.*$"),
        ] {
            assert_eq!(subscribed(&pattern(text)), expression, "{text}");
        }
    }

    #[test]
    fn what_kafka_does_not_allow_is_refused() {
        for (bad, word) in
            [("a b", "' '"), ("größe", "'ö'"), ("a/b", "'/'"), ("..", "allow"), ("cap.pattern.x", "reserved")]
        {
            let error = check("send to", bad).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(word), "{error}");
        }
        assert!(check("send to", &"x".repeat(250)).is_err());
        assert!(check("send to", "order.placed-late_2").is_ok());
        assert!(check_pattern("subscribe to", &pattern("a(.*")).is_err());
        assert!(check_pattern("subscribe to", &pattern("a.*.#")).is_ok());
    }

    #[test]
    fn a_pattern_is_remembered_as_it_was() {
        for text in ["order.*", "#", "a.#.b", "__one.*", "__any.__x.____one.*", "__.#"] {
            let topic = remembering(&pattern(text));
            assert!(is_internal(&topic) && topic.chars().all(is_allowed), "{topic}");
            assert_eq!(remembered(&topic).unwrap().as_str(), text, "{topic}");
        }
        assert!(remembered("order.placed").is_none());
    }
}
