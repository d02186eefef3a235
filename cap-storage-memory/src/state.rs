//! The tables and their indexes. Everything here runs under one lock and never waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cap_core::lifecycle::State;
use cap_core::storage::{
    Chore, Claim, ClaimRequest, Claimed, Counts, Inserted, Lane, NewRecord, Query, Record, Settled, Settlement, Sign,
    Table,
};
use cap_core::{ClaimToken, Group, MessageId, NodeId, RecordId, Status, Timestamp, Topic, Version};

/// The key of the uniqueness rule: a message id, together with the group in the inbox.
pub(crate) type Key = (MessageId, Option<Group>);

/// One record.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    message_id: MessageId,
    version: Version,
    topic: Topic,
    group: Option<Group>,
    content: Arc<str>,
    status: Status,
    attempts: u32,
    crashes: u32,
    reason: Option<String>,
    added: i64,
    due: Option<i64>,
    expires: Option<i64>,
    held: Option<Claim>,
}

impl Row {
    pub(crate) fn new(record: &NewRecord, claim: Option<Claim>, now: i64) -> Self {
        let mut row = Self {
            message_id: record.message_id.clone(),
            version: record.version.clone(),
            topic: record.topic.clone(),
            group: record.group.clone(),
            content: Arc::clone(&record.content),
            status: record.state.status(),
            attempts: 0,
            crashes: 0,
            reason: None,
            added: now,
            due: None,
            expires: None,
            held: claim,
        };
        row.write(&record.state, now);
        row
    }

    pub(crate) fn key(&self) -> Key {
        (self.message_id.clone(), self.group.clone())
    }

    /// Writes a state: only a record in flight stays held.
    fn write(&mut self, state: &State, now: i64) {
        self.status = state.status();
        self.attempts = state.attempts();
        self.crashes = state.crashes();
        self.reason = state.reason().map(ToOwned::to_owned);
        self.due = state.due().map(|due| due.resolve(now));
        self.expires = state.expires().map(|keep| after(now, keep));
        if self.status != Status::Queued {
            self.held = None;
        }
    }

    /// Makes it due at once, held by nobody.
    fn give_back(&mut self, now: i64, counted: Counted) {
        self.status = Status::Scheduled;
        self.due = Some(now);
        self.held = None;
        match counted {
            Counted::AsCrash => self.crashes = self.crashes.saturating_add(1),
            Counted::No => self.attempts = self.attempts.saturating_sub(1),
        }
    }

    fn is_dead(&self) -> bool {
        self.status == Status::Failed && self.due.is_none()
    }

    fn is_terminal(&self) -> bool {
        self.status == Status::Succeeded || self.is_dead()
    }

    fn lane(&self) -> LaneKey {
        let lane = match self.group.clone() {
            None => Lane::Outbox,
            Some(group) if self.crashes == 0 => Lane::Inbox(group),
            Some(group) => Lane::Suspects(group),
        };
        (self.version.clone(), lane)
    }

    fn matches(&self, query: &Query) -> bool {
        fn wanted<T: PartialEq>(filter: Option<&T>, value: &T) -> bool {
            filter.is_none_or(|filter| filter == value)
        }
        wanted(query.version.as_ref(), &self.version)
            && wanted(query.status.as_ref(), &self.status)
            && wanted(query.topic.as_ref(), &self.topic)
            && wanted(query.message_id.as_ref(), &self.message_id)
            && (query.group.is_none() || query.group == self.group)
    }

    fn record(&self, id: i64) -> Record {
        Record {
            id: RecordId(id),
            message_id: self.message_id.clone(),
            version: self.version.clone(),
            topic: self.topic.clone(),
            group: self.group.clone(),
            content: Arc::clone(&self.content),
            status: self.status,
            attempts: self.attempts,
            crashes: self.crashes,
            added: Timestamp::from_micros(self.added),
            due: self.due.map(Timestamp::from_micros),
            expires: self.expires.map(Timestamp::from_micros),
            owner: self.held.map(|claim| claim.node),
            reason: self.reason.clone(),
        }
    }
}

