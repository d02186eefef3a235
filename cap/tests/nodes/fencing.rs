//! A node that is cut off from the database knows that it has lost what it held, and another goes on with it.

use std::future::ready;

use cap::handler::Handler;
use cap::postgres::PostgresStorage;
use cap::postgres::sqlx;
use cap::{Context, Json, MessageId, NodeId, State, Status, Step, Subscribe, Tx};

use crate::support::{At, Deaf, Effect, Gate, Gates, Node, Run, Scene, TOPIC, effect, options, soon, until};

/// Node `a` has a message at work, and node `b` is there to take over.
struct Stage {
    scene: Scene,
    a: Node,
    b: Node,
    message: MessageId,
    /// On node `a`, and the id that the node has then.
    run: Run,
    former: NodeId,
}

impl Stage {
    async fn set<Args>(handler: impl Handler<Args>) -> Self {
        let scene = Scene::new().await;
        let group = scene.group("billing");
        let subscription = || Subscribe::to(TOPIC, handler.clone()).group(&group);
        let a = scene.start("a", options(), |cap| cap.subscription(subscription())).await;
        let message = a.publish(1).await;
        let run = scene.gates.next().await;
        // The broker is done with it.
        a.steps.until(Step::OutboxSettled, &message).await;
        a.steps.until(Step::Acknowledged, &message).await;
        let former = a.cap.health().node.unwrap();
        let b = scene.start("b", options(), |cap| cap.subscription(subscription())).await;
        Self { scene, a, b, message, run, former }
    }

    /// Waits until node `b` has the message at work.
    async fn taken_over(&self) -> Run {
        let run = self.scene.gates.next().await;
        assert_eq!((run.node, run.context.attempt()), ("b", 2));
        run
    }

    /// Waits until node `b` has done the work.
    async fn done_by_b(&self) {
        drop(self.taken_over().await);
        self.b.steps.until(Step::InboxSettled, &self.message).await;
    }

    /// Node `a` can reach the database again, and goes on under a new id.
    async fn a_is_back(&self) {
        self.a.database.mend();
        until("node a, under a new id", async || self.a.cap.health().node.filter(|id| *id != self.former)).await;
    }

    /// The handler on node `a` ends, and what becomes of it is decided.
    async fn a_ends(run: Run, a: &Node, message: &MessageId) {
        drop(run);
        a.steps.until(Step::HandlerEnded, message).await;
    }
}

fn gated() -> impl Handler<(Gate,)> {
    |_: Gate| ready(())
}

/// What a fenced node cannot end before it goes on by itself.
fn deaf() -> impl Handler<(Deaf,)> {
    |_: Deaf| ready(())
}

/// Asks for its transaction when it is let through.
async fn late(
    _: Deaf,
    at: State<At>,
    context: Context,
    number: Json<i32>,
    tx: Tx<PostgresStorage>,
) -> sqlx::Result<()> {
    effect(at, context, number, tx).await
}

/// Has written, in its transaction, when it comes to its gate.
async fn slow(
    State(at): State<At>,
    State(gates): State<Gates>,
    context: Context,
    Json(number): Json<i32>,
    mut tx: Tx<PostgresStorage>,
) -> sqlx::Result<()> {
    let insert = sqlx::query("INSERT INTO effects VALUES ($1, $2, $3)");
    insert.bind(context.group().as_str()).bind(number).bind(at.0).execute(&mut **tx).await?;
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(gates.pass(at, context)));
    Ok(())
}

/// Where the effect happened: once, and there.
async fn effect_on(scene: &Scene) -> Vec<String> {
    scene.effects().await.into_iter().map(|Effect { node, .. }| node).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_renew_its_lease_cancels_its_handlers() {
    let stage = Stage::set(gated()).await;
    stage.a.database.cut();
    soon("the cancellation", stage.run.context.cancelled()).await;
    assert_eq!(stage.a.cap.health().node, None);
    stage.a_is_back().await;
    drop(stage.run);
    stage.scene.clean_up([stage.a, stage.b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_heartbeats_get_no_answer_cancels_its_handlers() {
    let stage = Stage::set(gated()).await;
    stage.a.database.stall();
    soon("the cancellation", stage.run.context.cancelled()).await;
    assert_eq!(stage.a.cap.health().node, None);
    stage.a_is_back().await;
    drop(stage.run);
    stage.scene.clean_up([stage.a, stage.b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_held_that_cannot_renew_its_lease_goes_on_elsewhere() {
    let stage = Stage::set(gated()).await;
    stage.a.database.cut();
    // By itself, as nothing lets it through its gate.
    soon("the end of the handler", stage.a.steps.until(Step::HandlerEnded, &stage.message)).await;
    stage.done_by_b().await;
    let record = stage.b.received(&stage.message).await;
    assert_eq!((record.status, record.attempts), (Status::Succeeded, 2));
    stage.a_is_back().await;
    drop(stage.run);
    stage.scene.clean_up([stage.a, stage.b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_settlement_of_a_fenced_node_is_lost() {
    let stage = Stage::set(deaf()).await;
    stage.a.database.cut();
    stage.done_by_b().await;
    stage.a_is_back().await;
    let done = stage.b.received(&stage.message).await;
    let Stage { scene, a, b, message, run, .. } = stage;
    Stage::a_ends(run, &a, &message).await;

    // What node `a` settles after it bears witness.
    b.cap.stop().await;
    let witness = a.publish(2).await;
    drop(scene.gates.next().await);
    a.steps.until(Step::InboxSettled, &witness).await;
    assert!(!a.steps.messages(Step::InboxSettled).contains(&message), "the settlement was written");
    assert_eq!(a.received(&message).await, done);
    scene.clean_up([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_begins_its_transaction_too_late_has_no_effect() {
    let stage = Stage::set(late).await;
    stage.a.database.cut();
    stage.done_by_b().await;
    stage.a_is_back().await;
    let Stage { scene, a, b, message, run, .. } = stage;
    Stage::a_ends(run, &a, &message).await;
    assert_eq!(effect_on(&scene).await, ["b"]);
    scene.clean_up([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_whose_transaction_is_cut_off_has_no_effect() {
    let stage = Stage::set(slow).await;
    stage.a.database.cut();
    stage.done_by_b().await;
    stage.a_is_back().await;
    let Stage { scene, a, b, message, run, .. } = stage;
    Stage::a_ends(run, &a, &message).await;
    assert_eq!(effect_on(&scene).await, ["b"]);
    scene.clean_up([a, b]).await;
}
