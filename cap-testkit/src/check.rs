//! What a check is: a name, the promises it quotes, the capability it needs, and the function that tries.

use std::fmt;

use cap_core::{BoxFuture, Error};

/// The outcome of a check's function: nothing, or the text that says what was expected and what came.
pub type CheckResult<T = ()> = Result<T, Failure>;

/// Why a check failed, for the person who has to mend the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    /// A call that was to succeed and did not.
    fn from(error: Error) -> Self {
        Self(format!("a call that was to succeed answered {:?}: {error}", error.kind()))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A capability that a check needs, read from what a fixture says that it offers.
#[derive(Debug)]
pub struct Need<C: 'static> {
    /// The capability's name, as reports show it.
    pub name: &'static str,
    /// Whether it is offered.
    pub declared: fn(&C) -> bool,
}

/// What the runner must know of a fixture. Each suite implements it once, for its own object-safe fixture trait
/// (`impl Fixture for dyn TransportFixture`); who writes a fixture implements that trait, not this one.
pub trait Fixture: Send + Sync + 'static {
    /// What the backend declares and what the fixture itself can do; a [`Need`] is read from it.
    type Abilities: 'static;

    /// The abilities of this fixture.
    fn abilities(&self) -> Self::Abilities;

    /// Removes what the check left behind. Called after each check, also after one that failed.
    fn clean_up(&self) -> BoxFuture<'_, cap_core::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// The function of a check: it tries one behaviour on a fixture that no other check uses.
pub type RunCheck<F> = for<'a> fn(&'a F) -> BoxFuture<'a, CheckResult>;

/// One check of a suite. Checks are constants: a suite is a table of them.
pub struct Check<F: ?Sized + 'static, C: 'static> {
    /// Its number, for good: `T-014`.
    pub id: &'static str,
    /// What it proves, as an identifier: `a_dropped_consumer_gives_back_what_it_did_not_acknowledge`.
    pub name: &'static str,
    /// The promises of the trait that it quotes: `send/2`.
    pub promises: &'static [&'static str],
    /// The capability without which it does not apply.
    pub needs: Option<Need<C>>,
    /// The mistake that it is there to catch.
    pub catches: &'static str,
    /// Tries it.
    pub run: RunCheck<F>,
    /// Run instead where the capability is not declared: the backend must then refuse, as documented.
    pub undeclared: Option<RunCheck<F>>,
}

impl<F: ?Sized + 'static, C: 'static> fmt::Debug for Check<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Leaves a check with a [`Failure`] unless the condition holds; the text says what was expected.
///
/// ```
/// # use cap_testkit::{CheckResult, ensure};
/// fn check(found: usize) -> CheckResult {
///     ensure!(found == 1, "one record was expected, {found} were found");
///     Ok(())
/// }
/// assert_eq!(check(2).unwrap_err().text(), "one record was expected, 2 were found");
/// ```
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return ::core::result::Result::Err($crate::Failure::new(::std::format!($($text)+)));
        }
    };
}

/// Leaves a check with a [`Failure`] unless both values are equal; the text, which says what they are, is followed by
/// both.
///
/// ```
/// # use cap_testkit::{CheckResult, ensure_eq};
/// fn check(found: usize) -> CheckResult {
///     ensure_eq!(found, 1, "records");
///     Ok(())
/// }
/// assert_eq!(check(2).unwrap_err().text(), "records: found 2, expected 1");
/// ```
#[macro_export]
macro_rules! ensure_eq {
    ($found:expr, $expected:expr, $($text:tt)+) => {
        match (&$found, &$expected) {
            (found, expected) => {
                if found != expected {
                    return ::core::result::Result::Err($crate::Failure::new(::std::format!(
                        "{}: found {found:?}, expected {expected:?}",
                        ::std::format_args!($($text)+)
                    )));
                }
            }
        }
    };
}