/// Whether the attempt that a claim began counts when the record is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    AsCrash,
    No,
}

/// What is claimed together.
pub(crate) type LaneKey = (Version, Lane);

/// `published` or `received`.
#[derive(Debug, Default)]
pub(crate) struct Records {
    rows: BTreeMap<i64, Row>,
    by_key: HashMap<Key, i64>,
    /// Waiting records of each lane by due time: a claim reads what it takes and one record more.
    waiting: HashMap<LaneKey, BTreeSet<(i64, i64)>>,
    held: BTreeSet<(NodeId, ClaimToken, i64)>,
    /// What the open transactions of handlers are at work on: nobody writes to it before they end.
    locked: HashSet<i64>,
    expiring: BTreeSet<(i64, i64)>,
    counts: HashMap<Version, HashMap<(Status, bool), u64>>,
    last_id: i64,
}

impl Records {
    /// A fresh address. Addresses of transactions that are rolled back are not used again, as in a database.
    pub(crate) fn next_id(&mut self) -> i64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn has(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    pub(crate) fn insert(&mut self, id: i64, row: Row) {
        self.by_key.insert(row.key(), id);
        self.index(id, &row);
        self.rows.insert(id, row);
    }

    fn index(&mut self, id: i64, row: &Row) {
        if let Some(due) = row.due {
            self.waiting.entry(row.lane()).or_default().insert((due, id));
        }
        if let Some(claim) = row.held {
            self.held.insert((claim.node, claim.token, id));
        }
        if let Some(expires) = row.expires {
            self.expiring.insert((expires, id));
        }
        *self.counts.entry(row.version.clone()).or_default().entry((row.status, row.is_dead())).or_default() += 1;
    }

    fn unindex(&mut self, id: i64, row: &Row) {
        if let Some(due) = row.due
            && let Some(lane) = self.waiting.get_mut(&row.lane())
        {
            lane.remove(&(due, id));
        }
        if let Some(claim) = row.held {
            self.held.remove(&(claim.node, claim.token, id));
        }
        if let Some(expires) = row.expires {
            self.expiring.remove(&(expires, id));
        }
        if let Some(count) =
            self.counts.get_mut(&row.version).and_then(|counts| counts.get_mut(&(row.status, row.is_dead())))
        {
            *count -= 1;
        }
    }

    /// The one way to change a record: the indexes follow.
    fn change(&mut self, id: i64, write: impl FnOnce(&mut Row)) {
        let Some(mut row) = self.rows.remove(&id) else { return };
        self.unindex(id, &row);
        write(&mut row);
        self.index(id, &row);
        self.rows.insert(id, row);
    }

    fn remove(&mut self, id: i64) {
        let Some(row) = self.rows.remove(&id) else { return };
        self.unindex(id, &row);
        self.by_key.remove(&row.key());
    }

    pub(crate) fn claim(&mut self, request: &ClaimRequest, now: i64) -> Claimed {
        let waiting = self.waiting.get(&(request.version.clone(), request.lane.clone()));
        let wanted = waiting.into_iter().flatten().filter_map(|(due, id)| Some((*due, *id, self.rows.get(id)?)));
        let mut wanted = wanted.filter(|(_, _, row)| !request.except.contains(&row.topic)).peekable();
        let (mut ids, mut bytes) = (Vec::new(), 0_usize);
        while ids.len() < request.limit
            && let Some((_, id, row)) = wanted.next_if(|(due, _, row)| {
                *due <= now && (ids.is_empty() || bytes.saturating_add(row.content.len()) <= request.bytes)
            })
        {
            bytes = bytes.saturating_add(row.content.len());
            ids.push(id);
        }
        let next_due = (ids.len() < request.limit).then(|| wanted.peek().map(|(due, _, _)| until(*due, now))).flatten();
        for id in &ids {
            self.change(*id, |row| {
                row.status = Status::Queued;
                row.attempts = row.attempts.saturating_add(1);
                row.due = None;
                row.held = Some(request.claim);
            });
        }
        let records = ids.iter().filter_map(|id| self.rows.get(id).map(|row| row.record(*id))).collect();
        Claimed { records, next_due }
    }

    pub(crate) fn next_due(&self, lane: &LaneKey, now: i64) -> Option<Duration> {
        let (due, _) = self.waiting.get(lane)?.first()?;
        Some(until(*due, now))
    }

    pub(crate) fn is_held(&self, id: RecordId, token: ClaimToken) -> bool {
        self.rows.get(&id.0).and_then(|row| row.held).is_some_and(|claim| claim.token == token)
    }

    pub(crate) fn settle(&mut self, settlement: &Settlement, now: i64) -> Settled {
        if !self.is_held(settlement.record, settlement.token) {
            return Settled::Lost;
        }
        if self.locked.contains(&settlement.record.0) {
            return Settled::Locked;
        }
        self.change(settlement.record.0, |row| row.write(&settlement.state, now));
        Settled::Written
    }

    fn give_back(&mut self, ids: &[i64], now: i64, counted: Counted) -> u64 {
        for id in ids {
            self.change(*id, |row| row.give_back(now, counted));
        }
        ids.len() as u64
    }

    pub(crate) fn release(&mut self, claim: Claim, now: i64) -> u64 {
        let first = (claim.node, claim.token, i64::MIN);
        let last = (claim.node, claim.token, i64::MAX);
        let ids: Vec<i64> = self.held.range(first..=last).map(|(_, _, id)| *id).collect();
        self.give_back(&ids, now, Counted::No)
    }

    /// Gives back what is held by the nodes that `from` names, and not locked.
    pub(crate) fn take(&mut self, from: impl Fn(&NodeId) -> bool, now: i64, counted: Counted) -> u64 {
        let Self { held, locked, .. } = self;
        let taken = held.iter().filter(|(node, _, id)| from(node) && !locked.contains(id));
        let ids: Vec<i64> = taken.map(|(_, _, id)| *id).collect();
        self.give_back(&ids, now, counted)
    }

    /// Locks a record for a transaction, unless another has it locked.
    pub(crate) fn lock(&mut self, id: RecordId) -> bool {
        self.locked.insert(id.0)
    }

    pub(crate) fn unlock(&mut self, id: RecordId) {
        self.locked.remove(&id.0);
    }

    pub(crate) fn collect(&mut self, limit: usize, now: i64) -> u64 {
        let expired = self.expiring.iter().take_while(|(expires, _)| *expires <= now);
        let ids: Vec<i64> = expired.take(limit).map(|(_, id)| *id).collect();
        for id in &ids {
            self.remove(*id);
        }
        ids.len() as u64
    }

    pub(crate) fn counts(&self, version: &Version) -> Counts {
        let mut counts = Counts::default();
        for ((status, dead), number) in self.counts.get(version).into_iter().flatten() {
            counts.add(*status, *dead, *number);
        }
        counts
    }

    pub(crate) fn list(&self, query: &Query) -> Vec<Record> {
        let first = query.after.map_or(i64::MIN, |after| after.0.saturating_add(1));
        let matching = self.rows.range(first..).filter(|(_, row)| row.matches(query));
        matching.take(query.limit).map(|(id, row)| row.record(*id)).collect()
    }

    pub(crate) fn requeue(&mut self, records: &[RecordId], state: &State, now: i64) -> u64 {
        let mut requeued = 0;
        for RecordId(id) in records {
            if self.rows.get(id).is_some_and(Row::is_terminal) {
                self.change(*id, |row| row.write(state, now));
                requeued += 1;
            }
        }
        requeued
    }

    pub(crate) fn delete(&mut self, records: &[RecordId]) -> u64 {
        let mut deleted = 0;
        for RecordId(id) in records {
            if self.rows.get(id).is_some_and(|row| row.status != Status::Queued) {
                self.remove(*id);
                deleted += 1;
            }
        }
        deleted
    }
}

/// Everything that is stored.
#[derive(Debug, Default)]
pub(crate) struct Database {
    published: Records,
    received: Records,
    /// The end of each node's lease.
    nodes: HashMap<NodeId, i64>,
    /// Who has each chore, and until when.
    chores: HashMap<Chore, (NodeId, i64)>,
    /// Outbox keys that open transactions have inserted, and the transaction that did.
    pub(crate) reserved: HashMap<Key, u64>,
    pub(crate) business: BTreeMap<String, String>,
    last_tx: u64,
    ahead: Duration,
    latest: i64,
}

impl Database {
    /// Now, by this database's clock. It never goes back, though the host's may.
    pub(crate) fn now(&mut self) -> i64 {
        let host = Timestamp::from(SystemTime::now()).as_micros();
        self.latest = self.latest.max(after(host, self.ahead));
        self.latest
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.ahead = self.ahead.saturating_add(by);
    }

