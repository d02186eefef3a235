//! Every filter, update, pipeline and index, complete. The driver sends them; nothing here does.
//!
//! Invariants of both collections: `DueAt` is there exactly while a record waits; `Owner` and `Claim` are there exactly
//! while it is `Queued`; `ExpiresAt` is there exactly when it is terminal. Content is written by an insert alone.
//!
//! Four habits, each for a reason:
//! - What runs often is an equality on the first fields of an index and a range of the next, sorted as the index is: no
//!   other plan comes near, whatever the server has cached.
//! - Partial indexes have a `$gt` as their filter, and queries that should use them repeat it: so the server need not
//!   prove anything to know that the index is complete for them.
//! - Times are computed by the server: by `$$NOW` where an update is a pipeline, and from a `$$NOW` that was read in the
//!   same call where an operator (`$setOnInsert`) or an index bound wants a constant.
//! - Addresses are listed in statements of at most [`AT_ONCE`]: many statements are still one command.

use cap_core::backend::{attempts, crashes};
use cap_core::lifecycle::State;
use cap_core::storage::{Lane, NewRecord, Query, Sign, Table};
use cap_core::{Group, MessageId, NodeId, Status, Topic, Version};
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use uuid::Uuid;

use crate::row::{Moment, Times};

/// Earlier than anything that is stored.
pub(crate) const EARLY: DateTime = DateTime::from_millis(-62_135_596_800_000);

/// How many addresses one statement lists.
pub(crate) const AT_ONCE: usize = 64;

/// Indexes, by their names.
pub(crate) const DUE: &str = "cap_due";
pub(crate) const OWNER: &str = "cap_owner";
pub(crate) const EXPIRED: &str = "cap_expired";
pub(crate) const LANE: &str = "cap_lane";
const SUSPECTS: &str = "cap_suspects";
pub(crate) const MESSAGE: &str = "cap_message";

/// Those of a collection.
pub(crate) fn indexes(table: Table) -> &'static [&'static str] {
    match table {
        Table::Outbox => &[MESSAGE, DUE, OWNER, EXPIRED],
        Table::Inbox => &[MESSAGE, LANE, SUSPECTS, OWNER, EXPIRED],
    }
}

/// The document that is held while a schema is migrated.
pub(crate) const LOCK: &str = "lock";

/// How long such a lock lasts, in milliseconds, unless it is renewed: which each step does.
pub(crate) const LOCK_TERM: i64 = 60_000;

/// The names of the collections.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) prefix: String,
    pub(crate) published: String,
    pub(crate) received: String,
    pub(crate) nodes: String,
    pub(crate) chores: String,
    pub(crate) schema: String,
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Self {
        let name = |collection: &str| format!("{prefix}.{collection}");
        Self {
            prefix: prefix.to_owned(),
            published: name(Table::Outbox.as_str()),
            received: name(Table::Inbox.as_str()),
            nodes: name("nodes"),
            chores: name("chores"),
            schema: name("schema"),
        }
    }

    pub(crate) fn of(&self, table: Table) -> &str {
        match table {
            Table::Outbox => &self.published,
            Table::Inbox => &self.received,
        }
    }
}

pub(crate) fn binary(id: Uuid) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() })
}

pub(crate) fn by_node(node: NodeId) -> Document {
    doc! { "_id": binary(node.0) }
}

/// The version of the schema and the server's clock, if there is a schema.
pub(crate) fn clock() -> Vec<Document> {
    vec![
        doc! { "$match": { "Version": { "$gt": 0 } } },
        doc! { "$sort": { "Version": -1 } },
        doc! { "$limit": 1 },
        doc! { "$project": { "Version": 1, "Now": "$$NOW" } },
    ]
}

/// The server's clock, if there is such a node.
pub(crate) fn registered(node: NodeId) -> Vec<Document> {
    vec![doc! { "$match": by_node(node) }, doc! { "$project": { "Now": "$$NOW" } }]
}

/// The key of the uniqueness rule.
fn key(table: Table, record: &NewRecord) -> Document {
    let mut key = doc! { "MessageId": record.message_id.as_str() };
    if let (Table::Inbox, Some(group)) = (table, &record.group) {
        key.insert("Group", group.as_str());
    }
    key
}

