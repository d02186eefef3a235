//! What a storage's error says about a batch: whether something in it is at fault, or nothing of it.

use cap_core::{Error, ErrorKind};

/// After so many failures in a row a batch is parted although the storage says that nothing in it is at fault: it may be
/// wrong.
pub(crate) const DOUBT: u32 = 5;

/// What is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Something in the batch: part it, and try again at once.
    OfSomething,
    /// Everything, at present: wait, and try again.
    OfEverything,
}

impl Refusal {
    /// Of a batch that has failed `tries` times in a row. `others_pass`: others that it was parted from were written, so
    /// it is not everything that is refused.
    pub(crate) fn of(error: &Error, tries: u32, others_pass: bool) -> Self {
        match error.kind() {
            _ if is_about_what_was_given(error) => Self::OfSomething,
            ErrorKind::Environment | ErrorKind::Internal if others_pass || tries.is_multiple_of(DOUBT) => {
                Self::OfSomething
            }
            _ => Self::OfEverything,
        }
    }

    /// Whether the storage itself says that something in it is at fault.
    pub(crate) fn is_certain(self, error: &Error) -> bool {
        self == Self::OfSomething && is_about_what_was_given(error)
    }
}

/// Whether the error is the fault of what the storage was given.
pub(crate) fn is_about_what_was_given(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Rejected | ErrorKind::Corrupt | ErrorKind::Unsupported)
}

/// Whether a claim, or an insert with one, that failed so may have taken something all the same: its answer was lost, or
/// could not be read. What is refused has taken nothing.
pub(crate) fn is_in_doubt(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::LeaseLost
        | ErrorKind::Environment
        | ErrorKind::Rejected
        | ErrorKind::Invalid
        | ErrorKind::Schema
        | ErrorKind::Unsupported => false,
        ErrorKind::Unavailable
        | ErrorKind::Corrupt
        | ErrorKind::Unroutable
        | ErrorKind::Stopped
        | ErrorKind::Internal => true,
        // A kind that a later contract has: to release what was not taken costs a call, and the other way round a message.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_that_blames_the_environment_is_believed_but_not_for_ever() {
        let error = |kind| Error::new(kind, "insert into", "the inbox", "no");
        for kind in [ErrorKind::Rejected, ErrorKind::Invalid] {
            assert_eq!(Refusal::of(&error(kind), 1, false), Refusal::OfSomething);
        }
        let blames: Vec<_> =
            (1..=DOUBT).map(|tries| Refusal::of(&error(ErrorKind::Environment), tries, false)).collect();
        assert_eq!(blames.iter().filter(|refusal| **refusal == Refusal::OfSomething).count(), 1);
        assert_eq!(Refusal::of(&error(ErrorKind::Environment), 1, true), Refusal::OfSomething);
        assert_eq!(Refusal::of(&error(ErrorKind::Unavailable), DOUBT, true), Refusal::OfEverything);
        assert!(!Refusal::OfSomething.is_certain(&error(ErrorKind::Environment)));
    }
}
