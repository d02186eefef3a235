//! Handlers that work inside the transaction that settles their record (promise 5), for storages with a synchronous
//! driver.

use std::sync::Arc;

use cap_core::storage::{Transact, Transacted};
use cap_core::{BoxFuture, Error, HandlerError};

use crate::handler::call::Call;
use crate::handler::extract::{FromCall, Requirement};
use crate::handler::handled::{Handled, IntoHandled};
use crate::handler::to_its_end;

/// A transactional handler: a function of the storage's transaction and up to six arguments that each implement
/// [`FromCall`], returning something that implements [`IntoHandled`].
///
/// It runs on the storage's own thread and must not wait for anything but the database. Its writes, what it publishes
/// through [`Outbox`](crate::Outbox), its reply and its record's success are one commit.
pub trait TransactionalHandler<S: Transact, Args>: Clone + Send + Sync + 'static {
    /// Whether it may reply.
    const REPLIES: bool = true;

    /// Handles one call in a transaction of `storage`.
    fn call(self, storage: Arc<S>, call: Call) -> BoxFuture<'static, Result<Handled, HandlerError>>;

    /// What its arguments need from the engine.
    fn requires(requirements: &mut Vec<Requirement>);
}

fn settled(transacted: Result<Transacted, Error>) -> Result<Handled, HandlerError> {
    match transacted {
        Ok(Transacted::Committed) => Ok(Handled::Settled),
        Ok(Transacted::Lost) => Ok(Handled::Lost),
        Ok(Transacted::RolledBack(error)) => Err(error),
        Err(error) => Err(HandlerError::of_storage(&error)),
    }
}

macro_rules! impl_transactional_handler {
    ($($arg:ident),*) => {
        impl<S, F, R, $($arg,)*> TransactionalHandler<S, ($($arg,)*)> for F
        where
            S: Transact,
            F: for<'a, 't> Fn(&'a mut S::Tx<'t>, $($arg),*) -> R + Clone + Send + Sync + 'static,
            R: IntoHandled,
            $($arg: FromCall + 'static,)*
        {
            const REPLIES: bool = R::REPLIES;

            fn call(self, storage: Arc<S>, call: Call) -> BoxFuture<'static, Result<Handled, HandlerError>> {
                Box::pin(async move {
                    #[allow(non_snake_case)]
                    {
                        $(let $arg = $arg::from_call(&call).await?;)*
                        let outbox = call.outbox().clone();
                        let work = move |tx: &mut S::Tx<'_>| {
                            match self(tx, $($arg),*).into_handled()? {
                                Handled::Done(reply) => Ok(outbox.take_with_reply(reply)?),
                                _ => Ok(outbox.take()),
                            }
                        };
                        let success = call.success().clone();
                        settled(to_its_end(async move { storage.transact(success, Box::new(work)).await }).await)
                    }
                })
            }

            fn requires(requirements: &mut Vec<Requirement>) {
                $($arg::requires(requirements);)*
                let _ = requirements;
            }
        }
    };
}

impl_transactional_handler!();
impl_transactional_handler!(A1);
impl_transactional_handler!(A1, A2);
impl_transactional_handler!(A1, A2, A3);
impl_transactional_handler!(A1, A2, A3, A4);
impl_transactional_handler!(A1, A2, A3, A4, A5);
impl_transactional_handler!(A1, A2, A3, A4, A5, A6);
