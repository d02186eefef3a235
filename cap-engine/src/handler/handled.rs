//! What a handler's return value means.

use bytes::Bytes;
use cap_core::{HandlerError, codec};
use serde::Serialize;

use crate::handler::extract::Json;

/// A handler's success.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handled {
    /// Done; the engine settles the record. With a reply if the message asks for one.
    Done(Option<Bytes>),
    /// Done, and the record was settled in the handler's own transaction.
    Settled,
    /// The record was no longer this node's; nothing was done.
    Lost,
}

/// What a handler may return: nothing, a reply (`Json<T>`), or a `Result` of these.
pub trait IntoHandled {
    /// Whether it may be a reply: then a message that asks for one on a topic where replies may not go is not handled.
    const REPLIES: bool = true;

    /// Its meaning.
    ///
    /// # Errors
    /// The handler's failure.
    fn into_handled(self) -> Result<Handled, HandlerError>;
}

impl IntoHandled for () {
    const REPLIES: bool = false;

    fn into_handled(self) -> Result<Handled, HandlerError> {
        Ok(Handled::Done(None))
    }
}

impl IntoHandled for Handled {
    fn into_handled(self) -> Result<Handled, HandlerError> {
        Ok(self)
    }
}

impl<T: Serialize> IntoHandled for Json<T> {
    fn into_handled(self) -> Result<Handled, HandlerError> {
        let reply = codec::encode_json(&self.0).map_err(HandlerError::permanent)?;
        Ok(Handled::Done(Some(reply)))
    }
}

impl<T: IntoHandled, E: Into<HandlerError>> IntoHandled for Result<T, E> {
    const REPLIES: bool = T::REPLIES;

    fn into_handled(self) -> Result<Handled, HandlerError> {
        self.map_err(Into::into)?.into_handled()
    }
}
