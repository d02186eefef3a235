//! The transport suite: what every broker must do, tried on a real one.
//!
//! A backend implements [`TransportFixture`] and expands [`transport_conformance!`](crate::transport_conformance), which
//! makes one test of each check in [`CHECKS`]. [`run_all`](crate::run_all) runs the same checks without a test harness.
//!
//! Nothing sleeps. That something does *not* arrive is shown by a witness: a message sent later that does arrive. Time
//! limits are upper bounds only: a backend that answers sooner is done sooner.

mod acknowledge;
mod consume;
pub mod faults;
mod fixture;
mod groups;
mod lifecycle;
mod neighbours;
mod outage;
mod remade;
mod routes;
mod send;
mod shape;
mod table;
mod tools;

pub use faults::{FaultyFixture, Kill, Pretence, TRANSPORT_FAULTS, TransportFault, fault_table};
pub use fixture::{TransportAbilities, TransportFixture};
pub use table::{CHECKS, PROMISES, TransportCheck};

use std::future::Future;
use std::sync::Arc;

use crate::runner;

/// The check of this number or name.
pub fn check(id_or_name: &str) -> Option<&'static TransportCheck> {
    CHECKS.iter().find(|check| check.id == id_or_name || check.name == id_or_name)
}

/// The body of one test that [`transport_conformance!`](crate::transport_conformance) expands.
#[doc(hidden)]
pub fn test<T: TransportFixture>(id: &str, make: impl Future<Output = T> + Send + 'static) {
    let check = check(id).unwrap_or_else(|| panic!("there is no transport check {id}"));
    runner::test_check(check, async { Arc::new(make.await) as Arc<dyn TransportFixture> });
}

/// The body of the test `conformance_report`.
#[doc(hidden)]
pub fn test_report<T, M>(subject: &str, mut make: impl FnMut() -> M)
where
    T: TransportFixture,
    M: Future<Output = T> + Send + 'static,
{
    runner::test_report(subject, CHECKS, || {
        let fixture = make();
        async { Arc::new(fixture.await) as Arc<dyn TransportFixture> }
    });
}

/// Expands one `#[test]` for each check of the transport suite, named like the check, and `conformance_report`.
///
/// The expression makes a [`TransportFixture`] and is evaluated anew for each check, inside an `async` function: it may
/// await. Each test has a runtime of its own with two worker threads; Tokio need not be a dependency of the backend.
///
/// `conformance_report` runs the whole suite once more, prints the table and writes the JSON to the file that the
/// environment variable `CAP_CONFORMANCE_REPORT` names, if it is set. It is ignored unless asked for:
/// `cargo test --test conformance conformance_report -- --ignored --nocapture`.
///
/// ```no_run
/// mod conformance {
///     use cap_testkit::transport::{FaultyFixture, Pretence};
///
///     cap_testkit::transport_conformance!(FaultyFixture::sound(Pretence::Server));
/// }
/// ```
///
/// Two expansions in one file go into two modules.
#[macro_export]
macro_rules! transport_conformance {
    ($fixture:expr) => {
        $crate::for_each_transport_check! { $crate::__transport_tests, { $fixture } }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __transport_tests {
    ($fixture:tt $($id:literal $module:ident::$name:ident $about:tt)*) => {
        async fn conformance_fixture() -> impl $crate::transport::TransportFixture $fixture

        $(
            #[test]
            fn $name() {
                $crate::transport::test($id, conformance_fixture());
            }
        )*

        #[test]
        #[ignore = "runs the whole suite once more, to print and write its report"]
        fn conformance_report() {
            $crate::transport::test_report(env!("CARGO_PKG_NAME"), conformance_fixture);
        }
    };
}
