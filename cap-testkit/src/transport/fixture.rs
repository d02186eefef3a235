//! What a backend hands to the transport suite.

use std::sync::Arc;
use std::time::Duration;

use cap_core::transport::TransportCapabilities;
use cap_core::{BoxFuture, Error, Group, Message, Result, Topic, Transport};

use crate::check::{Fixture, Need};

/// One isolated part of one broker. Each check gets an instance of its own; many may exist on one broker at once.
///
/// Only the first four methods are required. The others tell what the fixture can do to the broker; a check that needs
/// what it cannot do is reported as unsupported, never left out silently.
pub trait TransportFixture: Send + Sync + 'static {
    /// What the transport is expected to declare. A handle that declares something else fails a check, so that a
    /// capability does not vanish unnoticed, and the checks that need it with it.
    fn capabilities(&self) -> TransportCapabilities;

    /// A handle as another process would have it: independent of all others, on the same broker. It need not be
    /// connected yet: the checks call [`Transport::connect`].
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Transport>>>;

    /// A name that belongs to this instance alone, and is the same each time for the same `name`: `orders` becomes
    /// `orders-6721f`. It is used for groups and as the first word of topics, so it holds no dot, `*` or `#`.
    fn unique(&self, name: &str) -> String;

    /// Whether the broker allows a topic of this name. One that it does not must be refused as `Invalid`. Default: all.
    fn allows_topic(&self, name: &str) -> bool {
        let _ = name;
        true
    }

    /// How long the transport may take to report the outcome of a message when the broker or the groups do not answer
    /// (`send/5`).
    fn confirm_limit(&self) -> Duration;

    /// How long a check waits for what must come, beyond [`Self::confirm_limit`] where that applies. Default: 15 s.
    fn patience(&self) -> Duration {
        Duration::from_secs(15)
    }

    /// A secret that the handles were given, such as the password in their URL, which they must never show.
    fn secret(&self) -> Option<String> {
        None
    }

    /// Whether [`Self::restart_broker`] works.
    fn can_restart_broker(&self) -> bool {
        false
    }

    /// Stops the broker as a power cut would, and starts it again.
    fn restart_broker(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(Error::unsupported("restart", "the broker of this fixture")) })
    }

    /// Whether [`Self::cut_connections`] works.
    fn can_cut_connections(&self) -> bool {
        false
    }

    /// Breaks every connection of the handles that this instance opened, without their knowledge.
    fn cut_connections(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(Error::unsupported("cut", "the connections of this fixture")) })
    }

    /// Whether [`Self::open_nowhere`] works.
    fn can_open_nowhere(&self) -> bool {
        false
    }

    /// As [`Self::open`], for a place where no broker is. Either this fails or the handle's `connect` does.
    fn open_nowhere(&self) -> BoxFuture<'_, Result<Arc<dyn Transport>>> {
        Box::pin(async { Err(Error::unsupported("open", "a place without a broker")) })
    }

    /// Whether [`Self::poison`] makes poison.
    fn can_poison(&self) -> bool {
        false
    }

    /// Changes a message into one for which the broker breaks off (closes the channel, the connection), whatever the
    /// transport itself would think of it. It keeps its id and its topic.
    fn poison(&self, message: Message) -> Message {
        message
    }

    /// Whether [`Self::fill`] works.
    fn can_fill(&self) -> bool {
        false
    }

    /// Sees to it that the broker takes nothing for this topic, which no group has subscribed: a queue for it is full.
    fn fill(&self, topic: Topic) -> BoxFuture<'_, Result<()>> {
        let _ = topic;
        Box::pin(async { Err(Error::unsupported("fill", "a queue of this fixture")) })
    }

    /// Whether [`Self::set_alarm`] works.
    fn can_set_alarm(&self) -> bool {
        false
    }

    /// Brings the broker into a state in which it takes no messages at all and says so (an alarm), or out of it. It may
    /// say so only to those who send.
    fn set_alarm(&self, is_on: bool) -> BoxFuture<'_, Result<()>> {
        let _ = is_on;
        Box::pin(async { Err(Error::unsupported("set an alarm of", "the broker of this fixture")) })
    }

    /// Whether [`Self::unbind`] works.
    fn can_unbind(&self) -> bool {
        false
    }

    /// Takes away, as an operator would, what brings messages of this topic to the group that has subscribed it.
    fn unbind(&self, group: Group, topic: Topic) -> BoxFuture<'_, Result<()>> {
        let _ = (group, topic);
        Box::pin(async { Err(Error::unsupported("unbind", "a group of this fixture")) })
    }

    /// Whether [`Self::remake_topic`] works.
    fn can_remake_topic(&self) -> bool {
        false
    }

    /// Deletes what holds the messages of this topic, which a group has subscribed, and makes it again, as an operator would.
    /// What waits in it is gone.
    fn remake_topic(&self, topic: Topic) -> BoxFuture<'_, Result<()>> {
        let _ = topic;
        Box::pin(async { Err(Error::unsupported("make again", "a topic of this fixture")) })
    }

    /// Removes what the check left on the broker. Called after each check.
    fn clean_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// What the checks of the transport suite may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransportAbilities {
    /// What the transport declares.
    pub declared: TransportCapabilities,
    /// The fixture can restart the broker.
    pub restart_broker: bool,
    /// The fixture can cut connections.
    pub cut_connections: bool,
    /// The fixture can open a handle for a place without a broker.
    pub open_nowhere: bool,
    /// The fixture tells a secret that must not be shown.
    pub secret: bool,
    /// The fixture can make poison.
    pub poison: bool,
    /// The fixture can fill a queue.
    pub fill: bool,
    /// The fixture can set an alarm.
    pub alarm: bool,
    /// The fixture can take a group's bindings away.
    pub unbind: bool,
    /// The fixture can delete a topic and make it again.
    pub remake: bool,
}

