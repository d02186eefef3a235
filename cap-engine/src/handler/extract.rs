//! What a handler can ask for, by the types of its arguments.

use std::any::TypeId;
use std::future::Future;

use cap_core::{HandlerError, Headers, Message};
use serde::de::DeserializeOwned;

use crate::handler::call::{Call, Context, Outbox};

/// An argument of a handler.
///
/// [`Json`], [`Message`], [`Headers`], [`Context`], [`Outbox`] and [`State`] are there; implement it for types of your
/// own to share what handlers have in common.
pub trait FromCall: Sized + Send {
    /// Makes the argument.
    ///
    /// An error is the handler's failure: make it permanent if no retry can help.
    fn from_call(call: &Call) -> impl Future<Output = Result<Self, HandlerError>> + Send;

    /// Adds what it needs from the engine, so that a missing part is known when the engine is built.
    fn requires(requirements: &mut Vec<Requirement>) {
        let _ = requirements;
    }
}

/// What a handler needs from its engine: a [`State`], or a storage of a certain type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    pub(crate) kind: RequirementKind,
    pub(crate) type_id: TypeId,
    pub(crate) type_name: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequirementKind {
    State,
    Storage,
}

impl Requirement {
    pub(crate) fn state<T: 'static>() -> Self {
        Self { kind: RequirementKind::State, type_id: TypeId::of::<T>(), type_name: std::any::type_name::<T>() }
    }

    pub(crate) fn storage<T: 'static>() -> Self {
        Self { kind: RequirementKind::Storage, ..Self::state::<T>() }
    }
}

/// The payload as a value, decoded from JSON; as a handler's return value, the reply.
///
/// A payload that is no such value can never be handled: the record is dead at once, with the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Send> FromCall for Json<T> {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        call.message().json().map(Self).map_err(HandlerError::permanent)
    }
}

/// A value that was given to the builder's `state`; known to be missing when the engine is built, not when a message
/// comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State<S>(pub S);

impl<S: Clone + Send + Sync + 'static> FromCall for State<S> {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        call.services().states.get().map(Self).ok_or_else(|| {
            HandlerError::retry(format!("no state of type `{}` was given to the builder", std::any::type_name::<S>()))
        })
    }

    fn requires(requirements: &mut Vec<Requirement>) {
        requirements.push(Requirement::state::<S>());
    }
}

impl FromCall for Message {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        Ok(call.message().clone())
    }
}

impl FromCall for Headers {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        Ok(call.message().headers.clone())
    }
}

impl FromCall for Context {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        Ok(call.context().clone())
    }
}

impl FromCall for Outbox {
    async fn from_call(call: &Call) -> Result<Self, HandlerError> {
        Ok(call.outbox().clone())
    }
}