/// The records of some messages, in any group.
pub(crate) fn of_messages<'m>(ids: impl Iterator<Item = &'m MessageId>) -> Document {
    doc! { "MessageId": { "$in": ids.map(MessageId::as_str).collect::<Vec<_>>() } }
}

/// An insert as an upsert: one whose key is there already changes nothing and is no error, which would end a
/// transaction. `now` is the server's.
pub(crate) struct Upsert {
    pub(crate) key: Document,
    pub(crate) fields: Document,
}

impl Upsert {
    pub(crate) fn of(table: Table, record: &NewRecord, id: i64, now: DateTime, held_by: Option<[Bson; 2]>) -> Self {
        let state = &record.state;
        let times = Times::of(state);
        let mut fields = doc! {
            "_id": id,
            "Version": record.version.as_str(),
            "Name": record.topic.as_str(),
            "Content": &*record.content,
            "Added": now,
            "Retries": attempts(state),
            "StatusName": state.status().as_str(),
            "Crashes": crashes(state),
        };
        if let Some(due) = times.due {
            fields.insert("DueAt", due.after(now));
        }
        if let Some(expires) = times.expires {
            fields.insert("ExpiresAt", expires.after(now));
        }
        if let Some(reason) = state.reason() {
            fields.insert("Reason", reason);
        }
        if let Some([owner, claim]) = held_by.filter(|_| state.status() == Status::Queued) {
            fields.insert("Owner", owner);
            fields.insert("Claim", claim);
        }
        Self { key: key(table, record), fields }
    }

    pub(crate) fn statement(self) -> Document {
        doc! { "q": self.key, "u": { "$setOnInsert": self.fields }, "upsert": true }
    }

    /// For an insert, which refuses a key that is there already.
    pub(crate) fn document(self) -> Document {
        let Self { key, mut fields } = self;
        fields.extend(key);
        fields
    }
}

/// What of a lane is due `now`, but for some topics; in the index of [`waiting`], in its order.
pub(crate) fn due(version: &Version, lane: &Lane, except: &[Topic], now: DateTime) -> Document {
    let mut filter = waiting(version, lane, except);
    filter.insert("DueAt", doc! { "$gt": EARLY, "$lte": now });
    filter
}

/// What of a lane waits, be it due or not, but for some topics. In its order in the index [`DUE`] for the outbox,
/// [`LANE`] for the inbox and [`SUSPECTS`] for these.
pub(crate) fn waiting(version: &Version, lane: &Lane, except: &[Topic]) -> Document {
    let mut filter = doc! { "Version": version.as_str() };
    match lane {
        Lane::Outbox => {}
        Lane::Inbox(group) => {
            filter.insert("Group", group.as_str());
            filter.insert("Crashes", 0);
        }
        Lane::Suspects(group) => {
            filter.insert("Group", group.as_str());
            filter.insert("Crashes", doc! { "$gt": 0 });
        }
    }
    filter.insert("DueAt", doc! { "$gt": EARLY });
    if !except.is_empty() {
        filter.insert("Name", doc! { "$nin": except.iter().map(Topic::as_str).collect::<Vec<_>>() });
    }
    filter
}

/// The address of a record and how long its content is.
pub(crate) fn size() -> Document {
    let content = doc! { "$cond": [{ "$eq": [{ "$type": "$Content" }, "string"] }, "$Content", ""] };
    doc! { "Size": { "$strLenBytes": content } }
}

/// What waits in the inbox and was written by a node of the version before, which knows no crashes; in the index [`LANE`].
pub(crate) fn without_crashes() -> Document {
    doc! { "Crashes": null, "DueAt": { "$gt": EARLY } }
}

/// Such records are in the lane of those that are no suspects.
pub(crate) fn set_crashes(ids: &[i64]) -> Vec<Document> {
    many(ids, |ids| doc! { "q": { "_id": ids, "Crashes": null }, "u": { "$set": { "Crashes": 0 } }, "multi": true })
}

pub(crate) fn earliest_first() -> Document {
    doc! { "DueAt": 1, "_id": 1 }
}

