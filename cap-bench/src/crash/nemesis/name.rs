//! The nemeses, by name.

use clap::ValueEnum;

use crate::backend::Deed;

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
    /// A group's binding is taken away: it makes it again.
    Bindings,
    /// The exchange is deleted, and all bindings with it: the groups make them again, one after another.
    Exchange,
    /// The application may not insert into CAP's inbox for some seconds.
    Rights,
    /// The database's clock steps by ten or twenty minutes, forward and back.
    Clock,
    /// The database takes no writes for some seconds, as while its primary changes.
    Standby,
    /// The disk of the database's server is full for some seconds.
    Full,
    /// Connections to the database are closed over which nothing has passed for a while.
    Idle,
    /// The database's address leads to a pooler in transaction mode for a while; the processes are deployed again.
    Pooler,
    /// The database's primary and its standby take each other's place, and its address leads to the new primary.
    Switchover,
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
    /// Groups get messages by bindings, which can be taken away.
    pub(crate) has_bindings: bool,
    /// The database's clock can be set.
    pub(crate) has_clock: bool,
    /// The disk of the database's server can be filled.
    pub(crate) has_disk: bool,
    /// The database is reached over connections.
    pub(crate) has_database_connections: bool,
    /// A pooler stands before the database for those who want it.
    pub(crate) has_pooler: bool,
    /// A second server stands beside the database's, to take its place.
    pub(crate) has_standby: bool,
    /// What operators can do to the database.
    pub(crate) deeds: &'static [Deed],
}

impl Name {
    /// Those that work side by side, after which everything is healed: nobody keeps their speed beside them.
    pub(crate) fn is_havoc(self) -> bool {
        matches!(self, Self::Kill | Self::Restart | Self::Cut | Self::Freeze)
    }

    /// Whether healthy messages are to keep their speed beside it.
    pub(crate) fn is_judged(self, backends: Backends) -> bool {
        match self {
            Self::Slowtx => !backends.one_writer,
            // A group begins again whose topic was made again, with all of its topics. What cannot be routed waits.
            Self::Topics | Self::Bindings | Self::Exchange => false,
            // Nothing is handled that cannot be stored before.
            Self::Rights | Self::Standby | Self::Full | Self::Switchover => false,
            // Every process is stopped and started, and each statement is prepared again for each use.
            Self::Pooler => false,
            // Processes are killed meanwhile, and a due time of before the step is another one after it.
            Self::Clock => false,
            _ => !self.is_havoc(),
        }
    }

    /// Why it is not there by default.
    fn obstacle(self, backends: Backends) -> Option<&'static str> {
        match self {
            Self::Restart if !backends.has_servers => Some("no server may be attacked"),
            Self::Cut if !backends.has_connections => Some("there is no connection to a server"),
            Self::Topics if !backends.has_logs => Some("the broker has no logs"),
            Self::Bindings | Self::Exchange if !backends.has_bindings => Some("the broker has no bindings"),
            Self::Exchange => Some("a group loses what comes between another one's binding and its own"),
            Self::Clock if !backends.has_clock => {
                Some("no clock of a database of ours can be set (CAP_BACKENDS_CLOCKS)")
            }
            Self::Standby if !backends.deeds.contains(&Deed::ReadOnly) => {
                Some("the storage's server always takes writes")
            }
            Self::Standby if !backends.has_servers => Some("no server may be attacked"),
            Self::Full if !backends.has_disk => Some("no database of ours has a disk of its own (CAP_BACKENDS_DISKS)"),
            Self::Idle if !backends.has_database_connections => Some("there is no connection to a database"),
            Self::Pooler if !backends.has_pooler => Some("there is no pooler before the database"),
            Self::Switchover if !backends.has_standby => {
                Some("no second server of the database is there (CAP_BACKENDS_STANDBYS)")
            }
            Self::Rights if !backends.deeds.contains(&Deed::Revoke) => Some("the storage has no rights to revoke"),
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

    fn all() -> Backends {
        Backends {
            has_servers: true,
            has_connections: true,
            one_writer: false,
            has_logs: true,
            has_bindings: true,
            has_clock: true,
            has_disk: true,
            has_database_connections: true,
            has_pooler: true,
            has_standby: true,
            deeds: &[Deed::Revoke, Deed::ReadOnly],
        }
    }

    fn least() -> Backends {
        Backends {
            has_servers: false,
            has_connections: false,
            one_writer: true,
            has_logs: false,
            has_bindings: false,
            has_clock: false,
            has_disk: false,
            has_database_connections: false,
            has_pooler: false,
            has_standby: false,
            deeds: &[],
        }
    }

    #[test]
    fn by_default_there_are_all_that_the_backends_allow() {
        let (chosen, left_out) = Name::chosen(&[], all());
        let is_left_out = |name: &&Name| !chosen.contains(*name);
        assert_eq!(Name::value_variants().iter().filter(is_left_out).collect::<Vec<_>>(), [&Name::Exchange]);
        assert!(left_out[0].starts_with("exchange: "), "{left_out:?}");
        let (chosen, left_out) = Name::chosen(&[], least());
        assert_eq!((chosen.len(), left_out.len()), (7, 13));
        assert!(![Name::Slowtx, Name::Bindings, Name::Rights].iter().any(|name| chosen.contains(name)));
    }

    #[test]
    fn what_is_asked_for_is_there_once() {
        let asked = [Name::Slowtx, Name::Kill, Name::Slowtx];
        assert_eq!(Name::chosen(&asked, least()).0, [Name::Kill, Name::Slowtx]);
        assert!(!Name::Slowtx.is_judged(least()) && Name::Poison.is_judged(least()));
    }
}
