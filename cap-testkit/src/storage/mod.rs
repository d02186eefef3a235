//! The storage suite: what every database must do, tried on a real one.
//!
//! A backend implements [`StorageFixture`] and expands [`storage_conformance!`](crate::storage_conformance), which makes
//! one test of each check in [`CHECKS`]. [`run_all`](crate::run_all) runs the same checks without a test harness.
//!
//! Nothing sleeps: time passes by [`StorageFixture::pass`], and where the check needs to know how much of it has
//! passed, it asks the database's clock. That something is *not* claimed is shown by a witness: a record that is.

mod bounds;
mod chore;
mod claim;
pub mod faults;
mod fixture;
mod inbox;
mod lease;
mod lock;
mod memory;
mod publish;
mod refusal;
mod runtime;
pub mod scene;
mod schema;
mod settle;
mod signs;
mod suite;
mod support;
mod suspect;
mod table;
mod time;
mod transaction;
mod upkeep;

pub use faults::{FaultyFixture, Kill, StorageFault, fault_table};
pub use fixture::{HandlerTransaction, Script, ScriptEnd, StorageAbilities, StorageFixture, UserTransaction};
pub use memory::MemoryFixture;
pub use signs::{signs, take_over_from};
pub use suite::{CHECKS, PROMISES, STORAGE_FAULTS, StorageCheck};

use std::future::Future;
use std::sync::Arc;

use crate::runner;

/// The check of this number or name.
pub fn check(id_or_name: &str) -> Option<&'static StorageCheck> {
    CHECKS.iter().find(|check| check.id == id_or_name || check.name == id_or_name)
}

/// The body of one test that [`storage_conformance!`](crate::storage_conformance) expands.
#[doc(hidden)]
pub fn test<T: StorageFixture>(id: &str, make: impl Future<Output = T> + Send + 'static) {
    let check = check(id).unwrap_or_else(|| panic!("there is no storage check {id}"));
    runner::test_check(check, async { Arc::new(make.await) as Arc<dyn StorageFixture> });
}

/// The body of the test `conformance_report`.
#[doc(hidden)]
pub fn test_report<T, M>(subject: &str, mut make: impl FnMut() -> M)
where
    T: StorageFixture,
    M: Future<Output = T> + Send + 'static,
{
    runner::test_report(subject, CHECKS, || {
        let fixture = make();
        async { Arc::new(fixture.await) as Arc<dyn StorageFixture> }
    });
}

/// Expands one `#[test]` for each check of the storage suite, named like the check, and `conformance_report`.
///
/// The expression makes a [`StorageFixture`] with an empty database and is evaluated anew for each check, inside an
/// `async` function: it may await. Each test has a runtime of its own with two worker threads; Tokio need not be a
/// dependency of the backend.
///
/// `conformance_report` runs the whole suite once more, prints the table and writes the JSON to the file that the
/// environment variable `CAP_CONFORMANCE_REPORT` names, if it is set. It is ignored unless asked for:
/// `cargo test --test conformance conformance_report -- --ignored --nocapture`.
///
/// ```no_run
/// mod conformance {
///     cap_testkit::storage_conformance!(cap_testkit::storage::MemoryFixture::new());
/// }
/// ```
///
/// Two expansions in one file go into two modules.
#[macro_export]
macro_rules! storage_conformance {
    ($fixture:expr) => {
        $crate::for_each_storage_check! { $crate::__storage_tests, { $fixture } }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __storage_tests {
    ($fixture:tt $($id:literal $module:ident::$name:ident $about:tt)*) => {
        async fn conformance_fixture() -> impl $crate::storage::StorageFixture $fixture

        $(
            #[test]
            fn $name() {
                $crate::storage::test($id, conformance_fixture());
            }
        )*

        #[test]
        #[ignore = "runs the whole suite once more, to print and write its report"]
        fn conformance_report() {
            $crate::storage::test_report(env!("CARGO_PKG_NAME"), conformance_fixture);
        }
    };
}