/// Takes records that were due `now`, those of them that still are.
pub(crate) fn claim(ids: &[i64], now: DateTime, owner: &Bson, token: &Bson) -> Vec<Document> {
    let take = doc! {
        "$set": { "StatusName": Status::Queued.as_str(), "Owner": owner, "Claim": token },
        "$inc": { "Retries": 1 },
        "$unset": { "DueAt": "", "ExpiresAt": "" },
    };
    many(ids, |ids| {
        doc! {
            "q": { "_id": ids, "DueAt": { "$gt": EARLY, "$lte": now }, "Owner": { "$exists": false } },
            "u": take.clone(),
            "multi": true,
        }
    })
}

/// A statement for each so many addresses.
fn many(ids: &[i64], statement: impl FnMut(Document) -> Document) -> Vec<Document> {
    ids.chunks(AT_ONCE).map(|ids| doc! { "$in": ids.to_vec() }).map(statement).collect()
}

/// What a claim holds.
pub(crate) fn held(owner: &Bson, token: &Bson) -> Document {
    doc! { "Owner": owner, "Claim": token, "StatusName": Status::Queued.as_str() }
}

/// One record that is held under a token.
pub(crate) fn still_held(id: i64, token: &Bson) -> Document {
    doc! { "_id": id, "Claim": token, "StatusName": Status::Queued.as_str() }
}

/// Those of many that are held.
pub(crate) fn all_held(ids: &[i64]) -> Document {
    doc! { "_id": { "$in": ids.to_vec() }, "StatusName": Status::Queued.as_str() }
}

/// The fields of a state, as a pipeline.
pub(crate) fn write(state: &State) -> Vec<Document> {
    let times = Times::of(state);
    let mut set = doc! {
        "StatusName": state.status().as_str(),
        "Retries": attempts(state),
        "Crashes": crashes(state),
    };
    let mut unset = Vec::new();
    let mut field = |name: &str, value: Option<Bson>| match value {
        Some(value) => drop(set.insert(name, value)),
        None => unset.push(Bson::from(name)),
    };
    field("DueAt", times.due.map(Moment::expression));
    field("ExpiresAt", times.expires.map(Moment::expression));
    // A literal: a reason may begin with a dollar sign.
    field("Reason", state.reason().map(|reason| doc! { "$literal": reason }.into()));
    if state.status() != Status::Queued {
        unset.extend(["Owner", "Claim"].map(Bson::from));
    }
    let mut pipeline = vec![doc! { "$set": set }];
    if !unset.is_empty() {
        pipeline.push(doc! { "$unset": unset });
    }
    pipeline
}

/// Writes one state of many records that are held under one token.
pub(crate) fn settle(ids: &[i64], token: &Bson, state: &State) -> Vec<Document> {
    let update = write(state);
    many(ids, |ids| {
        doc! {
            "q": { "_id": ids, "Claim": token, "StatusName": Status::Queued.as_str() },
            "u": update.clone(),
            "multi": true,
        }
    })
}

/// What makes a held record due at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// The attempt has begun and counts, and its process is dead.
    AsCrash,
    /// It never took place.
    No,
}

/// Makes held records due at once, those of them that `owners` still have.
pub(crate) fn give_back(ids: &[i64], holder: &Document, counted: Counted) -> Vec<Document> {
    let crashes = doc! { "$ifNull": ["$Crashes", 0] };
    let mut set = doc! { "StatusName": Status::Scheduled.as_str(), "DueAt": "$$NOW" };
    match counted {
        Counted::AsCrash => set.insert("Crashes", doc! { "$add": [crashes, 1] }),
        Counted::No => {
            set.insert("Crashes", crashes);
            set.insert("Retries", doc! { "$max": [{ "$subtract": ["$Retries", 1] }, 0] })
        }
    };
    let update = vec![doc! { "$set": set }, doc! { "$unset": ["Owner", "Claim"] }];
    many(ids, |ids| {
        let mut filter = doc! { "_id": ids, "StatusName": Status::Queued.as_str() };
        filter.extend(holder.clone());
        doc! { "q": filter, "u": update.clone(), "multi": true }
    })
}

/// What a node holds, or what it holds under one token; in the index [`OWNER`].
pub(crate) fn holder(owner: NodeId, token: Option<Uuid>) -> Document {
    let mut holder = doc! { "Owner": binary(owner.0) };
    if let Some(token) = token {
        holder.insert("Claim", binary(token));
    }
    holder
}

