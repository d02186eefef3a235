//! One form for all worlds that differ in names only: tokens, ghosts, the order of nodes and of like messages.

use super::setup::Setup;
use super::state::{Holder, Message, Record, Row, Slot, Token, World};

impl World {
    /// The same world in its normal form. Whatever it merges behaves alike.
    pub(crate) fn tidy(mut self, setup: &Setup) -> Self {
        if setup.reduces {
            self.order_messages(setup);
        }
        self = self.renamed();
        for node in &mut self.nodes {
            node.tasks.sort_unstable();
            node.deliveries.sort_unstable();
            node.unsure.sort_unstable();
        }
        self.order_nodes();
        self
    }

    /// The same world with the smallest numbers for tokens and ghosts; nodes and messages keep their names.
    pub(crate) fn renamed(mut self) -> Self {
        self.rename_tokens_and_ghosts();
        self
    }

    /// Sorts neighbours of one kind by how far they are, whoever holds them.
    fn order_messages(&mut self, setup: &Setup) {
        for first in 0..self.messages.len() - 1 {
            let is_alike = setup.messages[first] == setup.messages[first + 1];
            if is_alike && progress(&self.messages[first]) > progress(&self.messages[first + 1]) {
                self.messages.swap(first, first + 1);
                self.rename_messages(u8::try_from(first).expect("few messages"));
            }
        }
    }

    /// Makes `first` and the next one change their names in the nodes' memories.
    fn rename_messages(&mut self, first: u8) {
        let rename = |message: &mut u8| {
            if *message == first {
                *message += 1;
            } else if *message == first + 1 {
                *message -= 1;
            }
        };
        for node in &mut self.nodes {
            for task in &mut node.tasks {
                match &mut task.record {
                    Record::Outbox(message) | Record::Inbox(message, _) => rename(message),
                }
            }
            for delivery in &mut node.deliveries {
                rename(&mut delivery.message);
            }
        }
    }

    /// Numbers tokens and ghosts in the order of the rows that carry them. A token that is on no row is stale; so is a
    /// task's that is not on its own row.
    fn rename_tokens_and_ghosts(&mut self) {
        let mut tokens = Vec::new();
        let mut ghosts = Vec::new();
        for row in self.rows_mut() {
            if row.token != Token::STALE {
                row.token = Token(number(&mut tokens, row.token.0) + 1);
            }
            if let Some(Holder::Ghost(ghost)) = &mut row.holder {
                *ghost = number(&mut ghosts, *ghost);
            }
        }
        let renamed = |token: Token| {
            let place = tokens.iter().position(|&known| known == token.0);
            place.map_or(Token::STALE, |place| Token(u8::try_from(place).expect("few tokens") + 1))
        };
        let mut nodes = std::mem::take(&mut self.nodes);
        for node in &mut nodes {
            for task in &mut node.tasks {
                let token = renamed(task.token);
                let matches = self.row(task.record).is_some_and(|row| row.is_held_under(token));
                task.token = if matches { token } else { Token::STALE };
            }
            for token in &mut node.unsure {
                *token = renamed(*token);
            }
        }
        self.nodes = nodes;
    }

    /// Sorts the nodes by what they remember and hold: they have no other nature.
    fn order_nodes(&mut self) {
        let holdings = |node| self.slots().map(move |slot| slot.row().is_some_and(|row| row.is_held_by(node)));
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by(|&a, &b| self.nodes[a].cmp(&self.nodes[b]).then_with(|| holdings(a).cmp(holdings(b))));
        if order.is_sorted() {
            return;
        }
        self.nodes = order.iter().map(|&old| self.nodes[old].clone()).collect();
        for row in self.rows_mut() {
            if let Some(Holder::Node(node)) = &mut row.holder {
                *node = order.iter().position(|old| old == node).expect("the order has every node");
            }
        }
    }
}

/// What orders messages: all but the names of holders and claims.
fn progress(message: &Message) -> impl Ord + use<> {
    let row = |slot: &Slot| match slot {
        Slot::Stored(row) => Slot::Stored(Row { holder: None, token: Token::STALE, ..*row }),
        Slot::Absent | Slot::Collected(_) => *slot,
    };
    let group = |group: &super::state::Group| (group.ready, group.acked, group.effects, row(&group.inbox));
    (message.transaction, row(&message.outbox), group(&message.groups[0]), group(&message.groups[1]))
}

/// The place of `name` in `names`, where it is put if it is new.
fn number(names: &mut Vec<u8>, name: u8) -> u8 {
    let place = names.iter().position(|&known| known == name).unwrap_or_else(|| {
        names.push(name);
        names.len() - 1
    });
    u8::try_from(place).expect("few names")
}