    pub(crate) fn next_tx(&mut self) -> u64 {
        self.last_tx += 1;
        self.last_tx
    }

    pub(crate) fn records(&mut self, table: Table) -> &mut Records {
        match table {
            Table::Outbox => &mut self.published,
            Table::Inbox => &mut self.received,
        }
    }

    /// How many records there are, those of open transactions included.
    pub(crate) fn len(&self) -> usize {
        self.published.len() + self.received.len() + self.reserved.len()
    }

    /// Inserts without a transaction around it. The caller has checked the limits.
    pub(crate) fn insert(&mut self, table: Table, record: &NewRecord, claim: Option<Claim>, now: i64) -> Inserted {
        let records = self.records(table);
        let row = Row::new(record, claim, now);
        if records.has(&row.key()) {
            return Inserted::Duplicate;
        }
        let id = records.next_id();
        records.insert(id, row);
        Inserted::Stored(RecordId(id))
    }

    pub(crate) fn is_registered(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    pub(crate) fn renew(&mut self, node: NodeId, lease: Duration, now: i64) {
        self.nodes.insert(node, after(now, lease));
    }

    /// The last signs of life of the nodes other than `node`.
    pub(crate) fn signs_beside(&self, node: NodeId) -> Vec<Sign> {
        let others = self.nodes.iter().filter(|(other, _)| **other != node);
        others.map(|(node, end)| Sign { node: *node, until: Timestamp::from_micros(*end) }).collect()
    }

    /// Forgets those of the nodes that have given no other sign, and answers them.
    pub(crate) fn forget_dead(&mut self, dead: &[Sign]) -> Vec<NodeId> {
        let is_dead =
            |node: &NodeId, end: &mut i64| dead.iter().any(|sign| sign.node == *node && sign.until.as_micros() == *end);
        let forgotten = self.nodes.extract_if(is_dead).map(|(node, _)| node).collect();
        self.free_chores();
        forgotten
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.free_chores();
    }

    /// Nobody has a chore whose node is forgotten.
    fn free_chores(&mut self) {
        let Self { nodes, chores, .. } = self;
        chores.retain(|_, (node, _)| nodes.contains_key(node));
    }

    /// Whether the node has the chore now: it has had it, or nobody has any more.
    pub(crate) fn take_chore(&mut self, chore: Chore, node: NodeId, term: Duration, now: i64) -> bool {
        let is_free = self.chores.get(&chore).is_none_or(|(holder, end)| *holder == node || *end <= now);
        if is_free {
            self.chores.insert(chore, (node, after(now, term)));
        }
        is_free
    }

    /// Gives back, in one table, what nodes without a lease hold.
    pub(crate) fn take_from_dead(&mut self, table: Table, now: i64) -> u64 {
        let Self { published, received, nodes, .. } = self;
        let records = if table == Table::Outbox { published } else { received };
        records.take(|node| !nodes.contains_key(node), now, Counted::AsCrash)
    }
}

fn after(now: i64, duration: Duration) -> i64 {
    now.saturating_add(cap_core::time::micros(duration))
}

fn until(moment: i64, now: i64) -> Duration {
    Duration::from_micros(u64::try_from(moment.saturating_sub(now)).unwrap_or(0))
}