/// All who hold something.
pub(crate) fn owners() -> Vec<Document> {
    vec![doc! { "$match": { "Owner": { "$exists": true } } }, doc! { "$group": { "_id": "$Owner" } }]
}

/// The dead, among those who hold something.
pub(crate) fn among(owners: &[Bson]) -> Document {
    doc! { "$in": owners.to_vec() }
}

/// In the index [`EXPIRED`].
pub(crate) fn expired(now: DateTime) -> Document {
    let mut filter = terminal();
    filter.insert("ExpiresAt", doc! { "$gt": EARLY, "$lte": now });
    filter
}

fn terminal() -> Document {
    doc! {
        "$or": [
            { "StatusName": Status::Succeeded.as_str() },
            { "StatusName": Status::Failed.as_str(), "DueAt": { "$exists": false } },
        ],
        "Owner": { "$exists": false },
    }
}

/// Deletes expired records.
pub(crate) fn collect(ids: &[i64], now: DateTime) -> Vec<Document> {
    many(ids, |ids| {
        let mut filter = expired(now);
        filter.insert("_id", ids);
        doc! { "q": filter, "limit": 0 }
    })
}

/// Deletes records that nobody holds.
pub(crate) fn delete(ids: &[i64]) -> Vec<Document> {
    many(ids, |ids| doc! { "q": { "_id": ids, "Owner": { "$exists": false } }, "limit": 0 })
}

/// Gives terminal records a new state.
pub(crate) fn requeue(ids: &[i64], state: &State) -> Vec<Document> {
    let update = write(state);
    many(ids, |ids| {
        let mut filter = terminal();
        filter.insert("_id", ids);
        doc! { "q": filter, "u": update.clone(), "multi": true }
    })
}

pub(crate) fn counts(version: &Version) -> Vec<Document> {
    let kind = doc! { "status": "$StatusName", "dead": { "$eq": [{ "$type": "$DueAt" }, "missing"] } };
    vec![
        doc! { "$match": { "Version": version.as_str() } },
        doc! { "$group": { "_id": kind, "number": { "$sum": 1_i64 } } },
    ]
}

/// A page, in the order of addresses.
pub(crate) fn list(query: &Query) -> Document {
    let statuses = match query.status {
        Some(status) => vec![status.as_str()],
        None => Status::ALL.map(Status::as_str).to_vec(),
    };
    let mut filter = doc! {
        "_id": { "$gt": query.after.map_or(i64::MIN, |after| after.0) },
        "StatusName": { "$in": statuses },
    };
    let fields = [
        ("MessageId", query.message_id.as_ref().map(cap_core::MessageId::as_str)),
        ("Version", query.version.as_ref().map(Version::as_str)),
        ("Name", query.topic.as_ref().map(Topic::as_str)),
        ("Group", query.group.as_ref().map(Group::as_str)),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            filter.insert(name, value);
        }
    }
    filter
}

/// The server's clock, and the earliest due time of each lane, which its number names.
pub(crate) fn next_due(names: &Names, version: &Version, lanes: &[Lane]) -> Vec<Document> {
    let mut pipeline = clock();
    for (number, lane) in (0_i64..).zip(lanes) {
        let earliest = vec![
            doc! { "$match": waiting(version, lane, &[]) },
            doc! { "$sort": earliest_first() },
            doc! { "$limit": 1 },
            doc! { "$project": { "DueAt": 1, "Lane": { "$literal": number } } },
        ];
        pipeline.push(doc! { "$unionWith": { "coll": names.of(lane.table()), "pipeline": earliest } });
    }
    pipeline
}

/// A lease from now on, of so many milliseconds.
pub(crate) fn begin_lease(lease: i64) -> Vec<Document> {
    vec![doc! { "$set": { "LeaseUntil": { "$add": ["$$NOW", lease] }, "Seen": "$$NOW" } }]
}

/// Renews a lease. With it the node tells on which of the server's sessions its transactions are.
pub(crate) fn renew_lease(lease: i64, sessions: Vec<Bson>) -> Vec<Document> {
    let until = doc! { "$add": ["$$NOW", lease] };
    vec![doc! { "$set": { "LeaseUntil": until, "Seen": "$$NOW", "Sessions": { "$literal": sessions } } }]
}

