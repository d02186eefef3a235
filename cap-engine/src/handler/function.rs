//! Async functions as handlers, and handlers as [`tower::Service`]s.

use std::future::Future;
use std::sync::Arc;

use cap_core::{BoxFuture, HandlerError};
use tower::util::BoxCloneSyncService;

use crate::handler::call::Call;
use crate::handler::extract::{FromCall, Requirement};
use crate::handler::handled::{Handled, IntoHandled};

/// What every handler is underneath: a service that middleware can wrap.
pub type HandlerService = BoxCloneSyncService<Call, Handled, HandlerError>;

/// A handler: an async function of up to eight arguments that each implement [`FromCall`], returning something that
/// implements [`IntoHandled`]. `Args` is the tuple of its arguments.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no handler",
    note = "a handler is an async function whose arguments implement `FromCall` (`Json<T>`, `State<S>`, `Context`, \
            `Headers`, `Message`, `Outbox`) and which returns `()`, `Json<T>` or a `Result` of these whose error \
            converts into `HandlerError`"
)]
pub trait Handler<Args>: Clone + Send + Sync + 'static {
    /// Whether it may reply.
    const REPLIES: bool = true;

    /// Handles one call.
    fn call(self, call: Call) -> BoxFuture<'static, Result<Handled, HandlerError>>;

    /// What its arguments need from the engine.
    fn requires(requirements: &mut Vec<Requirement>);

    /// The handler as a service.
    fn into_service(self) -> HandlerService {
        BoxCloneSyncService::new(tower::service_fn(move |call: Call| self.clone().call(call)))
    }
}

macro_rules! impl_handler {
    ($($arg:ident),*) => {
        impl<F, Fut, $($arg,)*> Handler<($($arg,)*)> for F
        where
            F: Fn($($arg),*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output: IntoHandled> + Send + 'static,
            $($arg: FromCall,)*
        {
            const REPLIES: bool = <Fut::Output as IntoHandled>::REPLIES;

            fn call(self, call: Call) -> BoxFuture<'static, Result<Handled, HandlerError>> {
                Box::pin(async move {
                    #[allow(non_snake_case)]
                    let future = {
                        $(let $arg = match $arg::from_call(&call).await {
                            Ok(argument) => argument,
                            Err(error) => return call.slot.finish(Err(error), |_| Ok(Vec::new())).await,
                        };)*
                        self($($arg),*)
                    };
                    let (slot, outbox) = (Arc::clone(&call.slot), call.outbox().clone());
                    drop(call);
                    let handled = future.await.into_handled();
                    slot.finish(handled, |reply| outbox.take_with_reply(reply)).await
                })
            }

            fn requires(requirements: &mut Vec<Requirement>) {
                $($arg::requires(requirements);)*
                let _ = requirements;
            }
        }
    };
}

impl_handler!();
impl_handler!(A1);
impl_handler!(A1, A2);
impl_handler!(A1, A2, A3);
impl_handler!(A1, A2, A3, A4);
impl_handler!(A1, A2, A3, A4, A5);
impl_handler!(A1, A2, A3, A4, A5, A6);
impl_handler!(A1, A2, A3, A4, A5, A6, A7);
impl_handler!(A1, A2, A3, A4, A5, A6, A7, A8);
