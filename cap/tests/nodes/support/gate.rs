//! Handlers that end when the test lets them.

use std::sync::Arc;

use cap::handler::{Call, FromCall, Requirement};
use cap::{Context, HandlerError, State};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{At, soon};

/// A handler that has come to its gate. It goes on when this is dropped, if it was not ended before.
pub(crate) struct Run {
    pub(crate) node: &'static str,
    pub(crate) context: Context,
    _go_on: oneshot::Sender<()>,
}

/// Where handlers wait; a state of each node.
#[derive(Clone)]
pub(crate) struct Gates {
    come: mpsc::UnboundedSender<Run>,
    came: Arc<Mutex<mpsc::UnboundedReceiver<Run>>>,
}

impl Gates {
    pub(crate) fn new() -> Self {
        let (come, came) = mpsc::unbounded_channel();
        Self { come, came: Arc::new(Mutex::new(came)) }
    }

    /// The next handler that comes to a gate.
    pub(crate) async fn next(&self) -> Run {
        let mut came = self.came.lock().await;
        soon("a handler at its gate", came.recv()).await.unwrap()
    }

    /// Whether another handler has come.
    pub(crate) async fn is_empty(&self) -> bool {
        self.came.lock().await.is_empty()
    }

    pub(crate) async fn pass(&self, At(node): At, context: Context) {
        let (go_on, gone) = oneshot::channel();
        self.come.send(Run { node, context, _go_on: go_on }).unwrap_or_else(|_| unreachable!("the receiver is ours"));
        let _ = gone.await;
    }
}

/// An argument of a handler that is there when the test lets it: what follows it is asked for later.
pub(crate) struct Gate;

impl FromCall for Gate {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        let State(gates) = State::<Gates>::from_call(call).await?;
        let State(at) = State::<At>::from_call(call).await?;
        gates.pass(at, call.context().clone()).await;
        Ok(Self)
    }

    fn requires(requirements: &mut Vec<Requirement>) {
        State::<Gates>::requires(requirements);
        State::<At>::requires(requirements);
    }
}

/// The same in a handler that cannot be ended while it waits: it keeps its thread.
pub(crate) struct Deaf;

impl FromCall for Deaf {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        let at_its_gate = Gate::from_call(call);
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(at_its_gate))?;
        Ok(Self)
    }

    fn requires(requirements: &mut Vec<Requirement>) {
        Gate::requires(requirements);
    }
}
