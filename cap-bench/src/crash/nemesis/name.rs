//! The nemeses, by name.

use clap::ValueEnum;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Name {
    /// SIGKILL for processes of ours.
    Kill,
    /// SIGKILL for servers, and a start afterwards.
    Restart,
    /// All connections to a server are cut.
    Cut,
    /// Processes of ours and servers are stopped for a while.
    Freeze,
    /// A consumer of an older version, which does not know one of the topics, works beside a newer one.
    Rolling,
    /// A message aborts each process that handles it.
    Crashloop,
    /// Messages that a broker, a database or a handler chokes on.
    Poison,
    /// A handler blocks every thread of its runtime.
    Blocked,
    /// A transaction is held for longer than the lease, and another one hangs on its lock.
    Slowtx,
    /// Bursts of messages of several megabytes.
    Bigmessages,
    /// A topic is deleted and made again, each time when all that was sent to it is handled.
    Topics,
}

/// What a run has that can be attacked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backends {
    pub(crate) has_servers: bool,
    pub(crate) has_connections: bool,
    /// One writer at a time: whoever holds a transaction open holds up everybody.
    pub(crate) one_writer: bool,
    /// The broker's topics are logs, which can be deleted.
    pub(crate) has_logs: bool,
}

impl Name {
    /// Those that work side by side, after which everything is healed: nobody keeps their speed beside them.
    pub(crate) fn is_havoc(self) -> bool {
        matches!(self, Self::Kill | Self::Restart | Self::Cut | Self::Freeze)
    }

    /// Whether healthy messages are to keep their speed beside it.
    pub(crate) fn is_judged(self, backends: Backends) -> bool {
        // A group begins again whose topic was made again, with all of its topics.
        !(self.is_havoc() || self == Self::Topics || self == Self::Slowtx && backends.one_writer)
    }

    /// Why it is not there by default.
    fn obstacle(self, backends: Backends) -> Option<&'static str> {
        match self {
            Self::Restart if !backends.has_servers => Some("no server may be attacked"),
            Self::Cut if !backends.has_connections => Some("there is no connection to a server"),
            Self::Topics if !backends.has_logs => Some("the broker has no logs"),
            Self::Slowtx if backends.one_writer => Some("the storage has one writer, for whom everybody waits"),
            _ => None,
        }
    }

    /// Those that were asked for; or all that the backends allow, and of the others why they are left out.
    pub(crate) fn chosen(asked: &[Self], backends: Backends) -> (Vec<Self>, Vec<String>) {
        if !asked.is_empty() {
            let mut chosen = asked.to_vec();
            chosen.sort_unstable();
            chosen.dedup();
            return (chosen, Vec::new());
        }
        let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
        for name in Self::value_variants().iter().copied() {
            match name.obstacle(backends) {
                None => chosen.push(name),
                Some(why) => left_out.push(format!("{name}: {why}")),
            }
        }
        (chosen, left_out)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::name(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_there_are_all_that_the_backends_allow() {
        let all = Backends { has_servers: true, has_connections: true, one_writer: false, has_logs: true };
        assert_eq!(Name::chosen(&[], all), (Name::value_variants().to_vec(), Vec::new()));
        let least = Backends { has_servers: false, has_connections: false, one_writer: true, has_logs: false };
        let (chosen, left_out) = Name::chosen(&[], least);
        assert_eq!((chosen.len(), left_out.len()), (7, 4));
        assert!(!chosen.contains(&Name::Slowtx));
    }

    #[test]
    fn what_is_asked_for_is_there_once() {
        let least = Backends { has_servers: false, has_connections: false, one_writer: true, has_logs: false };
        let asked = [Name::Slowtx, Name::Kill, Name::Slowtx];
        assert_eq!(Name::chosen(&asked, least).0, [Name::Kill, Name::Slowtx]);
        assert!(!Name::Slowtx.is_judged(least) && Name::Poison.is_judged(least));
    }
}
