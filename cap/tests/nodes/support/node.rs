//! Nodes, and the scene that they share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cap::postgres::sqlx::{self, Row};
use cap::postgres::{PostgresOptions, PostgresStorage};
use cap::storage::{Query, Record, Storage};
use cap::{Cap, CapBuilder, Context, Json, MessageId, Options, State, Step, Table, Tx};
use tokio::sync::watch;

use super::broker::Broker;
use super::proxy::Proxy;
use super::{Database, Gates, PATIENCE, soon};

/// The topic of all messages; each test has an exchange of its own.
pub(crate) const TOPIC: &str = "order.placed";

/// Short, but with room for a heartbeat that is late because the machine is busy.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

pub(crate) fn options() -> Options {
    Options {
        lease: LEASE,
        heartbeat: Duration::from_millis(300),
        // What waits at a gate in the end is cut off, with a second for signing off.
        drain: Duration::from_secs(3),
        ..Options::default()
    }
}

/// Which node it is; a state of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At(pub(crate) &'static str);

/// A transactional handler: one row for each time that its effect happened.
pub(crate) async fn effect(
    State(At(node)): State<At>,
    context: Context,
    Json(number): Json<i32>,
    mut tx: Tx<PostgresStorage>,
) -> Result<(), sqlx::Error> {
    let insert = sqlx::query("INSERT INTO effects VALUES ($1, $2, $3)");
    insert.bind(context.group().as_str()).bind(number).bind(node).execute(&mut **tx).await?;
    Ok(())
}

/// A row that [`effect`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) group: String,
    pub(crate) number: i32,
    pub(crate) node: String,
}

/// A database and a part of a broker, for the nodes of one test.
pub(crate) struct Scene {
    pub(crate) database: Database,
    pub(crate) gates: Gates,
    broker: Broker,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let run = MessageId::generate();
        let database = Database::create(&run).await;
        database.run(r#"CREATE TABLE effects ("group" TEXT, number INT, node TEXT)"#).await;
        Self { database, gates: Gates::new(), broker: Broker::new(&run) }
    }

    pub(crate) fn group(&self, name: &str) -> String {
        self.broker.group(name)
    }

    /// Starts a node that does what `with` adds.
    pub(crate) async fn start(
        &self,
        name: &'static str,
        options: Options,
        with: impl FnOnce(CapBuilder<Arc<PostgresStorage>>) -> CapBuilder<Arc<PostgresStorage>>,
    ) -> Node {
        let database = Proxy::to(Database::place()).await;
        let pool = self.database.pool_through(&database.place, name);
        // So patient that only the engine can tell that the lease is over.
        let limits = PostgresOptions::default().connect_timeout(PATIENCE * 2).statement_timeout(PATIENCE * 2);
        let steps = Steps::default();
        let told = steps.clone();
        let builder = Cap::builder()
            .storage(PostgresStorage::with_pool(pool, limits).unwrap())
            .transport(self.broker.transport())
            .options(options)
            .state(At(name))
            .state(self.gates.clone())
            .on_step(move |step, id| told.tell(step, id));
        let cap = with(builder).start().await.unwrap();
        Node { cap, database, steps }
    }

    pub(crate) async fn effects(&self) -> Vec<Effect> {
        let select = r#"SELECT "group", number, node FROM effects ORDER BY "group", number, node"#;
        self.database.rows(select, |row| Effect { group: row.get(0), number: row.get(1), node: row.get(2) }).await
    }

    pub(crate) async fn clean_up(&self, nodes: impl IntoIterator<Item = Node>) {
        for node in nodes {
            node.cap.stop().await;
        }
        self.broker.clean_up().await;
        self.database.drop().await;
    }
}

pub(crate) struct Node {
    pub(crate) cap: Cap<PostgresStorage>,
    /// Its way to the database.
    pub(crate) database: Proxy,
    pub(crate) steps: Steps,
}

impl Node {
    /// Publishes one message; gives its id.
    pub(crate) async fn publish(&self, number: i32) -> MessageId {
        self.cap.publish(TOPIC, &number).await.unwrap().id().clone()
    }

    /// The inbox record of a message that one group gets.
    pub(crate) async fn received(&self, id: &MessageId) -> Record {
        let query = Query { message_id: Some(id.clone()), limit: 2, ..Query::default() };
        let [record] = <[Record; 1]>::try_from(self.cap.storage().list(Table::Inbox, query).await.unwrap()).unwrap();
        record
    }
}

/// What a node has done, step by step.
#[derive(Clone, Default)]
pub(crate) struct Steps(Arc<watch::Sender<BTreeSet<(Step, MessageId)>>>);

impl Steps {
    fn tell(&self, step: Step, id: &MessageId) {
        self.0.send_if_modified(|told| told.insert((step, id.clone())));
    }

    /// Waits until it has done this.
    pub(crate) async fn until(&self, step: Step, id: &MessageId) {
        let mut told = self.0.subscribe();
        let done = told.wait_for(|told| told.contains(&(step, id.clone())));
        drop(soon(&format!("{step:?} of message {id}"), done).await.unwrap());
    }

    /// The messages that it has done this with.
    pub(crate) fn messages(&self, step: Step) -> BTreeSet<MessageId> {
        self.0.borrow().iter().filter(|(done, _)| *done == step).map(|(_, id)| id.clone()).collect()
    }
}