/// Ends sessions with their transactions.
pub(crate) fn kill_sessions(sessions: Vec<Bson>) -> Document {
    doc! { "killSessions": sessions }
}

/// The signs of life of the other nodes.
pub(crate) fn signs(node: NodeId) -> (Document, Document) {
    (doc! { "_id": { "$ne": binary(node.0) } }, doc! { "LeaseUntil": 1 })
}

/// A node, if it has given no other sign of life.
pub(crate) fn dead_node(sign: &Sign) -> Document {
    let mut node = by_node(sign.node);
    node.insert("LeaseUntil", DateTime::from_millis(sign.until.as_micros() / 1_000));
    node
}

/// A chore that the node has, or that was free `now`.
pub(crate) fn free_chore(chore: &str, node: &Bson, now: DateTime) -> Document {
    doc! { "_id": chore, "$or": [{ "Node": node }, { "HeldUntil": { "$lte": now } }] }
}

pub(crate) fn take_chore(node: &Bson, term: i64) -> Vec<Document> {
    vec![doc! { "$set": { "Node": node, "HeldUntil": { "$add": ["$$NOW", term] } } }]
}

/// What makes a record due: inserts of waiting records, and updates that set a due time.
pub(crate) fn made_due(names: &Names) -> Vec<Document> {
    vec![
        doc! { "$match": {
            "ns.coll": { "$in": [&names.published, &names.received] },
            "$or": [
                { "operationType": "insert", "fullDocument.DueAt": { "$exists": true } },
                { "operationType": "update", "updateDescription.updatedFields.DueAt": { "$exists": true } },
            ],
        } },
        // The resume token is in `_id`; the content is not wanted.
        doc! { "$project": { "ns": 1, "operationType": 1 } },
    ]
}

/// The lock of the migrations, free or ours.
pub(crate) fn free_lock(holder: &Bson, now: DateTime) -> Document {
    doc! { "_id": LOCK, "$or": [{ "Holder": holder }, { "HeldUntil": { "$lte": now } }] }
}

pub(crate) fn take_lock(holder: &Bson) -> Vec<Document> {
    vec![doc! { "$set": { "Holder": holder, "HeldUntil": { "$add": ["$$NOW", LOCK_TERM] } } }]
}

/// The record of a version of the schema.
fn record_version(names: &Names, version: i64) -> Document {
    doc! {
        "update": &names.schema,
        "updates": [{
            "q": { "_id": format!("version {version}") },
            "u": [{ "$set": { "Version": version, "AppliedAt": "$$NOW" } }],
            "upsert": true,
        }],
    }
}

/// The schema, one list of commands for each version, from 1. Each may be run again.
pub(crate) fn migrations(names: &Names) -> Vec<Vec<Document>> {
    let mut versions = vec![version_1(names), version_2(names)];
    for (version, commands) in (1..).zip(&mut versions) {
        commands.push(record_version(names, version));
        for command in commands {
            command.insert("writeConcern", doc! { "w": "majority" });
        }
    }
    versions
}

/// CAP's collections with our fields. Collections that .NET CAP (8 to 10) has left are taken over: stop it first.
fn version_1(names: &Names) -> Vec<Document> {
    let mut commands: Vec<Document> =
        [&names.published, &names.received, &names.nodes, &names.chores].map(|name| doc! { "create": name }).into();
    commands.extend(take_over_from_net_cap(names));
    for (name, message, due) in [
        (&names.published, doc! { "MessageId": 1 }, doc! { "Version": 1, "DueAt": 1, "_id": 1 }),
        (&names.received, doc! { "MessageId": 1, "Group": 1 }, doc! { "Version": 1, "Group": 1, "DueAt": 1, "_id": 1 }),
    ] {
        commands.push(doc! { "createIndexes": name, "indexes": [
            { "key": message, "name": MESSAGE, "unique": true, "partialFilterExpression": { "MessageId": { "$gt": "" } } },
            { "key": due, "name": DUE, "partialFilterExpression": { "DueAt": { "$gt": EARLY } } },
            { "key": { "Owner": 1, "Claim": 1 }, "name": OWNER, "sparse": true },
            { "key": { "ExpiresAt": 1 }, "name": EXPIRED, "partialFilterExpression": { "ExpiresAt": { "$gt": EARLY } } },
        ] });
    }
    commands
}

