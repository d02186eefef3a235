//! The state of the model: the database, the broker, and the memory of each node.

use cap_core::lifecycle::{State, Status};
use cap_core::time::Due;

use super::setup::{Budget, Setup};

/// The address of a record: message, and group for the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Record {
    Outbox(u8),
    Inbox(u8, u8),
}

impl Record {
    pub(crate) fn message(self) -> u8 {
        match self {
            Self::Outbox(message) | Self::Inbox(message, _) => message,
        }
    }
}

/// A claim's token. Fresh for each claim; [`World::tidy`] gives the same number to all that can match nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(pub(crate) u8);

impl Token {
    pub(crate) const STALE: Self = Self(0);
}

/// Under which node's id a record is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Holder {
    /// The present id of this process.
    Node(usize),
    /// The id of a process that is gone, but whose lease has not run out yet.
    Ghost(u8),
    /// An id without a live lease, which no process uses any more.
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum When {
    Now,
    Later,
}

/// How core begins the reason of a record that is tried alone, and of one that is tried alone again.
const ALONE: [&str; 2] = ["tried alone after crashes: ", "tried alone again after crashes: "];

/// What the reason of a record says that is tried alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Mark {
    /// After so many crashes.
    pub(crate) crashes: u8,
    /// Its process died with it the first time.
    pub(crate) again: bool,
}

impl Mark {
    /// As core writes it.
    pub(crate) fn reason(self) -> String {
        format!("{}{}", ALONE[usize::from(self.again)], self.crashes)
    }

    /// The process of a record with so many crashes now died with it.
    pub(crate) fn is_of_a_crash(self, crashes: u8) -> bool {
        self.crashes < crashes
    }
}

/// What a storage keeps of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Row {
    pub(crate) status: Status,
    pub(crate) attempts: u8,
    pub(crate) crashes: u8,
    /// How it was tried alone, as its reason says.
    pub(crate) alone: Option<Mark>,
    pub(crate) due: Option<When>,
    pub(crate) expires: bool,
    pub(crate) holder: Option<Holder>,
    pub(crate) token: Token,
}

impl Row {
    /// A row with the columns of `state`, held by nobody.
    pub(crate) fn of(state: &State) -> Self {
        let due = state.due().map(|due| if due == Due::Now { When::Now } else { When::Later });
        let few = |number| u8::try_from(number).expect("the model makes few attempts");
        let (attempts, crashes) = (few(state.attempts()), few(state.crashes()));
        let alone = ALONE.iter().zip([false, true]).find_map(|(mark, again)| {
            let crashes = state.reason()?.strip_prefix(mark)?.parse().ok()?;
            Some(Mark { crashes, again })
        });
        let expires = state.expires().is_some();
        let status = state.status();
        Self { status, attempts, crashes, alone, due, expires, holder: None, token: Token::STALE }
    }

    pub(crate) fn is_held_under(&self, token: Token) -> bool {
        self.status == Status::Queued && self.token == token && token != Token::STALE
    }

    /// Whether a process holds it under its present id.
    pub(crate) fn is_held_by(&self, node: usize) -> bool {
        self.holder == Some(Holder::Node(node))
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.status == Status::Failed && self.due.is_none()
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.status == Status::Succeeded || self.is_dead()
    }
}

/// Whether there is a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Slot {
    Absent,
    Stored(Row),
    /// It was there, and this was its last status.
    Collected(Status),
}

impl Slot {
    pub(crate) fn row(&self) -> Option<&Row> {
        match self {
            Self::Stored(row) => Some(row),
            Self::Absent | Self::Collected(_) => None,
        }
    }
}

impl Slot {
    pub(crate) fn has_succeeded(&self) -> bool {
        match self {
            Self::Stored(row) => row.status == Status::Succeeded,
            Self::Collected(status) => *status == Status::Succeeded,
            Self::Absent => false,
        }
    }
}

/// The transaction that publishes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Transaction {
    Open,
    Committed,
    RolledBack,
}

/// A message, and what is left of it in the database and at the broker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Message {
    pub(crate) transaction: Transaction,
    pub(crate) outbox: Slot,
    /// The broker told a node that it has it. Only the invariants look at this.
    pub(crate) confirmed: bool,
    pub(crate) groups: [Group; MAX_GROUPS],
}

pub(crate) const MAX_GROUPS: usize = 2;

/// One group's part of a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Group {
    /// Copies in the group's queue that are out at no consumer.
    pub(crate) ready: u8,
    /// Whether a copy was ever acknowledged.
    pub(crate) acked: bool,
    pub(crate) inbox: Slot,
    /// How many records were made of it.
    pub(crate) inserted: u8,
    /// How often the handler had its effect (a killer: how often it was begun).
    pub(crate) effects: u8,
    /// How often it was written that an attempt failed.
    pub(crate) failed: u8,
}

/// What a claim tells of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) attempts: u8,
    pub(crate) crashes: u8,
    pub(crate) alone: Option<Mark>,
}

/// How an attempt ended, before core made a state of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    Hopeless,
    GivenBack,
    /// `begin` did not let it run.
    Exhausted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// Claimed, to be tried alone: that is to be written before it begins.
    Apart,
    /// Claimed, to be sent or handled.
    Begun,
    /// The broker has it, its confirm is on the way.
    Sent,
    /// To be settled, now or much later.
    Settling(Verdict),
}

/// A record in a node's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Task {
    pub(crate) record: Record,
    pub(crate) token: Token,
    pub(crate) attempts: u8,
    pub(crate) crashes: u8,
    pub(crate) alone: Option<Mark>,
    pub(crate) stage: Stage,
    /// It is, or may be, written that it is tried alone.
    pub(crate) on_trial: bool,
    /// Claimed under an id that the node has given up since.
    pub(crate) former: bool,
    /// Written already, but the answer was lost: it will be tried again.
    pub(crate) repeats: bool,
}

