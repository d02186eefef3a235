//! Where the engine's side of a consumer and its thread meet.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cap_core::transport::{Delivery, DeliveryTag, Subscription};
use cap_core::{Error, ErrorKind, Group, Result};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::client::Fault;
use crate::ledger::Ledger;
use crate::place::{Place, Position};
use crate::settings::Settings;

/// How long a partition that is to go waits for what is out of it to be acknowledged.
const HAND_OVER: Duration = Duration::from_millis(500);

/// Where the engine's side and the thread of a consumer meet.
pub(crate) struct Post {
    place: String,
    pub(crate) group: Group,
    state: Mutex<State>,
    /// Wakes who waits to receive.
    arrived: Notify,
    /// Wakes the thread.
    pub(crate) bell: Notify,
    /// Wakes the thread when it waits for acknowledgements before partitions go.
    acknowledged: Condvar,
    /// Whether the group has given the consumer its partitions, be they none.
    joined: watch::Sender<bool>,
}

pub(crate) struct State {
    pub(crate) ledger: Ledger,
    /// Where to fetch from once more.
    pub(crate) seeks: Vec<Position>,
    /// Why the consumer is over.
    pub(crate) over: Option<Error>,
    /// What librdkafka reported last.
    pub(crate) fault: Option<Fault>,
    pub(crate) ending: bool,
    /// What was committed last, and may still be on its way.
    pub(crate) sent: Vec<Position>,
    /// Partitions were assigned since the thread looked.
    pub(crate) is_changed: bool,
    /// Since when it has lost its place in the group, and has not been given one again.
    pub(crate) placeless: Option<Instant>,
}

/// What the thread has to do.
pub(crate) struct Orders {
    pub(crate) seeks: Vec<Position>,
    pub(crate) room: usize,
    pub(crate) is_half_free: bool,
    pub(crate) ends: bool,
    pub(crate) may_commit: bool,
    pub(crate) is_changed: bool,
    pub(crate) placeless: Option<Instant>,
}

impl Post {
    pub(crate) fn new(settings: &Settings, wanted: &Subscription) -> Arc<Self> {
        let state = State {
            ledger: Ledger::new(settings.budget(wanted)),
            seeks: Vec::new(),
            over: None,
            fault: None,
            ending: false,
            sent: Vec::new(),
            is_changed: false,
            placeless: None,
        };
        Arc::new(Self {
            place: settings.place.clone(),
            group: wanted.group.clone(),
            state: Mutex::new(state),
            arrived: Notify::new(),
            bell: Notify::new(),
            acknowledged: Condvar::new(),
            joined: watch::Sender::new(false),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subject(&self) -> String {
        format!("group `{}` on {}", self.group, self.place)
    }

    pub(crate) fn arrived(&self) -> &Notify {
        &self.arrived
    }

    pub(crate) fn out(&self) -> usize {
        self.lock().ledger.out()
    }

    pub(crate) fn joined(&self) -> watch::Receiver<bool> {
        self.joined.subscribe()
    }

    pub(crate) fn has_joined(&self) -> bool {
        *self.joined.borrow()
    }

    /// The group has given the consumer its partitions.
    pub(crate) fn join(&self) {
        self.joined.send_replace(true);
        self.bell.notify_one();
    }

    pub(crate) fn over(&self) -> Option<Error> {
        self.lock().over.clone()
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        self.lock().fault.clone()
    }

    /// What waits, as much as may be handed out.
    pub(crate) fn take(&self, max: usize) -> Result<Vec<Delivery>> {
        let mut state = self.lock();
        match &state.over {
            Some(error) => Err(error.clone()),
            None => Ok(state.ledger.take(max)),
        }
    }

    pub(crate) fn ack(&self, tags: &[DeliveryTag]) -> Result<()> {
        let mut state = self.lock();
        self.check(&state, "acknowledge to", tags)?;
        state.ledger.ack(tags);
        drop(state);
        self.acknowledged.notify_all();
        self.bell.notify_one();
        Ok(())
    }

    pub(crate) fn release(&self, tags: &[DeliveryTag]) -> Result<()> {
        let mut state = self.lock();
        self.check(&state, "give back to", tags)?;
        let seeks = state.ledger.release(tags);
        state.seeks.extend(seeks);
        drop(state);
        self.bell.notify_one();
        Ok(())
    }

    fn check(&self, state: &State, operation: &'static str, tags: &[DeliveryTag]) -> Result<()> {
        if let Some(error) = &state.over {
            return Err(error.clone());
        }
        match state.ledger.unknown(tags) {
            None => Ok(()),
            Some((first, count)) => {
                let reason = format!("{count} of the tags are not out with this consumer");
                Err(Error::new(ErrorKind::Invalid, operation, format!("delivery {first}"), reason))
            }
        }
    }

    /// Asks the thread to commit and to leave the group.
    pub(crate) fn end(&self) {
        self.lock().ending = true;
        self.acknowledged.notify_all();
        self.bell.notify_one();
    }

    /// The consumer is over, unless it was already.
    pub(crate) fn give_up(&self, error: Error) {
        let mut state = self.lock();
        if state.over.is_none() && !state.ending {
            tracing::debug!(error.message = %error, "a consumer is over");
            state.over = Some(error);
        }
        drop(state);
        self.arrived.notify_one();
        self.bell.notify_one();
        self.joined.send_modify(|_| {});
    }

    pub(crate) fn orders(&self) -> Orders {
        let mut state = self.lock();
        Orders {
            seeks: std::mem::take(&mut state.seeks),
            room: state.ledger.room(),
            is_half_free: state.ledger.is_half_free(),
            ends: state.ending || state.over.is_some(),
            may_commit: state.ledger.is_dirty(),
            is_changed: std::mem::take(&mut state.is_changed),
            placeless: state.placeless,
        }
    }

    /// Before partitions go: nothing more of them is handed out, and what is out has a moment to be acknowledged.
    pub(crate) fn hand_over(&self, places: &[Place]) {
        let mut state = self.lock();
        state.ledger.withhold(places);
        let waits = |state: &mut State| !state.ending && state.over.is_none() && state.ledger.is_out(places);
        let waited = self.acknowledged.wait_timeout_while(state, HAND_OVER, waits);
        drop(waited);
    }
}