/// The lanes of the inbox. The index [`DUE`] stays: nodes of the version before claim by it while they are replaced.
fn version_2(names: &Names) -> Vec<Document> {
    let waits = doc! { "DueAt": { "$gt": EARLY } };
    let suspects = doc! { "DueAt": { "$gt": EARLY }, "Crashes": { "$gt": 0 } };
    let lane = doc! { "Crashes": 1, "Version": 1, "Group": 1, "DueAt": 1, "_id": 1, "Name": 1 };
    let suspect = doc! { "Group": 1, "Version": 1, "DueAt": 1, "_id": 1, "Name": 1 };
    let missing = doc! { "Crashes": { "$exists": false }, "DueAt": { "$gt": EARLY } };
    vec![
        doc! { "update": &names.received, "updates": [
            { "q": missing, "u": { "$set": { "Crashes": 0 } }, "multi": true },
        ] },
        doc! { "createIndexes": &names.received, "indexes": [
            { "key": lane, "name": LANE, "partialFilterExpression": waits },
            { "key": suspect, "name": SUSPECTS, "partialFilterExpression": suspects },
        ] },
    ]
}

/// Documents without a message id are .NET CAP's. In it a published document's id is the message's; a received one has
/// its message's id in the headers of its content. Deliveries of one message to one group were separate documents
/// there: the first keeps the message's id. What waits is due: now, or at the time that CAP kept in `ExpiresAt`. What
/// CAP had given up stays dead.
fn take_over_from_net_cap(names: &Names) -> Vec<Document> {
    let foreign = doc! { "MessageId": { "$exists": false } };
    let update = |name: &str, filter: Document, pipeline: Vec<Document>| {
        doc! { "update": name, "updates": [{ "q": filter, "u": pipeline, "multi": true }] }
    };
    let known = doc! { "$regexFind": {
        "input": { "$cond": [{ "$eq": [{ "$type": "$Content" }, "string"] }, "$Content", ""] },
        "regex": r#""cap-msg-id"\s*:\s*"([^"\\]{1,128})""#,
    } };
    let row = doc! { "$concat": ["row-", { "$toString": "$_id" }] };
    let first_of_each = vec![
        doc! { "$match": { "KnownId": { "$type": "string" } } },
        doc! { "$sort": { "Added": 1, "_id": 1 } },
        doc! { "$group": { "_id": { "message": "$KnownId", "group": "$Group" }, "first": { "$first": "$_id" } } },
        doc! { "$project": { "_id": "$first", "MessageId": "$_id.message" } },
        doc! { "$merge": { "into": &names.received, "on": "_id", "whenMatched": "merge", "whenNotMatched": "discard" } },
    ];
    // Before the message ids: these tell which documents are still to be done.
    let mut commands: Vec<Document> = [&names.published, &names.received]
        .into_iter()
        .flat_map(|name| {
            [waits(), given_up()].map(|(filter, pipeline)| {
                let mut all = foreign.clone();
                all.extend(filter);
                update(name, all, pipeline)
            })
        })
        .collect();
    commands.push(update(
        &names.received,
        foreign.clone(),
        vec![doc! { "$set": { "KnownId": known } }, doc! { "$set": { "KnownId": { "$first": "$KnownId.captures" } } }],
    ));
    commands.push(doc! { "aggregate": &names.received, "pipeline": first_of_each, "cursor": {} });
    commands.push(update(&names.received, foreign.clone(), vec![doc! { "$set": { "MessageId": row } }]));
    commands.push(update(&names.received, doc! { "KnownId": { "$exists": true } }, vec![doc! { "$unset": "KnownId" }]));
    commands.push(update(&names.published, foreign, vec![doc! { "$set": { "MessageId": { "$toString": "$_id" } } }]));
    commands
}

/// A document that .NET CAP cannot have written, nor an interrupted migration of ours.
pub(crate) fn not_of_net_cap(table: Table) -> Document {
    let fields = ["Version", "Name", "Content", "Added", "Retries", "StatusName"].into_iter();
    let fields = fields.chain((table == Table::Inbox).then_some("Group"));
    doc! { "$or": fields.map(|field| doc! { field: { "$exists": false } }).collect::<Vec<_>>() }
}