/// A delivery in a node's memory, not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Delivery {
    pub(crate) message: u8,
    pub(crate) group: u8,
    /// The node knows that its record is in the inbox.
    pub(crate) inserted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Lease {
    Live,
    RunOut,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) lease: Lease,
    pub(crate) tasks: Vec<Task>,
    pub(crate) deliveries: Vec<Delivery>,
    /// Tokens of claims whose answer never arrived.
    pub(crate) unsure: Vec<Token>,
}

impl Node {
    pub(crate) const DOWN: Self =
        Self { up: false, lease: Lease::RunOut, tasks: Vec::new(), deliveries: Vec::new(), unsure: Vec::new() };

    /// Up, and with a live lease.
    pub(crate) fn lives(&self) -> bool {
        self.up && self.lease == Lease::Live
    }
}

/// What the steps saw, for the invariants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Witness {
    /// Core computed a state that its own check refuses.
    pub(crate) unlawful: bool,
    /// A record was written by someone who did not hold it.
    pub(crate) foreign_write: bool,
    /// How often work was cut short and counts all the same: crashes, leases that ran out.
    pub(crate) cut_short: u8,
    /// How often a node left its work undone, which does not count.
    pub(crate) left: u8,
    /// How often an attempt failed.
    pub(crate) failed: u8,
    /// How often a person gave a dead record a new life.
    pub(crate) requeued: u8,
    /// Something failed for good.
    pub(crate) refused: bool,
    /// How often, while an innocent was tried alone, its process ended, or was taken for dead, by nobody's fault. Twice in
    /// a row core cannot tell from a killer, and does not claim to.
    pub(crate) unlucky: u8,
    /// A record was collected that was not terminal.
    pub(crate) collected_early: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct World {
    pub(crate) messages: Vec<Message>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) budget: Budget,
    pub(crate) witness: Witness,
}

impl World {
    /// Every message is published in a transaction that is still open, every node is down.
    pub(crate) fn start(setup: &Setup) -> Self {
        let group = Group { ready: 0, acked: false, inbox: Slot::Absent, inserted: 0, effects: 0, failed: 0 };
        let mut world = Self {
            messages: Vec::new(),
            nodes: vec![Node::DOWN; setup.nodes],
            budget: setup.budget.clone(),
            witness: Witness::default(),
        };
        for &kind in &setup.messages {
            let row = Row::of(&super::database::published(kind));
            world.messages.push(Message {
                transaction: Transaction::Open,
                outbox: Slot::Stored(row),
                confirmed: false,
                groups: [group.clone(), group.clone()],
            });
        }
        world
    }

    pub(crate) fn slot(&self, record: Record) -> &Slot {
        match record {
            Record::Outbox(message) => &self.messages[usize::from(message)].outbox,
            Record::Inbox(message, group) => &self.group(message, group).inbox,
        }
    }

    pub(crate) fn slot_mut(&mut self, record: Record) -> &mut Slot {
        match record {
            Record::Outbox(message) => &mut self.messages[usize::from(message)].outbox,
            Record::Inbox(message, group) => &mut self.group_mut(message, group).inbox,
        }
    }

    pub(crate) fn row(&self, record: Record) -> Option<&Row> {
        self.slot(record).row()
    }

    pub(crate) fn group(&self, message: u8, group: u8) -> &Group {
        &self.messages[usize::from(message)].groups[usize::from(group)]
    }

    pub(crate) fn group_mut(&mut self, message: u8, group: u8) -> &mut Group {
        &mut self.messages[usize::from(message)].groups[usize::from(group)]
    }

    pub(crate) fn transaction(&self, message: u8) -> Transaction {
        self.messages[usize::from(message)].transaction
    }

    /// Every place for a record.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.messages
            .iter()
            .flat_map(|message| std::iter::once(&message.outbox).chain(message.groups.iter().map(|group| &group.inbox)))
    }

    /// Every record that is stored, committed or not.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = &mut Row> {
        self.messages.iter_mut().flat_map(|message| {
            let Message { outbox, groups, .. } = message;
            let slots = std::iter::once(outbox).chain(groups.iter_mut().map(|group| &mut group.inbox));
            slots.filter_map(|slot| if let Slot::Stored(row) = slot { Some(row) } else { None })
        })
    }

    /// How many copies of a message are on their way to a group: in its queue or out at a consumer.
    pub(crate) fn copies(&self, message: u8, group: u8) -> usize {
        let out = self.nodes.iter().flat_map(|node| &node.deliveries);
        let out = out.filter(|delivery| delivery.message == message && delivery.group == group).count();
        usize::from(self.group(message, group).ready) + out
    }

    /// Whether a node tries a record alone: it works on no other suspect meanwhile.
    pub(crate) fn has_trial(&self, node: usize) -> bool {
        self.nodes[node].tasks.iter().any(|task| task.on_trial)
    }

    /// A token that no claim had that anyone remembers.
    pub(crate) fn fresh_token(&mut self) -> Token {
        let in_memory = self
            .nodes
            .iter()
            .flat_map(|node| node.tasks.iter().map(|task| task.token).chain(node.unsure.iter().copied()));
        let highest = in_memory.max().unwrap_or(Token::STALE);
        Token(self.rows_mut().map(|row| row.token).fold(highest, Token::max).0 + 1)
    }

    /// A ghost that holds nothing.
    pub(crate) fn fresh_ghost(&mut self) -> Holder {
        let taken: Vec<_> = self.rows_mut().filter_map(|row| row.holder).collect();
        let free = (0..).map(Holder::Ghost).find(|ghost| !taken.contains(ghost));
        free.expect("there are fewer ghosts than crashes")
    }
}
