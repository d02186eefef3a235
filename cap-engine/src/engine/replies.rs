//! Where replies may go. A message may ask for one on any topic, and the service would publish it with its own rights: it
//! does so only where it is allowed, and is asked before the handler runs.

use std::sync::Arc;

use cap_core::{Message, Topic, TopicPattern, headers, shown};

use crate::engine::group::Group;
use crate::options::Options;

/// The topics that replies may go to.
#[derive(Debug, Default)]
pub(crate) struct Replies(Vec<TopicPattern>);

impl Replies {
    pub(crate) fn of(options: &Options, published: &[Topic], groups: &[Arc<Group>]) -> Self {
        let subscriptions = groups.iter().flat_map(|group| &group.subscriptions);
        Self::new(&options.reply_topics, published, subscriptions.map(|subscription| &subscription.pattern))
    }

    /// Those that the options allow, and those that the service itself publishes or subscribes by their names.
    fn new<'t>(
        allowed: &[TopicPattern],
        published: &[Topic],
        subscribed: impl IntoIterator<Item = &'t TopicPattern>,
    ) -> Self {
        let published = published.iter().map(|topic| TopicPattern::from_stored(topic.as_str()));
        let subscribed = subscribed.into_iter().filter(|pattern| pattern.exact().is_some()).cloned();
        Self(allowed.iter().cloned().chain(published).chain(subscribed).collect())
    }

    /// Why the reply that `message` asks for may not be sent, if so.
    pub(crate) fn fault(&self, message: &Message) -> Option<String> {
        let callback = message.callback()?;
        let said = format!("its header `{}` asks for a reply on `{}`", headers::CALLBACK_NAME, shown(callback));
        match Topic::try_from(callback) {
            Err(error) => Some(format!("{said}, which is no topic: {}", error.reason())),
            Ok(topic) if self.0.iter().any(|allowed| allowed.matches(&topic)) => None,
            Ok(_) => Some(format!(
                "{said}, which this service neither publishes nor subscribes: replies go there if the option \
                 `reply_topics` allows it"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use cap_core::MessageId;

    use super::*;

    fn asking(callback: &str) -> Message {
        let headers = [(headers::CALLBACK_NAME, callback)].into_iter().collect();
        let topic = Topic::from_stored("ask");
        Message { id: MessageId::generate(), topic, headers, payload: "1".into() }
    }

    #[test]
    fn replies_go_where_the_service_publishes_or_subscribes_and_where_the_options_say() {
        let patterns = ["reply.#", "order.placed", "#"].map(|text| TopicPattern::try_from(text).unwrap());
        let replies = Replies::new(&patterns[..1], &[Topic::from_stored("order.billed")], &patterns[1..]);
        for allowed in ["", "reply.to.me", "order.billed", "order.placed"] {
            assert_eq!(replies.fault(&asking(allowed)), None, "{allowed}");
        }
        // A subscription of everything is no leave to publish everything.
        assert!(replies.fault(&asking("users.delete")).unwrap().contains("reply_topics"));
        let bad = replies.fault(&asking("reply.*\u{202e}")).unwrap();
        assert!(bad.contains(r"`reply.*\u{202e}`, which is no topic: ") && bad.contains("wildcards"), "{bad}");
    }
}