/// How many documents there are of each status.
pub(crate) fn statuses() -> Vec<Document> {
    vec![doc! { "$group": { "_id": "$StatusName", "number": { "$sum": 1_i64 } } }, doc! { "$sort": { "_id": 1 } }]
}

/// Documents of .NET CAP that it would have worked on, and what becomes of them. `DueAt` tells that it is done.
fn waits() -> (Document, Vec<Document>) {
    let filter = doc! { "DueAt": { "$exists": false }, "$or": [
        { "StatusName": { "$in": ["Scheduled", "Delayed", "Queued"] } },
        { "StatusName": "Failed", "Retries": { "$lt": 50 } },
    ] };
    let is = |status: &str| doc! { "$eq": ["$StatusName", status] };
    let has_a_time = doc! { "$and": [
        { "$in": ["$StatusName", ["Delayed", "Queued"]] },
        { "$eq": [{ "$type": "$ExpiresAt" }, "date"] },
    ] };
    let failed = "failed in .NET CAP: see cap-exception in the headers";
    let pipeline = vec![
        doc! { "$set": {
            "DueAt": { "$cond": [has_a_time, "$ExpiresAt", "$$NOW"] },
            "Reason": { "$cond": [is("Failed"), failed, "$Reason"] },
        } },
        doc! { "$set": { "StatusName": { "$cond": [is("Queued"), "Delayed", "$StatusName"] } } },
        doc! { "$unset": "ExpiresAt" },
    ];
    (filter, pipeline)
}

/// Documents that .NET CAP had given up.
fn given_up() -> (Document, Vec<Document>) {
    let filter = doc! { "StatusName": "Failed", "DueAt": { "$exists": false }, "Reason": { "$exists": false } };
    let fortnight: i64 = 15 * 24 * 60 * 60 * 1000;
    let pipeline = vec![doc! { "$set": {
        "Reason": "given up by .NET CAP: see cap-exception in the headers",
        "ExpiresAt": { "$ifNull": ["$ExpiresAt", { "$add": ["$$NOW", fortnight] }] },
    } }];
    (filter, pipeline)
}

#[cfg(test)]
mod tests {
    use cap_core::Due;
    use cap_core::lifecycle;

    use super::*;

    #[test]
    fn only_an_insert_writes_content() {
        let state = lifecycle::scheduled(Due::Now);
        let token = binary(Uuid::nil());
        let written = [
            claim(&[1], EARLY, &token, &token),
            settle(&[1], &token, &state),
            give_back(&[1], &doc! {}, Counted::No),
            requeue(&[1], &state),
            write(&state),
        ];
        assert!(!format!("{written:?}").contains("\"Content\""), "{written:?}");
    }

    #[test]
    fn long_lists_become_statements_of_bounded_length() {
        let ids: Vec<i64> = (0..1000).collect();
        let statements = delete(&ids);
        assert_eq!(statements.len(), 1000_usize.div_ceil(AT_ONCE));
        assert!(delete(&[]).is_empty());
    }

    #[test]
    fn a_reason_that_looks_like_a_field_is_written_as_it_is() {
        let rules = lifecycle::Rules {
            retry: cap_core::RetryPolicy::default(),
            keep_succeeded: std::time::Duration::ZERO,
            keep_dead: std::time::Duration::ZERO,
        };
        let failed = lifecycle::Outcome::Failed("$Owner".to_owned());
        let pipeline = write(&lifecycle::settle(&lifecycle::Begun::first(), failed, &rules, 0.0));
        let reason = pipeline[0].get_document("$set").unwrap().get_document("Reason").unwrap();
        assert!(reason.get_str("$literal").unwrap().contains("$Owner"), "{pipeline:?}");
    }

    #[test]
    fn the_key_of_the_inbox_has_the_group() {
        let record = NewRecord {
            message_id: MessageId::try_from("m").unwrap(),
            version: Version::default(),
            topic: Topic::try_from("t").unwrap(),
            group: Some(Group::try_from("g").unwrap()),
            content: "{}".into(),
            state: lifecycle::scheduled(Due::Now),
        };
        assert_eq!(key(Table::Inbox, &record), doc! { "MessageId": "m", "Group": "g" });
        assert_eq!(key(Table::Outbox, &record), doc! { "MessageId": "m" });
    }
}