impl Fixture for dyn TransportFixture {
    type Abilities = TransportAbilities;

    fn abilities(&self) -> TransportAbilities {
        TransportAbilities {
            declared: self.capabilities(),
            restart_broker: self.can_restart_broker(),
            cut_connections: self.can_cut_connections(),
            open_nowhere: self.can_open_nowhere(),
            secret: self.secret().is_some(),
            poison: self.can_poison(),
            fill: self.can_fill(),
            alarm: self.can_set_alarm(),
            unbind: self.can_unbind(),
            remake: self.can_remake_topic(),
        }
    }

    fn clean_up(&self) -> BoxFuture<'_, Result<()>> {
        TransportFixture::clean_up(self)
    }
}

type TransportNeed = Need<TransportAbilities>;

pub(super) const DURABLE: TransportNeed = Need { name: "durable", declared: |able| able.declared.durable };
pub(super) const VOLATILE: TransportNeed = Need { name: "volatility", declared: |able| !able.declared.durable };
pub(super) const ORDERED: TransportNeed = Need { name: "ordered", declared: |able| able.declared.ordered };
pub(super) const WILDCARDS: TransportNeed = Need { name: "wildcards", declared: |able| able.declared.wildcards };
pub(super) const REPORTS_BACKLOG: TransportNeed =
    Need { name: "reports_backlog", declared: |able| able.declared.reports_backlog };
pub(super) const CHECKS_ROUTES: TransportNeed =
    Need { name: "checks_routes", declared: |able| able.declared.checks_routes };
pub(super) const MAX_BODY: TransportNeed = Need { name: "max_body", declared: |able| able.declared.max_body.is_some() };
pub(super) const RESTART: TransportNeed = Need {
    name: "durable broker that the fixture can restart",
    declared: |able| able.restart_broker && able.declared.durable,
};
pub(super) const CUT: TransportNeed =
    Need { name: "connections that the fixture can cut", declared: |able| able.cut_connections };
pub(super) const NOWHERE: TransportNeed =
    Need { name: "place without a broker in the fixture", declared: |able| able.open_nowhere };
pub(super) const SECRET: TransportNeed = Need { name: "secret in the fixture", declared: |able| able.secret };
pub(super) const POISON: TransportNeed =
    Need { name: "message for which the broker breaks off", declared: |able| able.poison };
pub(super) const FULL: TransportNeed = Need { name: "queue that the fixture can fill", declared: |able| able.fill };
pub(super) const ALARM: TransportNeed = Need { name: "alarm that the fixture can set", declared: |able| able.alarm };
pub(super) const UNBIND: TransportNeed =
    Need { name: "binding that the fixture can take away", declared: |able| able.unbind };
pub(super) const REMAKE: TransportNeed =
    Need { name: "topic that the fixture can delete and make again", declared: |able| able.remake };
